"""Names of things of one kind, those of plug-ins included."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from rootdiff._errors import ArgumentTypeError, DuplicateNameError, UnknownNameError

BACKENDS = ("numpy", "torch", "jax")
T = TypeVar("T")


@dataclass(frozen=True)
class _Entry(Generic[T]):
    factory: Callable[[], T]
    backends: tuple[str, ...]


class Names(Generic[T]):
    """Names to factories of one kind, with plug-ins from entry points read on first use."""

    def __init__(self, kind: str, group: str, base: type[T]) -> None:
        self.kind, self.group, self.base = kind, group, base
        self._entries: dict[str, _Entry[T]] = {}
        self._plugged = False

    def register(self, name: str, factory: Callable[[], T], backends: Iterable[str] = BACKENDS) -> None:
        if name in self._entries:
            raise DuplicateNameError(f"register_{self.kind}: {name!r} is registered already; choose another name.")
        if not callable(factory):
            raise ArgumentTypeError(
                f"register_{self.kind}: factory is {factory!r}; it must be callable without arguments, "
                f"such as a class or ``lambda: MySolver(...)``."
            )
        unknown = set(backends) - set(BACKENDS)
        if unknown:
            raise UnknownNameError(f"register_{self.kind}: backends {sorted(unknown)} are not among {BACKENDS}.")
        self._entries[name] = _Entry(factory, tuple(backends))

    def get(self, spec: str | T, backend: str | None = None) -> T:
        """Return the object of a name; an object of this kind is returned as it is."""
        if isinstance(spec, self.base):
            return spec
        if not isinstance(spec, str):
            hint = f" It is a class: write {spec.__name__}()." if isinstance(spec, type) else ""
            raise ArgumentTypeError(
                f"{self.kind}: got {spec!r}; it must be a registered name or a {self.base.__name__}.{hint} "
                f"Registered are {', '.join(self.names(backend))}."
            )
        self._plug()
        entry = self._entries.get(spec)
        if entry is None or (backend is not None and backend not in entry.backends):
            raise UnknownNameError(self._unknown(spec, entry, backend))
        return entry.factory()

    def names(self, backend: str | None = None) -> tuple[str, ...]:
        self._plug()
        return tuple(sorted(n for n, e in self._entries.items() if backend is None or backend in e.backends))

    def _unknown(self, name: str, entry: _Entry[T] | None, backend: str | None) -> str:
        names = self.names(backend)
        if entry is not None:
            reason = f"{name!r} does not run on {backend}, only on {', '.join(entry.backends)}."
        else:
            close = difflib.get_close_matches(name, names, n=1)
            reason = f"{name!r} is not registered." + (f" Did you mean {close[0]!r}?" if close else "")
        return f"{self.kind}: {reason} Registered are {', '.join(names)}."

    def _plug(self) -> None:
        if self._plugged:
            return
        self._plugged = True
        for point in entry_points(group=self.group):
            self.register(point.name, partial(_load, point))


def _load(point: Any) -> Any:
    return point.load()()
