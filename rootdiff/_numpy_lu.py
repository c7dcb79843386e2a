"""LU factors in NumPy: LAPACK's, or of many small matrices by eliminating in all of them at once."""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_lapack_funcs

from rootdiff._backend import Array
from rootdiff._inverse import Factors
from rootdiff._sizes import are_better_together


def factor(matrix: Array) -> Factors:
    """Return LU factors, (*batch, n, n), and LAPACK's pivots, (*batch, n), of matrices."""
    if matrix.shape[-1] == 1:
        return Factors(matrix, np.zeros(matrix.shape[:-1], dtype=np.int32))
    (getrf,) = get_lapack_funcs(("getrf",), (matrix,))
    if matrix.ndim == 2:
        return Factors(*getrf(matrix)[:2])
    if are_better_together(matrix.shape[:-1]):
        return eliminate(matrix)
    pairs = [getrf(one)[:2] for one in matrix.reshape((-1, *matrix.shape[-2:]))]
    factors, pivots = map(np.stack, zip(*pairs, strict=True))
    return Factors(factors.reshape(matrix.shape), pivots.reshape(matrix.shape[:-1]))


def solve(factors: Factors, rhs: Array, transpose: bool = False) -> Array:
    """Return the solutions of A x = b, or of A^T x = b, from the factors of A, for (several, *batch, n) vectors b."""
    matrix, pivots = factors
    if rhs.shape[-1] == 1:
        with np.errstate(all="ignore"):
            return rhs / matrix[..., 0]
    (getrs,) = get_lapack_funcs(("getrs",), (matrix, rhs))
    if matrix.ndim == 2:  # several right-hand sides are columns
        return getrs(matrix, pivots, rhs.T, trans=int(transpose))[0].T
    if rhs.ndim == matrix.ndim:
        return np.stack([solve(factors, one, transpose) for one in rhs])
    if are_better_together(matrix.shape[:-1]):
        return substitute(factors, rhs, transpose)
    n = matrix.shape[-1]
    systems = zip(matrix.reshape((-1, n, n)), pivots.reshape((-1, n)), rhs.reshape((-1, n)), strict=True)
    return np.stack([getrs(m, p, b, trans=int(transpose))[0] for m, p, b in systems]).reshape(rhs.shape)


@np.errstate(all="ignore")
def eliminate(matrix: Array) -> Factors:
    """Return what `factor` does, of many small matrices at once: LAPACK is called once per system.

    Those of a singular matrix are not finite, or lead to solutions that are not.

    The batch is the last, contiguous axis in memory, so that each operation is one over all systems.

    References
    ----------
    Golub & Van Loan (2013), "Matrix Computations", algorithm 3.4.1.
    """
    n = matrix.shape[-1]
    work = np.array(_batch_last(matrix), order="C")
    pivots = np.empty((n, work.shape[-1]), dtype=np.int32)
    for k in range(n):
        pivots[k] = k + np.argmax(np.abs(work[k:, k]), axis=0)
        _swap(work, k, pivots[k])
        work[k + 1 :, k] /= work[k, k]
        work[k + 1 :, k + 1 :] -= work[k + 1 :, k, None] * work[k, k + 1 :]
    factors = np.moveaxis(work.reshape((n, n, *matrix.shape[:-2])), (0, 1), (-2, -1))
    return Factors(factors, pivots.T.reshape(matrix.shape[:-1]))


@np.errstate(all="ignore")
def substitute(factors: Factors, rhs: Array, transpose: bool = False) -> Array:
    """Return what `solve` does, for one right-hand side of each of many small matrices."""
    n = rhs.shape[-1]
    matrix = _batch_last(factors.lu)
    pivots = factors.pivots.reshape((-1, n)).T
    x = np.array(rhs.reshape((-1, n)).T, order="C")
    if transpose:
        for k in range(n):
            x[k] = (x[k] - np.sum(matrix[:k, k] * x[:k], axis=0)) / matrix[k, k]
        for k in reversed(range(n)):
            x[k] -= np.sum(matrix[k + 1 :, k] * x[k + 1 :], axis=0)
        for k in reversed(range(n)):
            _swap(x, k, pivots[k])
    else:
        for k in range(n):
            _swap(x, k, pivots[k])
        for k in range(n):
            x[k + 1 :] -= matrix[k + 1 :, k] * x[k]
        for k in reversed(range(n)):
            x[k] /= matrix[k, k]
            x[:k] -= matrix[:k, k] * x[k]
    return np.ascontiguousarray(x.T).reshape(rhs.shape)


def _batch_last(matrix: Array) -> Array:
    """Return matrices, (*batch, n, n), as (n, n, systems); without a copy if they lie in memory so."""
    n = matrix.shape[-1]
    return np.moveaxis(matrix, (-2, -1), (0, 1)).reshape((n, n, -1))


def _swap(rows: Array, k: int, pivot: Array) -> None:
    """Exchange row `k` with row `pivot`, (batch), in the systems where that is another one."""
    where = np.nonzero(pivot != k)[0]
    here, there = (k, ..., where), (pivot[where], ..., where)
    rows[here], rows[there] = rows[there], rows[here]
