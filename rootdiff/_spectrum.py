"""How strongly a cell contracts at a point, from products alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rootdiff._adapter import Adapter
from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._space import norm2, per_system, waves
from rootdiff._task import Options, checked_args, task


def spectral_radius(
    adapter: Adapter, /, cell: Callable[..., Any], z: Any, *args: Any, batch_ndim: int = 0, steps: int = 50
) -> Any:
    """Return an estimate of the spectral radius of the Jacobian of `cell` at `z`: below one, iterations converge.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z`.
    z : $array or pytree of them, (*batch, ...), floating
        Where the Jacobian is taken, as a rule the fixed point.
    *args : pytrees
    batch_ndim : int
        Number of leading axes of every leaf of `z` that index independent systems.
    steps : int
        Products with the transposed Jacobian; the relative error is about ``1 / steps``.

    Returns
    -------
    $array, (*batch)
        Dimensionless, without derivative.

    Examples
    --------
    >>> import $imports
    >>> round(float(rd.nn.spectral_radius(lambda z, w: w * z, $xp.ones(3), $asarray([0.5, -0.9, 0.1]))), 2)
    0.9
    """
    at = task(adapter, cell, adapter.unknown(z, args), checked_args(adapter, args), Options(batch_ndim=batch_ndim))
    return adapter.cut(adapter.aside(_growth_rate)(adapter.measured(at), adapter.cut(at.start), steps))


def _growth_rate(cell: Residual, z: Array, steps: int) -> Array:
    """Return an estimate of the spectral radius of the Jacobian of `cell`, (*batch), at `z`, (*batch, n).

    The geometric mean of the growth of a vector in the last half of `steps` products with the transposed Jacobian: of
    a complex pair, under which the growth itself does not settle, it is right to O(1 / steps).
    """
    backend, xp = cell.backend, cell.xp
    product = cell.operator(z).rmatvec
    vector = waves(xp, z, per_system(xp, z, 0))
    zero = per_system(xp, z, 0)
    skipped = steps // 2

    def body(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        vector, total, count = carry
        image = product(vector)
        size = norm2(xp, image)
        safe = xp.where(size > 0, size, 1.0)
        total = total + xp.where(count < skipped, zero, xp.log(size))
        return image / safe[..., None], total, count + 1

    start = (vector / norm2(xp, vector)[..., None], zero, xp.zeros_like(zero, dtype=xp.int32))
    _, total, _ = backend.while_loop(lambda carry: xp.all(carry[2] < steps), body, start)
    return xp.exp(total / (steps - skipped))
