"""Gaussian elimination of many small systems at once: NumPy's LAPACK is called once per system."""

from __future__ import annotations

import numpy as np

from rootdiff._backend import Array


@np.errstate(all="ignore")
def factor(matrix: Array) -> tuple[Array, Array]:
    """Return LU factors, (*batch, n, n), and LAPACK's pivots, (*batch, n), of a batch of matrices.

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
    return factors, pivots.T.reshape(matrix.shape[:-1])


@np.errstate(all="ignore")
def solve(factors: tuple[Array, Array], rhs: Array, transpose: bool = False) -> Array:
    """Return the solutions, (*batch, n), of A x = b, or of A^T x = b, from the factors of A."""
    n = rhs.shape[-1]
    matrix = _batch_last(factors[0])
    pivots = factors[1].reshape((-1, n)).T
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
