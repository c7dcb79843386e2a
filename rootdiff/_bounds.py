"""Bounds of the unknowns: as vectors, as a projection of points, and as a condition on a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from rootdiff._residual import Residual
    from rootdiff._structure import Structure


class Box(NamedTuple):
    """Bounds of a minimum.

    Attributes
    ----------
    free : Residual. The gradient, of which the residual is the condition within the bounds.
    limits : callable. ``limits(y)`` returns the lower and the upper bounds, both like `y`, which they do not depend on.
    """

    free: Residual
    limits: Callable[[Array], tuple[Array, Array]]

    def at(self, y: Array) -> Box:
        """Return the same bounds as arrays, for unknowns like `y`."""
        pair = self.limits(y)
        return self._replace(limits=lambda y: pair)

    def holds(self, y: Array, gradient: Array) -> Array:
        """Return the unknowns, (*batch, n), that lie on a bound and would leave the box along the way down."""
        lo, hi = self.limits(y)
        return ((y <= lo) & (gradient > 0)) | ((y >= hi) & (gradient < 0))

    def projected(self, y: Array) -> Array:
        """Return the nearest point within the bounds; one that rounding tells from a bound is on it."""
        xp, (lo, hi) = self.free.xp, self.limits(y)
        rounding = 4 * float(xp.finfo(y.dtype).eps) * xp.abs(y)
        return xp.where(y - lo <= rounding, lo, xp.where(hi - y <= rounding, hi, y))


def sides(y: Array, gradient: Array, lo: Array, hi: Array) -> tuple[Array, Array]:
    """Return the unknowns whose lower, and those whose upper bound takes the place of the gradient, (*batch, n)."""
    lower = y - lo <= gradient
    return lower, ~lower & (y - hi >= gradient)


def condition(xp: Any, y: Array, gradient: Array, lo: Array, hi: Array) -> Array:
    """Return what is zero at a minimum within bounds: ``y - clip(y - gradient, lo, hi)``, without its rounding.

    NaN where a lower bound is not below the upper one.
    """
    lower, upper = sides(y, gradient, lo, hi)
    found = xp.where(lower, y - lo, xp.where(upper, y - hi, gradient))
    return xp.where(lo <= hi, found, xp.full_like(found, xp.nan))


def bound_vectors(structure: Structure, bounds: Any, y: Array) -> tuple[Array, Array]:
    """Return the bounds that a user gives, ``(lo, hi)`` or None, as vectors like `y`."""
    xp = structure.backend.xp
    if bounds is None:
        return xp.full_like(y, -xp.inf), xp.full_like(y, xp.inf)
    several = isinstance(bounds, tuple | list)
    # two pairs may be meant as one for each of two unknowns, as SciPy's minimize has them
    pairs = several and all(isinstance(pair, tuple) and len(pair) == 2 for pair in bounds)
    pairs = pairs and not isinstance(structure.unravel(y), tuple)
    if pairs or not several or len(bounds) != 2:
        raise ArgumentTypeError(
            f"bounds: got {bounds!r}; it must be a tuple (lo, hi): each a number, an array or pytree like y0, or None. "
            "Pairs, one for each unknown, are turned into it by list(map(list, zip(*pairs)))."
        )
    if any(structure.complex_leaves):
        raise ArgumentError("bounds: complex unknowns have no order. Use correct= of root, or real unknowns.")
    lo, hi = (
        xp.full_like(y, limit) if bound is None else structure.spread("bounds", bound, y)
        for bound, limit in zip(bounds, (-xp.inf, xp.inf), strict=True)
    )
    return lo, hi


def are_crossed(xp: Any, lo: Array, hi: Array) -> Array:
    """Return where no number lies between two bounds, (*batch, n)."""
    return ~(lo <= hi) | (lo == xp.inf) | (hi == -xp.inf)


def check_order(xp: Any, lo: Array, hi: Array) -> None:
    """Raise unless each lower bound is at most the upper one; of arrays with values."""
    if bool(xp.any(are_crossed(xp, lo, hi))):
        raise ArgumentError("bounds: lo is above hi, or NaN, or nothing is within them, for at least one unknown.")
