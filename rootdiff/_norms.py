"""Norms of each system of a batch, and the numbers of its unknowns.

A namespace of ours may know a cheaper way to one of them, under the name that is asked for here.
"""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array


def max_norm(xp: Any, vector: Array) -> Array:
    """Return the largest absolute entry of each system, (*batch)."""
    if vector.shape[-1] == 1:
        return xp.abs(vector[..., 0])

    def least_memory(vector: Array) -> Array:  # abs() would need as much again
        return xp.maximum(xp.max(vector, axis=-1), -xp.min(vector, axis=-1))

    cheaper = getattr(xp, "max_norm", None)
    return cheaper(vector, least_memory) if cheaper else least_memory(vector)


def is_within(xp: Any, vector: Array, allowed: Array) -> Array:
    """Return whether every absolute entry is at most the `allowed` one, (*batch); by one reduction of floats."""
    return xp.max(xp.abs(vector) - allowed, axis=-1) <= 0


def norm2(xp: Any, vector: Array) -> Array:
    """Return the Euclidean norm of each system, (*batch), without overflow of the squares."""
    if vector.shape[-1] == 1:
        return max_norm(xp, vector)

    def scaled(vector: Array) -> Array:
        largest = max_norm(xp, vector)
        scale = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
        return scale * xp.sqrt(xp.sum((vector / scale[..., None]) ** 2, axis=-1))

    cheaper = getattr(xp, "norm2", None)
    return cheaper(vector, scaled) if cheaper else scaled(vector)


def dot(xp: Any, a: Array, b: Array) -> Array:
    """Return the inner product of each system, (*batch)."""
    cheaper = getattr(xp, "inner_product", None)
    return cheaper(a, b) if cheaper else xp.sum(a * b, axis=-1)


def numbers(xp: Any, like: Array, dtype: Any = None) -> Array:
    """Return the numbers 1 to n, (n,), in this dtype, by default that of the vectors `like`, (*batch, n).

    Once for all systems: a compiler that evaluates constants takes seconds for the sums of a large batch.
    """
    cheaper = getattr(xp, "numbers", None)
    if cheaper:
        return cheaper(like, dtype)
    zeros = xp.zeros_like(like, dtype=dtype)
    if like.ndim > 1:  # a sum, since a batch that is spread over devices can be neither reshaped nor indexed
        zeros = xp.sum(zeros, axis=tuple(range(like.ndim - 1)))
    return xp.cumulative_sum(zeros + 1, axis=0)
