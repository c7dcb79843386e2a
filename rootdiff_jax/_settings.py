"""Solvers split into what a program is compiled for and the numbers that it takes as inputs."""

from __future__ import annotations

from collections.abc import Sequence
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
        remaining = list(values)
        return _rebuild(self.solver, remaining)


def split(solver: Any) -> tuple[Template, tuple[Any, ...]]:
    """Return a solver's template and the values of its runtime settings, those of solvers inside it included."""
    values: list[Any] = []
    key = _key(solver, values)
    # a template outlives the solve, in the cache of programs, and values may be tracers
    return Template(_rebuild(solver, [_MISSING] * len(values)), key), tuple(values)


def _key(solver: Any, values: list[Any]) -> Any:
    entries: list[Any] = []
    for name, value in _settings(solver):
        if _is_runtime(solver, name, value):
            values.append(value)
            entries.append((name, type(value)))
        else:
            entries.append((name, _key_of_setting(value, values)))
    return (type(solver), *entries) if is_dataclass(solver) else solver


def _key_of_setting(value: Any, values: list[Any]) -> Any:
    if isinstance(value, tuple):  # the solvers of a chain
        return tuple(_key_of_setting(entry, values) for entry in value)
    return _key(value, values) if _is_nested(value) else value


def _rebuild(solver: Any, values: list[Any]) -> Any:
    changes: dict[str, Any] = {}
    for name, value in _settings(solver):
        if _is_runtime(solver, name, value):
            changes[name] = values.pop(0)
        elif _is_nested(value) or isinstance(value, tuple):
            changes[name] = _rebuild_setting(value, values)
    return with_settings(solver, **changes) if changes else solver


def _rebuild_setting(value: Any, values: list[Any]) -> Any:
    if isinstance(value, tuple):
        return tuple(_rebuild_setting(entry, values) for entry in value)
    return _rebuild(value, values) if _is_nested(value) else value


def _settings(solver: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(solver, f.name)) for f in fields(solver) if f.init] if is_dataclass(solver) else []


def _is_runtime(solver: Any, name: str, value: Any) -> bool:
    kind: Any = type(solver)
    return name in runtime_settings(kind) and value is not None and not isinstance(value, bool | str)


def _is_nested(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)
