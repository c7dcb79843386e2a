"""A short Krylov solve that knows when to give way to a factorisation."""

from __future__ import annotations

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._patterns import pattern
from rootdiff._select import status_where
from rootdiff._solution import Status
from rootdiff._space import every, max_norm, norm2
from rootdiff.linear._base import MARGIN, LinearInfo
from rootdiff.linear._contract import SCREEN_AT
from rootdiff.linear._gmres import GMRES

#: Krylov vectors of a cycle, and what it must gain: else a factorisation is the better use of time.
_CYCLE, _GAIN = GMRES(restart=30), 1e-4
#: How exactly the probe is solved for, and each of its rows: a singular direction in which it has this share, a
#: hundredth of what it has on average among a thousand unknowns, is found out.
_PROBE, _PROBE_ROW = 1e-4, 1e-2


def attempt(operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
    """Solve A x = b, a vector (n,), by few cycles of GMRES; it has failed wherever LU might tell something else.

    As for `LU`, a small residual is not enough. Each row must have been solved for in its own units, and A must not be
    singular: which the solution of a second system tells, as in `skeel_condition`. Its right-hand side has random-like
    entries of the size of the rows, so that it is inconsistent where A is singular, and its solution large where A
    nearly is.
    """
    backend, xp = operator.backend, operator.backend.xp
    x, residual, relative = _solve(operator, rhs, MARGIN * operator.precision)
    rows = xp.maximum(*(xp.abs(operator.matvec(_weights(xp, rhs, phase))) for phase in (1, 2)))
    noise = MARGIN * rhs.shape[-1] ** 0.5 * operator.precision * (rows * max_norm(xp, x)[..., None] + xp.abs(rhs))
    solved = (relative <= MARGIN * operator.precision) & every(xp, xp.abs(residual) <= noise)

    def regular(rows: Array) -> Array:
        probe = _weights(xp, rows, 5) * rows
        z, residual, relative = _solve(operator, probe, _PROBE)
        close = (relative <= _PROBE) & every(xp, xp.abs(residual) <= _PROBE_ROW * rows)
        return close & (max_norm(xp, z) <= SCREEN_AT / operator.precision)

    trusted = backend.when(xp.any(solved), regular, (rows,), xp.zeros_like(solved)) & solved
    status = status_where(xp, trusted, Status.CONVERGED, Status.STALLED)
    return x, LinearInfo(status, relative)


def _solve(operator: LinearOperator, rhs: Array, rtol: float) -> tuple[Array, Array, Array]:
    """Return x, ``b - A x`` and its norm over that of b, after cycles until that is `rtol` or one gains too little."""
    xp = operator.backend.xp
    size = norm2(xp, rhs)
    goal = rtol * size

    def cycle(state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, residual, norm, _ = state
        x = x + _CYCLE.cycle(operator, residual, norm, goal)
        residual = rhs - operator.matvec(x)
        return x, residual, norm2(xp, residual), norm

    def gains(state: tuple[Array, ...]) -> Array:
        return (state[2] > goal) & (state[2] <= _GAIN * state[3])

    start = (xp.zeros_like(rhs), rhs, size, xp.full_like(size, xp.inf))
    x, residual, norm, _ = operator.backend.while_loop(lambda state: xp.any(gains(state)), cycle, start)
    return x, residual, norm / xp.where(size > 0, size, xp.ones_like(size))


def _weights(xp: object, like: Array, phase: int) -> Array:
    return pattern(xp, like, 0 * like[..., 0] + phase)
