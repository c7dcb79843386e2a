"""The systems of SciML's NonlinearProblemLibrary, after Burkardt's test_nonlin, where they differ from MINPACK's.

Some differ by a slip of transcription; those are kept, since the published counts are for them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff.testing.problems import _minpack
from rootdiff.testing.problems._problem import Problem, count, join, namespace, split, times


def generalized_rosenbrock(y: Array, theta: Array) -> Array:
    """Return a - y1, then b (y_k - y_(k-1)^2); the root is a^(2^(k-1))."""
    xp = namespace(y)
    a, b = split(theta)
    return xp.concat([a - y[..., :1], b * (y[..., 1:] - y[..., :-1] ** 2)], axis=-1)


def watson_library(y: Array, theta: Array) -> Array:
    """Return Watson's function with slopes j t^(j-2) instead of (j-1) t^(j-2), and y2 - y2^2 in the last term."""
    a, b, c = split(theta)
    values, slopes = _minpack._watson_basis(y, 1)
    fitted = times(values, y)
    misfit = times(slopes, y) - slopes[:, 0] * y[..., :1] - fitted * fitted - a
    gradient = times(slopes.T, misfit) - 2 * times(values.T, misfit * fitted)
    y1, y2 = y[..., :1], y[..., 1:2]
    return gradient + join([y1 * (c - 2 * (y2 - y1 * y1)), y2 - y2 * y2 - b, 0.0 * y[..., 2:]])


def discrete_integral_library(y: Array, theta: Array) -> Array:
    """Return MINPACK's discrete integral equation with the diagonal of the kernel counted twice."""
    return _minpack._integral_equation(y, theta, repeated=1)


def matrix_square_root(y: Array, theta: Array) -> Array:
    """Return Y Y - A for A with a on the diagonal, b above its first entry and c in the opposite corner."""
    xp = namespace(y)
    a, b, c = split(theta)
    size = round(y.shape[-1] ** 0.5)
    matrix = xp.reshape(y, (*y.shape[:-1], size, size))
    product = xp.reshape(matrix @ matrix, y.shape)
    zero = 0.0 * y[..., :1]
    wanted = [zero + a if place % (size + 1) == 0 else zero for place in range(size * size)]
    wanted[1], wanted[-size] = zero + b, zero + c
    return product - join(wanted)


def dennis_schnabel(y: Array, theta: Array) -> Array:
    """Return y1 + y2 - a and y1^2 + y2^2 - b."""
    a, b = split(theta)
    y1, y2 = split(y)
    return join([y1 + y2 - a, y1 * y1 + y2 * y2 - b])


def sample_18(y: Array, theta: Array) -> Array:
    """Return y2^2 (1 - exp(-a y1^2)) / y1 and y1 (1 - exp(-a y2^2)) / y2; both axes are roots."""
    xp = namespace(y)
    (a,) = split(theta)
    safe = xp.where(y == 0, xp.ones_like(y), y)
    ratio = xp.where(y == 0, a * y, -xp.expm1(-a * safe * safe) / safe)
    y1, y2 = split(y)
    return join([y2 * y2 * ratio[..., :1], y1 * ratio[..., 1:]])


def sample_19(y: Array, theta: Array) -> Array:
    """Return y |y|^2 in weighted form: y_k (a y1^2 + b y2^2 + c)."""
    a, b, c = split(theta)
    y1, y2 = split(y)
    return y * (a * y1 * y1 + b * y2 * y2 + c)


def sample_20(y: Array, theta: Array) -> Array:
    """Return y (y - a)^2 - b."""
    a, b = split(theta)
    return y * (y - a) ** 2 - b


def freudenstein_roth(y: Array, theta: Array) -> Array:
    """Return y1 - y2^3 + a y2^2 - b y2 - c and y1 + y2^3 + y2^2 - d y2 - e."""
    a, b, c, d, e = split(theta)
    y1, y2 = split(y)
    return join([y1 + ((a - y2) * y2 - b) * y2 - c, y1 + ((y2 + 1) * y2 - d) * y2 - e])


def boggs(y: Array, theta: Array) -> Array:
    """Return y1^2 - y2 + a and y1 - c cos(b y2); the Jacobian is singular on a curve next to the start."""
    xp = namespace(y)
    a, b, c = split(theta)
    y1, y2 = split(y)
    return join([y1 * y1 - y2 + a, y1 - c * xp.cos(b * y2)])


def chandrasekhar(y: Array, theta: Array) -> Array:
    """Return the discrete H-equation H_i - 1 / (1 - c/(2n) sum of mu_i H_j / (mu_i + mu_j)), with mu_i = i/n.

    Summed over i it gives mean(H) = (2/c) (1 - sqrt(1 - c)), exactly, for any n.
    """
    (c,) = split(theta)
    n = y.shape[-1]
    mu = count(y, n)
    kernel = mu[:, None] / (mu[:, None] + mu[None, :])
    return y - 1 / (1 - c * times(kernel, y) / (2 * n))


def library_problems() -> list[Problem]:
    """Return the problems that differ from MINPACK's; `tries` is 1, since the library names one start each."""

    def entry(number: int, name: str, residual: Any, y0: Any, theta: Any, **facts: Any) -> Problem:
        return Problem(name, residual, y0, theta, f"NonlinearProblemLibrary, problem {number}", tries=1, **facts)

    nodes = np.arange(1, 11) / 11
    rosenbrock_start = np.where(np.arange(10) == 0, -1.2, 1.0)
    square = (0.01, 50.0, 0.0, 0.01)
    cube = (0.01, 50.0, 0.0, 0.0, 0.01, 0.0, 0.0, 0.0, 0.01)
    pair = np.array([-1.0, 1.0]) / np.sqrt(3.0)
    return [
        entry(1, "generalized-rosenbrock", generalized_rosenbrock, rosenbrock_start, (1.0, 10.0), root=np.ones(10)),
        entry(6, "watson-library", watson_library, np.zeros(2), (1.0, 1.0, 3.0)),
        entry(7, "chebyquad-library", _minpack.chebyquad, (0.0, 2 / 3), (1.0, 0.0, 1.0), root=pair),
        entry(10, "discrete-integral-library", discrete_integral_library, nodes * (nodes - 1), (0.5, 1.0)),
        entry(15, "matrix-square-root-2", matrix_square_root, np.eye(2).ravel(), (1e-4, 1.0, 0.0), root=square),
        entry(16, "matrix-square-root-3", matrix_square_root, np.eye(3).ravel(), (1e-4, 1.0, 0.0), root=cube),
        entry(17, "dennis-schnabel", dennis_schnabel, (1.0, 5.0), (3.0, 9.0), root=(0.0, 3.0)),
        entry(18, "sample-18", sample_18, (2.0, 2.0), (1.0,), root=(0.0, 0.0), regular=False),
        entry(19, "sample-19", sample_19, (3.0, 3.0), (1.0, 1.0, 0.0), root=(0.0, 0.0), regular=False),
        entry(20, "sample-20", sample_20, (1.0,), (5.0, 0.0), root=(0.0,)),
        entry(21, "freudenstein-roth", freudenstein_roth, (0.5, -2.0), (5.0, 2.0, 13.0, 14.0, 29.0), root=(5.0, 4.0)),
        entry(22, "boggs", boggs, (1.0, 0.0), (1.0, np.pi / 2, 1.0), root=(0.0, 1.0)),
        entry(23, "chandrasekhar-10", chandrasekhar, np.ones(10), (0.9,)),
    ]
