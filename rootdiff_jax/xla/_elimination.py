"""Elimination of many small systems at once: XLA calls LAPACK once per system.

Each entry is an operation of its own to the compiler, so that n^3 of them must not become too many.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from rootdiff._backend import Array
from rootdiff_jax.xla._lu import HARDLY_EVER, lu_factor, one_by_one

#: A backward error of so many eps is accepted; that of an elimination with pivots is mostly one or two eps.
_STABLE = 10


def eliminate(matrix: Array, rhs: Array, transpose: bool) -> tuple[Array, tuple[Array, Array]]:
    """Return the solutions, (*batch, n), of A x = b, or of A^T x = b; and what `eliminate_again` takes before `rhs`.

    Without pivots, which would cost more than all else; where the backward error (Oettli & Prager 1964; Higham 2002,
    theorem 7.3) shows that a system wanted them, all are solved by LAPACK.
    """
    entries, b = _batch_last(matrix, rhs, transpose)
    # one array: else the compiler repeats the elimination for each row of the test
    found = jnp.stack(_eliminated(entries, b), axis=-1)
    x = list(found.T)
    allowed = _STABLE * float(np.finfo(rhs.dtype).eps)
    within = [_is_backward_error_within(allowed, row, x, value) for row, value in zip(entries, b, strict=True)]
    stable = jnp.all(jnp.stack(within))
    return _or_by_lapack(stable, matrix, rhs, transpose, jnp.reshape(found, rhs.shape)), (matrix, stable)


def eliminate_again(matrix: Array, stable: Array, rhs: Array, transpose: bool) -> Array:
    """Return the solutions for another right-hand side of matrices that, if `stable` holds, need no pivots."""
    if HARDLY_EVER.get():
        return one_by_one(lu_factor(matrix), rhs, transpose)
    found = jnp.stack(_eliminated(*_batch_last(matrix, rhs, transpose)), axis=-1)
    return _or_by_lapack(stable, matrix, rhs, transpose, jnp.reshape(found, rhs.shape))


def _batch_last(matrix: Array, rhs: Array, transpose: bool) -> tuple[list[list[Array]], list[Array]]:
    """Return the entries of the matrices, each an array over the systems, so that one operation serves all systems."""
    n = rhs.shape[-1]
    rows = jnp.moveaxis(jnp.reshape(matrix, (-1, n, n)), 0, -1)
    entries = [[rows[j, i] if transpose else rows[i, j] for j in range(n)] for i in range(n)]
    return entries, list(jnp.reshape(rhs, (-1, n)).T)


def _or_by_lapack(stable: Array, matrix: Array, rhs: Array, transpose: bool, found: Array) -> Array:
    def by_lapack(matrix: Array, rhs: Array) -> Array:
        return one_by_one(lu_factor(matrix), rhs, transpose)

    return lax.cond(stable, lambda *_: found, by_lapack, matrix, rhs)


def _eliminated(matrix: list[list[Array]], rhs: list[Array]) -> list[Array]:
    """Solve by elimination without pivots; each entry is an array over the systems (Golub & Van Loan 2013, 3.2)."""
    n, a, x = len(rhs), [list(row) for row in matrix], list(rhs)
    for k in range(n):
        inverse = 1 / a[k][k]
        for i in range(k + 1, n):
            factor = a[i][k] * inverse
            a[i][k + 1 :] = [a[i][j] - factor * a[k][j] for j in range(k + 1, n)]
            x[i] = x[i] - factor * x[k]
    for k in reversed(range(n)):
        for j in range(k + 1, n):
            x[k] = x[k] - a[k][j] * x[j]
        x[k] = x[k] / a[k][k]
    return x


def _is_backward_error_within(allowed: float, row: list[Array], x: list[Array], value: Array) -> Array:
    """Return whether changes of a row of A and of b, by so small a part of each entry, explain ``A x - b``."""
    residual, size = value, jnp.abs(value)
    for term in (entry * unknown for entry, unknown in zip(row, x, strict=True)):
        residual, size = residual - term, size + jnp.abs(term)
    return jnp.abs(residual) <= allowed * size
