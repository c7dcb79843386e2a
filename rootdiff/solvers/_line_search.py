"""Backtracking along a step, one trial per system and round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._norms import max_norm, norm2
from rootdiff._patterns import signs
from rootdiff._residual import Residual
from rootdiff._select import select
from rootdiff._sizes import is_cheaper_than_a_branch, is_one_large

#: Halvings (at least) before a direction is given up: 2^-40 of a step is below the rounding of its end point.
_MAX_TRIALS = 40


class Trial(NamedTuple):
    """A trial of a line search; at its end, the last one.

    Attributes
    ----------
    y, f : array, (*batch, n). The trial point and its residual.
    size : array, (*batch). Euclidean norm of `f`; where nothing had to be undercut, its largest absolute entry.
    length : array, (*batch). Fraction of the full step.
    accepted : boolean array, (*batch).
    slope : array, (*batch, 1), or None. The derivative at `y`, where it was asked for.
    following : array, (*batch, n), or None. The correction at `y`, where it was asked for.
    """

    y: Array
    f: Array
    size: Array
    length: Array
    accepted: Array
    slope: Array | None = None
    following: Array | None = None


def backtrack(
    residual: Residual,
    y: Array,
    step: Array,
    accept: Callable[[Array, Array | float], Array] | None = None,
    shorten: Callable[[Array, Array], Array] | None = None,
    slope: bool = False,
    noisy: Callable[[Array], Array] | None = None,
    again: Callable[[Array], Array] | None = None,
    natural: Callable[[Array], Array] | None = None,
) -> Trial:
    """Shorten `step` per system until ``accept(size, length)`` holds or the step vanishes in rounding.

    A compiled program for one large system makes the first trial in the loop too, which then holds its one copy of the
    residual; else the loop begins only where a first trial was rejected.

    Parameters
    ----------
    accept : callable, optional
        From the Euclidean norm of the residual and the length of a trial, both (*batch), to a boolean array; the length
        of the first one may be the number 1.0. A trial with a residual that is not finite is rejected without asking.
        Default: every other one will do.
    shorten : callable, optional
        From the same to the next length; default: half the length.
    slope : bool
        Whether to compute the derivative of systems of one unknown too, with each residual.
    noisy : callable, optional
        From the residual a rounding away from `y`, (*batch, n), to where no shorter step is worth a trial, (*batch).
        It is asked once, where a first trial was rejected.
    again : callable, optional
        From the residual of a trial, (*batch, n), to the correction there.
    natural : callable, optional
        From the correction after a first trial to where that is accepted after all; asked if it is rejected.
    """
    xp, traced = residual.xp, residual.backend.traced
    eps = xp.finfo(y.dtype).eps
    inside = traced and is_one_large(tuple(y.shape))  # of few unknowns a compiler makes one kernel of what is around it
    look = inside and noisy is not None

    def trial(point: Array, length: Array | None) -> Trial:
        f, *matrix = residual.with_jacobian(point) if slope else (residual(point),)
        size = max_norm(xp, f) if accept is None else norm2(xp, f)
        accepted = size < xp.inf
        if accept is not None:
            accepted = accepted & accept(size, 1.0 if length is None else length)
        lengths = xp.ones_like(size) if length is None else length
        slopes = matrix[0][..., 0] if slope else None
        return Trial(point, f, size, lengths, accepted, slopes, None if again is None else again(f))

    def with_natural(first: Trial, asked: Array | bool = True) -> Trial:
        if natural is None:
            return first
        return first._replace(accepted=first.accepted | ((first.size < xp.inf) & natural(first.following) & asked))

    def open_(carry: _Search) -> Array:
        vanished = carry.trial.length * max_norm(xp, step) <= eps * max_norm(xp, y)
        if inside:
            vanished = vanished & (carry.count > 0)
        return carry.going & ~(vanished | (carry.count >= _MAX_TRIALS))

    def body(carry: _Search) -> _Search:
        old, going, count = carry
        length = 0.5 * old.length
        if shorten is not None:
            # Dennis & Schnabel (1996), section 6.3.2: stay within a tenth and a half of the last length
            length = xp.clip(shorten(old.size, old.length), 0.1 * old.length, 0.5 * old.length)
            length = xp.where(xp.isfinite(old.size), length, 0.1 * old.length)
        if inside:
            length = xp.where(count == 0, old.length, length)
        point = residual.moved(y, length[..., None] * step)
        if look:
            point = xp.where((count == 1)[..., None], nudged(xp, y), point)
        new = trial(point, length)
        if inside:
            new = with_natural(new, count == 0)
        rejected = residual.of_active(~new.accepted)
        if look:
            assert noisy is not None
            rejected = xp.where(count == 1, ~noisy(new.f), rejected)
            new = select(xp, count == 1, old, new)
        if count.ndim:  # a single system is not asked when it is done
            new, rejected = select(xp, open_(carry), (new, rejected), (old, going))
        return _Search(new, rejected, count + 1)

    def search(*start: Any) -> Trial:
        first = Trial(*start) if inside else with_natural(Trial(*start))
        going = residual.of_active(~first.accepted)
        if noisy is not None and not inside:
            going = going & ~noisy(residual(nudged(xp, y)))
        count = xp.zeros_like(going, dtype=xp.int32)
        loop = residual.backend.while_loop
        return loop(lambda carry: xp.any(open_(carry)), body, _Search(first, going, count)).trial  # type: ignore[no-any-return]

    if inside:
        size = xp.full_like(y[..., 0], xp.inf)
        following = None if again is None else xp.zeros_like(y)
        return search(y, xp.zeros_like(y), size, xp.ones_like(size), size < xp.inf, None, following)
    start = trial(residual.moved(y, step), None)
    if slope and traced and is_cheaper_than_a_branch(y.shape):
        return search(*start)  # a compiler makes one kernel of a loop without a branch in it
    return residual.backend.when(xp.any(residual.of_active(~start.accepted)), search, start, start)  # type: ignore[no-any-return]


class _Search(NamedTuple):
    """The last trial, whether a system needs another, (*batch), and how many rounds there were, (*batch)."""

    trial: Trial
    going: Array
    count: Array


def nudged(xp: Any, y: Array) -> Array:
    """Return a point a rounding away from `y`, (*batch, n)."""
    return y + 2 * xp.finfo(y.dtype).eps * xp.abs(y) * signs(xp, y, 3)
