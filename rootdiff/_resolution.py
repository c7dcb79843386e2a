"""Whether f resolves y: whether a change of y by its tolerance can be told from what f becomes.

Where rows of f are rounded, corrections may be far smaller than the error of y that these roundings hide.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdiff._backend import Array, Backend
from rootdiff._inverse import Factors, Updated
from rootdiff._norms import is_within, max_norm
from rootdiff._patterns import weights
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import RawSolution, Status

#: Part of a change by the tolerance, half of it or more, that may be lost on its way through f.
_RETURNING = 0.4
#: Iterations after which a point beside y must be nearer to it by so much, over the square root of n: the part that the
#: slowest of n directions has in a step that is as long in each of them, but for one case of a hundred.
_RETURNS, _NEARER = 10, 0.01


class End(NamedTuple):
    """Where a solve ended: start, iterate, residual, allowed error, size of unknowns, (*batch, n); steps, (*batch)."""

    residual: Residual
    y0: Array
    y: Array
    f: Array
    allowed: Array
    scale: Array
    steps: Array


def looked_at(end: End, raw: RawSolution, claimed: Array, damping: Any) -> tuple[RawSolution, Array]:
    """Return the solution, and the `claimed` systems, (*batch), of which f does not resolve y to the allowed error.

    Where the inverse Jacobian was never formed, steps say nothing of directions in which none went: of few unknowns the
    plain iteration has to vouch for them, of many an f that is exactly zero vouches for nothing. `damping` is that of
    the iteration, None if there is none. Nothing tells how far off an idle unknown is.
    """
    xp, inverse, exact = end.residual.xp, raw.factors, raw.residual_norm == 0
    if isinstance(getattr(inverse, "base", inverse), Factors):
        return raw, claimed & _returns_less(end, inverse)
    if not has_few_unknowns(end.y.shape):
        return raw, claimed & exact
    if damping is None:
        return raw, claimed
    away, idle = _stays_away(end, damping)
    idle = idle & claimed[..., None]
    status = xp.where(xp.any(idle, axis=-1), int(Status.AT_PRECISION), raw.status)
    return raw._replace(status=xp.astype(status, xp.int32), error=xp.where(idle, xp.inf, raw.error)), claimed & away


def _returns_less(end: End, inverse: Any) -> Array:
    """Return where a change of y by the allowed error, put into f, does not come back by the inverse Jacobian.

    Rows that round alike give back any change but that which f feels least: along it, a rounding must be less than the
    allowed error.
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
    least = _RETURNING * allowed
    return ~(is_within(xp, back - (trial - y), least) & is_within(xp, weak * rounding, least))


def _stays_away(end: End, damping: Any) -> tuple[Array, Array]:
    """Return where, (*batch), the plain iteration does not lead back to y from beside it, and which unknowns are idle.

    If it does the Jacobian is regular, and steps tell the error. An idle unknown, (*batch, n), rests where it started
    in a row that is zero all over: nothing asks for it.
    """
    residual, y, f = end.residual, end.y, end.f
    xp = residual.xp
    size = float(xp.finfo(y.dtype).eps) ** 0.5 * xp.maximum(xp.abs(y), end.scale)
    beside = size * weights(xp, y, end.steps)

    def look(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, away = carry
        return count + 1, away + damping * (residual(residual.moved(y, away)) - f)

    _, away = _repeated(residual.backend, look, (xp.zeros_like(end.steps), beside), _RETURNS)
    idle = (away == beside) & (f == 0) & (y == end.y0)
    far = max_norm(xp, xp.where(idle, xp.zeros_like(away), away / size))
    return ~(far <= _NEARER / y.shape[-1] ** 0.5), idle


def _repeated(backend: Backend, body: Any, state: Any, times: int) -> Any:
    """Return the state after so many calls of `body`, whose first array counts them: by a loop where that is compiled.

    Else a device would be waited for.
    """
    if backend.traced:
        return backend.while_loop(lambda state: backend.xp.all(state[0] < times), body, state)
    for _ in range(times):
        state = body(state)
    return state
