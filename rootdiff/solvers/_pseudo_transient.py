"""Pseudo-transient continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Factors
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._select import status_where
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import every, is_finite, norm2, numbers, some
from rootdiff.solvers._line_search import backtrack
from rootdiff.solvers._newton import trusted
from rootdiff.solvers._newton_krylov import EXACT_ENOUGH


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(IterativeSolver):
    """Implicit Euler steps of ``mass * dy/dt = -f(y)`` that grow as the residual falls, and end as Newton steps.

    For roots that are steady states: it follows the physical transient, where Newton's method would leave the
    region in which the residual makes sense.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the step, once its time step is so long that it solves
        Newton's equation to a part in a thousand.
    time_step : float
        First time step, in units of mass times y over f.
    growth : float
        Largest factor by which the time step changes from one step to the next. Dimensionless.
    mass : float
        +1 where ``dy/dt = -f(y)`` tends to the steady state (eigenvalues of df/dy with positive real part);
        -1 for ``dy/dt = f(y)``, such as ``f = cell(z) - z``.

    References
    ----------
    Mulder & van Leer (1985), "Experiments with implicit upwind methods", for switched evolution relaxation. Kelley &
    Keyes (1998), "Convergence analysis of pseudo-transient continuation".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.PseudoTransient()
    >>> rootdiff.root(lambda y, a: np.arctan(y - a), np.array([30.0]), np.array([8.0]), solver=solver).y
    array([8.])
    """

    max_steps: int = 300
    time_step: float = runtime(1.0)
    growth: float = runtime(10.0)
    mass: float = runtime(1.0)

    #: Long, since the residual may grow for a while before it falls.
    patience: ClassVar[int] = 200
    short_steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.time_step, int | float) and not self.time_step > 0:
            raise ArgumentError(f"PseudoTransient: time_step is {self.time_step!r}; it must be positive.")
        if isinstance(self.growth, int | float) and not self.growth > 1:
            raise ArgumentError(f"PseudoTransient: growth is {self.growth!r}; it must be above 1.")
        if isinstance(self.mass, int | float) and self.mass == 0:
            raise ArgumentError("PseudoTransient: mass is 0; it must not be, or there is no transient.")

    # the memory is the time step, (*batch)

    def init(self, residual: Residual, y: Array) -> State:
        xp = residual.xp
        time_step = xp.ones_like(y[..., 0]) * self.time_step
        return State(Iterate.start(xp, y, residual(y)), time_step, Factors.zeros(xp, y))

    def step(self, residual: Residual, state: State) -> State:
        xp, backend = residual.xp, residual.backend
        (y, f, *_), last, _, search = state
        index = numbers(xp, y)
        identity = xp.astype(index[:, None] == index, y.dtype)
        inertia = (self.mass / last)[..., None]
        jacobian = residual.jacobian(y)
        factors = backend.lu_factor(jacobian + inertia[..., None] * identity)
        direction = -backend.lu_solve(factors, f)
        solvable = is_finite(xp, direction)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, f)
        trial = backtrack(residual, y, direction, search, lambda trial, length: trial >= 0)
        taken, ended = solvable & trial.accepted, trial.ended
        # in each row: an unknown that its own row would move far may not have begun to; where a row depends on nothing,
        # as after an underflow, there is no Newton step
        newton_like = every(xp, xp.abs(inertia * direction) <= EXACT_ENOUGH * xp.abs(f))
        newton_like = newton_like & every(xp, some(xp, jacobian != 0))
        believed = taken & trusted(trial, size) & newton_like
        # switched evolution relaxation: Mulder & van Leer (1985)
        new = trial.size
        ratio = xp.clip(size / xp.where(new > 0, new, 1.0), 1 / self.growth, self.growth)
        time_step = last * xp.where(ended, xp.where(taken, ratio, 1 / self.growth), xp.ones_like(ratio))
        limits = xp.finfo(y.dtype)
        longest = min(float(limits.eps) ** -2, float(limits.max))
        status = status_where(xp, taken | ~ended | (time_step > 1 / longest), Status.RUNNING, Status.SINGULAR)
        keep = taken[..., None]
        error = xp.where(believed[..., None], xp.abs(direction), xp.inf)
        return State(
            Iterate(xp.where(keep, trial.y, y), xp.where(keep, trial.f, f), error, status),
            xp.minimum(time_step, xp.full_like(time_step, longest)),
            factors,
            trial.search,
        )
