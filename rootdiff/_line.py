"""A function along a line, whose derivative is asked for at one point of it, and the quickest way to tell that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from rootdiff._backend import Array

#: Fewer roundings of f than these are no change of f.
FELT = 8.0
#: The scale of an entry is at most so many times its size: it may be a small one among larger ones of its array.
_SMALLER = 100.0


class Slope(NamedTuple):
    """A derivative, (*batch, m), its estimated absolute error, and the size of the rounding of f that it met."""

    value: Array
    error: Array
    noise: Array


class Measured(NamedTuple):
    """What is known of a function that holds differences: the errors of its value, (*batch, m).

    And the steps, (n, *batch), of its first primal, (*batch, n), over which these were taken.
    """

    errors: Array
    steps: Array | None = None


class Told(NamedTuple):
    """What the user tells of differences: their step, a part of what moves, and whether they go to one side only."""

    step: float
    one_sided: bool


def relative_rounding(dtype: Any, measured: Measured | None) -> float:
    """Return the least part of f that its errors are: eps, or as of balanced central differences where it is measured.

    A difference over ``eps^(1/4)`` of an error of ``eps`` in f is off by ``eps^(3/4)``.
    """
    return float(np.finfo(dtype).eps) ** (1 if measured is None else 3 / 4)


@dataclass(frozen=True)
class Line:
    """A function of one number t per system, or of one for all, that is to be differentiated at t = 0.

    Attributes
    ----------
    along : callable
        From t, (*batch), to f there, (*batch, m).
    value, noise : array, (*batch, m)
        f at 0, and the size of its rounding errors.
    eps : float
        The least part of f that these are: that of the dtype, or more where f is itself measured.
    step : array, (*batch)
        The first step, positive.
    longest : array like `step`
        No step is longer.
    room : tuple of arrays like `step`, or None
        How far t may go below 0 and above 0.
    unit : float or array like `step`
        The size of the entry that t is added to, where its value does not tell it.
    tries : int
        How many longer steps are tried until f feels one.
    away : tuple, or None
        As `room`, for steps that grow from one so short that the entry may be a zero up to rounding.
    told : Told or None
        What the user tells: then the first step is the only one.
    size, length : array like `step`
        The size of the entry that t is added to, and what the first step is a small part of.
    """

    along: Callable[[Any], Array]
    value: Array
    noise: Array
    step: Any
    longest: Any
    eps: float
    room: tuple[Any, Any] | None = None
    unit: Any = 1.0
    tries: int = 6
    away: tuple[Any, Any] | None = None
    told: Told | None = None
    size: Any = 1.0
    length: Any = 1.0

    @property
    def first(self) -> float:
        """The step of a difference in an entry of size one."""
        return float(self.eps ** (1 / 3)) if self.told is None else self.told.step

    def at(self, t: Any) -> Array:
        """Return f at t, NaN where it raises, as the functions of `math` do outside of their domain."""
        try:
            return self.along(t)
        except (ValueError, ArithmeticError):
            return np.full_like(self.value, np.nan)

    def change(self, t: Any) -> Array:
        return self.at(t) - self.value

    def allowed(self, step: Any) -> tuple[Any, Any]:
        """Return the step to take in place of `step`, signed, and whether it may be taken to the other side too."""
        step, two_sided = np.minimum(step, self.longest), self.told is None or not self.told.one_sided
        if self.room is None:
            return step, np.full_like(step, two_sided, dtype=bool)
        below, above = self.room
        widest = np.maximum(below, above)
        step = np.where(widest > 0, np.minimum(step, widest), step)  # without any room there is no other way
        forward = above >= step
        return np.where(forward | (below < step), step, -step), two_sided & (np.where(forward, below, above) >= step)


def power_of_two(step: Any, dtype: Any) -> Any:
    """Return the power of two just below a positive `step`: added to a number, it is not rounded."""
    least = np.finfo(dtype).smallest_normal * 2.0**10
    return np.ldexp(np.ones_like(step, dtype=dtype), np.frexp(np.maximum(step, least))[1] - 1)


def scale(size: Any, largest: Any, unit: Any = None) -> Any:
    """Return the scale of an entry, which tells its first step, from its `size` and the `largest` one of its array.

    Its `unit`, where that is known, takes the place of the largest one, and of one.

    The first step is a small part of the scale. That of a small entry is up to `_SMALLER` times its size, since a
    longer step is less rounded; but no larger, so that the step does not change the sign of the entry. That of a zero
    is one.
    """
    typical, of_zero = (np.minimum(largest, 1), np.ones_like(size)) if unit is None else (unit, unit)
    return np.where(size > 0, np.maximum(size, np.minimum(typical, _SMALLER * size)), of_zero)


def is_short(line: Line, step: Any) -> Any:
    """Return whether a step is so short, in an entry's unit, that a component's rounding hides a slope of its size."""
    return step < line.eps ** (5 / 6) * line.unit


def bare(line: Line) -> Array:
    """Return the differences over the first step, of an error that is not asked for: by two evaluations, or by one."""
    step, both = line.allowed(line.step)
    ahead, t = line.change(step), step[..., None]
    if line.told is not None and line.told.one_sided:
        return ahead / t
    other = line.change(np.where(both, -step, step / 2))
    return np.where(both[..., None], (ahead - other) / (2 * t), (4 * other - ahead) / t)


@np.errstate(all="ignore")
def central(line: Line) -> Slope:
    """Return the central differences over the first steps of several entries, (entries, *batch).

    They take two evaluations each; their errors are those of rounding alone, and infinite where f may need another
    step, as `slope` would tell. The rounding of f that an entry meets, its term's, counts for those after it too.
    """
    step, both = line.allowed(line.step)
    step, eps = np.where(both, step, 0), line.eps
    t, ends = step[..., None], (line.change(step), line.change(-step))
    value = (ends[0] - ends[1]) / np.where(t == 0, 1, 2 * t)
    noise = np.fmax.accumulate(np.concat([line.noise[None], eps * np.abs(value * line.size[..., None])]), axis=0)
    line, change = replace(line, noise=noise[:-1]), np.maximum(*map(np.abs, ends))
    clear = (change == 0) | (line.noise <= eps ** (1 / 4) * change)
    felt = both & ~is_short(line, step) & np.any(change > FELT * line.noise, axis=-1)
    error = np.where(clear & felt[..., None], line.noise / np.abs(t), np.inf)
    return Slope(value, np.where(np.isfinite(line.value), error, 0), noise[1:])
