"""Per system of a batch: the new state or the old one."""

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
