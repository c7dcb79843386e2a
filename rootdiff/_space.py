"""The space of the unknowns: what is asked of all unknowns of a system at once, from vectors (*batch, n) to (*batch).

Solvers ask in no other way. A namespace whose vectors lie in parts on several processes, or that knows a cheaper way,
defines functions of its own under the names that are asked for here; each process must get the same result. And its
fixed vectors of no special direction: to nudge an unknown, to look along a Jacobian.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rootdiff._backend import Array


class Namespace:
    """An array namespace: the functions that a subclass defines; all others are those of its `module`."""

    module: Any
    #: What is asked for here, where a namespace has a way of its own; it has none where these are None.
    max_norm: Any = None
    is_within = every = first_of = per_system = norm2 = inner_product = projections = numbers = max_norm
    offset: Any = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        setattr(self, name, value)  # found at once the next time
        return value


def max_norm(xp: Any, vector: Array) -> Array:
    """Return the largest absolute entry of each system, (*batch)."""

    def least_memory(vector: Array) -> Array:  # abs() would need as much again
        return xp.maximum(xp.max(vector, axis=-1), -xp.min(vector, axis=-1))

    own = getattr(xp, "max_norm", None)
    if own:
        return own(vector, least_memory)
    return xp.abs(vector[..., 0]) if vector.shape[-1] == 1 else least_memory(vector)


def is_within(xp: Any, vector: Array, allowed: Array) -> Array:
    """Return whether every absolute entry is at most the `allowed` one, (*batch); by one reduction of floats."""
    own = getattr(xp, "is_within", None)
    return own(vector, allowed) if own else xp.max(xp.abs(vector) - allowed, axis=-1) <= 0


def every(xp: Any, mask: Array) -> Array:
    """Return whether the mask, (*batch, n), holds for every unknown, (*batch)."""
    own = getattr(xp, "every", None)
    return own(mask) if own else xp.all(mask, axis=-1)


def some(xp: Any, mask: Array) -> Array:
    """Return whether the mask, (*batch, n), holds for some unknown, (*batch)."""
    own = getattr(xp, "every", None)
    return ~own(~mask) if own else xp.any(mask, axis=-1)


def is_finite(xp: Any, vector: Array) -> Array:
    """Return whether every entry is finite, (*batch)."""
    return every(xp, xp.isfinite(vector))


def is_beyond_rounding(xp: Any, error: Array, y: Array) -> Array:
    """Return whether a known error of some unknown is more than some roundings of it, (*batch)."""
    return some(xp, xp.isfinite(error) & (error > float(xp.finfo(y.dtype).eps) ** (7 / 8) * xp.abs(y)))


def first_of(xp: Any, vector: Array) -> Array:
    """Return the entry of the first unknown, (*batch)."""
    own = getattr(xp, "first_of", None)
    return own(vector) if own else vector[..., 0]


def per_system(xp: Any, like: Array, value: Any, dtype: Any = None) -> Array:
    """Return an array (*batch), for vectors `like`, (*batch, n), filled with a value; of their dtype by default."""
    own = getattr(xp, "per_system", None)
    return own(like, value, dtype) if own else xp.full_like(like[..., 0], value, dtype=dtype)


def norm2(xp: Any, vector: Array) -> Array:
    """Return the Euclidean norm of each system, (*batch), without overflow of the squares."""

    def scaled(vector: Array) -> Array:
        largest = max_norm(xp, vector)
        scale = xp.where((largest > 0) & xp.isfinite(largest), largest, 1.0)
        return scale * xp.sqrt(xp.sum((vector / scale[..., None]) ** 2, axis=-1))

    own = getattr(xp, "norm2", None)
    if own:
        return own(vector, scaled)
    return max_norm(xp, vector) if vector.shape[-1] == 1 else scaled(vector)


def dot(xp: Any, a: Array, b: Array) -> Array:
    """Return the inner product of each system, (*batch)."""
    own = getattr(xp, "inner_product", None)
    return own(a, b) if own else xp.sum(a * b, axis=-1)


def projections(xp: Any, vectors: Array, vector: Array) -> Array:
    """Return the inner products of several `vectors`, (*batch, m, n), with one, (*batch, n), of each system."""
    own = getattr(xp, "projections", None)
    return own(vectors, vector) if own else xp.vecdot(vectors, vector[..., None, :])


def numbers(xp: Any, like: Array, dtype: Any = None) -> Array:
    """Return the numbers 1 to n, (n,), in this dtype, by default that of the vectors `like`, (*batch, n).

    Once for all systems: a compiler that evaluates constants takes seconds for the sums of a large batch.
    """
    own = getattr(xp, "numbers", None)
    if own:
        return own(like, dtype)
    zeros = xp.zeros_like(like, dtype=dtype)
    if like.ndim > 1:  # a sum, since a batch that is spread over devices can be neither reshaped nor indexed
        zeros = xp.sum(zeros, axis=tuple(range(like.ndim - 1)))
    return xp.cumulative_sum(zeros + 1, axis=0)


def places(xp: Any, like: Array) -> Array:
    """Return the numbers, (n,), of the unknowns of vectors `like`, (*batch, n): those of a part begin at its offset."""
    offset = getattr(xp, "offset", 0)
    return numbers(xp, like) + offset if offset else numbers(xp, like)


def signs(xp: Any, like: Array, phase: int) -> Array:
    """Return a pattern of +1 and -1, shaped like `like`, (*batch, n): the sign of sin(k^2 + phase)."""
    index = places(xp, like)
    return xp.where(xp.sin(index * index + phase) > 0, xp.ones_like(like), -xp.ones_like(like))


def waves(xp: Any, like: Array, phase: Array) -> Array:
    """Return weights between -1 and 1, shaped like `like`, (*batch, n), of which no row of small integers sums to zero.

    `phase` is (*batch).
    """
    index = places(xp, like)
    return xp.sin(index * index + xp.astype(phase, like.dtype)[..., None] + 1)


def weights(xp: Any, like: Array, phase: Array) -> Array:
    """Return weights of size 1/2 to 1, shaped like `like`, (*batch, n), and all positive in the phase 0.

    None is so small that what it multiplies goes unseen. `phase` is (*batch).
    """
    index = places(xp, like)
    sign = xp.sin(index * index * xp.astype(phase, like.dtype)[..., None] + 0.5)
    size = 0.75 + 0.25 * xp.sin(index * index)
    return xp.where(sign > 0, size, -size)
