"""Backtracking along a step, one trial per system and round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._iterate import max_norm
from rootdiff._residual import Residual

#: Halvings (at least) before a direction is given up: 2^-40 of a step is below the rounding of its end point.
_MAX_TRIALS = 40


class Trial(NamedTuple):
    """The end of a line search.

    Attributes
    ----------
    y, f : array, (*batch, n). The last trial point and its residual.
    length : array, (*batch). Fraction of the full step.
    accepted : boolean array, (*batch).
    """

    y: Array
    f: Array
    length: Array
    accepted: Array


def backtrack(
    residual: Residual,
    y: Array,
    step: Array,
    accept: Callable[[Array, Array], Array],
    shorten: Callable[[Array, Array], Array] | None = None,
) -> Trial:
    """Shorten `step` per system until ``accept(f, length)`` holds or the step vanishes in rounding.

    Parameters
    ----------
    accept : callable
        From the residual, (*batch, n), and the length, (*batch), of a trial to a boolean array; a trial with a
        residual that is not finite is rejected without asking.
    shorten : callable, optional
        From the same to the next length; default: half the length.
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps

    def trial(step: Array, length: Array, count: Array) -> tuple[Any, ...]:
        point = residual.moved(y, step)
        f = residual(point)
        accepted = xp.isfinite(max_norm(xp, f)) & accept(f, length)
        return point, f, length, accepted, accepted | (count >= _MAX_TRIALS), count

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        _, f, length, _, done, count = carry
        done = done | (length * max_norm(xp, step) <= eps * max_norm(xp, y))  # the step has vanished
        carry = (*carry[:4], done, count)
        halved = 0.5 * length
        if shorten is not None:
            finite = xp.all(xp.isfinite(f), axis=-1)
            # Dennis & Schnabel (1996), section 6.3.2: stay within a tenth and a half of the last length
            halved = xp.where(finite, xp.clip(shorten(f, length), 0.1 * length, 0.5 * length), 0.1 * length)
        return frozen(xp, done, carry, trial(halved[..., None] * step, halved, count + 1))

    ones = xp.ones_like(y[..., 0])
    start = trial(step, ones, xp.zeros_like(ones, dtype=xp.int32))
    point, f, length, accepted, _, _ = residual.backend.while_loop(lambda carry: xp.any(~carry[4]), body, start)
    return Trial(point, f, length, accepted)


def frozen(xp: Any, done: Array, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the `old` arrays of the systems that are `done`, (*batch), and the `new` ones of the others."""
    return tuple(
        xp.where(xp.reshape(done, done.shape + (1,) * (a.ndim - done.ndim)), a, b)
        for a, b in zip(old, new, strict=True)
    )
