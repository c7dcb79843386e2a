"""Whether a point is a root, by its residual alone: for solvers that have no estimate of their error left."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array
from rootdiff._norms import numbers
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status

#: The changes of the residual are sampled at a few points only, so the largest may be this many times larger.
_MARGIN = 4.0
_SAMPLES = 3
#: The default atol counts once the residual has fallen by this many times rtol: by rtol itself it may not, where its
#: rounding is 1e-12 of its value at the start, as that of a difference quotient on a fine grid.
_DEEP = 10.0
#: A rounding of y may change the residual by this many times what it does at the start.
_NOISIER = 16.0


def tolerance(xp: Any, rtol: Any, atol: Any, y: Array, norm: Array, first_norm: Array) -> Array:
    """Return the allowed error of `y`, (*batch, n): ``atol + rtol * abs(y)``.

    Where `atol` is None it is eps^(3/4), and counts only once the residual has fallen by a factor of ten times `rtol`.
    """
    if atol is not None:
        return rtol * xp.abs(y) + atol
    deep = xp.astype(norm <= _DEEP * rtol * first_norm, y.dtype)
    return rtol * xp.abs(y) + (float(xp.finfo(y.dtype).eps) ** 0.75 * deep)[..., None]


def at_precision(
    solver: Any,
    residual: Residual,
    y0: Array,
    first_norm: Array,
    raw: RawSolution,
    verdict: Status = Status.AT_PRECISION,
) -> RawSolution:
    """Return the solution, in which a failed system whose residual its tolerance or rounding explains has succeeded.

    `solver` has the settings `rtol` and `atol`; `first_norm` is the largest absolute residual at `y0`, (*batch).
    """
    xp = residual.xp
    failed = raw.status > int(Status.RUNNING)

    def judge(start: Array, y: Array) -> Array:
        judged = failed & xp.isfinite(raw.residual_norm) & xp.isfinite(first_norm)
        allowed = tolerance(xp, solver.rtol, solver.atol, y, raw.residual_norm, first_norm)
        success = judged & explained(residual, start, y, allowed)
        return xp.astype(xp.where(success, int(verdict), raw.status), xp.int32)

    status = residual.backend.when(xp.any(failed), judge, (y0, raw.y), xp.astype(raw.status, xp.int32))
    return raw._replace(status=status)


def explained(residual: Residual, y0: Array, y: Array, allowed: Array) -> Array:
    """Return whether changes of `y` by up to `allowed`, or by a rounding error, explain the residual, (*batch).

    Each row must be no larger than its own change, to either side of `y` (at a jump it changes to one side only). And
    `y` must still tell something: where it has grown so large that a rounding of it changes the residual as much as
    the whole way from `y0` did, any residual would be explained.

    References
    ----------
    Moré & Wild (2011), "Estimating computational noise".
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    f, start = residual(y), residual(y0)
    rounding = 2 * eps * xp.abs(y)
    wide = xp.maximum(allowed, rounding)

    # a start at zero does not tell the size of an unknown
    first_rounding = 2 * eps * xp.abs(xp.where(y0 == 0, y, y0))

    def sample(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        count, reached, noise, first_noise = carry
        last = (count >= _SAMPLES)[..., None]
        weights = pattern(xp, y, count)
        nudge = xp.where(last, rounding, wide) * weights
        above, below = xp.abs(residual(y + nudge) - f), xp.abs(residual(y - nudge) - f)
        change = xp.minimum(xp.where(xp.isfinite(above), above, xp.inf), xp.where(xp.isfinite(below), below, xp.inf))
        change = xp.where(xp.isfinite(change), change, 0.0)
        largest = xp.max(change, axis=-1)
        # at each sample, for in some directions the changes of a row cancel
        first = xp.max(xp.abs(residual(y0 + first_rounding * weights) - start), axis=-1)
        return (
            count + 1,
            xp.where(last, reached, xp.maximum(reached, change)),
            xp.where(last[..., 0], largest, noise),
            xp.maximum(first_noise, xp.where(xp.isfinite(first), first, 0.0)),
        )

    zero = xp.zeros_like(y[..., 0])
    count = xp.zeros_like(zero, dtype=xp.int32)
    _, reached, noise, first_noise = residual.backend.while_loop(
        lambda carry: xp.all(carry[0] <= _SAMPLES), sample, (count, xp.zeros_like(f), zero, zero)
    )
    telling = (noise <= eps**0.5 * xp.max(xp.abs(start), axis=-1)) | (noise <= _NOISIER * first_noise)
    return xp.all(xp.abs(f) <= _MARGIN * reached, axis=-1) & telling


def pattern(xp: Any, y: Array, phase: Array) -> Array:
    """Return weights between -1 and 1, shaped like `y`, of which no row of small integers sums to zero."""
    index = numbers(xp, y)
    return xp.sin(index * index + xp.astype(phase, y.dtype)[..., None] + 1)
