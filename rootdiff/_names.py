"""Names of things of one kind, those of plug-ins included."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import entry_points
from threading import RLock
from typing import Any, Generic, TypeVar

from rootdiff._errors import ArgumentTypeError, DuplicateNameError, UnknownNameError, with_article

#: The backends that a name can be registered for; an adapter adds its own.
BACKENDS = dict.fromkeys(("numpy", "torch", "jax"))
T = TypeVar("T")


class Names(Generic[T]):
    """Names to factories of one kind, with plug-ins from entry points read on first use."""

    def __init__(self, kind: str, group: str, base: type[T]) -> None:
        self.kind, self.group, self.base = kind, group, base
        self._entries: dict[str, tuple[Callable[[], T], tuple[str, ...] | None]] = {}
        self._plugged = False
        self._lock = RLock()

    def register(self, name: str, factory: Callable[[], T], backends: Iterable[str] | None = None) -> None:
        if not isinstance(name, str) or not name:
            raise ArgumentTypeError(
                f"register_{self.kind}: name is {name!r}, {with_article(type(name).__name__)}; it must be a text that "
                "is not empty."
            )
        if not callable(factory):
            raise ArgumentTypeError(
                f"register_{self.kind}: factory is {factory!r}; it must be callable without arguments, "
                f"such as a class or ``lambda: MySolver(...)``."
            )
        if backends is not None:
            backends = (backends,) if isinstance(backends, str) else tuple(backends)
        unknown = set(backends or ()) - set(BACKENDS)
        if unknown:
            raise UnknownNameError(f"register_{self.kind}: backends {sorted(unknown)} are not among {[*BACKENDS]}.")
        with self._lock:
            if name in self._entries:
                raise DuplicateNameError(f"register_{self.kind}: {name!r} is registered already; choose another name.")
            self._entries[name] = factory, backends

    def get(self, spec: str | T, backend: str | None = None, beside: Names[T] | None = None) -> T:
        """Return the object of a name; an object of this kind is returned as it is.

        A message offers those `beside` too, of which it is none.
        """
        if isinstance(spec, self.base):
            return spec
        if not isinstance(spec, str):
            hint = f" It is a class: write {spec.__name__}()." if isinstance(spec, type) else ""
            raise ArgumentTypeError(
                f"{self.kind}: got {spec!r}; it must be a registered name or a {self.base.__name__}.{hint} "
                f"Registered are {', '.join(self.names(backend))}."
            )
        if spec not in self.names(backend):
            raise UnknownNameError(self._unknown(spec, backend, beside))
        made = self._entries[spec][0]()
        if not isinstance(made, self.base):
            raise ArgumentTypeError(
                f"{self.kind}: the factory of {spec!r} returned {made!r}; it must return a {self.base.__name__}."
            )
        return made

    def names(self, backend: str | None = None) -> tuple[str, ...]:
        self._plug()
        entries = dict(self._entries)  # other threads may register meanwhile
        return tuple(
            sorted(name for name, (_, on) in entries.items() if backend is None or on is None or backend in on)
        )

    def _unknown(self, name: str, backend: str | None, beside: Names[T] | None) -> str:
        tables = (self,) if beside is None else (self, beside)
        names = sorted(known for table in tables for known in table.names(backend))
        backends = next((on for table in tables if (on := table._entries.get(name, (None, None))[1])), None)
        if backends is not None:
            reason = f"{name!r} does not run on {backend}, only on {', '.join(backends)}."
        else:
            folded = {known.lower(): known for known in names}
            close = difflib.get_close_matches(name.lower(), folded, n=1)
            reason = f"{name!r} is not registered." + (f" Did you mean {folded[close[0]]!r}?" if close else "")
        return f"{self.kind}: {reason} Registered are {', '.join(names)}."

    def _plug(self) -> None:
        """Register the entry points, once; a name that is taken stays what it is, and the others are not lost."""
        if self._plugged:
            return
        taken = []
        with self._lock:  # a second thread waits here until all are there
            for point in () if self._plugged else entry_points(group=self.group):
                try:
                    self.register(point.name, partial(_load, point))
                except DuplicateNameError:
                    taken.append(point)
            self._plugged = True
        for point in taken:
            warnings.warn(
                f"{self.kind}: the entry point {point.name!r} ({point.value}) of the group {self.group!r} is not "
                f"registered, since there is a {self.kind} of this name already. Give the plug-in another name.",
                RuntimeWarning,
                stacklevel=4,
            )


def _load(point: Any) -> Any:
    return point.load()()
