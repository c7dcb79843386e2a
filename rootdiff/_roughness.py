"""How much of a function is not smooth, from high differences of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rootdiff._backend import Array

#: Differences of this order, over so many steps, hold rounding errors only; unless those of the last order fall below
#: this part of those of the order before: then they still hold the function itself.
_ORDER, _POINTS, _FALLING = 6, 8, 0.3
#: So many steps to either side the function is asked.
REACH = _POINTS // 2
#: The same over long steps, over which the function itself is gone from higher differences only. What they hold is an
#: error if those of the last four orders agree up to a factor, and if it is but a part of the change over one step:
#: differences of a function that bends within a step fall or rise, or are all as large as it is.
_LONG_ORDER, _LONG_POINTS, _AGREE, _PART = 12, 16, 3.0, 1e-2


def roughness(xp: Any, along: Callable[[int], Array]) -> tuple[Array, Array]:
    """Return the root mean square of what is not smooth in ``along(k)`` for small integers k; zero where it is smooth.

    And return that of the change over one step, but for a factor of the square root of two. What high differences leave
    of a smooth function falls with their order, what they leave of rounding does not.

    References
    ----------
    Moré & Wild (2011), "Estimating computational noise", section 2.
    """
    first, *_, before, last = _differences(xp, along, _ORDER, _POINTS)
    return xp.where(xp.isfinite(last) & (last >= _FALLING * before), last, xp.zeros_like(last)), first


def long_roughness(xp: Any, along: Callable[[int], Array]) -> tuple[Array, Array]:
    """Return what `roughness` does where one step of ``along(k)`` is so long that a smooth function bends within it."""
    first, *_, a, b, c, last = _differences(xp, along, _LONG_ORDER, _LONG_POINTS)
    largest, least = (one(one(one(a, b), c), last) for one in (xp.maximum, xp.minimum))
    rough = xp.isfinite(last) & (largest <= _AGREE * least) & (last <= _PART * first)
    return xp.where(rough, last, xp.zeros_like(last)), first


def _differences(xp: Any, along: Callable[[int], Array], order: int, points: int) -> list[Array]:
    """Return the root mean squares of the differences up to an order, each as if they were those of equal errors."""
    table = xp.stack([along(k) for k in range(-(points // 2), points // 2 + 1)])
    found = []
    for k in range(1, order + 1):
        table = table[1:, ...] - table[:-1, ...]
        # the differences of independent errors have this many times their variance
        found.append(xp.sqrt(xp.mean(table**2, axis=0) / math.comb(2 * k, k)))
    return found


def spacing(eps: Any) -> Any:
    """Return the step, in parts of an unknown, over which a function is smooth but rounds many times."""
    return 0.5 * eps ** (1 / 4)
