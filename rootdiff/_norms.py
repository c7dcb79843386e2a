"""Norms of each system of a batch."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array


def max_norm(xp: Any, vector: Array) -> Array:
    """Return the largest absolute entry of each system, (*batch)."""
    if vector.shape[-1] == 1:
        return xp.abs(vector[..., 0])
    if hasattr(xp, "max_norm"):  # a namespace of ours knows the cheapest way
        return xp.max_norm(vector)
    # without abs(), which would need memory for as many numbers again
    return xp.maximum(xp.max(vector, axis=-1), -xp.min(vector, axis=-1))


def norm2(xp: Any, vector: Array) -> Array:
    """Return the Euclidean norm of each system, (*batch), without overflow of the squares."""
    if vector.shape[-1] == 1:
        return max_norm(xp, vector)

    def scaled(vector: Array) -> Array:
        largest = max_norm(xp, vector)
        scale = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
        return scale * xp.sqrt(xp.sum((vector / scale[..., None]) ** 2, axis=-1))

    return xp.norm2(vector, scaled) if hasattr(xp, "norm2") else scaled(vector)


def dot(xp: Any, a: Array, b: Array) -> Array:
    """Return the inner product of each system, (*batch)."""
    return xp.dot(a, b) if hasattr(xp, "max_norm") else xp.sum(a * b, axis=-1)
