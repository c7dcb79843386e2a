"""Backtracking along a step, one trial per system and round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._norms import max_norm, norm2
from rootdiff._residual import Residual
from rootdiff._sizes import is_cheaper_than_a_branch

#: Halvings (at least) before a direction is given up: 2^-40 of a step is below the rounding of its end point.
_MAX_TRIALS = 40


class Trial(NamedTuple):
    """The end of a line search.

    Attributes
    ----------
    y, f : array, (*batch, n). The last trial point and its residual.
    size : array, (*batch). Euclidean norm of `f`; where nothing had to be undercut, its largest absolute entry.
    length : array, (*batch). Fraction of the full step.
    accepted : boolean array, (*batch).
    slope : array, (*batch, 1), or None. The derivative at `y`, where it was asked for.
    """

    y: Array
    f: Array
    size: Array
    length: Array
    accepted: Array
    slope: Array | None = None


def backtrack(
    residual: Residual,
    y: Array,
    step: Array,
    accept: Callable[[Array, Array | float], Array] | None = None,
    shorten: Callable[[Array, Array], Array] | None = None,
    slope: bool = False,
    futile: Callable[[], Array] | None = None,
    natural: Callable[[Array], Array] | None = None,
) -> Trial:
    """Shorten `step` per system until ``accept(size, length)`` holds or the step vanishes in rounding.

    Parameters
    ----------
    accept : callable, optional
        From the Euclidean norm of the residual and the length of a trial, both (*batch), to a boolean array; the length
        of the first one is the number 1.0. A trial with a residual that is not finite is rejected without asking.
        Default: every other one will do.
    shorten : callable, optional
        From the same to the next length; default: half the length.
    slope : bool
        Whether to compute the derivative of systems of one unknown too, with each residual.
    futile : callable, optional
        Returns where no shorter step is worth a trial, (*batch); asked once, if some first trial was rejected.
    natural : callable, optional
        From the residual of a first trial, (*batch, n), to where that is accepted after all; asked likewise.
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    unwanted = residual.unwanted(y[..., 0])

    def trial(step: Array, length: Array | None) -> tuple[Any, ...]:
        point = residual.moved(y, step)
        f, *matrix = residual.with_jacobian(point) if slope else (residual(point),)
        size = max_norm(xp, f) if accept is None else norm2(xp, f)
        accepted = size < xp.inf
        if accept is not None:
            accepted = accepted & accept(size, 1.0 if length is None else length)
        lengths = xp.ones_like(size) if length is None else length
        return point, f, size, lengths, accepted, accepted | unwanted, *(m[..., 0] for m in matrix)

    def open_(carry: tuple[Any, ...]) -> Array:
        (_, _, _, length, _, done, *_), count = carry
        vanished = length * max_norm(xp, step) <= eps * max_norm(xp, y)
        return ~(done | vanished | (count >= _MAX_TRIALS))

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        (_, _, size, length, *_), count = carry
        halved = 0.5 * length
        if shorten is not None:
            # Dennis & Schnabel (1996), section 6.3.2: stay within a tenth and a half of the last length
            halved = xp.clip(shorten(size, length), 0.1 * length, 0.5 * length)
            halved = xp.where(xp.isfinite(size), halved, 0.1 * length)
        new = trial(halved[..., None] * step, halved)
        # a single system is not asked when it is done
        return frozen(xp, ~open_(carry), carry[0], new) if length.ndim else new, count + 1

    def search(*start: Any) -> tuple[Any, ...]:
        if natural is not None:
            better = (start[2] < xp.inf) & natural(start[1])
            start = (*start[:4], start[4] | better, start[5] | better, *start[6:])
        if futile is not None:
            start = (*start[:5], start[5] | futile(), *start[6:])
        count = xp.zeros_like(start[5], dtype=xp.int32)
        carry = residual.backend.while_loop(lambda carry: xp.any(open_(carry)), body, (start, count))
        return carry[0]  # type: ignore[no-any-return]

    start = trial(step, None)
    if slope and residual.backend.traced and is_cheaper_than_a_branch(y.shape):
        end = search(*start)  # a compiler makes one kernel of a loop without a branch in it
    else:
        end = residual.backend.when(xp.any(~start[5]), search, start, start)
    return Trial(*end[:5], *end[6:])


def frozen(xp: Any, done: Array, old: tuple[Array, ...], new: tuple[Array, ...]) -> tuple[Array, ...]:
    """Return the `old` arrays of the systems that are `done`, (*batch), and the `new` ones of the others."""
    return tuple(
        xp.where(xp.reshape(done, done.shape + (1,) * (a.ndim - done.ndim)), a, b)
        for a, b in zip(old, new, strict=True)
    )
