"""The trust region: steps that a model vouches for, and the radius within which it is believed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._select import select
from rootdiff._space import max_norm, norm2

#: Trial steps before a system is given up: each at most halves the radius, 2^-60 of it is below all rounding.
_MAX_TRIALS = 60
#: Moré (1978), section 4: a step is taken when it brings this part of the decrease that the model promised.
_ACCEPT = 1e-4
#: Next to a root of any multiplicity a Newton step reduces f to less than 1/e of its size; see `Newton`.
CONTRACTION = math.exp(-1.0)


class Attempt(NamedTuple):
    """The trial that ended the search for a radius.

    Attributes
    ----------
    y, f : array, (*batch, n). The trial point and its residual; the start where nothing was accepted.
    accepted : boolean array, (*batch).
    full : boolean array, (*batch)
        Whether the last step was the whole Newton step and reduced f as that does near a root.
    radius : array, (*batch). Radius for the next step, in scaled units.
    """

    y: Array
    f: Array
    accepted: Array
    full: Array
    radius: Array


class Linearisation(NamedTuple):
    """Lengths of the rows of J; J, and f divided by them; scale of the variables, as kept and as used; the radius."""

    rows: Array
    matrix: Array
    f: Array
    scale: Array
    metric: Array
    radius: Array

    def product(self, vector: Array) -> Array:
        """Return J times `vector`, (*batch, n), divided by the lengths of the rows; that a matrix need not be kept."""
        return (self.matrix @ vector[..., None])[..., 0] / self.rows


def column_norms(xp: Any, matrix: Array) -> Array:
    """Return the Euclidean norms, (*batch, n), of the columns of matrices (*batch, n, n)."""
    return norm2(xp, xp.matrix_transpose(matrix))


def scaling(xp: Any, matrix: Array, scale: Array) -> Array:
    """Return the scale of each variable: the largest norm of its column so far (Moré 1978, eq. 6.3); 0 is unknown."""
    norms = column_norms(xp, matrix)
    return xp.maximum(scale, xp.where(xp.isfinite(norms), norms, 0.0))


def first_radius(xp: Any, y: Array, scale: Array, factor: Any) -> Array:
    """Return the radius at the start, `factor` times the scaled length of `y` (Moré, Garbow & Hillstrom 1980)."""
    length = norm2(xp, scale * y)
    return factor * xp.where(length > 0, length, 1.0)


def search(residual: Residual, y: Array, at: Linearisation, propose: Callable[[Array], tuple[Array, Array]]) -> Attempt:
    """Shrink the radius per system until the step that `propose` makes within it reduces the sum of squares.

    The radius follows Moré (1978), section 4: it shrinks where the model promised too much, and grows to twice
    the step where the promise was kept.

    Parameters
    ----------
    propose : callable
        From the radius, (*batch), to a step, (*batch, n), and whether it is the whole Newton step, (*batch).
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    f, scale = at.f, at.metric
    size = norm2(xp, f)
    unit = xp.where(size > 0, size, 1.0)[..., None]  # squares of f / |f| neither overflow nor underflow

    def trial(radius: Array, count: Array) -> tuple[Array, ...]:
        step, full = propose(radius)
        point = residual.moved(y, step)
        moved = point - y
        value = residual(point) / at.rows
        new, linear = norm2(xp, value / unit), norm2(xp, (f + at.product(moved)) / unit)
        promised = (1 - linear) * (1 + linear)
        gained = (1 - new) * (1 + new)
        ratio = xp.where(promised > 0, gained / xp.where(promised > 0, promised, 1.0), -xp.ones_like(promised))
        finite = xp.isfinite(new) & xp.isfinite(linear)
        ratio = xp.where(finite, ratio, -xp.ones_like(ratio))
        accepted = finite & (ratio >= _ACCEPT)
        length = norm2(xp, scale * step)
        # the minimum of the parabola through the value and slope at 0 and the value at the trial
        slope = xp.where(finite, promised, 1.0)
        fraction = xp.where(finite, slope / xp.where(slope - gained + slope > 0, 2 * slope - gained, 1.0), 0.1)
        shrunk = xp.clip(fraction, 0.1, 0.5) * xp.minimum(radius, length)
        grown = xp.where(ratio >= 0.75, xp.maximum(radius, 2 * length), radius)
        following = xp.where(ratio < 0.25, shrunk, grown)
        vanished = max_norm(xp, step) <= eps * max_norm(xp, y)
        going = residual.of_active(~(accepted | vanished | (count > _MAX_TRIALS)))
        return point, value, accepted, full, following, going, count

    def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        return select(xp, carry[5], trial(carry[4], carry[6] + 1), carry)  # type: ignore[no-any-return]

    none, zeros = xp.zeros_like(size, dtype=xp.bool), xp.zeros_like(size, dtype=xp.int32)
    start: tuple[Array, ...] = (y, f, none, none, at.radius, ~none, zeros)
    if not residual.backend.traced:  # a compiled loop makes the first trial too; else that is known to be wanted
        start = trial(at.radius, zeros)
    point, value, accepted, full, radius, _, _ = residual.backend.while_loop(
        lambda carry: xp.any(carry[5]), body, start
    )
    taken = accepted[..., None]
    fallen = norm2(xp, value) <= CONTRACTION * size
    value = xp.where(taken, value, f) * at.rows
    return Attempt(xp.where(taken, point, y), value, accepted, full & fallen, radius)
