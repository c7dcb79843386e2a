"""Derivatives by differences, each with an error that is measured.

One stencil takes a step to one side, half of it, and a step to the other side. The central difference is the
derivative; its distance from the slope of the cubic through the same points tells its error, be it the curvature of f
or the rounding of f. Where it is that of curvature the step shrinks, where it is that of rounding the step grows. Each
component of f, in its own units, keeps the best of what the steps gave it.

References
----------
Nocedal & Wright (2006), section 8.1: the step eps^(1/3) of a central difference. Gill, Murray, Saunders & Wright
(1983), "Computing forward-difference intervals for numerical optimization". Moré & Wild (2011), "Estimating
computational noise".
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rootdiff._backend import Array
from rootdiff._line import FELT, Line, Slope, is_short, power_of_two

#: Steps after the first one that a derivative may cost.
_MAX_CHANGES = 6
#: A step changes by this factor at most; where f is not finite, by this one.
_FACTOR = 1e3
#: An error up to this many times what the known rounding of f explains counts as rounding.
_MARGIN = 20.0
#: Two derivatives that differ by more than this many times their errors contradict each other.
_APART = 4.0
#: Stairs of f are no higher than this many roundings: those of float32 in float64.
_STAIR = 1e10
#: Where rounding dominates, the central difference is off by this part of its distance from the cubic's slope.
_OF_ROUNDING = 0.2
#: A derivative whose error is a larger part of it is none.
_VAGUE = 0.05
#: The slope from one side is off by so many times the rounding of f over its step, though by luck it may seem less.
_OF_ONE_SIDE = 10.0


class _Best(NamedTuple):
    """The best derivative of each component so far, with its error, its step, and the change of f over it."""

    value: Array
    error: Array
    step: Array
    change: Array


@np.errstate(all="ignore")
def slope(line: Line) -> Slope:
    """Return the derivative at 0 of the function on a `line`."""
    if line.told is not None:
        best = _stencil(line, line.step)
        return Slope(best.value, best.error, line.noise)
    step, change = _felt(line)
    known = np.isfinite(line.value)
    if not np.any(known & (change != 0)):
        return Slope(0 * line.value, np.where(known, 0, np.inf), line.noise)
    short = is_short(line, step)
    if not np.any(short):
        return _measured(line, step, change)
    line = replace(line, room=line.away)
    silent = _is_silent(line, change) & short[..., None]
    longer = np.where(np.any(silent, axis=-1), _longer_step(line, step), step)
    if not np.any(longer > step):
        return _measured(line, step, change)
    loud = replace(line, value=np.where(silent, np.nan, line.value))
    parts = _of_silent(line, silent, step, longer), _measured(loud, step, np.where(silent, np.nan, change))
    return Slope(*(np.where(silent, *pair) for pair in zip(*parts, strict=True)))


def _of_silent(line: Line, silent: Array, step: Any, longer: Any) -> Slope:
    """Return the derivatives of the components that do not feel a `step`, with longer ones, as if they were alone."""
    alone = np.where(silent, line.value, np.nan)
    found = slope(replace(line, value=alone, step=longer, tries=0))
    met = np.isfinite(found.error)  # else f has no values there, and no more is known than at first
    unfelt = line.noise / (4 * np.where(met, longer[..., None], step[..., None]))
    error = np.where(met & (found.error > 0), found.error, unfelt)
    return Slope(np.where(met, found.value, 0), error, found.noise)


def _measured(line: Line, step: Any, change: Array) -> Slope:
    """Return the derivative from the `step` that f feels, by a `change`, and from those that it leads to."""
    # relative errors that a smooth f, and one of large rounding, may leave
    good, rough = line.eps ** (1 / 2), line.eps ** (1 / 4)
    wanted = np.where(is_short(line, step), good, rough)[..., None]
    best, own = _of_own_scale(line, step, _stencil(line, step, change))
    noise, length = line.noise, np.minimum(line.step[..., None], best.step)
    can_shrink, can_grow = np.isfinite(line.value), np.isfinite(line.value) & ~own
    for left in range(_MAX_CHANGES, -1, -1):
        size, rounding = best.change / best.step, noise / best.step
        is_rounding = best.error <= _MARGIN * rounding
        shrinks = can_shrink & ~is_rounding & ~(best.error <= good * size)
        grows = can_grow & is_rounding & (rounding > wanted * size) & (size > 0)
        if left == 0 or not (shrinks.any() or grows.any()):
            break
        target = best.step * np.where(shrinks, _shorter(best, noise, good * size), _longer(rounding, wanted * size))
        least = np.min(np.where(shrinks, target, np.inf), axis=-1)
        most = np.max(np.where(grows, target, 0), axis=-1)
        step = power_of_two(np.where(least < np.inf, least, np.where(most > 0, most, step)), line.step.dtype)
        other = _stencil(line, step)
        # a component that did not ask for so long a step believes it only where it is clear, and to their difference
        grows = grows & (other.step <= target)
        told = grows | (other.step < best.step) | (other.error <= rough * np.abs(other.value))
        gap = np.abs(other.value - best.value)
        # within a stair of a coarsely rounded term f is smooth, with a slope that is not the one of f: of two steps
        # that contradict each other the shorter one is not trusted, if the stairs are as low as those of float32
        terms = _terms(line, best, length)
        stair = gap * np.minimum(best.step, other.step) <= _STAIR * np.maximum(noise, terms)
        stair = stair & (gap > _APART * (best.error + other.error)) & told
        silent = ((other.change == 0) & (best.change > 0) | stair) & (other.step < best.step)
        shorter, longer = other.step < best.step, other.step > best.step
        other = other._replace(error=np.where(stair & longer & ~grows, np.maximum(gap, other.error), other.error))
        best = best._replace(error=np.where(stair & longer, np.where(grows, gap, np.inf), best.error))
        better = ((other.error < best.error) | shorter & np.isinf(best.error)) & ~silent & ~(longer & own)
        # a shorter step that does not help tells that the rounding of f is larger than it seemed
        seen = np.where(silent, best.error * best.step, other.error * other.step)
        noise = np.where(shorter & ~better & np.isfinite(seen), np.maximum(noise, 0.25 * seen), noise)
        can_shrink = can_shrink & ~(shorter & ~better) & ~(longer & better)
        can_grow = can_grow & ~(longer & grows & ~better) & ~(shorter & better)
        best = _Best(*(np.where(better, new, old) for new, old in zip(other, best, strict=True)))
    rounding = np.maximum(noise, _terms(line, best, length)) / best.step
    error = np.where(is_rounding, np.maximum(_OF_ROUNDING * best.error, rounding / 4), best.error)
    return Slope(best.value.astype(line.value.dtype), error, noise)


def _of_own_scale(line: Line, step: Any, first: _Best) -> tuple[_Best, Array]:
    """Return the derivative by a `step`, or by a far shorter one where only that tells it, and where that is so.

    A zero does not tell in what it is small, as `a` in ``sqrt(a + 1e-9)``. Over steps that are far too long f is as at
    a jump: the derivative is off by its own size, and grows as the step shrinks, which it does not at a kink.
    """
    best, own = first, np.zeros_like(first.value, dtype=bool)
    lost = np.isfinite(line.value) & ~_tells(line, first.value, first.error, first.step)
    for _ in range(_MAX_CHANGES):
        if not np.any(lost):
            break
        step = power_of_two(step / _FACTOR, line.step.dtype)
        near = _stencil(line, step)
        lost = lost & ~_is_silent(line, near.change) & ~(np.abs(near.value) <= 2 * np.abs(first.value))
        # what is no higher than the stairs of float32 is rounding: that of f, not the entry's times a steep slope
        steep = line.noise <= FELT * _terms(line, near, line.step[..., None])
        own_noise = line.eps * np.maximum(np.abs(line.value), first.change)
        noise = np.where(steep, np.minimum(own_noise, line.noise), line.noise)
        low = np.abs(near.value - first.value) * near.step <= _STAIR * noise
        clear = lost & ~low & (near.error <= _VAGUE * np.abs(near.value))
        best = _Best(*(np.where(clear, *pair) for pair in zip(near, best, strict=True)))
        own, lost = own | clear, lost & ~clear
    return best, own


def _tells(line: Line, value: Array, error: Array, step: Any) -> Array:
    """Return whether a derivative is known to a small part of it, or as well as the rounding of f lets it be."""
    return error <= np.maximum(_VAGUE * np.abs(value), _MARGIN * line.noise / step)


@np.errstate(all="ignore")
def refined(line: Line) -> Slope:
    """Return a derivative of higher order, where its error is smaller than that of `slope`.

    Its error is about eps^(4/5), with a step of about eps^(1/5) of the length of what moves: five times the
    evaluations for three more digits.
    """
    found, length = slope(line), line.length
    # an entry that may be a zero up to rounding tells no length
    line = replace(line, step=np.where(line.longest < np.inf, length, np.maximum(length, line.unit)))
    shares = np.where(found.value != 0, found.noise / np.abs(found.value), np.inf)
    rounding = np.clip(np.min(shares, axis=-1) / line.step, line.eps, 1e-2)
    room = np.inf if line.room is None else np.minimum(*line.room)
    widest = np.minimum(line.longest, room) / 2
    step = power_of_two(np.minimum(line.step * rounding ** (1 / 5), widest), line.step.dtype)
    fits = 2 * step <= room
    step = np.where(fits, step, 0)
    near, far = (line.at(k * step) - line.at(-k * step) for k in (1, 2))
    t = np.where(fits, step, 1)[..., None]
    value, lower = (8 * near - far) / (12 * t), near / (2 * t)
    bent = np.abs(value - lower)  # the square of the step, of which the error is again the square
    error = found.noise / t + np.fmin(bent, 1.2 * bent**2 / np.abs(value))
    length = (length * line.first)[..., None]
    # what f does not feel at all has no error yet
    least = _OF_ROUNDING * found.noise / length
    known = np.where(found.error > 0, found.error, least)
    # what contradicts a derivative is a longer way over stairs, or over what bends at a scale of its own
    gap = np.abs(value - found.value)
    alike = gap <= np.maximum(_APART * (error + found.error), _STAIR * found.noise / length)
    better = fits[..., None] & (error < known) & alike & _tells(line, found.value, found.error, length)
    return Slope(np.where(better, value, found.value), np.where(better, error, known), found.noise)


def _terms(line: Line, best: _Best, length: Any) -> Array:
    """Return the least rounding of f: that of a term as large as the slope times what a step of some `length` moves."""
    return line.eps * np.abs(best.value) * length / line.first


def _shorter(best: _Best, noise: Array, wanted: Array) -> Array:
    """Return the factor that makes the error, as the square of the step, what is wanted, or as small as the noise."""
    balanced = np.cbrt(noise / (best.step * best.error))
    factor = np.clip(np.maximum(np.sqrt(wanted / best.error), balanced), 1 / _FACTOR, 0.5)
    return np.where(np.isfinite(best.error), factor, 1 / _FACTOR)


def _longer(rounding: Array, wanted: Array) -> Array:
    """Return the factor that makes the rounding error, as the inverse of the step, what is wanted."""
    return np.clip(rounding / np.where(wanted > 0, wanted, 1), 10, _FACTOR)


def _felt(line: Line) -> tuple[Any, Array]:
    """Return the first step that changes f, unless none does, and the change."""
    known = np.isfinite(line.value)
    step = line.step
    for left in range(line.tries, -1, -1):
        change = line.change(line.allowed(step)[0])
        silent = np.all(_is_silent(line, change) | ~known, axis=-1) & np.any(known, axis=-1)
        if left == 0 or not silent.any():
            break
        longer = np.where(silent, _longer_step(line, step), step)
        if not np.any(longer > step):
            break
        step = longer
    return step, change


def _is_silent(line: Line, change: Array) -> Array:
    """Return which components of f a change of this size does not tell from their rounding."""
    return np.isfinite(line.value) & (np.abs(change) <= FELT * line.noise)


def _longer_step(line: Line, step: Any) -> Any:
    """Return the step to try next: an entry far below its unit may be a zero up to rounding, which tells no scale."""
    longer = np.minimum(np.maximum(_FACTOR * step, line.first * line.unit), line.longest)
    return np.maximum(power_of_two(longer, step.dtype), step)


def _stencil(line: Line, step: Any, first: Array | None = None) -> _Best:
    """Return the derivative by steps of this length; `first` is the change of f over the whole one."""
    signed, both = line.allowed(step)
    t, both_sides = signed[..., None], both[..., None]
    first = line.change(signed) if first is None else first
    half = line.change(signed / 2)
    third = line.change(np.where(both, -signed, signed / 4))
    central = (first - third) / (2 * t)
    cubic = (8 / 3 * half - first / 2 - third / 6) / t
    value, error = _one_sided(t, first, half, third)
    error = np.maximum(error, _OF_ONE_SIDE * line.noise / np.abs(t))
    value = np.where(both_sides, central, value)
    error = np.where(both_sides, np.abs(central - cubic), error)
    change = np.maximum(*(np.where(np.isfinite(part), np.abs(part), 0) for part in (first, third)))
    lost = np.isfinite(line.value) & ~np.isfinite(error) & both_sides
    for sign, end in ((1, first), (-1, third)):
        if np.any(lost & np.isfinite(end)):  # the other side leaves the domain of f
            middle = half if sign == 1 else line.change(-signed / 2)
            other, its_error = _one_sided(sign * t, end, middle, line.change(sign * signed / 4))
            found = lost & np.isfinite(its_error)
            value, error, lost = np.where(found, other, value), np.where(found, its_error, error), lost & ~found
    return _Best(value, np.where(np.isfinite(error), error, np.inf), np.broadcast_to(np.abs(t), value.shape), change)


def _one_sided(t: Array, first: Array, half: Array, quarter: Array) -> tuple[Array, Array]:
    """Return the derivative from the changes of f over t, t/2 and t/4, and its error."""
    outer, inner = (4 * half - first) / t, (4 * quarter - half) / (t / 2)
    return inner, np.abs(inner - outer)
