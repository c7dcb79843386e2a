"""The plain iteration for linear systems whose matrix is near minus the identity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._select import keep
from rootdiff._space import norm2

Product: TypeAlias = Callable[[Array], Array]

#: Products within which the iteration must be on its way to converge: then a Krylov space would save few of them.
_PRODUCTS = 24


class Start(NamedTuple):
    """Where a solver starts: x with its residual ``b - A x``, (*batch, n), and the norm of that, (*batch)."""

    x: Array
    residual: Array
    norm: Array


def contract(operator: LinearOperator, rhs: Array, start: Start, goal: Array, inverse: Product | None) -> Start:
    """Return where ``x + M (b - A x)`` leads, in the systems in which that is on its way to a residual norm of `goal`.

    M is the `inverse`, or -1 where there is none. For a fixed point z = cell(z) the Jacobian is A = G - I, and
    with M = -1 this sums the Neumann series of the cell: one product a step, and no other work, as long as the cell
    contracts. A system that will not be done within a few products stops where it is.

    References
    ----------
    Bai, Kolter & Koltun (2019), "Deep equilibrium models", section 3.1.3, the backward pass as a fixed point.
    """
    xp = operator.backend.xp

    def body(carry: tuple[Start, Array, Array]) -> tuple[Start, Array, Array]:
        old, active, count = carry
        x = old.x - old.residual if inverse is None else old.x + inverse(old.residual)
        residual = rhs - operator.matvec(x)
        norm = norm2(xp, residual)
        # where the norm would be after all the products, at the rate of this step
        rate = xp.minimum(norm / xp.where(old.norm > 0, old.norm, 1.0), xp.ones_like(norm))
        end = norm * rate ** xp.astype(_PRODUCTS - count, norm.dtype)
        new = keep(operator.backend, active & (norm < old.norm), Start(x, residual, norm), old)
        return new, active & (norm > goal) & (end <= goal), count + 1

    count = xp.ones_like(goal, dtype=xp.int32)
    carry = (start, start.norm > goal, count)
    return operator.backend.while_loop(lambda carry: xp.any(carry[1]), body, carry)[0]  # type: ignore[no-any-return]
