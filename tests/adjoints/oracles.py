"""Oracles that share no code with rootdiff: exact rational arithmetic and matrices of a chosen condition."""

from fractions import Fraction

import numpy as np


def exact_solve(matrix, rhs):
    """Return the solution of ``matrix @ x = rhs``, rounded to float64 from its exact value (Bareiss 1968)."""
    rows = [[Fraction(float(v)) for v in row] + [Fraction(float(b))] for row, b in zip(matrix, rhs, strict=True)]
    common = max(value.denominator for row in rows for value in row)  # floats: powers of two
    work = [[int(value * common) for value in row] for row in rows]
    n, last = len(work), 1
    for k in range(n):
        pivot = next(i for i in range(k, n) if work[i][k])
        work[k], work[pivot] = work[pivot], work[k]
        head = work[k]
        for i in range(k + 1, n):
            factor = work[i][k]
            work[i] = [0] * (k + 1) + [(head[k] * work[i][j] - factor * head[j]) // last for j in range(k + 1, n + 1)]
        last = head[k]
    x = [Fraction(0)] * n
    for i in reversed(range(n)):
        x[i] = (work[i][n] - sum((work[i][j] * x[j] for j in range(i + 1, n)), Fraction(0))) / work[i][i]
    return np.array([float(value) for value in x])


def matrix_of_condition(rng, n, condition, dtype=np.float64, symmetric=False):
    """Return a dense matrix whose singular values run from 1 to 1/condition, rounded to `dtype`."""
    left = np.linalg.qr(rng.standard_normal((n, n)))[0]
    right = left if symmetric else np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = (left * np.logspace(0, -np.log10(condition), n)) @ right.T
    return (0.5 * (matrix + matrix.T) if symmetric else matrix).astype(dtype)
