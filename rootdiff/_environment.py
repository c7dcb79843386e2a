"""What a residual reads and somebody may change in place: put back while a derivative is taken later.

A function is copied, see `_freezing`; a dict, a list, an object, an array or a function out of sight cannot be, since
others may hold it too.
"""

from __future__ import annotations

import operator
import types
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rootdiff._errors import ArgumentError
from rootdiff._freezing import LIBRARIES, OURS, package_of
from rootdiff._reached import global_variables, parts, reached, stores

#: At most so many objects are looked at, and entries of a dict one by one; of a larger one all at once.
LOOKED_AT = 1000
#: Containers of at most so many entries, and arrays of so many in all, are kept; of others so many are compared.
_KEPT, _COMPARED = 100_000, 1000
_MISSING, _ALL = object(), object()
_TURN = RLock()


class ChangedError(ArgumentError, RuntimeError):
    """What a residual reads has changed since the solve; a RuntimeError, as PyTorch's for the same reason is."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(
            "residual: what it reads was modified by an inplace operation, so that it has no derivative any more; "
            f"changed since: {', '.join(dict.fromkeys(names))}. Take the derivative before you change it, or let the "
            "residual read a copy."
        )


class _New(NamedTuple):
    """Stands for all keys of a dict but these."""

    known: frozenset[Any]


class Snapshot(NamedTuple):
    """An array by its name, with its entries as they were: all, so that it can be put back, or some of them."""

    name: str
    array: Any
    entries: Any
    whole: bool

    @property
    def has_changed(self) -> bool:
        return bool(_some(self.array, self.whole).tobytes() != self.entries.tobytes())


@dataclass(frozen=True)
class Environment:
    """What the objects hold that a callable and its arguments lead to, at one time.

    Attributes
    ----------
    entries : tuples (store, key, value). Of dicts, attributes and variables; of other containers all at once.
    arrays : tuple of Snapshot
    """

    entries: tuple[tuple[Any, Any, Any], ...] = ()
    arrays: tuple[Snapshot, ...] = ()

    #: Attributes that nobody assigns.
    ignored: ClassVar[Set[str]] = frozenset()

    @classmethod
    def of(cls, roots: Iterable[tuple[str, Any]], frozen: Mapping[int, Any]) -> Environment:
        """Return the state of what named roots lead to; `frozen` are the copies of functions, by the ids of those."""
        entries, arrays, room = list[tuple[Any, Any, Any]](), list[Snapshot](), _KEPT
        for name, value in reached(LOOKED_AT, roots, cls.parts):
            if isinstance(value, np.ndarray):
                array = np.asarray(value)  # without a mask
                whole = array.size <= room and array.flags.writeable
                room -= array.size * whole
                arrays.append(Snapshot(name, array, _some(array, whole), whole))
            elif isinstance(value, types.FunctionType):
                entries += _variables(value, frozen.get(id(value)))
            else:
                entries += [(store, *entry) for store in cls.stores(value) for entry in _items(store)]
        return cls(tuple(entry for entry in entries if entry[1] not in cls.ignored), tuple(arrays))

    # what an object leads to, with names, and where it holds what may be assigned anew
    parts, stores = staticmethod(parts), staticmethod(stores)

    def lasting(self) -> Environment:
        """Return the state without what a call of the residual has changed: what it sets itself."""
        entries = tuple(entry for entry in self.entries if not _has_changed(*entry))
        return replace(self, entries=entries, arrays=tuple(part for part in self.arrays if not part.has_changed))

    def check(self, whole: bool = False) -> None:
        """Raise if an array has changed that cannot be put back, or any array."""
        names = [part.name for part in self.arrays if (whole or not part.whole) and part.has_changed]
        if names:
            raise ChangedError(names)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Put the state back for a while; threads that have something to put back take turns."""
        self.check()
        with _TURN if any(self._changed()) else nullcontext():
            entries, arrays = self._changed()
            present = [(store, key, _now(store, key)) for store, key, _ in entries]
            values = [part._replace(entries=part.array.copy()) for part in arrays]
            try:
                _assign(entries, arrays)
                yield
            finally:
                _assign(present, values)

    def _changed(self) -> tuple[list[tuple[Any, Any, Any]], list[Snapshot]]:
        entries = [entry for entry in self.entries if _has_changed(*entry)]
        return entries, [part for part in self.arrays if part.has_changed]


def _some(array: Any, whole: bool) -> Any:
    """Return a copy of an array, or of some of its entries."""
    return array.copy() if whole else array.flat[:: 1 + array.size // _COMPARED]


def _items(store: Any) -> Iterable[tuple[Any, Any]]:
    if hasattr(store, "items") and len(store) < LOOKED_AT:
        return [*store.items(), *([(_New(frozenset(store)), {})] if isinstance(store, dict) else ())]
    return [(_ALL, _now(store, _ALL))] if len(store) <= _KEPT else ()


def _variables(function: types.FunctionType, frozen: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield the variables and global names of a function, but for those that its copy, if there is one, keeps."""
    if frozen is None:
        yield from ((cell, None, _now(cell, None)) for cell in function.__closure__ or ())
    names = function.__globals__
    if package_of(function) not in (*LIBRARIES, *OURS) and getattr(frozen, "__globals__", names) is names:
        yield from ((names, *entry) for entry in global_variables(function).items())


def _now(store: Any, key: Any) -> Any:
    """Return what a store holds under a key."""
    if isinstance(store, types.CellType):
        try:
            return store.cell_contents
        except ValueError:  # a variable that is not assigned yet, or no more
            return _MISSING
    if key is _ALL:
        return [*store, *store.values()] if isinstance(store, dict) else [*store]
    if isinstance(key, _New):
        return {other: store[other] for other in list(store) if other not in key.known}
    return store.get(key, _MISSING)


def _assign(entries: Iterable[tuple[Any, Any, Any]], arrays: Iterable[Snapshot]) -> None:
    for part in arrays:
        part.array[...] = part.entries
    for store, key, value in entries:
        if isinstance(store, types.CellType):
            if value is _MISSING:
                del store.cell_contents
            else:
                store.cell_contents = value
        elif isinstance(key, _New):
            for other in _now(store, key):
                del store[other]
            store.update(value)
        elif key is not _ALL:
            store.pop(key, None) if value is _MISSING else store.__setitem__(key, value)
        elif isinstance(store, list):
            store[:] = value
        else:
            store.clear()
            middle = len(value) // 2
            pairs = zip(value[:middle], value[middle:], strict=True)
            store.extend(value) if isinstance(store, deque) else store.update(
                pairs if isinstance(store, dict) else value
            )


def _has_changed(store: Any, key: Any, value: Any) -> bool:
    """Return whether a store holds something else than it did."""
    now = _now(store, key)
    if key is _ALL:
        return len(now) != len(value) or any(map(operator.is_not, now, value))
    return now != value if isinstance(key, _New) else now is not value
