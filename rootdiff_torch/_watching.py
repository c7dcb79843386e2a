"""Whether a root is one still when its derivative is taken, and what has changed if not.

What a residual reads and cannot be frozen (an object, a dict, an array) is watched from the solve on.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rootdiff._errors import ArgumentError
from rootdiff._iterate import signs
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._freezing import LIBRARIES, OURS, names_in, package_of

#: So many things are watched for each solve, arrays of at most so many entries.
_WATCHED, _SMALL = 200, 1000
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
    def of(function: Any, args: Any) -> Watched:
        """Return what `function`, called with `args`, reads in plain sight."""
        seen: dict[int, tuple[str, Any, Any]] = {}
        for name, value in (*_reached("the residual", function, 6), *_reached("args", args, 5)):
            if len(seen) >= _WATCHED:
                break
            trace = _trace(value)
            if trace is not None:
                seen.setdefault(id(value), (name, value, trace))
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


def _reached(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    yield name, value
    if depth == 0:
        return
    for part_name, part in _named_parts(name, value):
        yield from _reached(part_name, part, depth - 1)


def _named_parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, types.FunctionType):
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                yield variable, cell.cell_contents
            except ValueError:
                continue
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


def _trace(value: Any) -> Any:
    """Return what changes where `value` is changed in place, or None."""
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
    if not isinstance(before, dict):
        return [name] if now != before else []
    word = "{}.{}" if _is_object(value) else "{}[{!r}]"
    missing = object()
    keys = (key for key in now | before if now.get(key, missing) is not before.get(key, missing))
    return [word.format(name, key) for key in keys]


def _is_object(value: Any) -> bool:
    """Return whether `value` is an instance of a class of the user's, with attributes."""
    if isinstance(value, nn.Module | Tensor | type | types.ModuleType) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in (*LIBRARIES, *OURS)
