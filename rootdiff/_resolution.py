"""Whether f resolves y: whether a change of y by its tolerance can be told from what f becomes.

Where rows of f are rounded, corrections may be far smaller than the error of y that these roundings hide.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._inverse import Factors, SparseFactors, Updated
from rootdiff._iterate import State, first_state, next_state
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns
from rootdiff._space import is_within, max_norm, weights

#: Part of a change by the tolerance, half of it or more, that may be lost on its way through f; and how many times the
#: part that is lost, one sample of the noise, the error may be.
_RETURNING, _MARGIN = 0.4, 2.0
#: Steps after which a point beside y must be nearer to it by so much, over the square root of n: the part that the
#: slowest of n directions has in a step that is as long in each of them, but for one case of a hundred. Of many
#: unknowns, whose Jacobian costs more, it may be so many steps more than the solve took.
_RETURNS, _NEARER = 20, 0.01


class End(NamedTuple):
    """Where a solve ended: iterate, residual, allowed error, size of unknowns, (*batch, n); steps, (*batch)."""

    residual: Residual
    y: Array
    f: Array
    allowed: Array
    scale: Array
    steps: Array


def is_lost(end: End, solver: Any, inverse: Any, exact: Array) -> tuple[Array, Array]:
    """Return where f does not resolve y to the allowed error, as far as can be told without its Jacobian, (*batch).

    And what rounding leaves of an error of y, (*batch, n), as far as that was seen.

    `inverse` is what is known of the inverse Jacobian. Where it was never formed, steps say nothing of directions in
    which none went. Of a `solver` whose steps tell no error another solve, from beside y, has to lead back to y; of
    others we ask for the Jacobian of few unknowns, and of many where f is `exact`ly zero, (*batch).
    """
    if isinstance(getattr(inverse, "base", inverse), Factors | SparseFactors):
        return _returns_less(end, inverse)
    unseen = end.residual.xp.zeros_like(end.y)
    if solver.short_steps:
        return exact | ~exact if has_few_unknowns(end.y.shape) else exact, unseen
    # an f of zero tells no error at all; nor does a way back that ends in rounding, as in half precision
    rounded = float(end.residual.xp.finfo(end.y.dtype).eps) ** 0.5 > _nearer(end.y)
    return exact | (~exact if rounded else _stays_away(end, solver)), unseen


def _returns_less(end: End, inverse: Any) -> tuple[Array, Array]:
    """Return where a change of y by the allowed error, put into f, does not come back by the inverse Jacobian.

    Rows that round alike give back any change but that which f feels least: along it, a rounding must be less than the
    allowed error. What does not come back is the noise that is returned too, (*batch, n).
    """
    residual, y, allowed = end.residual, end.y, end.allowed
    xp, limits = residual.xp, residual.xp.finfo(y.dtype)
    trial = residual.moved(y, allowed * weights(xp, y, end.steps))
    change = residual(trial) - end.f
    turned = change * weights(xp, y, end.steps + 1)
    if isinstance(inverse, Updated):  # by changes that may be rounded
        back, weak = inverse.apply(residual.backend, change), inverse.base.apply(residual.backend, turned)
    else:
        both = inverse.apply(residual.backend, xp.stack([change, turned]))
        back, weak = both[0, ...], both[1, ...]
    rounding = float(limits.eps) * xp.abs(y) / xp.maximum(allowed, xp.full_like(y, float(limits.smallest_normal)))
    noise = xp.maximum(xp.abs(back - (trial - y)), xp.abs(weak * rounding))
    return ~is_within(xp, noise, _RETURNING * allowed), _MARGIN * noise


def _nearer(y: Array) -> float:
    return _NEARER / y.shape[-1] ** 0.5  # type: ignore[no-any-return]


def _stays_away(end: End, solver: Any) -> Array:
    """Return where, (*batch), the solver does not lead back to y from beside it: if it does the Jacobian is regular."""
    xp, y, function = end.residual.xp, end.y, end.residual.function
    residual = replace(end.residual, function=lambda y, *parameters: function(y, *parameters) - end.f, known=None)
    size = float(xp.finfo(y.dtype).eps) ** 0.5 * xp.maximum(xp.abs(y), end.scale)

    def away(state: State) -> Array:
        return ~(max_norm(xp, (state.iterate.y - y) / size) <= _nearer(y))

    def look(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
        count, going, state = carry
        state = next_state(solver, replace(residual, active=going), state)
        return count + 1, going & away(state), state

    def unfinished(carry: tuple[Array, Array, State]) -> Array:
        return xp.any(carry[1] & (carry[0] < most))

    most = _RETURNS if has_few_unknowns(y.shape) else _RETURNS + end.steps
    start = first_state(solver, residual, residual.moved(y, size * weights(xp, y, end.steps)))
    carry = xp.zeros_like(end.steps), residual.of_active(away(start)), start
    return residual.backend.while_loop(unfinished, look, carry)[1]
