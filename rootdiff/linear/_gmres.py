"""Restarted GMRES, matrix-free and batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rootdiff._backend import Array, keep, select
from rootdiff._operator import LinearOperator, OfFixedPoint
from rootdiff._settings import limited
from rootdiff._space import norm2, numbers, projections
from rootdiff.linear._base import Point
from rootdiff.linear._cg import CG, is_symmetric, probes
from rootdiff.linear._krylov import Krylov, Product

#: Default restart: the most vectors, fewer where they would have more numbers than this, but no fewer than the last.
_RESTART, _NUMBERS, _LEAST = 100, 2**19, 30


class _Cycle(NamedTuple):
    """One Arnoldi cycle: V (*batch, m+1, n), R (*batch, m, m), Q (*batch, m+1, m+1), g = beta Q e1."""

    basis: Array
    triangle: Array
    rotation: Array
    residual: Array  # |g[j]|, the norm of the residual so far, (*batch)
    column: Array  # j, (*batch)


@dataclass(frozen=True, kw_only=True)
class GMRES(Krylov):
    """Restarted GMRES with right preconditioning: products with the Jacobian only, never its entries.

    Before its first restart, without a preconditioner, two products test whether the matrix is symmetric. If it is,
    conjugate gradients take over, which need no restart; if they fail, GMRES goes on.

    Parameters
    ----------
    rtol, max_restarts, preconditioner
        As for `Krylov`.
    restart : int, optional
        Krylov vectors kept before a restart; memory is ``(restart + 1) * n`` per system. Default: n (no restart, which
        may stagnate) for at most 100 unknowns, else 100, but above 5242 unknowns as many as 4 MB hold, at least 30.

    References
    ----------
    Saad & Schultz (1986), "GMRES: a generalized minimal residual algorithm". Giraud, Langou & Rozložník (2005)
    for "twice is enough" in Gram-Schmidt.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint=rootdiff.GMRES(rtol=1e-10))
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    restart: int | None = limited(None, least=1)

    def _first(self, operator: LinearOperator, rhs: Array, size: Array, goal: Array) -> Point:
        first = super()._first(operator, rhs, size, goal)
        unrestarted = rhs.shape[-1] <= (self.restart or _RESTART)
        if unrestarted or self._preconditions or isinstance(operator.original, OfFixedPoint):
            return first
        backend, xp = operator.backend, operator.backend.xp
        u, v = probes(xp, rhs)  # a compiler moves this out of the loop of Newton's steps, but not out of the branch

        def conjugate(start: Point) -> Point:
            # a goal that is reached leaves out the systems that are not symmetric
            within = xp.where(is_symmetric(operator, u, v), goal, xp.full_like(goal, xp.inf))
            x = start.x + CG(preconditioner=None).cycle(operator, start.residual, start.norm, within)
            new = Point.of(operator, rhs, x)
            return select(xp, new.norm < start.norm, new, start)  # type: ignore[no-any-return]

        return backend.when(xp.any(first.norm > goal), conjugate, (first,), first)  # type: ignore[no-any-return]

    def correction(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        backend, xp = operator.backend, operator.backend.xp
        precondition = self._precondition(operator, residual)
        n = residual.shape[-1]
        m = min(self.restart or min(_RESTART, max(_LEAST, _NUMBERS // n)), n)
        safe = xp.where(norm > 0, norm, 1.0)[..., None]
        first = (residual / safe)[..., None, :]
        none = xp.zeros_like(norm, dtype=xp.int32)
        zeros = xp.concat([none[..., None]] * (m + 1), axis=-1)
        steps = zeros + (numbers(xp, zeros) - 1)  # 0, 1, ..., m
        identity = xp.astype(steps[..., :, None] == steps[..., None, :], residual.dtype)
        basis = xp.concat([first, *[xp.zeros_like(first)] * m], axis=-2)
        cycle = _Cycle(basis, identity[..., :m, :m], identity, norm, none)

        def running(cycle: _Cycle) -> Array:
            return (cycle.column < m) & (cycle.residual > goal)

        def body(cycle: _Cycle) -> _Cycle:
            new = _arnoldi(xp, lambda vector: operator.matvec(precondition(vector)), cycle, steps, norm)
            return keep(backend, running(cycle), new, cycle)  # type: ignore[no-any-return]

        cycle = backend.while_loop(lambda cycle: xp.any(running(cycle)), body, cycle)
        # least squares of the Hessenberg system: R w = (beta Q e1) in the columns that were built
        built = steps[..., :m] < cycle.column[..., None]
        g = xp.where(built, cycle.rotation[..., :m, 0] * norm[..., None], 0.0)
        triangle = xp.where(built[..., None, :], cycle.triangle, identity[..., :m, :m])
        weights = backend.lu_solve(backend.lu_factor(triangle), g)
        weights = xp.where(xp.isfinite(weights), weights, 0.0)
        weights = xp.concat([weights, xp.zeros_like(weights[..., :1])], axis=-1)  # a part of the basis would be a copy
        return precondition(xp.sum(weights[..., None] * cycle.basis, axis=-2))


def _arnoldi(xp: Any, matvec: Product, cycle: _Cycle, steps: Array, norm: Array) -> _Cycle:
    """Add one Krylov vector and rotate its Hessenberg column to triangular form (Saad & Schultz 1986, section 3)."""
    at = xp.astype(steps == cycle.column[..., None], norm.dtype)
    following = xp.astype(steps == cycle.column[..., None] + 1, norm.dtype)
    vector = xp.sum(at[..., None] * cycle.basis, axis=-2)
    product = matvec(vector)
    size = norm2(xp, product)
    column = xp.zeros_like(at)
    for _ in range(2):  # twice is enough (Giraud, Langou & Rozložník 2005)
        overlap = projections(xp, cycle.basis, product)
        product = product - (overlap[..., None, :] @ cycle.basis)[..., 0, :]
        column = column + overlap
    last = norm2(xp, product)
    last = xp.where(last > xp.finfo(product.dtype).eps * size, last, 0.0)  # the space is exhausted
    unit = xp.where((last > 0)[..., None], product / xp.where(last > 0, last, 1.0)[..., None], 0.0)
    column = column + last[..., None] * following
    column = (cycle.rotation @ column[..., None])[..., 0]
    # Givens rotation that takes entry j + 1 of the rotated column into entry j
    upper, lower = xp.sum(at * column, axis=-1), xp.sum(following * column, axis=-1)
    radius = xp.hypot(upper, lower)
    regular = radius > 0
    cosine = xp.where(regular, upper / xp.where(regular, radius, 1.0), 1.0)[..., None]
    sine = xp.where(regular, lower / xp.where(regular, radius, 1.0), 0.0)[..., None]
    row_at = (at[..., None, :] @ cycle.rotation)[..., 0, :]
    row_following = (following[..., None, :] @ cycle.rotation)[..., 0, :]
    rotation = (
        cycle.rotation
        + at[..., None] * (cosine * row_at + sine * row_following - row_at)[..., None, :]
        + following[..., None] * (cosine * row_following - sine * row_at - row_following)[..., None, :]
    )
    column = column + at * (radius - upper)[..., None] - following * lower[..., None]
    m = steps.shape[-1] - 1
    triangle = xp.where((at > 0)[..., None, :m], column[..., :m, None], cycle.triangle)
    return _Cycle(
        cycle.basis + following[..., None] * unit[..., None, :],
        triangle,
        rotation,
        xp.where(regular, xp.abs(xp.sum(following * rotation[..., 0], axis=-1)) * norm, 0.0),
        cycle.column + 1,
    )
