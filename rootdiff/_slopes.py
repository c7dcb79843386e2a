"""The derivatives of a function of NumPy arrays: by entries, along tangents, by differences or complex steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from rootdiff._backend import Array, Function
from rootdiff._columns import Column, Entry, columns, seen_together
from rootdiff._differences import refined, slope
from rootdiff._errors import ArgumentError
from rootdiff._line import Line, Measured, Slope, Told, bare, central, power_of_two, relative_rounding, scale
from rootdiff._roughness import REACH, roughness, spacing
from rootdiff._space import numbers

#: No step is longer than this part of an entry, unless the entry is so small that it may be a zero up to rounding.
_LONGEST = 0.25
#: Patterns of the nudges that show the rounding of f; one alone may show nothing, where f is rounded coarsely.
_NUDGES = (3, 5)
#: The rounding that one difference met is passed on to the next one, up to this many times what was known.
_MORE = 8.0
#: Numbers of which operations on all cost less than as many operations on parts of them, which stay in a cache.
_AT_ONCE = 2**14
#: Entries whose ratios to their tangents are within this factor take one step together.
_MAGNITUDE = 100.0


class Slopes:
    """The derivatives of ``function(*primals)``, (*batch, m), each with its error.

    Parameters
    ----------
    value : array, (*batch, m). The function at the primals.
    complex_step : bool
        Whether to take complex steps, which have no error.
    box : tuple of arrays like the first primal, or None
        Its lower and upper bounds, which no step leaves.
    fine : bool
        Whether to take differences of higher order with respect to entries, at twice the cost.
    unit : array like the first primal, or None
        The size of its entries, positive, if it is known; else a zero counts as one.
    measured : Measured or None
        What is known of f where it is itself measured; else its errors are those of rounding, which are looked for.
    told : Told or None
        What the user tells of the differences, which then are as rough as f is taken to be.
    blind : int
        So many entries of the first primal, the last ones, are such that f does not depend on them.
    """

    def __init__(
        self,
        function: Function,
        primals: Sequence[Array],
        value: Array,
        complex_step: bool = False,
        box: tuple[Array, Array] | None = None,
        fine: bool = False,
        unit: Array | None = None,
        measured: Measured | None = None,
        told: Told | None = None,
        blind: int = 0,
    ) -> None:
        self.function, self.value, self.complex_step, self.fine = function, value, complex_step, fine
        self.eps = max(relative_rounding(value.dtype, measured), told.step**3 if told else 0)
        self.measured, self.told = measured, told
        self.primals, self.box = [np.asarray(primal) for primal in primals], box
        self.unit, self.blind = unit, blind
        self._learnt: Array | None = None
        self._kept: dict[Any, dict[bytes, Array]] = {}

    @cached_property
    def noise(self) -> Array:
        """The change of each component of f when its inputs change by a rounding error, and its own rounding."""
        if self.measured is not None:
            return self.measured.errors
        eps = self.eps
        if self.told is not None:
            return eps * np.abs(self.value)
        changes = [np.abs(self.function(*self._nudged(eps, phase)) - self.value) for phase in _NUDGES]
        noise = np.max(np.where(np.isfinite(changes), changes, 0), axis=0) + eps * np.abs(self.value)
        if not self.fine:
            return noise
        # a nudge of the inputs changes f by more than its own rounding, or by less where slopes of large terms cancel
        rough = self._roughness(eps)
        return np.where(rough > 0, np.maximum(rough, 0.5 * eps * np.abs(self.value)), noise)

    def jacobian(self, errors: bool = True) -> Slope:
        """Return the derivative with respect to the last axis of the first primal, (*batch, n): (*batch, m, n).

        Where its errors are not asked for, they are only known to be small.
        """
        entries = [(0, (..., place)) for place in range(self.primals[0].shape[-1] - self.blind)]
        if self.told is not None and not errors:
            value = np.stack([self._bare(*entry) for entry in entries], axis=-1)
            value = np.concat([value, np.zeros((*value.shape[:-1], self.blind), value.dtype)], axis=-1)
            return Slope(value, np.zeros_like(value), self.noise)
        columns = [column.slope for column in seen_together(self, entries, errors)]
        columns += [self._exact(np.zeros_like(self.value))] * self.blind
        return Slope(*(np.stack(parts, axis=-1) for parts in zip(*columns, strict=True)))

    def of_zero(self, place: int, index: Any) -> Any:
        """Return the size of an entry of a primal where that is zero."""
        return self.unit[index] if self.unit is not None and place == 0 else 1.0

    @property
    def exact(self) -> bool:
        """Whether a column costs one evaluation, or several by choice: there is nothing to leave out."""
        return self.complex_step or self.fine or self.told is not None

    def columns(self, places: Iterable[int], errors: bool = False) -> Iterator[Column]:
        """Yield the derivatives with respect to the entries of the primals at `places`, as `_columns.columns` does."""
        return columns(self, places, errors)

    def quick(self, entries: Sequence[Entry]) -> list[Slope]:
        """Return the derivatives with respect to several entries, each (of each system) of one primal, by `central`.

        Where `entry` is asked for one of them after it, that takes one evaluation more.
        """
        arrays = {place: self.primals[place] for place, _ in entries}
        many = len(entries) > 1 and len(entries) * self.value.size > _AT_ONCE
        if many or len({array.dtype for array in arrays.values()}) > 1:
            return [found for entry in entries for found in self.quick([entry])]
        found = central(self.line(entries))
        self._learnt = found.noise[-1].reshape(self.value.shape)
        return [Slope(*(part.reshape(self.value.shape) for part in one)) for one in zip(*found, strict=True)]

    def line(self, entries: Sequence[Entry]) -> Line:
        """Return the line of several entries, of one dtype, with a step for each (of each system)."""
        arrays = {place: self.primals[place] for place, _ in entries}
        x = _stacked([arrays[place][index] for place, index in entries])
        size, of_first = np.abs(x), 0 in arrays
        largest = {
            place: np.max(np.abs(array), axis=-1 if x.ndim > 1 and place == 0 else None)
            for place, array in arrays.items()
        }
        if x.ndim > 1:
            largest = {place: np.broadcast_to(part, x.shape[1:]) for place, part in largest.items()}
        unit = _stacked([self.unit[index] for _, index in entries]) if self.unit is not None and of_first else None
        room = None
        if self.box is not None and of_first:
            ways = self.primals[0] - self.box[0], self.box[1] - self.primals[0]
            none = np.full(x.shape[1:], np.inf)
            room = tuple(_stacked([none if place else way[index] for place, index in entries]) for way in ways)
        shape = (*self.value.shape[:-1], -1) if x.ndim > 1 else (-1,)

        def along(steps: Array) -> Array:
            if len(entries) == 1:
                return self._at_entry(entries[0], steps[0]).reshape(1, *shape)
            return np.stack([self._at_entry(*pair).reshape(shape) for pair in zip(entries, steps, strict=True)])

        length = scale(size, _stacked([largest[place] for place, _ in entries]), unit)
        if self.told is not None or self.measured is not None:
            length = _stacked([self._length(*entry, one) for entry, one in zip(entries, length, strict=True)])
        return self._line(along, length, size, x, room, 1.0 if unit is None else unit, self.value.reshape(shape))

    def _bare(self, place: int, index: Any) -> Array:
        """Return the derivative with respect to an entry by the one difference that the user tells, if it is finite."""
        found = bare(self.line([(place, index)])).reshape(self.value.shape)
        lost = np.any(np.isfinite(self.value) & ~np.isfinite(found))
        found = self.entry(place, index).value if lost else found
        self.forget()
        return found

    def _length(self, place: int, index: Any, length: Any) -> Any:
        """Return what the first step is a part of, for an entry of a primal, where its scale tells this length."""
        if self.told is not None:
            size = np.abs(self.primals[place][index])
            return np.where(size > 0, size, self.of_zero(place, index))
        if place or self.measured is None or self.measured.steps is None:
            return length
        return np.moveaxis(self.measured.steps, 0, -1)[index] * (1.1 / self.eps ** (1 / 3))

    def _at_entry(self, entry: Entry, step: Any) -> Array:
        """Return the function where an entry moves by a step, NaN where it raises; it is kept until `entry` is done."""
        if not step.any():
            return self.value
        kept, key = self._kept.setdefault(entry, {}), step.tobytes()
        if key not in kept:
            try:
                kept[key] = self.function(*self._moved(entry, step))
            except (ValueError, ArithmeticError):  # as `at` has it
                kept[key] = np.full_like(self.value, np.nan)
        return kept[key]

    def _moved(self, entry: Entry, step: Any) -> list[Array]:
        """Return the primals, one entry of which moves by a step."""
        moved, (place, index) = [*self.primals], entry
        array = self.primals[place]
        moved[place] = array.astype(np.result_type(array.dtype, 1j)) if step.dtype.kind == "c" else array.copy()
        moved[place][index] += step
        return moved

    def entry(self, place: int, index: Any) -> Slope:
        """Return the derivative with respect to one entry (of each system) of one primal."""
        entry, size = (place, index), np.abs(self.primals[place][index])
        if self.complex_step:
            # far below rounding: there is no cancellation to balance
            step = np.where(size > 0, size, self.of_zero(place, index)) * 1e-20
            return self._exact(imaginary(self.function(*self._moved(entry, np.asarray(1j * step)))) / step[..., None])
        method = refined if self.fine else slope
        found = Slope(*(part.reshape(self.value.shape) for part in method(self.line([entry]))))
        self._kept.pop(entry, None)
        # the next entry is told of the rounding met here; much more than was known is a kink, of this entry alone
        seen = np.minimum(found.noise, _MORE * self._known)
        term = self.eps * np.abs(found.value * (size if size.ndim == 0 else size[..., None]))
        self._learnt = np.fmax(np.maximum(self._known, seen), term)
        return found

    def forget(self) -> None:
        """Drop the evaluations that quick derivatives have left for others."""
        self._kept.clear()

    def along(self, tangents: Sequence[Array]) -> Slope:
        """Return the derivative along `tangents`, one per primal: a difference for each order of magnitude in them."""
        if self.complex_step:
            step = 1e-20 * self._least_ratio(tangents)
            moved = [p + 1j * step * t for p, t in zip(self.primals, tangents, strict=True)]
            return self._exact(imaginary(self.function(*moved)) / step)
        total = self._exact(np.zeros_like(self.value))
        for factor, ratio, side, group in self._of_one_magnitude(tangents):

            def along(step: Any, group: list[Array] = group) -> Array:
                moved = [np.astype(p + step * t, p.dtype) for p, t in zip(self.primals, group, strict=True)]
                return self.function(*moved).reshape(-1)

            # one step for all systems, which count as one
            part = slope(self._line(along, ratio, ratio, side, self._room(group[0]), 1.0, self.value.reshape(-1)))
            total = Slope(*(a + factor * b.reshape(a.shape) for a, b in zip(total, part, strict=True)))
        return total

    def product(self, vector: Array, lengths: Array) -> Array:
        """Return the derivative along a vector, like the first primal, by one difference, of an error not asked for.

        No entry moves by more than a small part of its length.
        """
        y = self.primals[0]
        if self.exact and self.told is None:
            return self.along((vector,)).value
        size = np.abs(vector)
        ratio = np.min(np.divide(lengths, size, where=size > 0, out=np.full(size.shape, np.inf)), axis=-1)
        if self.box is not None:  # what can only move back does so by itself
            way = np.where(vector > 0, self.box[1] - y, y - self.box[0])
            ahead = way >= np.where(ratio < np.inf, ratio, 0)[..., None] * size
            if np.any(ahead & (size > 0)) and not np.all(ahead):
                parts = np.where(ahead, vector, 0), np.where(ahead, 0, vector)
                return sum(self.product(part, lengths) for part in parts)
        line = Line(
            lambda step: self.function(np.astype(y + step[..., None] * vector, y.dtype)),
            self.value,
            self.value,
            np.where(ratio < np.inf, ratio, 1),
            np.inf,
            max(self.eps, np.finfo(y.dtype).eps),
            self._room(vector),
            told=self.told,
        )
        found = bare(replace(line, step=power_of_two(line.first * line.step, y.dtype)))
        lost = np.any(np.isfinite(self.value) & ~np.isfinite(found))
        return self.along((vector,)).value if lost else found

    @property
    def _known(self) -> Array:
        return self.noise if self._learnt is None else self._learnt

    def _exact(self, value: Array) -> Slope:
        return Slope(value, np.zeros_like(value), np.zeros_like(value))

    def _line(
        self, along: Callable[[Any], Array], length: Any, size: Any, side: Any, room: Any, unit: Any, value: Array
    ) -> Line:
        """Return the line of steps that are small parts of `length`, of a function with this value at its start.

        A step as long as `size` changes an entry by its own size; none is longer than a quarter of that, unless the
        entry is far smaller than its `unit` and may be a zero up to rounding. Then longer ones have the sign of `side`,
        by which the entry keeps its own sign.
        """
        first = max(self.eps, np.finfo(length.dtype).eps) ** (1 / 3) if self.told is None else self.told.step
        longest = np.where(_LONGEST * size > first * unit, _LONGEST * size, np.inf)
        away = room
        if np.any((longest == np.inf) & (side != 0)):
            away = tuple(np.where(lies, _LONGEST * size, np.inf) for lies in (side > 0, side < 0))
            away = away if room is None else tuple(np.minimum(*pair) for pair in zip(away, room, strict=True))
        step, noise = power_of_two(first * length, length.dtype), self._known.reshape(value.shape)
        moves = {"away": away, "told": self.told, "size": size, "length": length}
        return Line(along, value, noise, step, longest, self.eps, room, unit, **moves)

    def at(self, primals: Sequence[Array]) -> Array:
        """Return the function, NaN where it raises, as the functions of `math` do outside of their domain."""
        try:
            return self.function(*primals)
        except (ValueError, ArithmeticError):
            return np.full_like(self.value, np.nan)

    def _room(self, tangent: Array) -> tuple[Any, Any] | None:
        """Return how far a step along a tangent of the first primal may go to either side."""
        if self.box is None:
            return None
        lower, upper = (np.abs(bound - self.primals[0]) for bound in self.box)
        rates = np.where(tangent != 0, np.abs(tangent), 1)
        ahead = np.where(tangent > 0, upper, np.where(tangent < 0, lower, np.inf)) / rates
        back = np.where(tangent > 0, lower, np.where(tangent < 0, upper, np.inf)) / rates
        return np.min(back), np.min(ahead)

    def _nudged(self, eps: Any, phase: int) -> Iterator[Array]:
        """Yield the primals with their entries changed by two roundings, in a pattern of signs."""
        for place, array in enumerate(self.primals):
            roundings = 2 * max(eps, np.finfo(array.dtype).eps) * _signs(array, phase)
            nudged = np.astype(array * (1 + roundings), array.dtype)
            yield np.clip(nudged, *self.box) if self.box is not None and place == 0 else nudged

    def _roughness(self, eps: Any) -> Array:
        """Return what is rough in f over steps of all primals at once: small ones, but far longer than roundings."""
        middles, steps = list(self.primals), [spacing(eps) * p * _signs(p, 7) for p in self.primals]
        if self.box is not None:  # a line that bounds cut has a kink: it begins further inside
            (lo, hi), reach = self.box, REACH * np.abs(steps[0])
            fits = hi - lo > 2 * reach
            steps[0] = np.where(fits, steps[0], 0)
            middles[0] = np.where(fits, np.clip(middles[0], lo + reach, hi - reach), middles[0])

        def along(k: int) -> Array:
            moved = [np.astype(p + k * step, p.dtype) for p, step in zip(middles, steps, strict=True)]
            if self.box is not None:
                moved[0] = np.clip(moved[0], *self.box)
            return self.function(*moved)

        return roughness(np, along)[0]

    def _least_ratio(self, tangents: Sequence[Array]) -> float:
        """Return the least ratio of an entry to its tangent: a complex step need not be of an entry's magnitude."""
        least = math.inf
        for primal, tangent in zip(self.primals, tangents, strict=True):
            size, along = np.abs(primal), np.abs(tangent)
            some = along > 0
            ratio = np.divide(np.where(size > 0, size, 1), along, where=some, out=np.full(along.shape, np.inf))
            least = min(least, float(np.min(ratio, initial=math.inf)))
        return 1.0 if least == math.inf else max(least, 1e-200)

    def _of_one_magnitude(self, tangents: Sequence[Array]) -> Iterator[tuple[Any, Any, Any, list[Array]]]:
        """Yield the tangents in parts, with the least ratio of an entry to its tangent: of one order of magnitude each.

        An entry that is zero counts as one of its unit, or of size one. A part is divided by a power of two, which
        comes first, so that its largest tangent is about one. Entries that may be zeros up to rounding are parted by
        the sign of the step that leads them away from zero, which comes third.
        """
        ratios, sides = [], []
        for place, (primal, tangent) in enumerate(zip(self.primals, tangents, strict=True)):
            p, t = np.broadcast_arrays(np.abs(primal), np.abs(tangent))
            of_zero = 1 if self.unit is None or place > 0 else self.unit
            ratios.append(
                np.where(t > 0, np.maximum(np.where(p > 0, p, of_zero) / np.where(t > 0, t, 1), 1e-200), np.inf)
            )
            sides.append(np.where(np.sign(primal) * np.sign(tangent) < 0, -1, 1))
        least = 0.0
        while True:
            least = min((float(np.min(ratio[ratio >= least], initial=np.inf)) for ratio in ratios), default=np.inf)
            if not least < np.inf:
                return
            most = _MAGNITUDE * least
            parts = [(ratio >= least) & (ratio < most) for ratio in ratios]
            largest = max(np.max(np.abs(t), where=part, initial=0) for part, t in zip(parts, tangents, strict=True))
            factor = float(power_of_two(largest, np.float64))
            tiny = least * factor < self.eps ** (1 / 2)
            for side in (1, -1) if tiny else (0,):
                kept = [part & (sign * side >= 0) for part, sign in zip(parts, sides, strict=True)]
                length = min(
                    np.min(ratio, where=part, initial=np.inf) for ratio, part in zip(ratios, kept, strict=True)
                )
                if length < np.inf:
                    group = [np.where(part, t / factor, 0) for part, t in zip(kept, tangents, strict=True)]
                    yield factor, np.float64(length * factor), side, group
            least = most


def _stacked(parts: Sequence[Any]) -> Array:
    return np.stack(parts) if len(parts) > 1 else parts[0][None]


def _signs(array: Array, phase: int) -> Array:
    return np.sign(np.sin(numbers(np, array.reshape(-1)) ** 2 + phase)).reshape(array.shape)


def imaginary(value: Array) -> Array:
    """Return the imaginary part of what a residual makes of a complex step."""
    if not np.isdtype(value.dtype, "complex floating"):
        raise ArgumentError(
            "derivatives: the complex step needs a residual that keeps complex numbers complex, but this one returned "
            f"{value.dtype}. Avoid np.abs, np.real and float buffers in it, or use derivatives='finite-difference'."
        )
    return np.imag(value)
