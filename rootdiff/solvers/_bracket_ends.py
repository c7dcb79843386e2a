"""The ends of a bracket: a search for them, ends that are roots, and what f is around those that are left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from rootdiff._backend import Array, select
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff._space import max_norm, per_system, some

if TYPE_CHECKING:
    from rootdiff.solvers._bracket import Bracket

#: Steps of the search that double the distance; later ones multiply it, so that the search ends with the last number.
_DOUBLINGS, _LATER_GROWTH = 60, 2.0**16
#: Steps in all: the range of float64, of 2^2098 from the smallest number on, takes 60 and 128, and a few go back.
_MAX_SEARCH = 200
#: An end that is this many roundings away from a change of sign is a root.
_ROUNDINGS = 4.0
#: This many widths beyond the bracket, f has at a root of any order (to the ninth root at least) changed by more than a
#: tenth of its change inside; next to a simple pole it has fallen to less than a thirtieth.
_BEYOND, _STEEPER = 16.0, 10.0
#: Beyond a simple root f goes on as inside, but for this part; noise does so to both sides in one of 1000 cases.
_STRAIGHT = 0.1
#: Noise grows, with the right signs to both sides, at four distances one after the other, in one of 100,000 cases.
_RIGHT, _GROWTH = 4, 4.0


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


def around(
    residual: Residual, first: Bracket, at: Bracket, y: Array, f: Array, shortest: Array, rtol: Any
) -> tuple[Array, Array]:
    """Return whether f behaves across the final bracket `at` as next to it, unlike at a pole or a jump, (*batch).

    And return how far around the root `y`, (*batch, 1), f is zero or noise, to a factor of four: the `shortest` at
    least, and that alone where f is straight at the scale of the bracket, or without success. Further it is from where
    f has, at four distances that grow, the signs that it has at the ends of the `first` bracket, and grows.

    At a jump f hardly changes beyond the bracket, at a pole it is small there: smaller even at the first ends.
    """
    xp = residual.xp
    success = (at.status <= int(Status.AT_PRECISION))[..., None]
    swapped = first.a > first.b
    low, high = xp.minimum(first.a, first.b), xp.maximum(first.a, first.b)
    f_low, f_high = xp.where(swapped, first.f_b, first.f_a), xp.where(swapped, first.f_a, first.f_b)
    step, rise = _BEYOND * (at.b - at.a), _BEYOND * (at.f_b - at.f_a)

    def walk(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, right, found, reach, below, above, *beyond = carry
        beside = (count == 0)[..., None]
        one, other = xp.maximum(y - reach, low), xp.minimum(y + reach, high)
        f_one = residual(xp.where(beside, at.a - step, one))
        f_other = residual(xp.where(beside, at.b + step, other))
        good, sizes = xp.ones_like(beside), []
        sides = (one, f_one, low, f_low, below), (other, f_other, high, f_high, above)
        for point, value, outermost, end, last in sides:
            size = xp.where(xp.isfinite(value), xp.abs(value), xp.zeros_like(value))
            good = good & (~xp.isfinite(value) | (point == outermost) | ((value * xp.sign(end) > 0) & (size > last)))
            sizes.append(xp.where(beside, last, size))
        asked = success & ~(straight(f_one, f_other) & (f != 0))
        now = xp.where(right < _RIGHT, xp.where(good, right + 1, 0), right)
        now = xp.where(beside, xp.where(asked, xp.zeros_like(now), _RIGHT), now)
        found = xp.where((right == 0) & (now == 1), reach, found)
        beyond = [xp.where(beside, new, old) for new, old in zip((f_one, f_other), beyond, strict=True)]
        return count + 1, now, found, xp.where(beside, reach, _GROWTH * reach), *sizes, *beyond

    def straight(f_one: Array, f_other: Array) -> Array:
        goes_on = at.f_a != at.f_b
        for value, far in ((f_one, at.f_a - rise), (f_other, at.f_b + rise)):
            goes_on = goes_on & xp.isfinite(value) & (xp.abs(value - far) <= _STRAIGHT * xp.abs(far))
        return goes_on

    zeros = xp.zeros_like(y)
    start = (xp.zeros_like(at.count), zeros, shortest, shortest, zeros, zeros, zeros, zeros)
    _, _, found, *_, f_one, f_other = residual.backend.while_loop(lambda carry: xp.any(carry[1] < _RIGHT), walk, start)
    beside, known = zeros, zeros > 0
    for value, end in ((f_one, at.f_a), (f_other, at.f_b)):
        usable = xp.isfinite(value)
        beside = beside + xp.where(usable, xp.minimum(xp.abs(value - end), xp.abs(value)), 0.0)
        known = known | usable
    alike = xp.abs(at.f_b - at.f_a) <= _STEEPER * beside + rtol * at.first_norm[..., None]
    norm = max_norm(xp, f)
    return (~known | alike)[..., 0] & ((norm <= at.first_norm) | (at.first_norm == 0)), found
