"""Solvers split into what a program is compiled for and the numbers that it takes as inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from rootdiff._settings import runtime_settings, with_settings

_MISSING = object()


@dataclass(frozen=True)
class Template:
    """A solver without the values of its runtime settings; templates of the same settings are equal."""

    solver: Any = field(compare=False)
    key: Any

    def fill(self, values: Sequence[Any]) -> Any:
        """Return the solver with these runtime settings, in the order of `split`."""
        remaining = iter(values)
        return _replaced(self.solver, lambda _: next(remaining))[0]


def split(solver: Any) -> tuple[Template, tuple[Any, ...]]:
    """Return a solver's template and the values of its runtime settings, those of solvers inside it included."""
    values: list[Any] = []

    def taken(value: Any) -> Any:
        values.append(value)
        return _MISSING  # a template outlives the solve, in the cache of programs, and values may be tracers

    return Template(*_replaced(solver, taken)), tuple(values)


def _replaced(value: Any, replacement: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return a setting with its runtime values replaced, and what tells it from others, whatever these values are."""
    if isinstance(value, tuple):  # the solvers of a chain
        parts = [_replaced(entry, replacement) for entry in value]
        return tuple(new for new, _ in parts), tuple(key for _, key in parts)
    if not is_dataclass(value) or isinstance(value, type):
        return value, value
    changes: dict[str, Any] = {}
    keys = []
    for name in (f.name for f in fields(value) if f.init):
        old, kind = getattr(value, name), type(value)
        if name in runtime_settings(kind) and old is not None and not isinstance(old, bool | str):
            new, key = replacement(old), type(old)
        else:
            new, key = _replaced(old, replacement)
        changes |= {name: new} if new is not old else {}
        keys.append((name, key))
    return with_settings(value, **changes) if changes else value, (type(value), *keys)
