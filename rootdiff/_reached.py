"""The objects that a function and its arguments lead to: by variables, global names, entries and attributes."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from rootdiff._freezing import LIBRARIES, OURS, names_in, package_of

#: Constants, which lead to nothing.
_CONSTANT = (int, float, complex, str, bytes, type(None))
#: What holds code; global names that lead to it are skipped.
CODE = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
#: So many entries of a dict or list are searched: a list of layers has dozens, a list of data thousands.
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
        if not isinstance(value, CODE) or getattr(value, "__globals__", None) is names
    }


def is_object(value: Any) -> bool:
    """Return whether `value` is an instance of a class of the user's, with attributes."""
    if isinstance(value, CODE) or not hasattr(value, "__dict__"):
        return False
    return type(value).__module__.partition(".")[0] not in (*LIBRARIES, *OURS)


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
    elif isinstance(value, list | tuple):
        yield from ((name, part) for part in value[:_ENTRIES])
    elif is_object(value):
        yield from ((f"{name}.{key}", part) for key, part in vars(value).items())
