"""Backtracking along a step: one trial per call where that is compiled, else until each system has its point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from rootdiff._backend import Array, select
from rootdiff._iterate import Search
from rootdiff._residual import Residual
from rootdiff._sizes import is_cheaper_than_a_branch
from rootdiff._space import every, max_norm, norm2, numbers

_T = TypeVar("_T")

#: Halvings (at least) before a direction is given up: 2^-40 of a step is below the rounding of its end point.
_MAX_TRIALS = 40
#: Whether f at the start of a step may be nothing but rounding, if that was asked; while it is, the next trial is not
#: one, but a look at f a rounding away.
_UNASKED, _ASKED, _CLEAR, NOISY = 0, 1, 2, 3


class Trial(NamedTuple):
    """A trial of a line search.

    Attributes
    ----------
    y, f : array, (*batch, n). The trial point and its residual.
    size : array, (*batch). Euclidean norm of `f`; where nothing had to be undercut, its largest absolute entry.
    length : array, (*batch). Fraction of the full step.
    accepted : boolean array, (*batch).
    slope : array, (*batch, 1), or None. The derivative at `y`, where it was asked for.
    following : array, (*batch, n), or None. The correction at `y`, where it was asked for.
    search : Search or None. What the next call goes on from; None where all trials are made.
    noisy : boolean array, (*batch), or None. Whether f at the start was found to be nothing but rounding.
    """

    y: Array
    f: Array
    size: Array
    length: Array
    accepted: Array
    slope: Array | None = None
    following: Array | None = None
    search: Search | None = None
    noisy: Array | None = None

    @property
    def ended(self) -> Array:
        """Boolean array, (*batch): the search is over, with or without a point."""
        return self.accepted == self.accepted if self.search is None else ~self.search.trying


def made_once(
    residual: Residual, search: Search | None, make: Callable[..., _T], operands: tuple[Any, ...], old: _T
) -> _T:
    """Return what `make` makes of the operands when a step begins, `old` at its further trials.

    Where a branch costs more than that it is made at each trial: of the same operands it is the same.
    """
    if search is None or is_cheaper_than_a_branch(operands[0].shape):
        return make(*operands)
    begins = residual.xp.any(residual.of_active(~search.trying))
    return residual.backend.when(begins, make, operands, old, often=True)  # type: ignore[no-any-return]


def backtrack(
    residual: Residual,
    y: Array,
    step: Array,
    search: Search | None,
    accept: Callable[[Array, Array | float], Array] | None = None,
    shorten: Callable[[Array, Array], Array] | None = None,
    slope: bool = False,
    beside: Array | None = None,
    noisy: Callable[[Array], Array] | None = None,
    unclear: Callable[[Trial], Array] | None = None,
    again: Callable[[Array], Array] | None = None,
    natural: Callable[[Array], Array] | None = None,
) -> Trial:
    """Shorten `step` per system until ``accept(size, length)`` holds or the step vanishes in rounding.

    From a `search` one trial is made, so that a compiled loop holds one copy of the residual, and a system goes on in
    its search while others begin their next step; if it is None, all trials are.

    Parameters
    ----------
    search : Search or None
    accept : callable, optional
        From the Euclidean norm of the residual and the length of a trial, both (*batch), to a boolean array; the length
        of the first one may be the number 1.0. A trial with a residual that is not finite is rejected without asking.
        Default: every other one will do.
    shorten : callable, optional
        From the same to the next length; default: half the length.
    slope : bool
        Whether to compute the derivative of systems of one unknown too, with each residual.
    beside : array, (*batch, n), optional
        The residual at `y`, for `noisy`.
    noisy : callable, optional
        From the length of the change of f to a rounding away from `y`, (*batch), to where no shorter step is worth a
        trial. It is asked once, where a first trial was rejected.
    unclear : callable, optional
        From a first trial to where it must be known whether f is noise before that can be judged; of a `search` only.
    again : callable, optional
        From the residual of a trial, (*batch, n), to the correction there.
    natural : callable, optional
        From the correction after a first trial to where that is accepted after all; asked if it is rejected.
    """
    xp, backend = residual.xp, residual.backend

    def trial(point: Array, length: Array | None, looks: Array | None = None) -> Trial:
        f, *matrix = residual.with_jacobian(point) if slope else (residual(point),)
        if noisy is None or looks is None:
            size = max_norm(xp, f) if accept is None else norm2(xp, f)
        else:
            assert beside is not None
            size = norm2(xp, xp.where(looks[..., None], f - beside, f))
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

    def vanished(point: Array) -> Array:
        return every(xp, point == y)

    def shorter(size: Array, length: Array) -> Array:
        if shorten is None:
            return 0.5 * length
        # Dennis & Schnabel (1996), section 6.3.2: stay within a tenth and a half of the last length
        new = xp.clip(shorten(size, length), 0.1 * length, 0.5 * length)
        return xp.where(xp.isfinite(size), new, 0.1 * length)

    def one(search: Search) -> Trial:
        _, length, count, noise = search
        looks, first = noise == _ASKED, count == 0
        point = residual.moved(y, length[..., None] * step)
        if noisy is not None:
            point = xp.where(looks[..., None], nudged(xp, y), point)
        new = with_natural(trial(point, length, looks), first)
        accepted, is_noise, first_again = new.accepted & ~looks, noise == NOISY, looks & first
        if noisy is not None:
            is_noise = xp.where(looks, noisy(new.size), is_noise)
            if unclear is not None:
                first_again = first_again | (first & (noise == _UNASKED) & unclear(new))
            asked = xp.where(accepted & ~first_again, noise, _ASKED)
            noise = xp.where(noise == _UNASKED, asked, xp.where(is_noise, NOISY, _CLEAR))
        held = looks | first_again
        rejected = xp.astype(xp.where(held, count, count + 1), xp.int32)
        over = accepted | is_noise | (~looks & (vanished(new.y) | (rejected > _MAX_TRIALS)))
        trying = residual.of_active(first_again | ~over)
        length = xp.where(held, length, shorter(new.size, length))
        further = Search(trying, length, rejected, xp.astype(noise, xp.int32))
        further = select(xp, trying, further, Search.start(xp, y))
        return new._replace(accepted=accepted & ~first_again, search=further, noisy=is_noise)

    if search is not None:
        return one(search)

    def further(*start: Any) -> Trial:
        first = with_natural(Trial(*start))
        going = residual.of_active(~first.accepted)
        if noisy is not None:
            going = going & ~noisy(norm2(xp, residual(nudged(xp, y)) - beside))

        def open_(carry: tuple[Trial, Array, Array]) -> Array:
            last, going, count = carry
            return going & ~(vanished(last.y) | (count >= _MAX_TRIALS))

        def body(carry: tuple[Trial, Array, Array]) -> tuple[Trial, Array, Array]:
            old, going, count = carry
            length = shorter(old.size, old.length)
            new = trial(residual.moved(y, length[..., None] * step), length)
            rejected = residual.of_active(~new.accepted)
            if count.ndim:  # a single system is not asked when it is done
                new, rejected = select(xp, open_(carry), (new, rejected), (old, going))
            return new, rejected, count + 1

        count = xp.zeros_like(going, dtype=xp.int32)
        return backend.while_loop(lambda carry: xp.any(open_(carry)), body, (first, going, count))[0]  # type: ignore[no-any-return]

    start = trial(residual.moved(y, step), None)
    return backend.when(xp.any(residual.of_active(~start.accepted)), further, start, start, often=True)  # type: ignore[no-any-return]


def nudged(xp: Any, y: Array) -> Array:
    """Return a point a rounding away from `y`, (*batch, n): which unknowns grow follows no rule that f may have."""
    golden = numbers(xp, y) * ((5**0.5 - 1) / 2)
    rounding = 2 * float(xp.finfo(y.dtype).eps) * xp.abs(y)
    return y + xp.where(golden - xp.floor(golden) > 0.5, rounding, -rounding)
