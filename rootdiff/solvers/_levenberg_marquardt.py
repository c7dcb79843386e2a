"""The Levenberg-Marquardt method in the form of a trust region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._space import every, is_finite, norm2
from rootdiff.solvers._damped import Model
from rootdiff.solvers._trust_region import TrustRegionSolver

#: Moré (1978), section 5: the length of the step may differ from the radius by this part.
_SLACK = 0.1
#: Transtrum & Sethna (2012), eq. 15: the largest acceleration per velocity, and the difference step.
_LARGEST_BEND = 0.75
_DIFFERENCE = 0.1


class _Spectrum(NamedTuple):
    """J D^-1 = U diag(s) V^T; `f` in the basis U; zeros of `s` mark values that are rounding noise."""

    left: Array
    values: Array
    right: Array
    f: Array


@dataclass(frozen=True, kw_only=True)
class LevenbergMarquardt(TrustRegionSolver):
    """The Levenberg-Marquardt method for square systems: the least-squares step within a scaled trust region.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the full Newton correction, never a damped step.
    radius : float
        First radius of the region, in scaled lengths of `y0`. Dimensionless.
    scale : {"columns", "none"}
        As for `TrustRegion`.
    geodesic : bool
        Whether to add geodesic acceleration: half the second derivative along the step, for one more residual
        evaluation per trial. It helps in narrow curved valleys.

    Notes
    -----
    One singular value decomposition per step, which any number of trial radii share: steps of a singular
    Jacobian are those of minimum norm. Memory is a few n^2 per system.

    References
    ----------
    Levenberg (1944), Marquardt (1963). Moré (1978), "The Levenberg-Marquardt algorithm: implementation and
    theory". Transtrum & Sethna (2012), "Improvements to the Levenberg-Marquardt algorithm".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.LevenbergMarquardt(geodesic=True)
    >>> rootdiff.root(lambda y, a: np.arctan(y - a), np.array([30.0]), np.array([8.0]), solver=solver).y
    array([8.])
    """

    geodesic: bool = False

    @property
    def shares_its_loop(self) -> bool:
        return super().shares_its_loop and not self.geodesic

    def prepare(self, residual: Residual, model: Model, needed: Array | None) -> tuple[Array, _Spectrum]:
        xp, (_, metric, rows) = residual.xp, model.weights

        def spectrum(matrix: Array, f: Array) -> _Spectrum:
            return decompose(xp, matrix / rows[..., None] / metric[..., None, :], f)

        given = model.matrix, model.f
        if needed is None:
            found = spectrum(*given)
        else:
            found = residual.backend.when(needed, spectrum, given, _Spectrum(given[0], given[1], *given))
        return every(xp, found.values > 0), found

    def propose(self, residual: Residual, model: Model, prepared: _Spectrum, radius: Array) -> tuple[Array, Array]:
        xp, metric = residual.xp, model.weights.metric
        damping = _damping(residual, prepared, radius)
        step = damped(xp, prepared, prepared.f, damping)
        full = damping == 0
        if self.geodesic:
            whole = full & every(xp, prepared.values > 0)
            step = step + xp.where(whole[..., None], 0.0, _bend(residual, model, prepared, step, damping))
        return step / metric, full


def _bend(residual: Residual, model: Model, spectrum: _Spectrum, step: Array, damping: Array) -> Array:
    """Return half the acceleration along a scaled step, (*batch, n), where it is small beside that."""
    xp, h, velocity = residual.xp, _DIFFERENCE, step / model.weights.metric
    change = residual(model.y + h * velocity) / model.weights.rows - model.f
    second = (2 / h) * (change / h - model.product(velocity))  # Transtrum & Sethna (2012), eq. 12
    along = (xp.matrix_transpose(spectrum.left) @ second[..., None])[..., 0]
    acceleration = damped(xp, spectrum, along, damping)
    small = 2 * norm2(xp, acceleration) <= _LARGEST_BEND * norm2(xp, step)
    return xp.where(small[..., None], 0.5 * acceleration, 0.0)


def decompose(xp: Any, matrix: Array, f: Array) -> _Spectrum:
    """Return the singular value decomposition of matrices, (*batch, m, n), and `f` in its basis."""
    m = matrix.shape[-2]
    finite = every(xp, is_finite(xp, matrix))
    clean = xp.where(finite[..., None, None], matrix, xp.zeros_like(matrix))
    left, values, right = xp.linalg.svd(clean, full_matrices=False)
    noise = m * xp.finfo(matrix.dtype).eps * values[..., :1]
    values = xp.where(values > noise, values, 0.0)
    return _Spectrum(left, values, right, (xp.matrix_transpose(left) @ f[..., None])[..., 0])


def damped(xp: Any, spectrum: _Spectrum, f: Array, damping: Array) -> Array:
    """Return the scaled step -V s / (s^2 + damping) f for a residual in the basis U."""
    weights = _weights(xp, spectrum.values, damping) * f
    return -(xp.matrix_transpose(spectrum.right) @ weights[..., None])[..., 0]


def _weights(xp: Any, values: Array, damping: Array) -> Array:
    safe = xp.where(values > 0, values, 1.0)
    return xp.where(values > 0, 1 / (safe + damping[..., None] / safe), 0.0)


def _damping(residual: Residual, spectrum: _Spectrum, radius: Array) -> Array:
    """Return the damping, (*batch), whose step is as long as the radius, or zero where the Newton step is shorter.

    Newton's method for 1 / |step| - 1 / radius, a concave function of the damping, climbs monotonically from zero
    (Hebden 1973; Moré 1978, section 5).
    """
    xp = residual.xp
    values = spectrum.values
    safe = xp.where(values > 0, values, 1.0)

    def improve(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        damping, _, count = carry
        parts = _weights(xp, values, damping) * spectrum.f
        length = norm2(xp, parts)
        positive = xp.where(length > 0, length, 1.0)
        relative = parts / positive[..., None]
        # d|step| / d damping = -|step| sum of relative^2 / (s^2 + damping)
        decay = xp.sum(relative * relative * _weights(xp, values, damping) / safe, axis=-1)
        excess = length / radius - 1
        change = excess / xp.where(decay > 0, decay, 1.0)
        unmet = residual.of_active((excess > _SLACK) | ((damping == 0) & (excess > 0)))
        return xp.where(unmet, damping + change, damping), unmet, count + 1

    start = (xp.zeros_like(radius), xp.ones_like(radius) > 0, xp.zeros_like(radius, dtype=xp.int32))
    damping, _, _ = residual.backend.while_loop(lambda carry: xp.any(carry[1]) & xp.all(carry[2] < 30), improve, start)
    return xp.where(xp.isfinite(damping), damping, 0.0)
