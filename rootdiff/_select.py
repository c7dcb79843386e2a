"""Per system of a batch: one thing or another."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array, Backend


def select(xp: Any, mask: Array, new: Any, old: Any) -> Any:
    """Return, per system, `new` where `mask` holds and else `old`; both nested tuples of arrays."""
    if new is old:
        return new
    if isinstance(new, tuple):
        parts = [select(xp, mask, a, b) for a, b in zip(new, old, strict=True)]
        return type(new)(*parts) if hasattr(new, "_fields") else tuple(parts)
    return xp.where(xp.reshape(mask, mask.shape + (1,) * (new.ndim - mask.ndim)), new, old)


def keep(backend: Backend, active: Array, new: Any, old: Any) -> Any:
    """Return what `select` does for the `active` systems; copies nothing where all are, if that is known."""
    if backend.surely_all(active):
        return new
    return select(backend.xp, active, new, old)


def status_where(xp: Any, mask: Array, yes: int, no: int) -> Array:
    """Return the status `yes` where `mask` holds and else `no`: int32, where numbers alone would have no such dtype."""
    return xp.where(mask, xp.full_like(mask, int(yes), dtype=xp.int32), int(no))
