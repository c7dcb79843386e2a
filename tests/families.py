"""Random residuals with closed-form derivatives, written against the array API.

Each is such that ``y + f(y)`` is a contraction, so that every solver finds the root, and has parameters of another
dimension than the unknown and a nonsymmetric Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

UNKNOWNS, PARAMETERS = 4, 3


@dataclass(frozen=True)
class Family:
    """A drawn residual ``f(y, theta)`` with ``theta`` of size `PARAMETERS`, and its oracle."""

    f: Callable[..., Any]
    theta: np.ndarray
    y0: np.ndarray
    sensitivity: Callable[[np.ndarray], np.ndarray]  # dy/dtheta at the root y, (UNKNOWNS, PARAMETERS)
    root: np.ndarray | None = None


def _constants(rng: np.random.Generator, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a nonsymmetric matrix of spectral norm 0.4, a parameter matrix and parameters."""
    weak = rng.standard_normal((UNKNOWNS, UNKNOWNS))
    weak = (0.4 * weak / np.linalg.norm(weak, 2)).astype(dtype)
    return (
        weak,
        rng.standard_normal((UNKNOWNS, PARAMETERS)).astype(dtype),
        (0.5 * rng.standard_normal(PARAMETERS)).astype(dtype),
    )


def _times(matrix: np.ndarray, vector: Any) -> Any:
    """Return ``matrix @ vector`` on the last axis, on any backend."""
    xp = array_namespace(vector)
    return vector @ xp.asarray(matrix.T)


def linear(rng: np.random.Generator, dtype: Any = np.float64) -> Family:
    """A y = B theta."""
    weak, b, theta = _constants(rng, dtype)
    a = np.eye(UNKNOWNS, dtype=dtype) + weak
    return Family(
        lambda y, theta: _times(b, theta) - _times(a, y),
        theta,
        rng.standard_normal(UNKNOWNS).astype(dtype),
        lambda y: np.linalg.solve(a, b),
        np.linalg.solve(a, b @ theta),
    )


def contraction(rng: np.random.Generator, dtype: Any = np.float64) -> Family:
    """y = tanh(W y + B theta)."""
    weak, b, theta = _constants(rng, dtype)

    def f(y: Any, theta: Any) -> Any:
        return array_namespace(y).tanh(_times(weak, y) + _times(b, theta)) - y

    def sensitivity(y: np.ndarray) -> np.ndarray:
        slope = (1 - y**2)[:, None]
        return np.linalg.solve(np.eye(UNKNOWNS) - slope * weak, slope * b)

    return Family(f, theta, rng.standard_normal(UNKNOWNS).astype(dtype), sensitivity)


def monotone(rng: np.random.Generator, dtype: Any = np.float64) -> Family:
    """A y + arctan(y) / 5 = B theta, with a positive definite symmetric part of A."""
    weak, b, theta = _constants(rng, dtype)
    a = np.eye(UNKNOWNS, dtype=dtype) + weak
    return Family(
        lambda y, theta: _times(b, theta) - _times(a, y) - array_namespace(y).atan(y) / 5,
        theta,
        rng.standard_normal(UNKNOWNS).astype(dtype),
        lambda y: np.linalg.solve(a + np.diag(0.2 / (1 + y**2)), b),
    )


def polynomial(rng: np.random.Generator, dtype: Any = np.float64) -> Family:
    """M d + d^3 / 10 = 0 with d = y - (C theta + theta_1^2): the root is known, dy/dtheta = C + 2 theta_1 e_1^T."""
    weak, c, theta = _constants(rng, dtype)
    m = np.eye(UNKNOWNS, dtype=dtype) + weak

    def f(y: Any, theta: Any) -> Any:
        distance = y - _times(c, theta) - theta[..., :1] ** 2
        return -_times(m, distance) - distance**3 / 10

    def sensitivity(y: np.ndarray) -> np.ndarray:
        first = np.zeros((UNKNOWNS, PARAMETERS))
        first[:, 0] = 2 * theta[0]
        return c + first

    root = c @ theta + theta[0] ** 2
    start = (root + 0.3 * rng.standard_normal(UNKNOWNS)).astype(dtype)
    return Family(f, theta, start, sensitivity, root)


FAMILIES = {function.__name__: function for function in (linear, contraction, monotone, polynomial)}
