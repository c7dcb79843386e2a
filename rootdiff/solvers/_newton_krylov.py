"""Inexact Newton with Krylov inner solves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from rootdiff._backend import Array, status_where
from rootdiff._errors import ArgumentError
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._solution import Status
from rootdiff._space import every, is_finite, norm2, per_system, waves
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._krylov import Krylov
from rootdiff.solvers._damped import CONTRACTION
from rootdiff.solvers._line_search import made_once
from rootdiff.solvers._newton import armijo, trusted

#: Eisenstat & Walker (1996): choice 2 with gamma = 0.9, alpha = 2; the safeguard's threshold; first and largest eta.
_GAMMA, _SAFEGUARD, _FIRST, _LARGEST = 0.9, 0.1, 0.5, 0.9
#: Unknowns up to which a correction is solved for to rounding: by so few products that a sloppy one saves little, while
#: next to a curved valley it costs many more steps.
_FEW = 10
#: Relative linear residual up to which an inexact correction still estimates the error of y.
EXACT_ENOUGH = 1e-3


class _Memory(NamedTuple):
    """The forcing term, (*batch), of an inner solve, its direction, (*batch, n), and the part of f that this leaves."""

    forcing: Array
    direction: Array
    relative: Array


@dataclass(frozen=True, kw_only=True)
class NewtonKrylov(IterativeSolver):
    """Matrix-free Newton: a Krylov method solves for each correction only as exactly as the convergence deserves.

    For at most ten unknowns each correction is solved to rounding accuracy.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the correction, once it was solved for to a part in a
        thousand and taken in full.
    linear : Krylov
        Solves for the corrections: `GMRES`, `BiCGStab`, or `CG` for a Jacobian that is symmetric and definite. Its rtol
        and its preconditioner are set by this solver.
    preconditioner : callable, optional
        ``preconditioner(y, v)`` returns an approximation of (df/dy)^-1 v; all are flat vectors, (*batch, n).

    References
    ----------
    Eisenstat & Walker (1996), "Choosing the forcing terms in an inexact Newton method", choice 2. Knoll & Keyes
    (2004), "Jacobian-free Newton-Krylov methods". Kelley (1995), eq. 6.20, for not solving the last one too exactly.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.NewtonKrylov(preconditioner=lambda y, v: v / (3 * y**2))
    >>> rootdiff.root(lambda y, a: y**3 - a, np.array([1.5, 1.0]), np.array([8.0, 1.0]), solver=solver).y
    array([2., 1.])
    """

    linear: Krylov = field(default_factory=lambda: GMRES(max_restarts=10))
    preconditioner: Callable[[Array, Array], Array] | None = None

    short_steps = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preconditioner is not None and not callable(self.preconditioner):
            raise ArgumentError(f"NewtonKrylov: preconditioner is {self.preconditioner!r}; it must be callable.")

    def init(self, residual: Residual, y: Array) -> State:
        xp = residual.xp
        tight = 10 * residual.backend.precision(y.dtype)
        forcing = per_system(xp, y, tight if self._spans(y) else _FIRST)
        memory = _Memory(forcing, xp.zeros_like(y), xp.zeros_like(forcing))
        return State(Iterate.start(xp, y, residual(y)), memory)

    def step(self, residual: Residual, state: State) -> State:
        xp = residual.xp
        (y, f, *_), (forcing, *known), _, search = state
        operator = residual.operator(y)

        def solve(y: Array, f: Array) -> tuple[Array, Array]:
            direction, info = self._inner(y, forcing).solve(operator, -f)
            assert info.relative_residual is not None
            return direction, info.relative_residual

        direction, relative = made_once(residual, search, solve, (y, f), tuple(known))
        solvable = is_finite(xp, direction) & (relative < 1)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, f)
        trial = armijo(residual, y, f, direction, size, search)
        ended = trial.ended
        status = status_where(xp, trial.accepted | ~ended, Status.RUNNING, Status.STALLED)
        status = xp.where(solvable, status, int(Status.SINGULAR))
        keep = trial.accepted[..., None]
        new_f = xp.where(keep, trial.f, f)
        # row by row: an equation with large coefficients must not hide that another one has not been solved
        atol = float(xp.finfo(y.dtype).eps) ** 0.75 if self.atol is None else self.atol
        allowed = self.rtol * xp.abs(y) + atol
        exact = trusted(trial, size) & (relative <= EXACT_ENOUGH)
        believed = exact & _has_fallen(residual, operator, y, f, new_f, allowed, exact)
        if not self._spans(y):
            ratio = xp.where(trial.accepted, trial.size, size) / xp.where(size > 0, size, 1.0)
            forcing = xp.where(ended, _next_forcing(residual, forcing, ratio, direction, allowed), forcing)
        error = xp.where(believed[..., None], xp.abs(direction), xp.inf)
        memory = _Memory(forcing, direction, relative)
        return State(Iterate(xp.where(keep, trial.y, y), new_f, error, status), memory, search=trial.search)

    def _spans(self, y: Array) -> bool:
        """Return whether the unknowns are few, and the Krylov space of one cycle is that of all of them."""
        n = y.shape[-1]
        return n <= min(_FEW, getattr(self.linear, "restart", None) or n)  # type: ignore[no-any-return]

    def _inner(self, y: Array, forcing: Array) -> Krylov:
        """Return the solver for the correction at `y`."""
        precondition = self.preconditioner
        if precondition is None:
            return with_settings(self.linear, rtol=forcing)
        return with_settings(self.linear, rtol=forcing, preconditioner=lambda operator, v: precondition(y, v))


def _next_forcing(residual: Residual, last: Array, ratio: Array, direction: Array, allowed: Array) -> Array:
    """Return the forcing term after the `last` one, (*batch), where a step reduced f to this `ratio`."""
    xp = residual.xp
    floor = _GAMMA * last**2
    forcing = _GAMMA * ratio**2
    forcing = xp.where(floor > _SAFEGUARD, xp.maximum(forcing, floor), forcing)
    # the next correction is about so large; to a tenth of the tolerance it need be known, and to EXACT_ENOUGH
    following = ratio * norm2(xp, direction)
    enough = 0.1 * norm2(xp, allowed) / xp.where(following > 0, following, 1.0)
    forcing = xp.maximum(forcing, xp.minimum(enough, EXACT_ENOUGH))
    return xp.clip(forcing, 10 * residual.backend.precision(last.dtype), _LARGEST)


def _has_fallen(
    residual: Residual, operator: LinearOperator, y: Array, f: Array, new: Array, allowed: Array, asked: Array
) -> Array:
    """Return whether each row of f has fallen as it does near a root, or is what changes of `y` by `allowed` explain.

    The terms of such a change may cancel in a row: among many rows in some of them. So three changes are tried, the
    second and the third where, in a system that is `asked` for, the first does not explain each row.
    """
    xp = residual.xp

    def explained(phase: int) -> Array:
        return xp.abs(operator.matvec(allowed * waves(xp, y, per_system(xp, y, phase))))

    bound = xp.maximum(CONTRACTION * xp.abs(f), explained(1))
    fallen = every(xp, xp.abs(new) <= bound)

    def further(bound: Array) -> Array:
        return every(xp, xp.abs(new) <= xp.maximum(bound, xp.maximum(explained(2), explained(3))))

    return residual.backend.when(xp.any(asked & ~fallen), further, (bound,), fallen)
