"""The choice between a direct and an iterative linear solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._residual import LinearOperator
from rootdiff.linear._base import LinearInfo, LinearSolver
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._lu import LU

#: Unknowns up to which O(n^3) work costs less than a Krylov space; and entries that fit in memory, 128 MiB of float64.
DENSE_UNKNOWNS = 1024
DENSE_ENTRIES = 2**24


def is_dense(shape: tuple[int, ...], unknowns: int = DENSE_UNKNOWNS) -> bool:
    """Return whether Jacobians for vectors of this shape, (*batch, n), are small enough to be formed."""
    return shape[-1] <= unknowns and math.prod(shape) * shape[-1] <= DENSE_ENTRIES


@dataclass(frozen=True)
class AutoLinear(LinearSolver):
    """`LU` for at most 1024 unknowns and 2^24 matrix entries in the batch, else `GMRES`."""

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        solver = LU() if is_dense(tuple(rhs.shape)) else GMRES()
        return solver.solve(operator, rhs)
