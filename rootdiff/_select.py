"""Per system of a batch: one thing or another."""

from __future__ import annotations

from functools import cache
from typing import Any

import optree

from rootdiff._backend import Array, Backend


def select(xp: Any, mask: Array, new: Any, old: Any) -> Any:
    """Return, per system, `new` where `mask` holds and else `old`; both pytrees of arrays."""
    wide = cache(lambda ndim: xp.reshape(mask, mask.shape + (1,) * (ndim - mask.ndim)))
    return optree.tree_map(lambda a, b: a if a is b else xp.where(wide(a.ndim), a, b), new, old)


def keep(backend: Backend, active: Array, new: Any, old: Any) -> Any:
    """Return what `select` does for the `active` systems; copies nothing where all are, if that is known."""
    if backend.surely_all(active):
        return new
    return select(backend.xp, active, new, old)


def status_where(xp: Any, mask: Array, yes: int, no: int) -> Array:
    """Return the status `yes` where `mask` holds and else `no`: int32, where numbers alone would have no such dtype."""
    return xp.where(mask, xp.full_like(mask, int(yes), dtype=xp.int32), int(no))
