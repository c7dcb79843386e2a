"""Differences by steps that do not depend on where they are taken, and so are as smooth as the function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rootdiff._backend import Array
from rootdiff._line import FELT, power_of_two
from rootdiff._slopes import Slopes
from rootdiff._space import norm2

#: Looks for steps over which a slope changes little, each at ones that are shorter by this factor.
_LOOKS, _SHORTER = 7, 1e3
#: A slope may be off by this part of itself and of its change over the step, and by so many times its error.
_PART, _MARGIN = 0.05, 20.0
#: Numbers that are kept of a function, at most.
_KEPT = 2**24


@dataclass(frozen=True)
class FixedSteps:
    """Derivatives of a function of y, (*batch, m), by central differences.

    Differences of these hold the rounding of f, and nothing else: steps that adapt would add what a slope is off by.

    Attributes
    ----------
    steps : array, (n, *batch). Signed. Of entries of y that f does not depend on, the last ones, there is none.
    both : boolean array like it. Whether a step may be taken to the other side too; else half of it is taken.
    fine : bool. Whether the differences are of fourth order, where both sides are free, at twice the cost.
    """

    steps: Array
    both: Array
    fine: bool = False

    @classmethod
    def found(cls, slopes: Slopes, value: Array, weights: tuple[Array, Array], goal: Array, error: Array) -> FixedSteps:
        """Return steps that tell the gradient of a sum over m: the first ones of `slopes`, or others where they do not.

        Where a user tells the steps they are these.

        Parameters
        ----------
        slopes : of the function with respect to y.
        value, goal, error : arrays, (*batch, m) and (*batch, n). The function, the gradient, and the error of that.
        weights : pair of arrays, (*batch, m). First and second derivatives of the terms of the sum.
        """
        y, noise = slopes.primals[0], norm2(np, weights[0] * slopes.noise)
        felt = range(y.shape[-1] - slopes.blind)
        line = slopes.line([(0, (..., k)) for k in felt])
        goal, error = (np.moveaxis(part, -1, 0)[: len(felt)] for part in (goal, error))
        first = found = cls(*line.allowed(line.step))
        open_, grown = np.ones_like(first.both), np.zeros_like(first.both)
        for _ in range(0 if slopes.told else _LOOKS):
            slope, bend = found._told(lambda y: slopes.at([y]), y, value)
            size = np.abs(found.steps)
            change = np.abs(np.sum(weights[0] * bend, axis=-1)) + size**2 * np.sum(weights[1] * slope**2, axis=-1)
            # an entry far below its unit may be a zero up to rounding, which tells no scale
            longer = np.minimum(line.first * line.unit, line.longest)
            silent = open_ & (change <= FELT * noise) & (size < longer) & ~grown
            gap, told = np.abs(np.sum(weights[0] * slope, axis=-1) - goal), np.abs(goal) + change / size
            open_ = silent | open_ & ~(gap <= _PART * told + _MARGIN * (noise / size + error))
            if not np.any(open_):
                return found
            grown, other = grown | silent, np.where(silent, longer, size / _SHORTER)
            steps, both = line.allowed(power_of_two(np.where(open_, other, size), size.dtype))
            found = cls(np.where(open_, steps, found.steps), np.where(open_, both, found.both))
        return cls(np.where(open_, first.steps, found.steps), np.where(open_, first.both, found.both))

    def jacobian(self, f: Callable[[Array], Array], y: Array) -> Array:
        """Return df/dy, (*batch, m, n), with zeros for entries of y that have no step."""
        found = np.moveaxis(self._told(f, y, f(y))[0], 0, -1)
        return np.concat(
            [found, np.zeros_like(found, shape=(*found.shape[:-1], y.shape[-1] - found.shape[-1]))], axis=-1
        )

    def errors(self, noise: Array) -> Array:
        """Return the errors of a sum's gradient, (*batch, n), by those of the sum, (*batch)."""
        return np.moveaxis(noise / np.abs(self.steps), 0, -1) * (2 if self.fine else 1)

    def _told(self, f: Callable[[Array], Array], y: Array, value: Array) -> tuple[Array, Array]:
        """Return the slopes, and the second derivatives times the squares of the steps, both (n, *batch, m)."""

        def changes(steps: Array) -> Array:
            found = []
            for k, step in enumerate(steps):
                moved = y.copy()
                moved[..., k] += step
                found.append(f(moved) - value)
            return np.stack(found)

        t, both = self.steps[..., None], self.both[..., None]
        ahead, other = changes(self.steps), changes(np.where(self.both, -self.steps, self.steps / 2))
        if self.fine:
            half = changes(self.steps / 2) - changes(-self.steps / 2)
            central = (8 * half - (ahead - other)) / (6 * t)
        else:
            central = (ahead - other) / (2 * t)
        return np.where(both, central, (4 * other - ahead) / t), np.where(both, ahead + other, 4 * (ahead - 2 * other))


def kept(f: Callable[[Array], Array], base: Array) -> Callable[[Array], Array]:
    """Return the same function of y, which is not called twice where y is `base` but for the same few entries."""
    known: dict[tuple[bytes, bytes], Array] = {}

    def of(y: Array) -> Array:
        moved = np.flatnonzero(y != base)
        place = moved.tobytes(), y.reshape(-1)[moved].tobytes()
        if place in known:
            return known[place]
        value = f(y)
        if (len(known) + 1) * value.size <= _KEPT:
            known[place] = value
        return value

    return of
