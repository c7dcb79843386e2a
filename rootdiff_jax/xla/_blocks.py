"""Large batches of small systems, solved in blocks whose arrays stay in a processor's cache.

A step makes dozens of passes over arrays of the whole batch; where these lie in memory, it waits for that.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from rootdiff._compaction import taken
from rootdiff._residual import Residual

#: How many entries the Jacobians of a block have for each thread (measured: half or twice as many cost the same), and
#: how many systems a block has at least.
_ENTRIES, _SYSTEMS = 2**14, 64


def block_size(y: Array) -> int:
    """Return how many systems of `y`, (*batch, n), make a block; 0 where one block of all is faster."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:  # a batch may be spread over devices
        return 0
    count = math.prod(y.shape[:-1])
    most = _threads() * _ENTRIES // y.shape[-1] ** 2
    if most < _SYSTEMS or count < 2 * most:
        return 0
    return -(-count // (count // most))  # blocks of nearly the same size


def is_cut(residual: Residual, y: Array) -> bool:
    """Return whether a batch like `y` is solved block by block."""
    return residual.divisible and block_size(y) > 0


def in_blocks(
    function: Callable[[Residual, Any], Any], residual: Residual, y: Array, arrays: Any, settings: tuple[Any, ...]
) -> Any:
    """Return ``function(residual, arrays)``; block by block of a batch like `y`, where that is possible and faster.

    It is not possible for `settings` of the function that may belong to all systems. `arrays`, and what the function
    returns, are nested tuples of arrays that start with the batch axes.
    """
    batch, take = y.shape[:-1], residual.take
    size = block_size(y) if residual.divisible and all(jnp.ndim(value) == 0 for value in settings) else 0
    if take is None or size == 0:
        return function(residual, arrays)
    count = math.prod(batch)
    blocks = -(-count // size)

    def of_block(start: Array) -> Any:
        def pick(array: Array) -> Array:
            return lax.dynamic_slice_in_dim(array, start, size)

        return function(take(pick, size), taken(jnp, arrays, pick, len(batch)))

    def join(parts: Array) -> Array:
        rest = parts.shape[1 + len(batch) :]
        new = count - (blocks - 1) * size  # how many rows of the last block are new: it overlaps the block before it
        flat = jnp.reshape(parts, (blocks, size, *rest))
        if new < size:
            flat = jnp.concat([jnp.reshape(flat[:-1], (-1, *rest)), flat[-1, size - new :]])
        return jnp.reshape(flat, (*batch, *rest))

    # JAX moves a slice that begins too late back to where it fits
    return jax.tree.map(join, lax.map(of_block, jnp.arange(blocks) * size))


def _threads() -> int:
    """Return how many threads XLA uses, each with a cache of its own."""
    chosen = os.environ.get("NPROC", "")
    if chosen.isdecimal():
        return max(int(chosen), 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
