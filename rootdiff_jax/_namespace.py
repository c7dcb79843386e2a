"""The array namespace of JAX as solvers see it: `jax.numpy`, and what costs a compiled program less."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from rootdiff import _namespace


class Namespace(_namespace.Namespace):
    """`max_norm` and `numbers`; all other functions are those of `jax.numpy`."""

    module = jnp

    @staticmethod
    def max_norm(x: Array, _: Callable[[Array], Array], /) -> Array:
        """Return the largest absolute entries over the last axis: a compiler needs no memory for them."""
        return jnp.max(jnp.abs(x), axis=-1)

    @staticmethod
    def numbers(like: Array, /) -> Array:
        """Return the numbers 1 to n, (n,): a constant to a compiler, where sums are left to each call."""
        return jnp.arange(1, like.shape[-1] + 1, dtype=like.dtype)
