"""LU factors and triangular solves: of many small systems all at once, since XLA calls LAPACK once per system."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from rootdiff._backend import Array
from rootdiff._sizes import are_better_together
from rootdiff_jax._precision import for_lapack
from rootdiff_jax.xla import _lapack

#: So many row exchanges are compiled into one operation.
_EXCHANGES = 8


def factor(matrix: Array) -> tuple[Array, Array]:
    """Return the LU factors, (*batch, n, n), and the row order, (*batch, n), that the pivots stand for."""
    factors, pivots, order = _lapack.lu(for_lapack(matrix))
    return factors.astype(matrix.dtype), _row_order(pivots) if jax.default_backend() == "cpu" else order


def _row_order(pivots: Array) -> Array:
    """Return which row of A comes to each place, (*batch, n), when row k was exchanged with row ``pivots[k]``.

    Each place is followed back through the exchanges: no entry is looked up in another, so that a program for a CPU has
    one loop over all places. `lax.linalg.lu` exchanges entry by entry, at a tenth and more of the whole cost.
    """
    n = pivots.shape[-1]

    def exchange(k: Array, place: Array) -> Array:
        row = jnp.asarray(n - 1 - k, pivots.dtype)
        other = lax.dynamic_index_in_dim(pivots, row, axis=-1)
        return jnp.where(place == row, other, jnp.where(place == other, row, place))

    places = jnp.zeros_like(pivots) + jnp.arange(n, dtype=pivots.dtype)
    return lax.fori_loop(0, n, exchange, places, unroll=min(n, _EXCHANGES))


def solve(factors: tuple[Array, Array], rhs: Array, transpose: bool) -> Array:
    """Return the solutions, like `rhs`, of A x = b, or of A^T x = b, by the LU factors and the row order of A.

    `rhs` is (*batch, n) or (several, *batch, n).
    """
    matrix, order = factors
    if are_better_together(order.shape):  # else a gradient of 1024 systems of 6 takes 2.7 times
        if rhs.ndim > order.ndim:
            return jax.vmap(lambda one: solve(factors, one, transpose))(rhs)
        if order.shape == rhs.shape:
            return _together(matrix, order, rhs, transpose)
    return one_by_one(factors, rhs, transpose)


def one_by_one(factors: tuple[Array, Array], rhs: Array, transpose: bool) -> Array:
    """Do what `solve` does by LAPACK, for one system after the other."""
    matrix, order = factors
    # so that vmap over an explicit axis of a mesh maps it too: it looks rows up in mapped arrays only
    rhs = jnp.where(order >= 0, rhs, rhs)
    dtype, matrix, rhs = rhs.dtype, for_lapack(matrix), for_lapack(rhs)
    more = rhs.shape[: rhs.ndim + 1 - matrix.ndim]  # several right-hand sides of one matrix are columns
    x = jnp.moveaxis(jnp.reshape(rhs, (math.prod(more), *rhs.shape[len(more) :])), 0, -1)
    if transpose:
        x = _lapack.triangular_solve(matrix, x, transpose_a=True)
        x = _lapack.triangular_solve(matrix, x, lower=True, transpose_a=True, unit_diagonal=True)
        x = _placed(x, order)
    else:
        x = jnp.take_along_axis(x, order[..., None], axis=-2)
        x = _lapack.triangular_solve(matrix, x, lower=True, unit_diagonal=True)
        x = _lapack.triangular_solve(matrix, x)
    return jnp.reshape(jnp.moveaxis(x, -1, 0), rhs.shape).astype(dtype)


def _together(matrix: Array, order: Array, rhs: Array, transpose: bool) -> Array:
    """Substitute with the batch as the last, contiguous axis, so that one operation serves all systems.

    References
    ----------
    Golub & Van Loan (2013), "Matrix Computations", algorithms 3.1.3 and 3.1.4.
    """
    n = rhs.shape[-1]
    matrix = jnp.moveaxis(jnp.reshape(matrix, (-1, n, n)), 0, -1)
    order = jnp.reshape(order, (-1, n)).T
    x = jnp.reshape(rhs, (-1, n)).T
    rows = jnp.arange(n)[:, None]
    if transpose:
        for k in range(n):
            value = x[k] / matrix[k, k]
            x = jnp.where(rows == k, value, jnp.where(rows > k, x - matrix[k] * value, x))
        for k in range(n - 1, 0, -1):
            x = jnp.where(rows < k, x - matrix[k] * x[k], x)
        x = sum((jnp.where(rows == order[k], x[k], 0) for k in range(n)), jnp.zeros_like(x))
    else:
        x = jnp.take_along_axis(x, order, axis=0)
        for k in range(n - 1):
            x = jnp.where(rows > k, x - matrix[:, k] * x[k], x)
        for k in range(n - 1, -1, -1):
            value = x[k] / matrix[k, k]
            x = jnp.where(rows == k, value, jnp.where(rows < k, x - matrix[:, k] * value, x))
    return jnp.reshape(x.T, rhs.shape)


def _placed(x: Array, order: Array) -> Array:
    """Return the rows of each system, (*batch, n, k), at the places that `order` names; a sort would take far longer.

    Systems are mapped over, so that a batch that is spread over devices stays there.
    """

    def place(x: Array, order: Array) -> Array:
        return x.at[order].set(x, unique_indices=True)  # every place is set, so that no array of zeros is needed

    for _ in range(order.ndim - 1):
        place = jax.vmap(place)
    return place(x, order)
