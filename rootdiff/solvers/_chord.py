"""Newton's method with a Jacobian that is used again."""

from __future__ import annotations

from dataclasses import dataclass

from rootdiff._backend import Array, select, status_where
from rootdiff._inverse import Factors
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import is_finite, norm2
from rootdiff.solvers._line_search import backtrack


@dataclass(frozen=True, kw_only=True)
class Chord(IterativeSolver):
    """Newton's method with one Jacobian for many steps, formed anew when the steps contract too little.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is ``theta / (1 - theta)`` times the last correction, where
        theta is the factor by which the corrections shrink.
    contraction : float
        Factor theta above which the Jacobian is formed anew, in (0, 1). Dimensionless.

    References
    ----------
    Kelley (1995), "Iterative Methods for Linear and Nonlinear Equations", section 5.4. Deuflhard (2011), "Newton
    Methods for Nonlinear Problems", section 2.1.2, for the error estimate of the simplified Newton method.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root(lambda y, a: y**3 - a, np.array([1.5]), np.array([8.0]), solver=rootdiff.Chord()).y
    array([2.])
    """

    max_steps: int = 200
    contraction: float = runtime(0.3, above=0, below=1)

    # the memory tells whether the factors are to be made anew, (*batch)

    def init(self, residual: Residual, y: Array) -> State:
        at = Iterate.start(residual.xp, y, residual(y))
        return State(at, at.status == int(Status.RUNNING), Factors.zeros(residual.xp, y))

    def step(self, residual: Residual, state: State) -> State:
        xp, backend = residual.xp, residual.backend
        at, renew, _, search = state
        factors = _renewed(residual, state)
        direction = -backend.lu_solve(factors, at.f)
        solvable = is_finite(xp, direction)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, at.f)

        def accept(trial: Array, length: Array | float) -> Array:
            return trial <= (1 - 1e-4 * length) * size  # Kelley (1995), eq. 8.1

        trial = backtrack(residual, at.y, direction, search, accept)
        keep = trial.accepted[..., None]
        y, f = xp.where(keep, trial.y, at.y), xp.where(keep, trial.f, at.f)
        following = backend.lu_solve(factors, f)
        length = norm2(xp, direction)
        theta = norm2(xp, following) / xp.where(length > 0, length, 1.0)
        good = trial.accepted & (trial.length == 1) & (theta <= self.contraction)
        error = xp.abs(following) / (1 - self.contraction)
        over = trial.ended & renew
        hopeless = ~trial.accepted & over
        status = status_where(xp, hopeless, Status.STALLED, Status.RUNNING)
        status = xp.where(~solvable & over, int(Status.SINGULAR), status)
        error = xp.where(good[..., None], error, xp.inf)
        return State(Iterate(y, f, error, status), xp.where(trial.ended, ~good, renew), factors, trial.search)


def _renewed(residual: Residual, state: State) -> Factors:
    """Return the factors, made anew in the systems that ask for it."""
    xp, backend = residual.xp, residual.backend

    def renew(carry: tuple[Array, Factors]) -> tuple[Array, Factors]:
        need, old = carry
        return xp.zeros_like(need), select(xp, need, backend.lu_factor(residual.jacobian(state.iterate.y)), old)

    asked, search = state.memory, state.search
    need = residual.of_active(asked if search is None else asked & ~search.trying)
    return backend.while_loop(lambda carry: xp.any(carry[0]), renew, (need, state.inverse))[1]  # type: ignore[no-any-return]
