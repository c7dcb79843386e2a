"""The choice between a direct and an iterative linear solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._residual import LinearOperator
from rootdiff._solution import Status
from rootdiff.linear._base import LinearInfo, LinearSolver
from rootdiff.linear._contract import judge
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._lsmr import LSMR
from rootdiff.linear._lu import LU

#: Unknowns up to which O(n^3) work costs less than a Krylov space; and entries that fit in memory, 128 MiB of float64.
DENSE_UNKNOWNS = 1024
DENSE_ENTRIES = 2**24


def is_dense(shape: tuple[int, ...], unknowns: int = DENSE_UNKNOWNS) -> bool:
    """Return whether Jacobians for vectors of this shape, (*batch, n), are small enough to be formed."""
    return shape[-1] <= unknowns and math.prod(shape) * shape[-1] <= DENSE_ENTRIES


@dataclass(frozen=True)
class AutoLinear(LinearSolver):
    """`LU` for at most 1024 unknowns and 2^24 matrix entries in the batch, or where a factorisation is at hand.

    Else `GMRES`, with what the solver knows of the inverse as preconditioner; the systems in which it does not reach
    its tolerance are solved again, by `LU` if their matrices have at most 2^24 entries, else by `LSMR`.
    """

    direct = True

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        xp = operator.backend.xp
        shape = tuple(rhs.shape)
        if is_dense(shape) or operator.is_factored:
            return LU().solve(operator, rhs)
        first = GMRES()
        x, info = first.solve(operator, rhs)
        info = judge(operator, first, x, rhs, info)
        failed = info.status > int(Status.AT_PRECISION)
        second: LinearSolver = LU() if is_dense(shape, shape[-1]) else LSMR()

        def again(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            need, x, status, relative = carry
            other_x, other = second.solve(operator, rhs)
            other = judge(operator, second, other_x, rhs, other)
            return (
                xp.zeros_like(need),
                xp.where(failed[..., None], other_x, x),
                xp.where(failed, other.status, status),
                xp.where(failed, other.relative_residual, relative),
            )

        carry = (failed, x, info.status, info.relative_residual)
        _, x, status, relative = operator.backend.while_loop(lambda carry: xp.any(carry[0]), again, carry)
        return x, LinearInfo(status, relative)
