"""The choice between a direct and an iterative linear solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rootdiff._backend import Array, status_where
from rootdiff._inverse import Factors
from rootdiff._operator import LinearOperator, OfFixedPoint
from rootdiff._sizes import TRIED, fits, has_few_unknowns, is_dense, is_one_large
from rootdiff._solution import Status
from rootdiff._space import every, max_norm, norm2, per_system, waves
from rootdiff._sparse import Sparse
from rootdiff.linear._base import MARGIN, LinearInfo, LinearSolver, Point, refined, relative_size
from rootdiff.linear._contract import SCREEN_AT, checked
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._lsmr import LSMR
from rootdiff.linear._lu import LU

#: Krylov vectors of a cycle, and what it must gain: else a factorisation is the better use of time.
_CYCLE, _GAIN = 30, 1e-4
#: How exactly the probe is solved for, and each of its rows: a singular direction in which it has this share, a
#: hundredth of what it has on average among a thousand unknowns, is found out.
_PROBE, _PROBE_ROW = 1e-4, 1e-2


@dataclass(frozen=True)
class AutoLinear(LinearSolver):
    """`LU` for at most 1024 unknowns and 2^24 matrix entries in the batch, or where a factorisation is at hand.

    So too, sparse, where the pattern of the Jacobian is known. Else, for fixed points of more than 64 unknowns and few
    right-hand sides, and for one system spread over devices, `GMRES`, with what the solver knows of the inverse as
    preconditioner; the systems in which it does not reach its tolerance are solved again, by `LU` if their matrices
    have at most 2^24 entries and are not spread, else by `LSMR`.
    One system of more than 256 unknowns that `LU` would have to factor is tried in JAX by a short GMRES before, which
    is believed only if a second one shows that the matrix is not singular.

    Parameters
    ----------
    few : bool
        Whether there are few systems, so that this trial may pay.
    """

    few: bool = True

    direct = True

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        shape, known = operator.shape[:-1], self.known
        spread = operator.backend.spread
        dense, many = is_dense(shape) and not spread, not has_few_unknowns(shape)
        lu = LU().starting_from(known)
        if isinstance(operator.original, Sparse):
            return lu.solve(operator, rhs)
        # one factorisation serves all right-hand sides, each of which would have a Krylov space of its own
        several = math.prod(rhs.shape[: operator.several(rhs)])
        contracts = isinstance(operator.original, OfFixedPoint) and many and several * _CYCLE < shape[-1]
        if isinstance(known, Factors) or (dense and not contracts):
            one = not operator.several(rhs) and is_one_large(rhs.shape, TRIED)
            if one and self.few and known is None and operator.backend.traced:  # then it may save a factorisation
                return _again(operator, rhs, *attempt(operator, rhs), lu)
            return lu.solve(operator, rhs)
        first = (GMRES(max_restarts=1) if dense else GMRES()).starting_from(known, self.guess)
        x, info = checked(operator, first, rhs)
        return _again(operator, rhs, x, info, lu if fits(shape) and not spread else LSMR().starting_from(known))


def _again(
    operator: LinearOperator, rhs: Array, x: Array, info: LinearInfo, second: LinearSolver
) -> tuple[Array, LinearInfo]:
    """Return the solutions `x`, and those of the `second` solver for the systems in which they failed."""
    xp = operator.backend.xp
    failed = info.status > int(Status.AT_PRECISION)

    def solve(rhs: Array, x: Array) -> tuple[Array, Array, Array]:
        other_x, other = checked(operator, second, rhs)
        return (
            xp.where(failed[..., None], other_x, x),
            xp.where(failed, other.status, info.status),
            xp.where(failed, other.relative_residual, info.relative_residual),
        )

    known = (x, info.status, info.relative_residual)
    x, status, relative = operator.backend.when(xp.any(failed), solve, (rhs, x), known)
    return x, LinearInfo(status, relative)


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
    start = Point(xp.zeros_like(rhs), rhs, norm2(xp, rhs))
    goal, gmres = rtol * start.norm, GMRES(restart=_CYCLE)
    at = refined(operator, rhs, start, lambda at: gmres.cycle(operator, at.residual, at.norm, goal), goal, _GAIN)
    return at.x, at.residual, relative_size(xp, at.norm, start.norm)


def _weights(xp: object, like: Array, phase: int) -> Array:
    return waves(xp, like, per_system(xp, like, phase))
