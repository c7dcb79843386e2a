"""How much of a function is not smooth, from high differences of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from rootdiff._backend import Array

#: Differences of this order, over so many steps, hold rounding errors only; unless those of the last order fall below
#: this part of those of the order before: then they still hold the function itself.
_ORDER, _POINTS, _FALLING = 6, 8, 0.3


def roughness(xp: Any, along: Callable[[int], Array]) -> Array:
    """Return the root mean square of what is not smooth in ``along(k)`` for small integers k; zero where it is smooth.

    What high differences leave of a smooth function falls with their order, what they leave of rounding does not.

    References
    ----------
    Moré & Wild (2011), "Estimating computational noise", section 2.
    """
    half = _POINTS // 2
    table = xp.stack([along(k) for k in range(-half, half + 1)])
    found = []
    for order in range(1, _ORDER + 1):
        table = table[1:, ...] - table[:-1, ...]
        # the differences of independent errors have this many times their variance
        found.append(xp.sqrt(xp.mean(table**2, axis=0) / math.comb(2 * order, order)))
    *_, before, last = found
    return xp.where(xp.isfinite(last) & (last >= _FALLING * before), last, xp.zeros_like(last))


def spacing(eps: Any) -> Any:
    """Return the step, in parts of an unknown, over which a function is smooth but rounds many times."""
    return 0.5 * eps ** (1 / 4)
