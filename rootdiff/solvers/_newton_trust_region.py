"""Newton's method for minima, within a trust region: negative curvature is a way down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from rootdiff._backend import Array, status_where
from rootdiff._bounds import condition
from rootdiff._errors import ArgumentError
from rootdiff._iterate import Iterate, State, running
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status
from rootdiff._space import dot, every, is_finite, max_norm, norm2, numbers, per_system
from rootdiff.solvers._bounded import within
from rootdiff.solvers._correct import corrected_minimum, with_error_of
from rootdiff.solvers._curvature import equilibrating
from rootdiff.solvers._damped import Model, Region, Weights
from rootdiff.solvers._minimum import Horizon, is_straight
from rootdiff.solvers._trust_region import TrustRegionSolver, borne_out

#: Moré (1978), section 5: the length of the step may differ from the radius by this part.
_SLACK = 0.1
#: The objective resolves a step that is to reduce it by more roundings than this.
_ROUNDINGS = 8.0
#: A region in which the objective falls as its model does, and no slower farther on, grows by so many times more.
_STRIDE = 8.0


class _Curvature(NamedTuple):
    """Eigenvalues of the scaled Hessian, ascending, its eigenvectors, and the scaled gradient in their basis."""

    values: Array
    vectors: Array
    slope: Array


@dataclass(frozen=True, kw_only=True)
class NewtonTrustRegion(TrustRegionSolver):
    """Newton's method for the minimum of an objective, within a scaled trust region.

    For `minimize`. Each step is the lowest point of the quadratic model in the region, so that it follows directions of
    negative curvature, also away from a saddle. It ends where the objective resolves no further step; Newton
    corrections of its gradient follow. Where the objective falls no slower at 1/eps times the size of y0 (`y_scale`),
    it is UNBOUNDED.

    Parameters
    ----------
    rtol, atol, max_steps, radius
        As for `TrustRegion`.
    scale : {"columns", "none"}
        Lengths are measured with the variables scaled so that the rows of the Hessian are alike, by the largest such
        scale so far, so that units do not matter; or as they are.

    Notes
    -----
    One Hessian, exact, and its eigenvectors per step, which any number of trial radii share.

    References
    ----------
    Moré & Sorensen (1983), "Computing a trust region step". Ruiz (2001), "A scaling algorithm to equilibrate both rows
    and columns norms in matrices".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.NewtonTrustRegion(radius=0.5)
    >>> rootdiff.minimize(lambda y, a: np.sum((y**2 - a) ** 2), np.zeros(1), 4.0, solver=solver).y.round(6) ** 2
    array([4.])
    """

    max_steps: int = 1000
    radius: float = 1.0

    patience: ClassVar[int] = 10**6  # each step reduces the objective by more than its rounding
    short_steps: ClassVar[int] = 0

    @property
    def descends(self) -> bool:
        return True

    def init(self, residual: Residual, y: Array) -> State:
        if residual.objective is None:
            raise ArgumentError(
                "solver: NewtonTrustRegion minimises an objective without constraints. Call minimize, or take 'auto'."
            )
        region = Region(residual.xp.zeros_like(y), -per_system(residual.xp, y, 1))
        return self._at(residual, y, region, running(residual.xp, y))

    def step(self, residual: Residual, state: State) -> State:
        assert residual.objective is not None
        xp, y, objective = residual.xp, state.iterate.y, residual.objective
        region, metric, value, gradient, hessian, curvature, held, horizon = state.memory
        radius = xp.where(region.radius < 0, self.first_radius(xp, y, metric), region.radius)
        values, vectors, slope = curvature
        convex = values[..., 0] > 0
        safe = xp.where(convex[..., None], values, xp.ones_like(values))
        whole = -(vectors @ (slope / safe)[..., None])[..., 0] / metric
        ones = xp.ones_like(radius)
        at = Model(
            y,
            gradient,
            hessian,
            Weights(region.scale, metric, xp.ones_like(y)),
            radius,
            whole,
            convex,
            ones,
            ones,
        )

        def change(y: Array, *parameters: Array) -> Array:
            return objective.function(y, *parameters) - value[..., None]

        changes = replace(
            objective, function=change, active=residual.active, correct=residual.correct, box=residual.box
        )
        trial = self._searched(changes, at, (curvature, held), xp.zeros_like(y[..., :1]))
        bottomless = trial.accepted & (trial.f[..., 0] == -xp.inf)
        taken = trial.accepted & ~bottomless
        way = trial.y - y
        resolved = _promised(xp, at, way) > _ROUNDINGS * float(xp.finfo(y.dtype).eps) * xp.abs(value)
        status = status_where(xp, taken & resolved, Status.RUNNING, Status.STALLED)
        straight = taken & is_straight(residual, way, gradient, hessian)
        lost = bottomless | (straight & horizon.is_passed(xp, trial.y, value, dot(xp, trial.y, gradient)))
        status = xp.where(lost, int(Status.UNBOUNDED), status)
        radius = xp.where(straight & (trial.radius > at.radius), _STRIDE * trial.radius, trial.radius)
        new_y = xp.where(taken[..., None], trial.y, y)
        new = self._at(residual, new_y, Region(region.scale, radius), status, horizon)
        return with_error_of(xp, whole, taken & trial.full, state, new)

    def propose(self, residual: Residual, model: Model, prepared: Any, radius: Array) -> tuple[Array, Array]:
        curvature, held = prepared
        if residual.box is None:
            return self._lowest(residual, model, curvature, radius)

        def beside(held: Array, step: Array) -> tuple[Array, Array]:
            slope = model.f + model.product(step)
            curvature = _curvature(residual.xp, model.matrix, slope, model.weights.metric, held)
            return self._lowest(residual, model, curvature, radius)

        return within(residual, model.y, held, *self._lowest(residual, model, curvature, radius), beside)

    def _lowest(self, residual: Residual, model: Model, curvature: _Curvature, radius: Array) -> tuple[Array, Array]:
        """Return the lowest point of the model in the region: -(H + (t - l) I)^-1 g, where l is the least eigenvalue.

        Newton's method for 1 / radius - 1 / |step|, as a function of t, climbs from a lower bound of t. In the hard
        case the gradient has no part along the eigenvector of l < 0: it is given one of a rounding.
        """
        xp, (values, vectors, slope) = residual.xp, curvature
        eps = float(xp.finfo(values.dtype).eps)
        least, largest, first = values[..., :1], values[..., -1:], slope[..., :1]
        noise = values.shape[-1] * eps * xp.maximum(xp.abs(least), xp.abs(largest))
        small = eps * xp.abs(least) * radius[..., None]
        hard = (least < -noise) & (xp.abs(first) < small)
        slope = xp.concat([xp.where(hard, xp.where(first < 0, -small, small), first), slope[..., 1:]], axis=-1)
        shift = values - least
        lowest = xp.clip(least[..., 0], 0.0)
        bounds = xp.abs(slope[..., 0]) / radius, norm2(xp, slope) / radius - shift[..., -1]

        def weights(t: Array) -> Array:
            total = shift + t[..., None]
            return xp.where(total > 0, 1 / xp.where(total > 0, total, xp.ones_like(total)), xp.zeros_like(total))

        def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            t, _, count = carry
            parts = slope * weights(t)
            length = norm2(xp, parts)
            relative = parts / xp.where(length > 0, length, 1.0)[..., None]
            decay = xp.sum(relative * relative * weights(t), axis=-1)
            excess = length / radius - 1
            unmet = residual.of_active(excess > _SLACK)
            return xp.where(unmet, t + excess / xp.where(decay > 0, decay, 1.0), t), unmet, count + 1

        start = (
            xp.maximum(lowest, xp.maximum(*bounds)),
            xp.isfinite(radius) | True,
            xp.zeros_like(radius, dtype=xp.int32),
        )
        going = residual.backend.while_loop(lambda carry: xp.any(carry[1]) & xp.all(carry[2] < 30), improve, start)
        t = going[0]
        step = -(vectors @ (slope * weights(t))[..., None])[..., 0] / model.weights.metric
        return step, (values[..., 0] > 0) & (t <= lowest)

    def assess(self, xp: Any, model: Model, radius: Array, step: Array, y: Array, f: Array) -> tuple[Array, Array]:
        promised, gained = _promised(xp, model, y - model.y), -f[..., 0]
        finite = xp.isfinite(promised) & (gained > -xp.inf)
        return borne_out(xp, promised, gained, finite, radius, norm2(xp, model.weights.metric * step))

    def _at(self, residual: Residual, y: Array, region: Region, status: Array, known: Horizon | None = None) -> State:
        """Return the state at a point. Its norm is zero where the gradient is, and no curvature is negative."""
        assert residual.objective is not None
        xp, value = residual.xp, residual.objective(y)[..., 0]
        gradient, hessian = residual.free.with_jacobian(y)
        hessian = (hessian + xp.matrix_transpose(hessian)) / 2
        finite = is_finite(xp, gradient) & every(xp, is_finite(xp, hessian)) & xp.isfinite(value)
        hessian = xp.where(finite[..., None, None], hessian, xp.zeros_like(hessian))
        weights = self.weigh(xp, equilibrating(xp, hessian)[..., None, :], region.scale)
        metric = weights.metric
        held, f = None, gradient
        if residual.box is not None:
            held = residual.box.holds(y, gradient)
            f = condition(xp, y, gradient, *residual.box.limits(y))
        curvature = _curvature(xp, hessian, gradient, metric, held)
        norm = xp.maximum(max_norm(xp, f), xp.clip(-curvature.values[..., 0], 0.0))
        status = xp.astype(xp.where(finite, status, int(Status.NONFINITE)), xp.int32)
        iterate = Iterate(y, f, xp.full_like(y, xp.inf), status, norm)
        region, horizon = Region(weights.scale, region.radius), known or Horizon.of(residual, y, value)
        return State(iterate, (region, metric, value, gradient, hessian, curvature, held, horizon))

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        return corrected_minimum(self, residual, raw)


def _curvature(xp: Any, hessian: Array, gradient: Array, metric: Array, held: Array | None) -> _Curvature:
    """Return the curvature of the unknowns that are not `held`, (*batch, n); that of the others is one."""
    scaled, slope = hessian / metric[..., None, :] / metric[..., None], gradient / metric
    if held is not None:
        place = numbers(xp, gradient)
        scaled = xp.where(held[..., None] | held[..., None, :], xp.astype(place[:, None] == place, slope.dtype), scaled)
        slope = xp.where(held, xp.zeros_like(slope), slope)
    values, vectors = xp.linalg.eigh(scaled)
    return _Curvature(values, vectors, (xp.matrix_transpose(vectors) @ slope[..., None])[..., 0])


def _promised(xp: Any, model: Model, step: Array) -> Array:
    """Return what the quadratic model, with the gradient `f`, falls by along a step, (*batch)."""
    return -dot(xp, step, model.f + model.product(step) / 2)
