"""Powell's dogleg: a trust region between the gradient and the Newton step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Equilibrated, Factors
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._select import status_where
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import dot, is_finite, norm2
from rootdiff.solvers._radius import Attempt, Linearisation, first_radius, scaling, search


class Region(NamedTuple):
    """Scale of the variables, (*batch, n), and radius, (*batch); a negative one is not set yet."""

    scale: Array
    radius: Array


@dataclass(frozen=True, kw_only=True)
class TrustRegionSolver(IterativeSolver):
    """What `TrustRegion` and `LevenbergMarquardt` share: a scaled region, its radius, and when to trust the end."""

    max_steps: int = 200
    radius: float = runtime(100.0)
    scale: Literal["columns", "none"] = "columns"

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.radius, int | float) and not self.radius > 0:
            raise ArgumentError(f"{type(self).__name__}: radius is {self.radius!r}; it must be positive.")

    def init(self, residual: Residual, y: Array) -> State:
        xp = residual.xp
        region = Region(xp.zeros_like(y), -xp.ones_like(y[..., 0]))
        unknown = Equilibrated(Factors.zeros(xp, y), xp.ones_like(y))
        return State(Iterate.start(xp, y, residual(y)), region, unknown)

    def _prepared(self, residual: Residual, state: State) -> Linearisation:
        """Return the linearised residual with its rows equilibrated, the scale of the variables and the radius."""
        xp = residual.xp
        (y, f, *_), region, *_ = state
        matrix = residual.jacobian(y)
        scale, metric, radius = self._measured(xp, y, matrix, region)
        rows = norm2(xp, matrix / metric[..., None, :])
        rows = xp.where((rows > 0) & xp.isfinite(rows), rows, 1.0)
        return Linearisation(rows, matrix, f / rows, scale, metric, radius)

    def _measured(self, xp: Any, y: Array, matrix: Array, region: Region) -> tuple[Array, Array, Array]:
        """Return the scale of the variables, as kept and as used, and the radius."""
        scale = scaling(xp, matrix, region.scale)
        known = scale > 0 if self.scale == "columns" else scale < 0
        metric = xp.where(known, scale, 1.0)
        return scale, metric, xp.where(region.radius < 0, first_radius(xp, y, metric, self.radius), region.radius)

    def _ended(
        self, xp: Any, at: Linearisation, attempt: Attempt, newton: Array, regular: Array, inverse: Equilibrated
    ) -> State:
        """Return the state after a search.

        The error estimate is the whole Newton correction, and only where it was taken and reduced f as it does near a
        root: a step cut short by the radius says nothing about the distance to a root.
        """
        trusted = attempt.accepted & attempt.full
        status = status_where(xp, regular, Status.STALLED, Status.SINGULAR)
        status = xp.where(attempt.accepted, int(Status.RUNNING), status)
        error = xp.where(trusted[..., None], xp.abs(newton), xp.inf)
        return State(Iterate(attempt.y, attempt.f, error, status), Region(at.scale, attempt.radius), inverse)


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

    def step(self, residual: Residual, state: State) -> State:
        xp, backend = residual.xp, residual.backend
        at = self._prepared(residual, state)
        inverse = Equilibrated(backend.lu_factor(at.matrix / at.rows[..., None]), at.rows)
        newton = inverse.apply(backend, -state.iterate.f)
        regular = is_finite(xp, newton)
        attempt = search(residual, state.iterate.y, at, _dogleg(xp, at, newton, regular))
        return self._ended(xp, at, attempt, newton, regular, inverse)


def _dogleg(xp: Any, at: Linearisation, newton: Array, regular: Array) -> Callable[[Array], tuple[Array, Array]]:
    """Return the step of Powell (1970) within a radius, as a function of the radius.

    A Jacobian that is singular has no Newton step; then the path ends at the minimum along the gradient.
    """
    f, metric = at.f, at.metric
    size = norm2(xp, f)
    unit = xp.where(size > 0, size, 1.0)[..., None]
    gradient = (xp.matrix_transpose(at.matrix) @ (f / unit / at.rows)[..., None])[..., 0] / metric
    gradient = xp.where(is_finite(xp, gradient)[..., None], gradient, 0.0)
    steepness = norm2(xp, gradient)
    downhill = -gradient / xp.where(steepness > 0, steepness, 1.0)[..., None] / metric  # of scaled length 1
    slope = norm2(xp, at.product(downhill))
    reach = size * steepness / xp.where(slope > 0, slope, 1.0) / xp.where(slope > 0, slope, 1.0)
    cauchy = reach[..., None] * downhill
    end = xp.where(regular[..., None], newton, cauchy)
    end_length = norm2(xp, metric * end)
    bend = metric * (end - cauchy)

    def propose(radius: Array) -> tuple[Array, Array]:
        full = end_length <= radius
        # |cauchy + t bend| = radius; the root that does not cancel
        a, b = dot(xp, bend, bend), dot(xp, metric * cauchy, bend)
        room = xp.clip((radius - reach) * (radius + reach), 0.0)
        root = xp.sqrt(xp.clip(b * b + a * room, 0.0))
        denominator = b + root
        t = xp.where(b > 0, room / xp.where(denominator > 0, denominator, 1.0), (root - b) / xp.where(a > 0, a, 1.0))
        t = xp.where(xp.isfinite(t), xp.clip(t, 0.0, 1.0), 0.0)[..., None]
        bent = cauchy + t * (end - cauchy)
        inner = xp.where((reach >= radius)[..., None], radius[..., None] * downhill, bent)
        return xp.where(full[..., None], end, inner), full & regular

    return propose
