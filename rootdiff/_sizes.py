"""Which Jacobians are small enough to be formed."""

from __future__ import annotations

import math

#: Unknowns up to which the entries of a matrix cost no more than the few products that a solve and its check take.
FEW = 64
#: Unknowns up to which O(n^3) work costs less than a Krylov space; and entries that fit in memory, 128 MiB of float64.
DENSE_UNKNOWNS = 1024
DENSE_ENTRIES = 2**24


def is_dense(shape: tuple[int, ...], unknowns: int = DENSE_UNKNOWNS) -> bool:
    """Return whether Jacobians for vectors of this shape, (*batch, n), are small enough to be formed."""
    return shape[-1] <= unknowns and math.prod(shape) * shape[-1] <= DENSE_ENTRIES
