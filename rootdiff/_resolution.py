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

#: Part of a change by the tolerance, half of it or more, that may be lost on its way through f.
_RETURNING = 0.4
#: A change of y so many times its tolerance is felt so many times as much, and explains an f next to a root.
_FARTHER = 16.0
#: Iterations after which a point beside y must be nearer to it by so much, over the square root of n: the part that the
#: slowest of n directions has in a step that is as long in each of them, but for one case of a hundred.
_RETURNS, _NEARER = 10, 0.01


class End(NamedTuple):
    """Where a solve ended: the start, the iterate and its residual, the allowed error, (*batch, n); steps, (*batch)."""

    residual: Residual
    y0: Array
    y: Array
    f: Array
    allowed: Array
    steps: Array


def is_lost(end: End, inverse: Any, exact: Array, told: bool) -> Array:
    """Return where, (*batch), f does not resolve y to the allowed error.

    `inverse` is what is known of the inverse Jacobian. Of one that was never formed nothing is known in most
    directions: there an f that is `exact`ly zero, (*batch), tells nothing, and one that is not does so only where steps
    `told` how long the error is.
    """
    if has_factors(inverse):
        return _returns_less(end, inverse)
    return exact if told or not has_few_unknowns(end.y.shape) else exact | _is_flat(end)


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
        back, weak = inverse.apply(residual.backend, xp.stack([change, turned]))
    rounding = float(limits.eps) * xp.abs(y) / xp.maximum(allowed, xp.full_like(y, float(limits.smallest_normal)))
    least = _RETURNING * allowed
    return ~(is_within(xp, back - (trial - y), least) & is_within(xp, weak * rounding, least))


def _is_flat(end: End) -> Array:
    """Return where, (*batch), a row of f is not what changes of y by so much, and by more, explain linearly.

    Where steps tell nothing of the error but by the slope that they saw, this is how a flat root is seen. An unknown
    that rests where it started, in a row that is zero all over, is one that nothing asks for.
    """
    residual, y, f = end.residual, end.y, end.f
    xp = residual.xp

    def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, _, last = carry
        farther = xp.where((count > 0)[..., None], _FARTHER * end.allowed, end.allowed)
        return count + 1, last, residual(residual.moved(y, farther * weights(xp, y, end.steps))) - f

    start = (xp.zeros_like(end.steps), xp.zeros_like(f), xp.zeros_like(f))
    _, near, far = _repeated(residual.backend, look, start, 2)
    explained = (xp.abs(f) <= xp.abs(far)) & (xp.abs(far - _FARTHER * near) < 0.5 * xp.abs(far))
    idle = (f == 0) & (near == 0) & (far == 0) & (y == end.y0)
    return ~xp.all(explained | idle, axis=-1)


def has_factors(inverse: Any) -> bool:
    """Return whether something is known of the inverse Jacobian in all directions."""
    return isinstance(getattr(inverse, "base", inverse), Factors)


def comes_back(end: End, damping: Any, scale: Array) -> tuple[Array, Array]:
    """Return where, (*batch), the plain iteration leads back to y from beside it, and which unknowns are idle.

    Then the Jacobian is regular, and steps tell the error, which else say nothing of directions in which none went. An
    idle unknown, (*batch, n), rests where it started in a row that is zero all over: nothing asks for it. No iteration
    is tried where `damping` is None.
    """
    residual, y, f = end.residual, end.y, end.f
    xp = residual.xp
    if damping is None:
        nowhere, none = (xp.full_like(a, 0, dtype=xp.bool) for a in (end.steps, y))
        return nowhere, none
    size = float(xp.finfo(y.dtype).eps) ** 0.5 * xp.maximum(xp.abs(y), scale)

    def look(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, away = carry
        return count + 1, away + damping * (residual(residual.moved(y, away)) - f)

    start = (xp.zeros_like(end.steps), size * weights(xp, y, end.steps))
    _, away = _repeated(residual.backend, look, start, _RETURNS)
    idle = (away == start[1]) & (f == 0) & (y == end.y0)
    return max_norm(xp, xp.where(idle, xp.zeros_like(away), away / size)) <= _NEARER / y.shape[-1] ** 0.5, idle


def _repeated(backend: Backend, body: Any, state: Any, times: int) -> Any:
    """Return the state after so many calls of `body`, whose first array counts them: by a loop where that is compiled.

    Else a device would be waited for.
    """
    if backend.traced:
        return backend.while_loop(lambda state: backend.xp.all(state[0] < times), body, state)
    for _ in range(times):
        state = body(state)
    return state
