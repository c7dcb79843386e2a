"""LU factors and triangular solves: of many small systems all at once, since XLA calls LAPACK once per system."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from rootdiff._backend import Array
from rootdiff._sizes import are_better_together
from rootdiff_jax._mesh import partition
from rootdiff_jax._precision import for_lapack

#: So many row exchanges are compiled into one operation.
_EXCHANGES = 8
#: Whether what is traced now hardly ever runs: then a small program counts, not a fast one.
HARDLY_EVER = ContextVar("hardly ever", default=False)


def lu_factor(matrix: Array) -> tuple[Array, Array]:
    """Return the LU factors, (*batch, n, n), and the row order, (*batch, n), that the pivots stand for."""
    factors, pivots, order = _factor(for_lapack(matrix))
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


def lu_solve(factors: tuple[Array, Array], rhs: Array, transpose: bool) -> Array:
    """Return the solutions, like `rhs`, of A x = b, or of A^T x = b, by the LU factors and the row order of A.

    `rhs` is (*batch, n) or (several, *batch, n).
    """
    matrix, order = factors
    if are_better_together(order.shape) and not HARDLY_EVER.get():
        if rhs.ndim > order.ndim:
            return jax.vmap(lambda one: lu_solve(factors, one, transpose))(rhs)
        if order.shape == rhs.shape:
            return _together(matrix, order, rhs, transpose)
    return one_by_one(factors, rhs, transpose)


def one_by_one(factors: tuple[Array, Array], rhs: Array, transpose: bool) -> Array:
    """Do what `lu_solve` does by LAPACK, for one system after the other."""
    matrix, order = factors
    # so that vmap over an explicit axis of a mesh maps it too: it looks rows up in mapped arrays only
    rhs = jnp.where(order >= 0, rhs, rhs)
    dtype, matrix, rhs = rhs.dtype, for_lapack(matrix), for_lapack(rhs)
    more = rhs.shape[: rhs.ndim + 1 - matrix.ndim]  # several right-hand sides of one matrix are columns
    x = jnp.moveaxis(jnp.reshape(rhs, (math.prod(more), *rhs.shape[len(more) :])), 0, -1)
    if transpose:
        x = _substitution(transpose_a=True)(matrix, x)
        x = _substitution(lower=True, transpose_a=True, unit_diagonal=True)(matrix, x)
        x = _placed(x, order)
    else:
        x = jnp.take_along_axis(x, order[..., None], axis=-2)
        x = _substitution(lower=True, unit_diagonal=True)(matrix, x)
        x = _substitution()(matrix, x)
    return jnp.reshape(jnp.moveaxis(x, -1, 0), rhs.shape).astype(dtype)


def _together(matrix: Array, order: Array, rhs: Array, transpose: bool) -> Array:
    """Substitute with the batch as the last, contiguous axis, so that one operation serves all systems.

    A gradient of 1024 systems of 6 takes 2.3 times without (Golub & Van Loan 2013, algorithms 3.1.3 and 3.1.4).
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


def _by_system(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays, (*batch, ., .), that is called for one system at a time, whatever axes vmap adds.

    XLA's own way is a call for the whole batch, which hands parts of it to the threads of the pool that runs the
    program, and waits for them there. As many of these calls at a time as the pool has threads wait for each other for
    ever: two solves of one program that do not depend on each other, on two threads (jaxlib 0.9 to 0.11). A call for
    one system does not wait.
    """

    def over_batch(*arrays: Array) -> Any:
        batch = arrays[0].shape[:-2]
        if batch == () or not _waits():
            return function(*arrays)
        flat = [jnp.reshape(array, (-1, *array.shape[-2:])) for array in arrays]
        parts = lax.map(lambda systems: function(*systems), tuple(flat))
        return jax.tree.map(lambda part: jnp.reshape(part, (*batch, *part.shape[1:])), parts)

    return over_batch


def _waits() -> bool:
    """Return whether a call for a batch waits in the pool; batches that are spread over devices are left to XLA."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


_factor = custom_vmap(_by_system(lambda matrix: tuple(lax.linalg.lu(matrix))))


@_factor.def_vmap
def _factor_more(_: int, __: list[bool], matrix: Array) -> Any:
    return _factor(matrix), (True, True, True)


@cache
def _substitution(**kind: bool) -> Callable[[Array, Array], Array]:
    """Return X, (*batch, n, k), with A X = B, of triangular A, (*batch, n, n), and B; `kind` as in `lax.linalg`."""

    def of_system(matrix: Array, columns: Array) -> Array:
        return lax.linalg.triangular_solve(matrix, columns, left_side=True, **kind)

    mapped = custom_vmap(_by_system(of_system))

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], matrix: Array, columns: Array) -> tuple[Array, bool]:
        of_matrix, _ = batched
        spread = partition(matrix if of_matrix else columns)[0]
        if of_matrix or spread is not None:  # JAX cannot merge an axis that is spread over devices with another one
            matrix, columns = (
                array if flag else _repeated(array, size, spread)
                for array, flag in zip((matrix, columns), batched, strict=True)
            )
            return mapped(matrix, columns), True
        # one matrix: the right-hand sides become its columns
        flat = jnp.moveaxis(columns, 0, -2)
        x = mapped(matrix, jnp.reshape(flat, (*flat.shape[:-2], math.prod(flat.shape[-2:]))))
        return jnp.moveaxis(jnp.reshape(x, flat.shape), -2, 0), True

    return mapped


def _repeated(array: Array, size: int, spread: Any) -> Array:
    """Return `size` copies of an array along a new first axis, which is spread over an explicit axis of a mesh."""
    repeated = jnp.broadcast_to(array, (size, *array.shape))
    if spread is None:
        return repeated
    return jax.sharding.reshard(repeated, PartitionSpec(spread, *partition(array)))  # type: ignore[no-untyped-call]
