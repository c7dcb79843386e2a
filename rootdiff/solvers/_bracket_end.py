"""What f is around the end of a bracket: a root, a jump or a pole, and noise how far."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff._space import max_norm

if TYPE_CHECKING:
    from rootdiff.solvers._bracket import Bracket

#: This many widths beyond the bracket, f has at a root of any order (to the ninth root at least) changed by more than a
#: tenth of its change inside; next to a simple pole it has fallen to less than a thirtieth.
_BEYOND, _STEEPER = 16.0, 10.0
#: Beyond a simple root f goes on as inside, but for this part; noise does so to both sides in one of 1000 cases.
_STRAIGHT = 0.1
#: Noise grows, with the right signs to both sides, at four distances one after the other, in one of 100,000 cases.
_RIGHT, _GROWTH = 4, 4.0


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
