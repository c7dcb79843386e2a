"""The array namespace of JAX as solvers see it: `jax.numpy`, with norms of as few reductions as there can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array


class Namespace:
    """The functions that `jax.numpy` lacks; the others are found there."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(jnp, name)
        setattr(self, name, value)  # found at once the next time
        return value

    @staticmethod
    def max_norm(x: Array, _: Callable[[Array], Array], /) -> Array:
        """Return the largest absolute entries over the last axis: a compiler needs no memory for them."""
        return jnp.max(jnp.abs(x), axis=-1)

    @staticmethod
    def inner_product(x1: Array, x2: Array, /) -> Array:
        """Return the inner products over the last axis, of real arrays."""
        return jnp.sum(x1 * x2, axis=-1)

    @staticmethod
    def norm2(x: Array, careful: Callable[[Array], Array], /) -> Array:
        """Return the Euclidean norms over the last axis."""
        return careful(x)
