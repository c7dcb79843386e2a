"""The corrector of a path: back to the curve after a step along its tangent, and what it tells about that step."""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._space import dot, max_norm, norm2

#: Ratio of the first two corrections, and angle between tangents (20 degrees), that leave a step as long as it is; four
#: times the one or twice the other are too much (Allgower & Georg 1990, algorithm 6.1.10).
_CONTRACTION, _ANGLE = 0.125, 0.35
#: Corrections in all. One that stops shrinking, as it is rounding, will do at this part of the step.
_CORRECTIONS, _ROUNDING = 8, 1e-3


class Corrected(NamedTuple):
    """A point, the length of the last correction and of the first two, their number."""

    z: Array
    size: Array
    first: Array
    second: Array
    count: Array


def corrected(curve: Residual, guess: Array, row: Array) -> Corrected:
    """Return the point of the curve in the plane through `guess` with the normal `row`, by Newton's method."""
    xp, backend = curve.xp, curve.backend
    bound = curve.with_parameters(row, dot(xp, row, guess))
    infinite = xp.full_like(guess[0], xp.inf)

    def better(at: Corrected) -> Corrected:
        correction = backend.lu_solve(backend.lu_factor(bound.jacobian(at.z)), bound(at.z))
        size = norm2(xp, correction)
        shrinks = size < at.size  # no NaN is taken
        return Corrected(
            xp.where(shrinks, at.z - correction, at.z),
            xp.where(shrinks, size, at.size),
            xp.where(at.count == 0, size, at.first),
            xp.where(at.count == 1, size, at.second),
            xp.where(shrinks, at.count + 1, at.count + _CORRECTIONS),
        )

    def unfinished(at: Corrected) -> Array:
        return xp.all((at.size > short(xp, at.z)) & (at.count < _CORRECTIONS))

    count = xp.zeros_like(guess[0], dtype=xp.int32)
    first = Corrected(guess, infinite, infinite, xp.zeros_like(infinite), count)
    return backend.while_loop(unfinished, better, first)  # type: ignore[no-any-return]


def is_found(xp: Any, point: Corrected, length: Array) -> Array:
    """Whether the corrector has found the curve, after a step of this length."""
    return point.size <= xp.maximum(short(xp, point.z), _ROUNDING * length)


def along(xp: Any, z: Array) -> Array:
    """Return the direction of the parameter, a vector like z."""
    return xp.concat([xp.zeros_like(z[:-1]), xp.ones_like(z[-1:])], axis=-1)


def short(xp: Any, z: Array) -> Array:
    """Return the length of a correction that ends the corrector: the path is only the way to the root."""
    return float(xp.finfo(z.dtype).eps) ** 0.5 * xp.clip(max_norm(xp, z), 1.0, None)


def effort(xp: Any, point: Corrected, tangent: Array, last: Array, length: Array) -> Array:
    """Return by how much a step along the tangent `last` was too long: two is too much.

    The measures are the contraction of the corrector, the angle between the tangents and that between tangent and
    chord, which is half of it on a smooth path and more where the corrector ran to another branch.
    """
    cosine = dot(xp, tangent, last) / (norm2(xp, tangent) * norm2(xp, last))
    angle = xp.acos(xp.clip(cosine, -1.0, 1.0))
    to_chord = point.first / (length * norm2(xp, last))
    kappa = point.second / xp.where(point.first > 0, point.first, 1.0)
    return xp.maximum(xp.sqrt(kappa / _CONTRACTION), xp.maximum(angle, 2 * to_chord) / _ANGLE)
