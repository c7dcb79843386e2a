"""How strongly a cell contracts at a point, from products alone."""

from __future__ import annotations

from rootdiff._backend import Array
from rootdiff._patterns import pattern
from rootdiff._residual import Residual
from rootdiff._space import norm2


def growth_rate(cell: Residual, z: Array, steps: int) -> Array:
    """Return an estimate of the spectral radius of the Jacobian of `cell`, (*batch), at `z`, (*batch, n).

    The geometric mean of the growth of a vector in the last half of `steps` products with the transposed Jacobian: of
    a complex pair, under which the growth itself does not settle, it is right to O(1 / steps).
    """
    backend, xp = cell.backend, cell.xp
    product = cell.operator(z).rmatvec
    vector = pattern(xp, z, xp.zeros_like(z[..., 0]))
    zero = xp.zeros_like(z[..., 0])
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
