"""Pseudo-transient continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rootdiff._backend import Array, status_where
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import every, is_finite, numbers, per_system, some
from rootdiff.solvers._damped import DampedSolver, Model, Weights
from rootdiff.solvers._newton_krylov import EXACT_ENOUGH


@dataclass(frozen=True, kw_only=True)
class PseudoTransient(DampedSolver):
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
    time_step: float = runtime(1.0, above=0)
    growth: float = runtime(10.0, above=1)
    mass: float = runtime(1.0)

    #: Long, since the residual may grow for a while before it falls.
    patience: ClassVar[int] = 200
    short_steps = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.mass, int | float) and self.mass == 0:
            raise ArgumentError("PseudoTransient: mass is 0; it must not be, or there is no transient.")

    # the radius is the time step: in it the step is one of implicit Euler, in half of it half of that

    def first_radius(self, xp: Any, y: Array, metric: Array) -> Array:
        return self.time_step * per_system(xp, y, 1)

    def weigh(self, xp: Any, matrix: Array, scale: Array) -> Weights:
        ones = xp.ones_like(scale)
        return Weights(scale, ones, ones)

    def regularised(self, xp: Any, matrix: Array, radius: Array) -> Array:
        index = numbers(xp, matrix[..., 0])
        identity = xp.astype(index[:, None] == index, matrix.dtype)
        return matrix + (self.mass / radius)[..., None, None] * identity

    def prepare(self, residual: Residual, model: Model, needed: Array | None) -> tuple[Array, None]:
        xp, inertia = residual.xp, (self.mass / model.radius)[..., None]
        # in each row: an unknown that its own row would move far may not have begun to; where a row depends on nothing,
        # as after an underflow, there is no Newton step
        newton_like = every(xp, xp.abs(inertia * model.newton) <= EXACT_ENOUGH * xp.abs(model.f))
        return newton_like & every(xp, some(xp, model.matrix != 0)), None

    def propose(self, residual: Residual, model: Model, prepared: None, radius: Array) -> tuple[Array, Array]:
        step = (radius / model.radius)[..., None] * model.newton
        return residual.xp.where(model.solvable[..., None], step, 0.0), radius == model.radius

    def assess(self, xp: Any, model: Model, radius: Array, step: Array, y: Array, f: Array) -> tuple[Array, Array]:
        return is_finite(xp, f) & model.solvable, 0.5 * radius

    def after(
        self, xp: Any, model: Model, newton: Array, taken: Array, size: Array, radius: Array
    ) -> tuple[Array, Array]:
        # switched evolution relaxation: Mulder & van Leer (1985)
        ratio = xp.clip(model.size / xp.where(size > 0, size, 1.0), 1 / self.growth, self.growth)
        radius = model.radius * xp.where(taken, ratio, 1 / self.growth)
        limits = xp.finfo(radius.dtype)
        longest = min(float(limits.eps) ** -2, float(limits.max))
        status = status_where(xp, taken | (radius > 1 / longest), Status.RUNNING, Status.SINGULAR)
        return xp.minimum(radius, xp.full_like(radius, longest)), status
