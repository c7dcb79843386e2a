"""LSMR: least squares by products alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._settings import runtime
from rootdiff._space import norm2
from rootdiff.linear._krylov import Krylov, ratio, run_cycle


class _State(NamedTuple):
    """The letters of Fong & Saunders (2011); the images of h and h-bar are kept, so that the residual is known."""

    x: Array
    residual: Array
    u: Array
    v: Array
    h: Array
    h_image: Array
    h_bar: Array
    h_bar_image: Array
    decay: Array  # theta / rho of the last step
    alpha: Array
    alpha_bar: Array
    zeta_bar: Array
    rho: Array
    rho_bar: Array
    c_bar: Array
    s_bar: Array


@dataclass(frozen=True, kw_only=True)
class LSMR(Krylov):
    """LSMR with right preconditioning: products with the Jacobian and its transpose, any Jacobian.

    Its residual never grows, and a consistent singular system is solved with minimum norm (if there is no
    preconditioner). The number of steps grows with the condition number, not with its square root.

    Parameters
    ----------
    rtol, max_restarts, preconditioner
        As for `Krylov`.
    max_steps : int
        Steps in a cycle.

    References
    ----------
    Fong & Saunders (2011), "LSMR: an iterative algorithm for sparse least-squares problems", table 2.8.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint="lsmr")
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    max_restarts: int = 5
    max_steps: int = runtime(2000, least=1)

    def correction(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        xp = operator.backend.xp
        forward = self._precondition(operator, residual)
        backward = self._precondition(operator.T, residual)

        def step(s: _State) -> _State:
            image = operator.matvec(forward(s.v))
            u, beta = _normalised(xp, image - s.alpha[..., None] * s.u)
            v, alpha = _normalised(xp, backward(operator.rmatvec(u)) - beta[..., None] * s.v)
            h, h_image = s.v - s.decay * s.h, image - s.decay * s.h_image
            # the rotation that makes the bidiagonal matrix triangular, and the one for its transpose
            rho = xp.hypot(s.alpha_bar, beta)
            theta = ratio(xp, beta, rho) * alpha
            theta_bar = s.s_bar * rho
            rho_bar = xp.hypot(s.c_bar * rho, theta)
            c_bar, s_bar = ratio(xp, s.c_bar * rho, rho_bar), ratio(xp, theta, rho_bar)
            coupling = ratio(xp, theta_bar * rho, s.rho * s.rho_bar)[..., None]
            h_bar, h_bar_image = h - coupling * s.h_bar, h_image - coupling * s.h_bar_image
            length = ratio(xp, c_bar * s.zeta_bar, rho * rho_bar)[..., None]
            return _State(
                s.x + length * h_bar,
                s.residual - length * h_bar_image,
                u,
                v,
                h,
                h_image,
                h_bar,
                h_bar_image,
                ratio(xp, theta, rho)[..., None],
                alpha,
                ratio(xp, s.alpha_bar, rho) * alpha,
                -s_bar * s.zeta_bar,
                rho,
                rho_bar,
                c_bar,
                s_bar,
            )

        zero, one = xp.zeros_like(residual), xp.ones_like(norm)
        u, beta = _normalised(xp, residual)
        v, alpha = _normalised(xp, backward(operator.rmatvec(u)))
        decay = xp.zeros_like(residual[..., :1])
        scalars = (alpha, alpha, alpha * beta, one, one, one, xp.zeros_like(norm))
        start = _State(zero, residual, u, v, zero, zero, zero, zero, decay, *scalars)
        return forward(run_cycle(operator.backend, start, step, goal, self.max_steps))


def _normalised(xp: Any, vector: Array) -> tuple[Array, Array]:
    """Return the unit vector, zero for zero, and the norm."""
    norm = norm2(xp, vector)
    return ratio(xp, vector, norm[..., None] + xp.zeros_like(vector)), norm
