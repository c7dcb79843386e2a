"""Oracles that share no code with rootdiff: exact rational arithmetic and matrices of a chosen condition."""

from fractions import Fraction

import numpy as np


def exact_solve(matrix, rhs):
    """Return the solution of ``matrix @ x = rhs``, rounded to float64, corrected until exact residuals vanish."""
    fractions = np.array([[Fraction(float(v)) for v in row] for row in np.column_stack([matrix, rhs])])
    common, unit = max(value.denominator for value in fractions.flat), 2**300  # floats: powers of two
    exact = np.vectorize(int, otypes=[object])(fractions * common)
    a, b = exact[:, :-1], exact[:, -1] * unit
    x, step = np.zeros(len(b), dtype=object), np.ones(len(b))
    while np.max(np.abs(step)) > 1e-30 * max(1.0, np.max(np.abs(x / unit))):
        step = np.linalg.solve(np.asarray(matrix, float), [float(Fraction(v, common * unit)) for v in b - a @ x])
        assert np.all(np.isfinite(step))
        x = x + [int(Fraction(value) * unit) for value in step]
    return np.array([float(Fraction(value, unit)) for value in x])


def matrix_of_condition(rng, n, condition, dtype=np.float64, symmetric=False):
    """Return a dense matrix whose singular values run from 1 to 1/condition, rounded to `dtype`."""
    left = np.linalg.qr(rng.standard_normal((n, n)))[0]
    right = left if symmetric else np.linalg.qr(rng.standard_normal((n, n)))[0]
    matrix = (left * np.logspace(0, -np.log10(condition), n)) @ right.T
    return (0.5 * (matrix + matrix.T) if symmetric else matrix).astype(dtype)
