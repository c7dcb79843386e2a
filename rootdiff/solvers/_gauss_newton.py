"""The Levenberg-Marquardt method for sums of squares."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rootdiff._backend import Array, status_where
from rootdiff._bounds import condition
from rootdiff._errors import ArgumentError
from rootdiff._iterate import Iterate, State, running
from rootdiff._loop import iterate
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._sizes import is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Claim, named
from rootdiff._space import every, is_finite, is_within, norm2, per_system
from rootdiff.solvers._bounded import within
from rootdiff.solvers._correct import corrected_minimum, with_error_of
from rootdiff.solvers._damped import Model, Region
from rootdiff.solvers._large_squares import LargeGaussNewton
from rootdiff.solvers._levenberg_marquardt import LevenbergMarquardt, damped, decompose


@dataclass(frozen=True, kw_only=True)
class GaussNewton(LevenbergMarquardt):
    """The Levenberg-Marquardt method for least squares: Gauss-Newton steps within a scaled trust region.

    For `least_squares`. It ends where the sum of squares resolves no further step; Newton corrections of its gradient,
    with the whole Hessian, follow.

    Parameters
    ----------
    rtol, atol, max_steps, radius, scale, geodesic
        As for `LevenbergMarquardt`; within bounds there is no geodesic acceleration.

    Notes
    -----
    One singular value decomposition of J, (m, n), per step, which any number of trial radii share. Steps are of least
    norm where J is rank-deficient: with ``scale="none"``, a linear residual and ``on_failure="keep"`` the result, of
    status SINGULAR, is the minimum nearest to the start. Above 1024 unknowns, and
    where `jac_sparsity` of `least_squares` tells where J has entries, PyTorch and JAX form no J: damped normal
    equations, of the unknowns that no bound holds, are solved by conjugate gradients, or by sparse factors; `radius`,
    `scale` and `geodesic` mean nothing.

    References
    ----------
    Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory". Dennis, Gay & Welsch (1981), "An
    adaptive nonlinear least-squares algorithm", on residuals that are large at the minimum. Nielsen (1999), "Damping
    parameter in Marquardt's method", for the large ones.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> t = np.linspace(0.0, 1.0, 5)
    >>> rate = rootdiff.least_squares(
    ...     lambda y, data: np.exp(-y * t) - data, 1.0, np.exp(-2 * t), solver=rootdiff.GaussNewton(geodesic=True)
    ... )
    >>> round(float(rate.y), 6)
    2.0
    """

    max_steps: int = 1000
    radius: float = 1.0

    short_steps: ClassVar[int] = 0  # in a curved valley they are short, and the sum falls slowly

    @property
    def descends(self) -> bool:
        return True

    def claim(self, residual: Residual, y0: Array, active: Array, looks: bool = True) -> Claim:
        dense = residual.backend.measures or (residual.pattern is None and is_dense(tuple(y0.shape)))
        if residual.squares is None or dense:
            return super().claim(residual, y0, active, looks)
        settings = {"rtol": self.rtol, "atol": self.atol, "max_steps": self.max_steps}
        large = with_settings(LargeGaussNewton(), **settings).resolved(y0.dtype, residual.xp)
        claim = iterate(large, residual, y0, active, looks)
        return claim._replace(raw=named(claim.raw, self))

    def init(self, residual: Residual, y: Array) -> State:
        if residual.squares is None:
            raise ArgumentError("solver: GaussNewton minimises a sum of squares. Call least_squares, or take 'auto'.")
        region = Region(residual.xp.zeros_like(y), -per_system(residual.xp, y, 1))
        return self._at(residual, y, region, running(residual.xp, y))

    def step(self, residual: Residual, state: State) -> State:
        assert residual.squares is not None
        xp, y, (region, r, matrix) = residual.xp, state.iterate.y, state.memory
        equations = replace(residual.squares, active=residual.active, correct=residual.correct, box=residual.box)
        weights = self.weigh(xp, matrix, region.scale)._replace(rows=xp.ones_like(r))
        metric = weights.metric
        radius = xp.where(region.radius < 0, self.first_radius(xp, y, metric), region.radius)
        held = None
        if residual.box is not None:
            held = residual.box.holds(y, (xp.matrix_transpose(matrix) @ r[..., None])[..., 0])
        spectrum = _held(xp, matrix, metric, r, held)
        whole = damped(xp, spectrum, spectrum.f, xp.zeros_like(radius)) / metric
        size = norm2(xp, r)
        unit = xp.where(size > 0, size, 1.0)
        at = Model(y, r, matrix, weights, radius, whole, every(xp, spectrum.values > 0), size, unit)
        trial = self._searched(equations, at, (spectrum, held), r)
        new_y = xp.where(trial.accepted[..., None], trial.y, y)
        # the sum of squares tells steps apart as long as r is not orthogonal to the columns of J
        resolved = (
            norm2(xp, xp.where(spectrum.values > 0, spectrum.f, xp.zeros_like(spectrum.f)))
            > 2 * float(xp.finfo(y.dtype).eps) ** 0.5 * size
        )
        status = status_where(xp, trial.accepted & resolved, Status.RUNNING, Status.STALLED)
        new = self._at(residual, new_y, Region(weights.scale, trial.radius), status)
        eps = float(xp.finfo(y.dtype).eps)
        taken = is_within(xp, new_y - y - whole, 0.1 * xp.abs(whole) + eps * xp.abs(y))
        return with_error_of(xp, whole, trial.accepted & taken, state, new)

    def propose(self, residual: Residual, model: Model, prepared: Any, radius: Array) -> tuple[Array, Array]:
        spectrum, held = prepared
        if residual.box is None:
            return super().propose(residual, model, spectrum, radius)
        xp, plain = residual.xp, with_settings(self, geodesic=False)

        def shortest(spectrum: Any) -> tuple[Array, Array]:
            return LevenbergMarquardt.propose(plain, residual, model, spectrum, radius)

        def beside(held: Array, step: Array) -> tuple[Array, Array]:
            moved = model.f + model.product(step)
            return shortest(_held(xp, model.matrix, model.weights.metric, moved, held))

        return within(residual, model.y, held, *shortest(spectrum), beside)

    def _at(self, residual: Residual, y: Array, region: Region, status: Array) -> State:
        """Return the state at a point, whose norm is that of r."""
        assert residual.squares is not None
        xp = residual.xp
        r, matrix = residual.squares.with_jacobian(y)
        gradient = (xp.matrix_transpose(matrix) @ r[..., None])[..., 0]
        if residual.box is not None:
            gradient = condition(xp, y, gradient, *residual.box.limits(y))
        finite = is_finite(xp, gradient)
        status = xp.astype(xp.where(finite, status, int(Status.NONFINITE)), xp.int32)
        return State(
            Iterate(y, gradient, xp.full_like(y, xp.inf), status, norm2(xp, r)),
            (region, r, matrix),
        )

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        """Return the solution after Newton corrections of the gradient, where the sum of squares falls no further."""
        return corrected_minimum(self, residual, raw)


def _held(xp: Any, matrix: Array, metric: Array, r: Array, held: Array | None) -> Any:
    """Return the spectrum of the scaled Jacobian without the columns of the unknowns that are `held`, (*batch, n)."""
    scaled = matrix / metric[..., None, :]
    return decompose(xp, scaled if held is None else xp.where(held[..., None, :], xp.zeros_like(scaled), scaled), r)
