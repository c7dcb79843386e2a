"""Stabilised biconjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._settings import runtime
from rootdiff._space import dot
from rootdiff.linear._krylov import Krylov, ratio, run_cycle


class _State(NamedTuple):
    x: Array
    residual: Array
    direction: Array  # p
    image: Array  # v = A M p
    rho: Array
    alpha: Array
    omega: Array


@dataclass(frozen=True, kw_only=True)
class BiCGStab(Krylov):
    """BiCGStab with right preconditioning: two products a step, memory of a few vectors, any Jacobian.

    Its residual is erratic; a breakdown ends a cycle, and the next starts from the best point with a new shadow.

    Parameters
    ----------
    rtol, max_restarts, preconditioner
        As for `Krylov`.
    max_steps : int
        Steps in a cycle.

    References
    ----------
    van der Vorst (1992), "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG", section 3.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint="bicgstab")
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    max_steps: int = runtime(1000, least=1)

    def correction(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        xp = operator.backend.xp
        precondition = self._precondition(operator, residual)
        shadow = residual

        def step(state: _State) -> _State:
            rho = dot(xp, shadow, state.residual)
            beta = (ratio(xp, rho, state.rho) * ratio(xp, state.alpha, state.omega))[..., None]
            direction = state.residual + beta * (state.direction - state.omega[..., None] * state.image)
            preconditioned = precondition(direction)
            image = operator.matvec(preconditioned)
            alpha = ratio(xp, rho, dot(xp, shadow, image))
            half = state.residual - alpha[..., None] * image
            half_preconditioned = precondition(half)
            half_image = operator.matvec(half_preconditioned)
            omega = ratio(xp, dot(xp, half_image, half), dot(xp, half_image, half_image))
            x = state.x + alpha[..., None] * preconditioned + omega[..., None] * half_preconditioned
            return _State(x, half - omega[..., None] * half_image, direction, image, rho, alpha, omega)

        zero, one = xp.zeros_like(residual), xp.ones_like(norm)
        start = _State(zero, residual, zero, zero, one, one, one)
        return run_cycle(operator.backend, start, step, goal, self.max_steps)
