"""Whether a root is one still when its derivative is taken, and what has changed if not.

What a residual reads and cannot be frozen (an object, a dict, an array) is watched from the solve on.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rootdiff._errors import ArgumentError
from rootdiff._patterns import signs
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._freezing import LIBRARIES, OURS, names_in, package_of

#: So many things are looked at for each solve, and arrays of at most so many entries.
_WATCHED, _SMALL = 200, 1000
#: What does not change in place.
_CONSTANT = (int, float, complex, str, bytes, type(None))
_CHANGED = "These have changed since: {}. Pass them through args, and take the derivative before you change them."
#: Global names that hold these are not watched.
_CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
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
        for name, value in _reached(("the residual", function), ("args", args)):
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


def _reached(*roots: tuple[str, Any]) -> Iterator[tuple[str, Any]]:
    """Return what is reached from the roots, the nearest first, each once, and no more than `_WATCHED` of it."""
    queue, seen = deque(roots), set[int]()
    while queue and len(seen) < _WATCHED:
        name, value = queue.popleft()
        if id(value) not in seen and not isinstance(value, _CONSTANT):
            seen.add(id(value))
            yield name, value
            queue += _named_parts(name, value)


def _named_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.FunctionType):
        yield from _variables(value).items()
        if package_of(value) not in (*LIBRARIES, *OURS):
            found = ((n, value.__globals__.get(n)) for n in names_in(value.__code__))
            yield from ((n, part) for n, part in found if not isinstance(part, _CODE))
        yield from ((f"a default of {name}", part) for part in value.__defaults__ or ())
    elif isinstance(value, types.MethodType):
        yield f"self of {type(value.__self__).__name__}", value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield from ((name, part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, dict) and len(value) < _WATCHED:
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, list | tuple) and len(value) < _WATCHED:
        yield from ((name, part) for part in value)
    elif isinstance(value, nn.Module):
        yield from ((f"{name}.{key}", part) for key, part in value.named_buffers())
    elif _is_object(value):
        yield from ((f"{name}.{key}", part) for key, part in vars(value).items())


def _variables(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function closes over, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue
    return found


def _trace(value: Any) -> Any:
    """Return what changes where `value` is changed in place, or None."""
    if isinstance(value, types.FunctionType):
        return _variables(value)
    if isinstance(value, Tensor):
        return None if value.is_inference() else value._version
    if isinstance(value, np.ndarray):
        return value.tobytes() if value.size <= _SMALL else None
    if isinstance(value, dict) and len(value) < _WATCHED:
        return dict(value)
    if isinstance(value, list) and len(value) < _WATCHED:
        return dict(enumerate(value))
    return dict(vars(value)) if _is_object(value) else None


def _changes(name: str, value: Any, now: Any, before: Any) -> list[str]:
    if not isinstance(before, dict) or now is None:  # None: it has grown beyond what is watched
        return [name] if now != before else []
    words = {dict: "{}[{!r}]", list: "{}[{!r}]", types.FunctionType: "{1}"}
    word = words.get(type(value), "{}.{}")
    missing = object()
    keys = (key for key in now | before if now.get(key, missing) is not before.get(key, missing))
    return [word.format(name, key) for key in keys]


def _is_object(value: Any) -> bool:
    """Return whether `value` is an instance of a class of the user's, with attributes."""
    if isinstance(value, nn.Module | Tensor | type | types.ModuleType) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in (*LIBRARIES, *OURS)
