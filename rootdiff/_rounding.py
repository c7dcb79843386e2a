"""How much of a residual is rounding, or left by an iteration inside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._roughness import long_roughness, roughness, spacing
from rootdiff._space import signs
from rootdiff.linear._condition import row_sizes

#: Patterns of signs, of which a rounding error could be any.
_PHASES = (1, 2, 3)
#: Root mean square of an error that is uniform up to half an eps, in eps.
TYPICAL = 0.5 / math.sqrt(3)
#: The wider spacings, as parts of unknowns and parameters: what is iterated to a tolerance is smooth over short ways.
_WIDE = 5e-3, 5e-2
#: An equation with so many times the error of its dtype computes in a lower precision than it returns, or iterates.
NOISIER = 16.0


def noise_of(residual: Residual, operator: LinearOperator, y: Array) -> tuple[Array, Array, Array]:
    """Return the size of rounding errors in each equation, (*batch, n), and of what they make of its slopes.

    The errors are those of y, of the terms, of the parameters. Of slopes in y they are in the units of the equation,
    of those in the parameters relative.

    A residual that computes in a lower precision, or iterates to a tolerance, does not show it where y or the
    parameters change by a rounding: so high differences over longer steps of each are looked at too.
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    f = residual(y)
    largest = eps * row_sizes(operator, y, f)
    for phase in _PHASES:
        change = _fed(residual, eps, phase)(y * (1 + eps * signs(xp, y, phase))) - f
        largest = xp.maximum(largest, xp.abs(change))
    sign, rounding = signs(xp, y, 1), TYPICAL * largest
    of_y = _roughness(residual, lambda part: residual(y * (1 + part * sign)), rounding)
    of_feeds = _roughness(residual, lambda part: _fed(residual, part, 1)(y), rounding)
    feeds = xp.maximum(of_feeds.short, of_feeds.waves)
    relative = xp.where(feeds > 0, feeds / of_feeds.slope, feeds)
    return (
        xp.maximum(xp.maximum(rounding, of_y.long), of_feeds.long),
        xp.maximum(xp.maximum(rounding, of_y.short), of_y.waves),
        xp.where(relative > NOISIER * eps, relative, xp.zeros_like(relative)),
    )


class _Rough(NamedTuple):
    """What is rough in each equation, (*batch, n), over a short and over long ways.

    Its `slope` is the change by a way of one, the `waves` are the errors of that.
    """

    short: Array
    long: Array
    waves: Array
    slope: Array


def _roughness(residual: Residual, along: Callable[[Any], Array], rounding: Array) -> _Rough:
    """Return the roughness of each equation where the unknowns or the parameters change by a part of each.

    Its `rounding` is what is known of it.
    """
    xp, zeros = residual.xp, residual.xp.zeros_like(rounding)

    def look(measured: Callable[..., tuple[Array, Array]], part: Any) -> tuple[Array, Array]:
        try:
            return measured(xp, lambda k: along(k * part))
        except (ArithmeticError, ValueError):  # so far from the root the residual may have no value
            return zeros, zeros

    part = spacing(xp.finfo(rounding.dtype).eps)
    short, change = look(roughness, part)
    found = _Rough(short, short, zeros, change / part)
    for part in _WIDE:
        long, change = look(long_roughness, part)
        # what is smooth over short ways and rough over long ones has slopes that are off by this roughness over the way
        waves = xp.where(long > NOISIER * xp.maximum(short, rounding), long / part, zeros)
        slope = xp.where(xp.isfinite(change) & (change > 0), change / part, found.slope)
        found = _Rough(short, xp.maximum(found.long, long), xp.maximum(found.waves, waves), slope)
    return found


def _fed(residual: Residual, part: Any, phase: int) -> Residual:
    """Return the residual with each parameter changed by a part of it, in a pattern of signs."""
    xp = residual.xp
    changed = []
    for parameter in residual.parameters:
        flat = xp.reshape(parameter, (-1,))
        changed.append(xp.reshape(flat * (1 + part * signs(xp, flat, phase)), parameter.shape))
    return residual.with_parameters(*changed)
