"""The objects that a function and its arguments lead to: by variables, global names, entries and attributes."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rootdiff._freezing import LIBRARIES, OURS, names_in, package_of

#: Constants, which lead to nothing.
_CONSTANT = (int, float, complex, str, bytes, type(None))
#: What holds code; global names that lead to it are skipped.
CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
#: So many entries of a container are searched: a list of layers has dozens, a list of data thousands.
_ENTRIES = 200


def reached(
    most: int, roots: Iterable[tuple[str, Any]], parts: Callable[[str, Any], Iterator[tuple[str, Any]]]
) -> Iterator[tuple[str, Any]]:
    """Yield at most so many objects that named roots lead to, with their names: each once, the nearest first.

    ``parts(name, value)`` yields what an object leads to, as the function below does.
    """
    queue, seen = deque(roots), set[int]()
    while queue and len(seen) < most:
        name, value = queue.popleft()
        if id(value) not in seen and not isinstance(value, _CONSTANT):
            seen.add(id(value))
            yield name, value
            queue += parts(name, value)


def variables(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function closes over, by name."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # a variable that is not assigned yet
            continue
    return found


def global_variables(function: types.FunctionType) -> dict[str, Any]:
    """Return what a function's global names hold: no code, but for the functions beside it."""
    names = function.__globals__
    found = {name: names[name] for name in names_in(function.__code__) if name in names}
    return {
        name: value
        for name, value in found.items()
        if not isinstance(value, CODE) or getattr(value, "__globals__", None) is names or is_object(value)
    }


def is_object(value: Any) -> bool:
    """Return whether `value` is a class of the user's, or an instance of one."""
    kind = value if isinstance(value, type) else type(value)
    return kind.__module__.partition(".")[0] not in (*LIBRARIES, *OURS)


@dataclass(frozen=True)
class Attributes:
    """The data of a class, or what an object has in slots, by name, as in a dict."""

    owner: Any

    def items(self) -> list[tuple[str, Any]]:
        """Return the names and what they hold now: no methods, and nothing that the language keeps."""
        if isinstance(self.owner, type):
            held = vars(self.owner).items()
            return [pair for pair in held if not (pair[0].startswith("__") or hasattr(pair[1], "__get__"))]
        slots = (pair for kind in type(self.owner).__mro__ for pair in vars(kind).items())
        names = (name for name, slot in slots if isinstance(slot, types.MemberDescriptorType))
        return [(name, getattr(self.owner, name)) for name in names if hasattr(self.owner, name)]

    def get(self, name: str, default: Any) -> Any:
        return getattr(self.owner, name, default)

    def __setitem__(self, name: str, value: Any) -> None:
        (type if isinstance(self.owner, type) else object).__setattr__(self.owner, name, value)

    def __len__(self) -> int:
        return len(self.items())


def stores(value: Any) -> Iterator[Any]:
    """Yield where an object holds what may be assigned anew: containers, and attributes that are as a dict."""
    if isinstance(value, dict | list | deque | set):
        yield value
    if is_object(value):
        yield Attributes(value)
        if hasattr(value, "__dict__") and not isinstance(value, type):
            yield vars(value)


def parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object leads to, with names."""
    if isinstance(value, types.FunctionType):
        yield from variables(value).items()
        if package_of(value) not in (*LIBRARIES, *OURS):
            yield from global_variables(value).items()
        defaults = (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
        yield from ((f"a default of {name}", part) for part in defaults)
        yield name, getattr(value, "__wrapped__", None)
    elif isinstance(value, types.MethodType):
        yield f"self of {type(value.__self__).__name__}", value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield from ((name, part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in islice(value.items(), _ENTRIES))
    elif isinstance(value, list | tuple | deque | Set):
        yield from ((name, part) for part in islice(value, _ENTRIES))
    if is_object(value):
        held = (pair for store in stores(value) if store is not value for pair in store.items())
        yield from ((f"{name}.{key}", part) for key, part in held)
        kinds = value.__bases__ if isinstance(value, type) else (type(value),)
        yield from ((kind.__name__, kind) for kind in kinds if is_object(kind))
