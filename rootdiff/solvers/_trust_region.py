"""Powell's dogleg: a trust region between the gradient and the Newton step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._space import dot, is_finite, norm2
from rootdiff.solvers._damped import DampedSolver, Model, Weights

#: Moré (1978), section 4: a step is taken when it brings this part of the decrease that the model promised.
_ACCEPT = 1e-4


@dataclass(frozen=True, kw_only=True)
class TrustRegionSolver(DampedSolver):
    """What `TrustRegion` and `LevenbergMarquardt` share: the scaled region in which a linear model is believed."""

    max_steps: int = 200
    radius: float = runtime(100.0, above=0)
    scale: Literal["columns", "none"] = "columns"

    def first_radius(self, xp: Any, y: Array, metric: Array) -> Array:
        # `radius` times the scaled length of y (Moré, Garbow & Hillstrom 1980)
        length = norm2(xp, metric * y)
        return self.radius * xp.where(length > 0, length, 1.0)

    def weigh(self, xp: Any, matrix: Array, scale: Array) -> Weights:
        # the scale of each variable is the largest norm of its column so far (Moré 1978, eq. 6.3); 0 is unknown
        columns = norm2(xp, xp.matrix_transpose(matrix))
        scale = xp.maximum(scale, xp.where(xp.isfinite(columns), columns, 0.0))
        metric = xp.where(scale > 0 if self.scale == "columns" else scale < 0, scale, 1.0)
        rows = norm2(xp, matrix / metric[..., None, :])
        return Weights(scale, metric, xp.where((rows > 0) & xp.isfinite(rows), rows, 1.0))

    def assess(self, xp: Any, model: Model, radius: Array, step: Array, y: Array, f: Array) -> tuple[Array, Array]:
        # Moré (1978), section 4: the radius shrinks where the model promised too much, and grows to twice the step
        # where the promise was kept; squares of f / |f| neither overflow nor underflow
        (_, metric, rows), unit = model.weights, model.unit[..., None]
        new, linear = norm2(xp, f / rows / unit), norm2(xp, (model.f + model.product(y - model.y)) / unit)
        finite = xp.isfinite(new) & xp.isfinite(linear)
        return borne_out(
            xp, (1 - linear) * (1 + linear), (1 - new) * (1 + new), finite, radius, norm2(xp, metric * step)
        )


def borne_out(
    xp: Any, promised: Array, gained: Array, finite: Array, radius: Array, length: Array
) -> tuple[Array, Array]:
    """Return whether a decrease, where it is `finite`, is part of the `promised` one, and the next radius."""
    ratio = xp.where(promised > 0, gained / xp.where(promised > 0, promised, 1.0), -xp.ones_like(promised))
    ratio = xp.where(finite, ratio, -xp.ones_like(ratio))
    # the minimum of the parabola through the value and slope at 0 and the value at the trial
    slope = xp.where(finite, promised, 1.0)
    fraction = xp.where(finite, slope / xp.where(slope - gained + slope > 0, 2 * slope - gained, 1.0), 0.1)
    shrunk = xp.clip(fraction, 0.1, 0.5) * xp.minimum(radius, length)
    grown = xp.where(ratio >= 0.75, xp.maximum(radius, 2 * length), radius)
    return finite & (ratio >= _ACCEPT), xp.where(ratio < 0.25, shrunk, grown)


@dataclass(frozen=True, kw_only=True)
class TrustRegion(TrustRegionSolver):
    """Powell's dogleg method: the Newton step within a trust region, bent towards the gradient near its border.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the full Newton correction, never a shortened step.
    radius : float
        First radius of the region, in scaled lengths of `y0`. Dimensionless.
    scale : {"columns", "none"}
        Lengths are measured with each variable scaled by the largest norm that its column of the Jacobian has had, so
        that the units of the unknowns do not matter; or as they are, for unknowns of one kind, far from the root.

    Notes
    -----
    Each equation is divided by the norm of its row of the Jacobian, anew in every step, so that its units do not
    matter either. The Jacobian is formed: memory is n^2 per system.

    References
    ----------
    Powell (1970), "A hybrid method for nonlinear equations". Moré (1978), "The Levenberg-Marquardt algorithm:
    implementation and theory", for the scaling and the radius.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.TrustRegion()
    >>> rootdiff.root(lambda y, a: np.arctan(y - a), np.array([30.0]), np.array([8.0]), solver=solver).y
    array([8.])
    """

    def prepare(self, residual: Residual, model: Model, needed: Array | None) -> tuple[Array, _Path]:
        xp, (_, metric, rows) = residual.xp, model.weights
        gradient = (xp.matrix_transpose(model.matrix) @ (model.f / model.unit[..., None] / rows)[..., None])[..., 0]
        gradient = gradient / metric
        gradient = xp.where(is_finite(xp, gradient)[..., None], gradient, 0.0)
        steepness = norm2(xp, gradient)
        downhill = -gradient / xp.where(steepness > 0, steepness, 1.0)[..., None] / metric  # of scaled length 1
        slope = norm2(xp, model.product(downhill))
        reach = model.size * steepness / xp.where(slope > 0, slope, 1.0) / xp.where(slope > 0, slope, 1.0)
        cauchy = reach[..., None] * downhill
        # a Jacobian that is singular has no Newton step; then the path ends at the minimum along the gradient
        end = xp.where(model.solvable[..., None], model.newton, cauchy)
        return model.solvable, _Path(downhill, reach, cauchy, end, norm2(xp, metric * end), metric * (end - cauchy))

    def propose(self, residual: Residual, model: Model, prepared: _Path, radius: Array) -> tuple[Array, Array]:
        xp, metric = residual.xp, model.weights.metric
        downhill, reach, cauchy, end, length, bend = prepared
        full = length <= radius
        # |cauchy + t bend| = radius; the root that does not cancel
        a, b = dot(xp, bend, bend), dot(xp, metric * cauchy, bend)
        room = xp.clip((radius - reach) * (radius + reach), 0.0)
        root = xp.sqrt(xp.clip(b * b + a * room, 0.0))
        denominator = b + root
        t = xp.where(b > 0, room / xp.where(denominator > 0, denominator, 1.0), (root - b) / xp.where(a > 0, a, 1.0))
        t = xp.where(xp.isfinite(t), xp.clip(t, 0.0, 1.0), 0.0)[..., None]
        bent = cauchy + t * (end - cauchy)
        inner = xp.where((reach >= radius)[..., None], radius[..., None] * downhill, bent)
        return xp.where(full[..., None], end, inner), full


class _Path(NamedTuple):
    """The dogleg of Powell (1970): the way down of scaled length 1, how far it goes, where it bends and where it ends.

    And the scaled length of the end, and the scaled way there from the bend.
    """

    downhill: Array
    reach: Array
    cauchy: Array
    end: Array
    length: Array
    bend: Array
