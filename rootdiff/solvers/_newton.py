"""Newton's method with a backtracking line search."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from rootdiff._backend import Array
from rootdiff._iterate import IterativeSolver, dot, norm2, running
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff.linear._base import LinearSolver
from rootdiff.linear._lu import LU
from rootdiff.solvers._line_search import backtrack

#: Armijo's constant; the usual value, small so that any real decrease will do.
_ARMIJO = 1e-4
#: Next to a root of any multiplicity a Newton step reduces f to less than 1/e of its size, ((m-1)/m)^m,
#: next to a pole of any order to more, (m/(m+1))^m. So this ratio tells them apart.
_CONTRACTION = math.exp(-1.0)


class NewtonState(NamedTuple):
    """Iterate, residual, error estimate, status, and the factors of the last Jacobian where there are any."""

    y: Array
    f: Array
    error: Array
    status: Array
    factors: tuple[Array, Array] | None


@dataclass(frozen=True, kw_only=True)
class Newton(IterativeSolver):
    """Newton's method, globalised by Armijo backtracking on the sum of squares.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the Newton correction, trusted once it is taken in full.
    linear : LinearSolver
        Solves for the Newton direction: `LU`, or `GMRES` for a matrix-free (Newton-Krylov) solve.

    References
    ----------
    Dennis & Schnabel (1996), "Numerical Methods for Unconstrained Optimization and Nonlinear Equations",
    algorithms A6.3.1 and 6.5. Deuflhard (2011), "Newton Methods for Nonlinear Problems", chapter 2, for the
    correction as error estimate.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.Newton(max_steps=20)
    >>> sol = rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]), solver=solver)
    >>> sol.y
    array([2.])
    """

    max_steps: int = 50
    linear: LinearSolver = field(default_factory=LU)

    def init(self, residual: Residual, y: Array) -> NewtonState:
        xp = residual.xp
        f = residual(y)
        factors = self.linear.start(residual.backend, y)
        return NewtonState(y, f, xp.full_like(y, xp.inf), running(xp, y), factors)

    def step(self, residual: Residual, state: NewtonState) -> NewtonState:
        xp = residual.xp
        y, f = state.y, state.f
        direction, info = self.linear.solve(residual.operator(y), -f)
        solvable = xp.all(xp.isfinite(direction), axis=-1)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, f)

        def accept(trial: Array, length: Array) -> Array:
            # Armijo's condition for |f|^2 / 2, whose slope along the Newton direction is -|f|^2
            return norm2(xp, trial) <= xp.sqrt(1 - 2 * _ARMIJO * length) * size

        def shorten(trial: Array, length: Array) -> Array:
            # minimum of the parabola through the value and slope at 0 and the value at the trial (A6.3.1)
            ratio = dot(xp, trial / size[..., None], trial / size[..., None])
            return length**2 / (ratio - 1 + 2 * length)

        trial = backtrack(residual, y, direction, accept, shorten)
        trusted = trial.accepted & (trial.length == 1) & (norm2(xp, trial.f) <= _CONTRACTION * size)
        status = xp.where(trial.accepted, int(Status.RUNNING), int(Status.STALLED))
        status = xp.where(solvable, status, int(Status.SINGULAR))
        keep = trial.accepted[..., None]
        return NewtonState(
            xp.where(keep, trial.y, y),
            xp.where(keep, trial.f, f),
            xp.where(trusted[..., None], direction, xp.inf),
            xp.astype(status, xp.int32),
            info.factors,
        )
