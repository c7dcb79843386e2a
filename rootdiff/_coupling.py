"""The debug check that the systems of a batch are independent."""

from __future__ import annotations

import math

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._space import max_norm, per_system, waves

#: Roundings of f, on the scale of f and y, by which the residual of a system that was left alone may change.
_ROUNDINGS = 8.0
#: Systems that a message names.
_SHOWN = 5


def check_independent(residual: Residual, y: Array) -> None:
    """Raise if the residual of a system depends on the unknowns of another one, at `y`, (*batch, n), which is concrete.

    The systems with a binary digit of their index set are moved, then those without, for each digit, so that any two
    systems are told apart: 2 log2(systems) evaluations.

    Raises
    ------
    ArgumentError
        If a residual changes, or ceases to be finite, while only other systems move.
    """
    xp = residual.xp
    batch = tuple(y.shape[:-1])
    count = math.prod(batch)
    if count < 2:
        return
    eps = xp.finfo(y.dtype).eps
    f = residual(y)
    allowed = _ROUNDINGS * eps * (max_norm(xp, f) + max_norm(xp, y))
    step = eps ** (1 / 3) * (1 + xp.abs(y)) * waves(xp, y, per_system(xp, y, 0))
    ones = xp.ones_like(xp.reshape(y, (count, -1))[:, 0])
    index = xp.reshape(xp.cumulative_sum(ones, axis=0) - 1, batch)
    for digit in range((count - 1).bit_length()):
        is_set = xp.floor(index / 2**digit) % 2 == 1
        for moved in (is_set, ~is_set):
            change = max_norm(xp, residual(xp.where(moved[..., None], y + step, y)) - f)
            coupled = ~moved & ~(change <= allowed) & xp.isfinite(max_norm(xp, f))
            if bool(xp.any(coupled)):
                raise ArgumentError(_message(residual, coupled))


def require_concrete(is_concrete: bool) -> None:
    """Raise unless the check can look at values."""
    if not is_concrete:
        raise ArgumentError(
            "check: it needs concrete arrays, but this solve is traced or transformed (jit, grad, vmap or another). "
            "Check the residual once, outside of it."
        )


def _message(residual: Residual, coupled: Array) -> str:
    places = residual.backend.to_numpy(coupled).nonzero()
    systems = [tuple(int(i) for i in place) for place in zip(*places, strict=True)]
    shown = ", ".join(str(place[0] if len(place) == 1 else place) for place in systems[:_SHOWN])
    return (
        f"batch_ndim: got {coupled.ndim}, but the residual couples systems of the batch: it changes in system {shown}"
        f"{', ...' if len(systems) > _SHOWN else ''} when only others move (a batch norm, a mean or a product over "
        "a batch axis?). Its derivatives would be wrong. Make it act on each system alone, or choose a smaller "
        "batch_ndim, with which what is coupled is one system."
    )
