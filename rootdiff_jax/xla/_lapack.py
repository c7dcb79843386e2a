"""LAPACK's routines for batches: one system after the other, whatever axes `jax.vmap` adds.

XLA's own way is a call for the whole batch, which hands parts of it to the threads of the pool that runs the program,
and waits for them there. As many of these calls at a time as the pool has threads wait for each other for ever: two
solves of one program that do not depend on each other, on two threads (jaxlib 0.9 to 0.11). A call for one system
does not wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from rootdiff._backend import Array
from rootdiff_jax._trace import partition


def lu(matrix: Array) -> tuple[Array, Array, Array]:
    """Return what `lax.linalg.lu` does of matrices, (*batch, n, n)."""
    return _factor(matrix)  # type: ignore[no-any-return]


def triangular_solve(matrix: Array, columns: Array, **kind: bool) -> Array:
    """Return X, (*batch, n, k), with A X = B, for triangular matrices, (*batch, n, n); `kind` as in `lax.linalg`."""
    return _substitution(**kind)(matrix, columns)


def _by_system(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of arrays, (*batch, ., .), that is called for one system at a time."""

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
