"""Steps of a linear model of f, each cut until f bears it out: what methods share that differ in the step alone."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple

from rootdiff._backend import Array, select, status_where
from rootdiff._inverse import Equilibrated, Factors
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff._space import is_finite, max_norm, norm2, per_system

#: Trial points before a step is given up: each at most halves the radius, 2^-60 of it is below all rounding.
_MAX_TRIALS = 60
#: Next to a root of any multiplicity a Newton step reduces f to less than 1/e of its size; see `Newton`.
CONTRACTION = math.exp(-1.0)


class Region(NamedTuple):
    """Scale of the variables, (*batch, n), and radius, (*batch); a negative one is not set yet."""

    scale: Array
    radius: Array


class Weights(NamedTuple):
    """Scale of the variables, as kept and as used, and what divides the rows of f, all (*batch, n)."""

    scale: Array
    metric: Array
    rows: Array


class Model(NamedTuple):
    """What f is near an iterate, as far as it is linear.

    Attributes
    ----------
    y, f : array, (*batch, n). The iterate, and its residual with the rows divided.
    matrix : array, (*batch, n, n). The Jacobian, with its rows as they are.
    weights : Weights
    radius : array, (*batch). How long a step may be.
    newton : array, (*batch, n). The whole step, not finite where the matrix is singular.
    solvable : boolean array, (*batch). Whether it is finite.
    size, unit : array, (*batch). Euclidean norm of `f`; the same, or one where that is zero.
    """

    y: Array
    f: Array
    matrix: Array
    weights: Weights
    radius: Array
    newton: Array
    solvable: Array
    size: Array
    unit: Array

    def product(self, vector: Array) -> Array:
        """Return J times `vector`, (*batch, n), with the rows divided; that a matrix need not be kept."""
        return (self.matrix @ vector[..., None])[..., 0] / self.weights.rows


class Trial(NamedTuple):
    """A trial point of a step.

    Attributes
    ----------
    y, f : array, (*batch, n). The point and its residual.
    accepted : boolean array, (*batch).
    full : boolean array, (*batch). Whether the step was a whole one.
    radius : array, (*batch). The radius of the next one.
    """

    y: Array
    f: Array
    accepted: Array
    full: Array
    radius: Array


@dataclass(frozen=True, kw_only=True)
class DampedSolver(IterativeSolver):
    """A solver that solves a linear model of f in each step, and cuts the step until f bears it out.

    A method is made of functions of small arrays, which evaluate no residual: `propose` a step, `assess` its end.
    """

    @property
    def shares_its_loop(self) -> bool:
        """Whether it is these functions alone, so that a compiled chain may run it in one loop with others."""
        kind = type(self)
        return (kind.init, kind.step, kind.solve) == (DampedSolver.init, DampedSolver.step, IterativeSolver.solve)

    def init(self, residual: Residual, y: Array) -> State:
        xp = residual.xp
        region = Region(xp.zeros_like(y), -per_system(xp, y, 1))
        unknown = Equilibrated(Factors.zeros(xp, y), xp.ones_like(y))
        return State(Iterate.start(xp, y, residual(y)), region, unknown)

    @abstractmethod
    def first_radius(self, xp: Any, y: Array, metric: Array) -> Array:
        """Return the radius at the start `y`, (*batch)."""

    @abstractmethod
    def weigh(self, xp: Any, matrix: Array, scale: Array) -> Weights:
        """Return the weights for a Jacobian, where the scale of the variables was this one so far."""

    def regularised(self, xp: Any, matrix: Array, radius: Array) -> Array:
        """Return the matrix, (*batch, n, n), of the whole step."""
        return matrix

    def prepare(self, residual: Residual, model: Model, needed: Array | None) -> tuple[Array, Any]:
        """Return where a whole step is one of Newton's, (*batch), and what all proposals from `model` need.

        Only where `needed`, a boolean scalar, holds, if that is given; else anything of the same shapes.
        """
        return model.solvable, None

    @abstractmethod
    def propose(self, residual: Residual, model: Model, prepared: Any, radius: Array) -> tuple[Array, Array]:
        """Return the step within a radius, (*batch, n), and whether it is the whole step, (*batch)."""

    @abstractmethod
    def assess(self, xp: Any, model: Model, radius: Array, step: Array, y: Array, f: Array) -> tuple[Array, Array]:
        """Return whether `f`, (*batch, n), bears out the step to `y`, (*batch), and the radius of the next one."""

    def after(
        self, xp: Any, model: Model, newton: Array, taken: Array, size: Array, radius: Array
    ) -> tuple[Array, Array]:
        """Return the radius and the status after a step that is `taken` to a residual of this size, all (*batch)."""
        status = status_where(xp, newton, Status.STALLED, Status.SINGULAR)
        return radius, xp.where(taken, int(Status.RUNNING), status)

    def step(self, residual: Residual, state: State) -> State:
        """Return the state after a step.

        The error estimate is the whole Newton correction, and only where it was taken and reduced f as it does near a
        root: a step cut short says nothing about the distance to a root.
        """
        xp, backend = residual.xp, residual.backend
        (y, f, *_), region, *_ = state
        # f comes with the Jacobian of a compiled program; that of the first iterate may be of another point
        f, matrix = residual.with_jacobian(y) if backend.traced else (f, residual.jacobian(y))
        weights = self.weigh(xp, matrix, region.scale)
        radius, rows = region.radius, weights.rows
        if not backend.surely_all(radius >= 0):
            radius = xp.where(radius < 0, self.first_radius(xp, y, weights.metric), radius)
        inverse = Equilibrated(backend.lu_factor(self.regularised(xp, matrix, radius) / rows[..., None]), rows)
        newton, weighed = inverse.apply(backend, -f), f / rows
        size = norm2(xp, weighed)
        unit = xp.where(size > 0, size, 1.0)
        model = Model(y, weighed, matrix, weights, radius, newton, is_finite(xp, newton), size, unit)
        regular, prepared = self.prepare(residual, model, None)
        trial = self._searched(residual, model, prepared, f)
        new, taken = norm2(xp, trial.f / rows), trial.accepted
        trusted = taken & trial.full & regular & (new <= CONTRACTION * size)
        radius, status = self.after(xp, model, regular, taken, new, trial.radius)
        error, keep = xp.where(trusted[..., None], xp.abs(newton), xp.inf), taken[..., None]
        at = Iterate(xp.where(keep, trial.y, y), xp.where(keep, trial.f, f), error, status)
        return State(at, Region(weights.scale, radius), inverse)

    def _searched(self, residual: Residual, model: Model, prepared: Any, f: Array) -> Trial:
        """Return, per system, the first trial that is accepted, or the last one that moves y."""
        xp, y = residual.xp, model.y
        eps = xp.finfo(y.dtype).eps

        def trial(radius: Array, count: Array) -> tuple[Trial, Array, Array]:
            step, full = self.propose(residual, model, prepared, radius)
            point = residual.moved(y, step)
            value = residual(point)
            accepted, following = self.assess(xp, model, radius, step, point, value)
            over = accepted
            if not residual.backend.surely_all(accepted):
                over = accepted | (max_norm(xp, step) <= eps * max_norm(xp, y)) | (count > _MAX_TRIALS)
            going = residual.of_active(~over)
            return Trial(point, value, accepted, full, following), going, count

        def body(carry: tuple[Trial, Array, Array]) -> tuple[Trial, Array, Array]:
            return select(xp, carry[1], trial(carry[0].radius, carry[2] + 1), carry)  # type: ignore[no-any-return]

        zeros = xp.zeros_like(model.size, dtype=xp.int32)
        if residual.backend.traced:  # a compiled loop makes the first trial too; else that is known to be wanted
            start = Trial(y, f, zeros > 0, zeros > 0, model.radius), zeros == 0, zeros
        else:
            start = trial(model.radius, zeros)
        return residual.backend.while_loop(lambda carry: xp.any(carry[1]), body, start)[0]  # type: ignore[no-any-return]
