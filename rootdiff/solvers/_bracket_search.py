"""Where a bracket comes from: a search from one point or towards an infinite end, and ends that are roots."""

from __future__ import annotations

from typing import NamedTuple

from rootdiff._backend import Array, select
from rootdiff._residual import Residual
from rootdiff._space import per_system, some

#: Steps of the search that double the distance; later ones multiply it, so that the search ends with the last number.
_DOUBLINGS, _LATER_GROWTH = 60, 2.0**16
#: Steps in all: the range of float64, of 2^2098 from the smallest number on, takes 60 and 128, and a few go back.
_MAX_SEARCH = 200
#: An end that is this many roundings away from a change of sign is a root.
_ROUNDINGS = 4.0


class Ends(NamedTuple):
    """Two points and the residual there, all (*batch, 1)."""

    lo: Array
    f_lo: Array
    hi: Array
    f_hi: Array


class _Search(NamedTuple):
    """The last two points on either side, downwards (index 0 of the last axis) and upwards, and the next step."""

    inner: Array
    outer: Array
    f_inner: Array
    f_outer: Array
    reach: Array
    found: Array
    count: Array


def search_bracket(
    residual: Residual, origin: Array, downwards: Array | bool = True, upwards: Array | bool = True
) -> tuple[Array, Array]:
    """Return two points beside `origin`, (*batch, 1), where the signs of f differ; twice the origin if none are found.

    The steps from the origin to either side, where they are wanted, grow until they leave the range of the dtype.
    """
    xp = residual.xp
    f0 = residual(origin)
    sides = xp.concat([xp.zeros_like(f0, dtype=xp.bool) | side for side in (downwards, upwards)], axis=-1)
    reach = xp.where(sides, 0.1 * xp.where(origin == 0, xp.ones_like(origin), xp.abs(origin)), 0.0)
    both, f_both = xp.concat([origin, origin], axis=-1), xp.concat([f0, f0], axis=-1)
    hopeless = (xp.isnan(f0) | (f0 == 0))[..., 0]
    count = per_system(xp, f0, 0, xp.int32)
    search = residual.backend.while_loop(
        lambda search: xp.any(~search.found) & xp.all(search.count < _MAX_SEARCH),
        lambda search: _look(residual, search),
        _Search(both, both, f_both, f_both, reach, hopeless, count),
    )
    crossed = xp.sign(search.f_inner) * xp.sign(search.f_outer) <= 0
    lower, upper = crossed[..., :1], crossed[..., 1:]
    near, far = (xp.where(lower, points[..., :1], points[..., 1:]) for points in (search.inner, search.outer))
    lo, hi = xp.where(lower, far, near), xp.where(lower, near, far)
    return xp.where(lower | upper, lo, origin), xp.where(lower | upper, hi, origin)


def _look(residual: Residual, search: _Search) -> _Search:
    """Go one step further on both sides."""
    xp = residual.xp
    _, outer, f_inner, f_outer, reach, found, count = search
    ends = xp.concat([outer[..., :1] - reach[..., :1], outer[..., 1:] + reach[..., 1:]], axis=-1)
    f = xp.concat([residual(ends[..., :1]), residual(ends[..., 1:])], axis=-1)
    finite = xp.isfinite(f) & xp.isfinite(ends)
    crossed = finite & (xp.sign(f) * xp.sign(f_outer) <= 0)
    longer = xp.where((count < _DOUBLINGS)[..., None], 2 * reach, _LATER_GROWTH * reach)
    new = _Search(
        # where f has no value the edge of its domain is near: shorter steps
        xp.where(finite, outer, search.inner),
        xp.where(finite, ends, outer),
        xp.where(finite, f_outer, f_inner),
        xp.where(finite, f, f_outer),
        xp.where(finite, longer, 0.25 * reach),
        found | some(xp, crossed),
        count + 1,
    )
    return select(xp, found, search._replace(count=new.count), new)  # type: ignore[no-any-return]


def widened(residual: Residual, lo: Array, hi: Array) -> tuple[Array, Array]:
    """Return the bracket with finite ends: an infinite one is searched for, from the other end or from zero."""
    xp = residual.xp
    low, high = xp.minimum(lo, hi), xp.maximum(lo, hi)
    infinite = (low < high) & ((low == -xp.inf) | (high == xp.inf))

    def search(lo: Array, hi: Array) -> tuple[Array, Array]:
        origin = xp.where(xp.isfinite(low), low, xp.where(xp.isfinite(high), high, 0.0))
        found = search_bracket(residual, origin, infinite & (low == -xp.inf), infinite & (high == xp.inf))
        new_lo, new_hi = (xp.where(infinite, new, old) for new, old in zip(found, (lo, hi), strict=True))
        return new_lo, new_hi

    return residual.backend.when(xp.any(infinite), search, (lo, hi), (lo, hi))  # type: ignore[no-any-return]


def settled_ends(residual: Residual, lo: Array, hi: Array) -> tuple[Ends, Array]:
    """Return the bracket with the residual at its ends, and whether a root is certain to lie in it, (*batch).

    An end is a root where f changes its sign within a few roundings of it: that change then is the bracket. A zero of
    f at an end counts where f has a value other than zero next to it. Far out, f may be nothing but an underflow.
    """
    xp = residual.xp
    ends = Ends(lo, residual(lo), hi, residual(hi))
    eps, tiny = xp.finfo(lo.dtype).eps, xp.finfo(lo.dtype).smallest_normal
    zero = (ends.f_lo == 0) | (ends.f_hi == 0)
    valid = ~zero & (xp.sign(ends.f_lo) * xp.sign(ends.f_hi) < 0)
    unclear = zero | (xp.sign(ends.f_lo) * xp.sign(ends.f_hi) > 0)
    # the size of an end at zero is that of the bracket
    apart = xp.where(xp.isfinite(hi - lo) & (hi != lo), xp.abs(hi - lo), 1.0)

    def look(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, settled, *parts = carry
        first, above = (count < 2)[..., None], (count % 2 == 0)[..., None]
        end, f_end = xp.where(first, lo, hi), xp.where(first, ends.f_lo, ends.f_hi)
        size = xp.abs(end)
        step = xp.where(f_end == 0, eps**0.5 * xp.where(size > 0, size, apart), _ROUNDINGS * eps * size)
        beside = end + xp.where(above, step, -step)
        f = residual(beside)
        changes = xp.where(f_end == 0, ~(xp.abs(f) < tiny), xp.sign(f) * xp.sign(f_end) <= 0)
        new = unclear & changes & ~settled
        chosen = Ends(end, f_end, beside, f)
        return (count + 1, settled | new, *[xp.where(new, a, b) for a, b in zip(chosen, parts, strict=True)])

    count = per_system(xp, lo, 0, xp.int32)
    _, settled, *parts = residual.backend.while_loop(
        lambda carry: xp.any(unclear & ~carry[1]) & xp.all(carry[0] < 4), look, (count, valid, *ends)
    )
    return Ends(*parts), (settled & xp.isfinite(lo) & xp.isfinite(hi))[..., 0]
