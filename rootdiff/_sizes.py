"""Which way is cheaper, by size: every such choice of the mathematics. Shapes are those of vectors, (*batch, n)."""

from __future__ import annotations

import math

#: Unknowns up to which a matrix, formed and factored, costs no more than the few dozen products that would avoid it;
#: and numbers up to which all work on them costs a compiled program less than a branch that leaves it out.
FEW = 64
#: Unknowns of one system above which a short Krylov solve of a compiled program costs less than a factorisation:
#: measured 170 in JAX; in NumPy and PyTorch, where each operation of a Krylov step takes Python's time too, above 500.
TRIED = 256
#: Unknowns up to which O(n^3) work costs less than a Krylov space; and entries that fit in memory, 128 MiB of float64.
DENSE_UNKNOWNS = 1024
DENSE_ENTRIES = 2**24
#: Unknowns up to which, and systems from which, elimination of all systems at once is faster than LAPACK called once
#: per system: measured 2 to 20 times in NumPy, 3 to 20 in JAX, substitution in JAX 1.1 to 8 times.
TINY, MANY_SYSTEMS = 8, 64


def has_few_unknowns(shape: tuple[int, ...]) -> bool:
    """Return whether the entries of a matrix cost no more than a few dozen products with it."""
    return shape[-1] <= FEW


def is_dense(shape: tuple[int, ...]) -> bool:
    """Return whether Jacobians are small enough to be formed."""
    return shape[-1] <= DENSE_UNKNOWNS and fits(shape)


def fits(shape: tuple[int, ...]) -> bool:
    """Return whether Jacobians fit in memory."""
    return math.prod(shape) * shape[-1] <= DENSE_ENTRIES


def is_one_large(shape: tuple[int, ...], unknowns: int = FEW) -> bool:
    """Return whether there is one system, of so many unknowns that its matrix costs more than some products."""
    return math.prod(shape) == shape[-1] > unknowns


def is_cheaper_than_a_branch(shape: tuple[int, ...]) -> bool:
    """Return whether a compiled program does what it may not need, since a branch around that costs more."""
    return math.prod(shape) <= FEW


def are_better_together(shape: tuple[int, ...]) -> bool:
    """Return whether systems are so small, and so many, that operations on all of them beat LAPACK on each."""
    return 1 < shape[-1] <= TINY and math.prod(shape[:-1]) >= MANY_SYSTEMS
