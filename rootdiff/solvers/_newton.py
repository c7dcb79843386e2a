"""Newton's method with a backtracking line search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._iterate import IterativeSolver, norm2, running, signs
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff.linear._base import LinearSolver
from rootdiff.linear._lu import LU
from rootdiff.solvers._line_search import Trial, backtrack
from rootdiff.solvers._radius import CONTRACTION

#: Armijo's constant; the usual value, small so that any real decrease will do.
_ARMIJO = 1e-4
#: A simplified correction this much shorter than the last one estimates the error: a multiple root contracts less.
_FAST = 0.1
#: A residual up to this many times the change that roundings of y bring about may be nothing but rounding: whether it
#: is, is asked where a step did not reduce it so far.
_NOISY, _FALLING = 10.0, 0.5


class NewtonState(NamedTuple):
    """Iterate, residual, error estimate, status, factors of the last Jacobian; the last norms of f, newest first."""

    y: Array
    f: Array
    error: Array
    status: Array
    factors: tuple[Array, Array] | None
    norms: Array


@dataclass(frozen=True, kw_only=True)
class Newton(IterativeSolver):
    """Newton's method, globalised by Armijo backtracking on the sum of squares.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the simplified Newton correction (with the last factors, at the
        new iterate) where it contracts fast, else the last correction, once that is taken in full.
    linear : LinearSolver
        Solves for the Newton direction: `LU`, or `GMRES` for a matrix-free solve (see `NewtonKrylov` for one
        with adapted tolerances).
    memory : int
        Last norms of f of which the largest must be undercut: 1 demands a decrease in every step, more
        (non-monotone line search) lets the iterates follow a curved valley with longer steps.

    References
    ----------
    Dennis & Schnabel (1996), "Numerical Methods for Unconstrained Optimization and Nonlinear Equations",
    algorithms A6.3.1 and 6.5. Deuflhard (2011), "Newton Methods for Nonlinear Problems", section 2.1, for the
    (simplified) correction as error estimate. Grippo, Lampariello & Lucidi (1986), "A nonmonotone line search
    technique for Newton's method".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.Newton(max_steps=20)
    >>> sol = rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]), solver=solver)
    >>> sol.y
    array([2.])
    """

    max_steps: int = 100
    linear: LinearSolver = field(default_factory=LU)
    memory: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ArgumentError(f"Newton: memory is {self.memory!r}; it must be at least 1.")

    def init(self, residual: Residual, y: Array) -> NewtonState:
        xp = residual.xp
        f = residual(y)
        factors = self.linear.start(residual.backend, y)
        norms = xp.stack([norm2(xp, f)] * self.memory, axis=-1)
        return NewtonState(y, f, xp.full_like(y, xp.inf), running(xp, y), factors, norms)

    def step(self, residual: Residual, state: NewtonState) -> NewtonState:
        xp = residual.xp
        y, f = state.y, state.f
        direction, info = self.linear.solve(residual.operator(y), -f)
        solvable = xp.all(xp.isfinite(direction), axis=-1)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = state.norms[..., 0]
        trial = armijo(residual, y, direction, size, _bound(residual, state))
        status = xp.where(trial.accepted, int(Status.RUNNING), int(Status.STALLED))
        status = xp.where(solvable, status, int(Status.SINGULAR))
        keep = trial.accepted[..., None]
        return NewtonState(
            xp.where(keep, trial.y, y),
            xp.where(keep, trial.f, f),
            self._error(residual, direction, trial, size, info.factors),
            xp.astype(status, xp.int32),
            info.factors,
            xp.concat([xp.where(trial.accepted, trial.size, size)[..., None], state.norms[..., :-1]], axis=-1),
        )

    def _error(self, residual: Residual, direction: Array, trial: Trial, size: Array, factors: Any) -> Array:
        """Return an estimate of the error at the trial point; infinite where the step does not tell it."""
        xp = residual.xp
        error = xp.where(trusted(trial, size)[..., None], xp.abs(direction), xp.inf)
        if factors is None:
            return error
        following = residual.backend.lu_solve(factors, trial.f)
        length = norm2(xp, direction)
        theta = norm2(xp, following) / xp.where(length > 0, length, 1.0)
        # Deuflhard (2011), eq. 2.27: the simplified corrections form a geometric series of ratio theta
        return xp.where((theta <= _FAST)[..., None], xp.minimum(error, xp.abs(following) / (1 - _FAST)), error)


def _bound(residual: Residual, state: NewtonState) -> Array:
    """Return the norm that the next one must undercut, (*batch): the largest of those remembered.

    But where roundings of y change f by as much as it is, the last one: there f would go up and down for ever.
    """
    backend, xp, y, size = residual.backend, residual.xp, state.y, state.norms[..., 0]
    bound = xp.max(state.norms, axis=-1)
    if state.norms.shape[-1] == 1:
        return bound
    falling = size < _FALLING * state.norms[..., 1]
    if backend.surely_all(falling):
        return bound
    clear = falling | (size >= bound) | residual.unwanted(size)

    def lowered(y: Array, f: Array) -> Array:
        noise = norm2(xp, residual(y + 2 * xp.finfo(y.dtype).eps * xp.abs(y) * signs(xp, y, 3)) - f)
        return xp.where(clear | (size > _NOISY * noise), bound, size)

    return backend.when(xp.any(~clear), lowered, (y, state.f), bound)


def armijo(residual: Residual, y: Array, direction: Array, size: Array, bound: Array) -> Trial:
    """Backtrack along a direction on which |f|^2 / 2 has the slope -|f|^2, until it falls below `bound`^2 / 2.

    `size` is |f| at `y`, `bound` the same or that of an earlier iterate, (*batch).
    """
    xp = residual.xp
    slack = (bound / xp.where(size > 0, size, 1.0)) ** 2

    def accept(trial: Array, length: Array) -> Array:
        return trial <= xp.sqrt(xp.maximum(slack - 2 * _ARMIJO * length, 0.0)) * size

    def shorten(trial: Array, length: Array) -> Array:
        # minimum of the parabola through the value and slope at 0 and the value at the trial (A6.3.1)
        return length**2 / ((trial / size) ** 2 - 1 + 2 * length)

    return backtrack(residual, y, direction, accept, shorten)


def trusted(trial: Trial, size: Array) -> Array:
    """Return whether the correction just taken estimates the error: taken in full, and f fell as it does near a root.

    Next to a root of any multiplicity m a Newton step reduces f to less than 1/e of its size, ((m-1)/m)^m, next to a
    pole of any order to more, (m/(m+1))^m: this ratio tells them apart.
    """
    return trial.accepted & (trial.length == 1) & (trial.size <= CONTRACTION * size)
