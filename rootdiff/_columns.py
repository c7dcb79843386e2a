"""Derivatives of a residual with respect to the entries of its parameters, several of them checked by one look at f.

A central difference takes two evaluations, and its error a third one. Where only the value is asked for, the errors of
several differences are seen together: all their entries move by short steps, to both sides, and f changes as they say.
Of a batch, entries of which each system has its own move in all systems at once. No shape tells whether a system
depends on those of others; the same look does. What it leaves in doubt is asked by itself: the differences with their
errors, and systems that stay as they were while the rest moves, by the digits of their numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from rootdiff._backend import Array
from rootdiff._line import Slope
from rootdiff._space import weights

if TYPE_CHECKING:
    from rootdiff._slopes import Slopes

#: Differences that one look checks.
_TOGETHER = 16
#: A change may be off what they tell by so many times their errors and the rounding of f.
_MARGIN = 8.0
#: The look takes steps so many times shorter for each difference, which leaves a part of 1e-2 of how f bends.
_SHORTER = 4.0

#: A primal's place, and an index of it; one that starts with an ellipsis names the same entry of each system.
Entry: TypeAlias = tuple[int, tuple[Any, ...]]


class Column(NamedTuple):
    """The derivative with respect to one entry of the primal at `place`, or to one of each system."""

    place: int
    at: tuple[Any, ...]
    slope: Slope


def columns(slopes: Slopes, places: Iterable[int], errors: bool) -> Iterator[Column]:
    """Yield the derivative with respect to each entry of the primals at `places`, with its error where that is asked.

    Where an index starts with an ellipsis, no system depends on the entries of others.
    """
    batch, shapes = slopes.value.shape[:-1], {place: slopes.primals[place].shape for place in places}
    own = {place for place, shape in shapes.items() if math.prod(batch) > 1 and shape[: len(batch)] == batch}
    of_own = ((place, (..., *index)) for place in own for index in np.ndindex(shapes[place][len(batch) :]))
    shared = ((place, index) for place in shapes.keys() - own for index in np.ndindex(shapes[place]))
    yield from seen_together(slopes, shared, errors)
    for block in _blocks(of_own):
        yield from _own(slopes, block, errors)


def seen_together(slopes: Slopes, entries: Iterable[Entry], errors: bool) -> Iterator[Column]:
    """Yield the columns of entries of which it is known on which systems they act."""
    for block in _blocks(entries):
        # of two entries a look costs as much as both errors
        yield from _block(slopes, block, errors or len(block) <= 2)[0]


def _blocks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    rest = iter(entries)
    while block := list(islice(rest, _TOGETHER)):
        yield block


def _block(slopes: Slopes, entries: Sequence[Entry], errors: bool) -> tuple[list[Column], bool]:
    """Return the columns of some entries, and whether one look has borne all of them out."""
    known = [] if errors or slopes.exact else slopes.quick(entries)
    quick = [bool(np.all(np.isfinite(slope.error))) for slope in known] or [False] * len(entries)
    found = [
        Column(*entry, known[number] if is_quick else slopes.entry(*entry))
        for number, (entry, is_quick) in enumerate(zip(entries, quick, strict=True))
    ]
    unsure = [column for column, is_quick in zip(found, quick, strict=True) if is_quick]
    borne_out = bool(unsure) and not np.any(_doubtful(slopes, unsure))
    if not borne_out:
        pairs = zip(found, quick, strict=True)
        found = [Column(*column[:2], slopes.entry(*column[:2])) if again else column for column, again in pairs]
    slopes.forget()
    return found, borne_out and all(quick)


def _own(slopes: Slopes, entries: Sequence[Entry], errors: bool) -> Iterator[Column]:
    """Yield the columns of entries of which each system has one, as such where no system feels those of others."""
    found, borne_out = _block(slopes, entries, errors)
    yield from found if borne_out or _are_own(slopes, found) else _apart(slopes, found)


def _apart(slopes: Slopes, columns: Sequence[Column]) -> Iterator[Column]:
    """Yield the columns by systems, but for those that are the systems' own when seen alone."""
    for column in columns:
        if _are_own(slopes, [column]):
            yield column
            continue
        for system in np.ndindex(slopes.value.shape[:-1]):
            entry = column.place, (*system, *column.at[1:])
            yield Column(*entry, slopes.entry(*entry))


def _doubtful(slopes: Slopes, columns: Sequence[Column]) -> Array:
    """Return which systems, (*batch), the columns do not explain the change of, over a step of all their entries."""
    change, told, allowed = _along(slopes, columns)
    off = np.abs((change(1) - change(-1)) / 2 - told)
    return np.any(np.isfinite(slopes.value) & ~(off <= _MARGIN * allowed), axis=-1)


def _are_own(slopes: Slopes, columns: Sequence[Column]) -> bool:
    """Return whether no system depends on other systems' entries of these columns."""
    doubtful = _doubtful(slopes, columns)
    if not np.any(doubtful):
        return True
    change, _, _ = _along(slopes, columns)
    number = np.reshape(np.cumsum(doubtful) - 1, doubtful.shape)
    for digit in range(max(1, int(np.max(number)).bit_length())):
        for side in (0, 1):
            still = doubtful & (number >> digit & 1 == side)
            felt = ~(np.abs(change(np.where(still, 0, 1))) <= _MARGIN * slopes.noise)
            if np.any(still[..., None] & np.isfinite(slopes.value) & felt):
                return False
    return True


def _along(slopes: Slopes, columns: Sequence[Column]) -> tuple[Callable[[Any], Array], Array, Array]:
    """Return the change of f where entries move by a step times a number, of each system or of all, and what is told.

    The third part is what the change may be off.
    """
    places = sorted({column.place for column in columns})
    primals = dict(zip(places, (slopes.primals[place] for place in places), strict=True))
    steps = {place: np.zeros_like(primal) for place, primal in primals.items()}
    told, allowed = np.zeros_like(slopes.value), slopes.noise
    # of no special relation between systems: what one feels of others is then not what its column tells
    systems = np.zeros((len(columns), primals[columns[0].place][columns[0].at].size))
    parts = weights(np, systems, np.arange(1.0, len(columns) + 1))
    for (place, index, slope), part in zip(columns, parts, strict=True):
        entry = primals[place][index]
        size, part = np.where(entry == 0, slopes.of_zero(place, index), np.abs(entry)), part.reshape(entry.shape)
        first = max(slopes.eps, np.finfo(entry.dtype).eps) ** (1 / 3)
        step = np.astype(first / (_SHORTER * len(columns)) * size * part, entry.dtype)
        steps[place][index] = step
        told = told + slope.value * step[..., None]
        # the rounding of f shows too little by chance in some of many systems: that of the terms is known
        allowed = allowed + slope.error * np.abs(step[..., None]) + slopes.eps * size[..., None] * np.abs(slope.value)

    def change(part: Any) -> Array:
        moved = list(slopes.primals)
        for place, step in steps.items():
            wide = np.reshape(part, (*np.shape(part), *(1,) * (step.ndim - np.ndim(part))))
            moved[place] = moved[place] + np.astype(wide * step, step.dtype)
        return slopes.at(moved) - slopes.value

    return change, told, allowed
