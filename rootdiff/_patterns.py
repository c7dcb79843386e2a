"""Fixed vectors of no special direction: to nudge an unknown, to look along a Jacobian."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array
from rootdiff._space import places


def signs(xp: Any, like: Array, phase: int) -> Array:
    """Return a pattern of +1 and -1, shaped like `like`, (*batch, n): the sign of sin(k^2 + phase)."""
    index = places(xp, like)
    return xp.where(xp.sin(index * index + phase) > 0, xp.ones_like(like), -xp.ones_like(like))


def pattern(xp: Any, like: Array, phase: Array) -> Array:
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
