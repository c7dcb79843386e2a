"""Whether the root is still a root of the residual when its derivative is taken, and what has changed if not.

Some of what a residual reads cannot be copied (arrays, lists, global names of another file): it is compared with what
it was at the solve.
"""

from __future__ import annotations

import types
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rootdiff._errors import ArgumentError
from rootdiff._patterns import signs
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._reached import reached, variables

#: At most so many objects are watched in a solve, and arrays of at most so many entries.
_WATCHED, _SMALL = 200, 1000
_CHANGED = "These have changed since: {}. Pass them through args, and take the derivative before you change them."
_UNKNOWN = (
    "Something that it reads has changed since and could not be kept (an object, a NumPy array, a global name of "
    "another file). Take the derivative before you change it, or solve with a copy of it."
)
_RANDOM = (
    "It is random: two evaluations at the same point differ. Draw what is random before the solve, and pass it through "
    "args."
)


@dataclass(frozen=True)
class Watched:
    """What a residual reads that cannot be frozen, by its name, with what tells whether it has changed."""

    things: tuple[tuple[str, Any, Any], ...]

    @staticmethod
    def of(function: Any, args: Any, frozen: Collection[int]) -> Watched:
        """Return what `function`, called with `args`, reads in plain sight, but for the functions that are `frozen`."""
        seen: dict[int, tuple[str, Any, Any]] = {}
        for name, value in reached(_WATCHED, ("the residual", function), ("args", args)):
            trace = None if id(value) in frozen else _trace(value)
            if trace is not None:
                seen[id(value)] = name, value, trace
        return Watched(tuple(seen.values()))

    def changed(self) -> list[str]:
        """Return the names of what has changed."""
        found = (_changes(name, value, _trace(value), trace) for name, value, trace in self.things)
        return list(dict.fromkeys(name for names in found for name in names))


def norm_allowed(status: Tensor, norm: Tensor) -> Tensor:
    """Return the largest norm of f that a later evaluation at the root may have, (*batch); infinite where it failed."""
    return torch.where(status > int(Status.AT_PRECISION), torch.inf, 2 * norm)


def check_still_root(residual: Residual, y: Tensor, value: Tensor, allowed: Tensor, watched: Watched) -> None:
    """Raise if `value`, that of f at `y` now, is larger than `allowed`, and than a change of y by rounding explains."""
    with torch.no_grad():
        if bool((torch.linalg.vector_norm(value, torch.inf, dim=-1) <= allowed).all()):
            return
        eps = torch.finfo(y.dtype).eps
        nudge = eps**0.5 * y.abs() + eps**0.75
        nudged = [residual(y + signs(BACKEND.xp, y, phase) * nudge) for phase in (0, 3)]
        explained = torch.stack([(near - value).abs() for near in nudged]).amax(0)
        bound = 8 * torch.maximum(explained, allowed[..., None])
        if bool(((value.abs() <= bound) | allowed[..., None].isinf()).all()):
            return
        same = torch.equal(residual(y), value)
    changed = watched.changed()
    raise ArgumentError(
        "residual: at the root it is not what it was when the root was found, so that there is no derivative. "
        + (_CHANGED.format(", ".join(changed)) if changed else _UNKNOWN if same else _RANDOM)
    )


def _trace(value: Any) -> Any:
    """Return what changes where `value` is changed in place, or None."""
    if isinstance(value, types.FunctionType):
        return variables(value)
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.size <= _SMALL else None
    if isinstance(value, list) and len(value) < _WATCHED:
        return dict(enumerate(value))
    return None


def _changes(name: str, value: Any, now: Any, before: Any) -> list[str]:
    if not isinstance(before, dict) or now is None:  # None: it has grown beyond what is watched
        return [name] if now != before else []
    word = "{}[{!r}]" if isinstance(value, list) else "{1}"
    missing = object()
    keys = (key for key in now | before if now.get(key, missing) is not before.get(key, missing))
    return [word.format(name, key) for key in keys]
