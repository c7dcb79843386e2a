"""Conjugate gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._settings import runtime
from rootdiff._space import dot, norm2, places
from rootdiff.linear._krylov import Krylov, ratio, run_cycle

#: Roundings of a product by which a symmetric matrix may seem not to be.
_ROUNDINGS = 100.0
#: Steps in a cycle that few unknowns get too.
_STEPS = 1000


def probes(xp: Any, like: Array) -> tuple[Array, Array]:
    """Return two vectors of random-like signs, shaped like `like`, (*batch, n).

    Those of the sine of k^2 + 1, and of minus the cosine of twice that angle.
    """
    index = places(xp, like)
    wave, one = xp.sin(index * index + 1), xp.ones_like(like)
    return xp.where(wave > 0, one, -one), xp.where(xp.abs(wave) > 0.5**0.5, one, -one)


def is_symmetric(operator: LinearOperator, u: Array, v: Array) -> Array:
    """Return whether ``u . A v = v . A u`` for two vectors of random-like signs, to rounding, (*batch).

    A matrix that is not symmetric passes only by a coincidence of rounding size.
    """
    xp = operator.backend.xp
    of_u, of_v = operator.matvec(u), operator.matvec(v)
    noise = _ROUNDINGS * operator.precision * (norm2(xp, of_u) + norm2(xp, of_v)) * u.shape[-1] ** 0.5
    return xp.abs(dot(xp, u, of_v) - dot(xp, v, of_u)) <= noise


class _State(NamedTuple):
    x: Array
    residual: Array
    direction: Array
    slope: Array  # r . M r


@dataclass(frozen=True, kw_only=True)
class CG(Krylov):
    """Conjugate gradients, for a Jacobian that is symmetric and definite, of either sign: the gradient of a potential.

    On any other Jacobian it does not converge, and says so. A preconditioner must be symmetric and definite too.

    Parameters
    ----------
    rtol, max_restarts, preconditioner
        As for `Krylov`.
    max_steps : int, optional
        Steps in a cycle. Default: 2 n, at least 1000: without rounding n steps are enough, and each new cycle forgets
        what the last one has learnt.

    References
    ----------
    Hestenes & Stiefel (1952), "Methods of conjugate gradients for solving linear systems".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint="cg")
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    max_steps: int | None = runtime(None, least=1)

    def correction(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        xp = operator.backend.xp
        precondition = self._precondition(operator, residual)
        # of a symmetric matrix both products are the same: the cheaper one
        cheaper = operator.backend.prefers_transpose in (None, operator.transposed)
        product = operator.matvec if cheaper else operator.rmatvec

        def step(state: _State) -> _State:
            image = product(state.direction)
            length = ratio(xp, state.slope, dot(xp, state.direction, image))[..., None]
            residual = state.residual - length * image
            preconditioned = precondition(residual)
            slope = dot(xp, residual, preconditioned)
            direction = preconditioned + ratio(xp, slope, state.slope)[..., None] * state.direction
            return _State(state.x + length * state.direction, residual, direction, slope)

        limit = max(_STEPS, 2 * residual.shape[-1]) if self.max_steps is None else self.max_steps
        direction = precondition(residual)
        start = _State(xp.zeros_like(residual), residual, direction, dot(xp, residual, direction))
        plain = None if self._preconditions else (lambda state: xp.sqrt(state.slope))
        # the error descends in the norm of A
        return run_cycle(operator.backend, start, step, goal, limit, plain, descends=True)
