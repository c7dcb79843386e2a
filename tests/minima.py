"""A sum of squares and an objective, with their minima and the derivatives of these from complex steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

import rootdiff

W, V = np.array([0.7, -1.3]), np.array([0.3, -0.4, 1.1])


@dataclass(frozen=True)
class Minimum:
    """A minimum of two unknowns, as a function of three parameters.

    `function` and `jac` are what the entry point takes, `gradient` is what is zero there; by differences derivatives
    are as near as `tolerance`. Other relative tolerances are those of the squares, times `coarseness`.
    """

    entry: str
    function: Callable[..., Any]
    jac: Callable[..., Any]
    gradient: Callable[..., Any]
    theta: np.ndarray
    start: np.ndarray
    tolerance: dict[str, float]
    coarseness: float

    def find(self, package: Any = rootdiff) -> Callable[..., Any]:
        """Return the entry point of a package."""
        return getattr(package, self.entry)  # type: ignore[no-any-return]

    def slopes(self, y: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the Hessian, (2, 2), and the derivative of the gradient with respect to theta, (2, 3)."""
        of_y = [np.imag(self.gradient(y + 1e-20j * e, theta)) / 1e-20 for e in np.eye(2)]
        of_theta = [np.imag(self.gradient(y + 0j, theta + 1e-20j * e)) / 1e-20 for e in np.eye(3)]
        return np.stack(of_y, axis=-1), np.stack(of_theta, axis=-1)

    def minimum(self, theta: np.ndarray) -> np.ndarray:
        """Return the root of the gradient near (1, 1), by Newton's method."""
        y = np.ones(2)
        for _ in range(50):
            y = y - np.linalg.solve(self.slopes(y, theta)[0], self.gradient(y, theta))
        return y

    def sensitivity(self, theta: np.ndarray) -> np.ndarray:
        """Return dy/dtheta, (2, 3)."""
        of_y, of_theta = self.slopes(self.minimum(theta), theta)
        return -np.linalg.solve(of_y, of_theta)

    def curvature(self, theta: np.ndarray) -> np.ndarray:
        """Return the Hessian of the first unknown, (3, 3), by differences of its gradient."""
        steps = 1e-5 * np.eye(3)
        return np.stack([(self.sensitivity(theta + h)[0] - self.sensitivity(theta - h)[0]) / 2e-5 for h in steps])


def _residual(y: Any, theta: Any) -> Any:
    """Five equations, which no y satisfies."""
    xp = array_namespace(y)
    u, v = y[..., 0], y[..., 1]
    a, b, c = theta[..., 0], theta[..., 1], theta[..., 2]
    return xp.stack([u - a, u * v - b * c, v**2 - c, u + v * a, u**2 * b - 1], axis=-1)


def _jacobian(y: Any, theta: Any) -> Any:
    u, v, one = y[..., 0], y[..., 1], np.ones_like(y[..., 0])
    rows = [[one, 0 * u], [v, u], [0 * u, 2 * v], [one, theta[..., 0] * one], [2 * u * theta[..., 1], 0 * u]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _valley(y: Any, theta: Any) -> Any:
    """A curved valley."""
    xp = array_namespace(y)
    u, v = y[..., 0], y[..., 1]
    a, b, c = theta[..., 0], theta[..., 1], theta[..., 2]
    return a * (v - u**2) ** 2 + (b - u) ** 2 + c * xp.exp(-v)


def _slope(y: Any, theta: Any) -> Any:
    (u, v), (a, b, c) = y, theta
    return np.stack([-4 * a * u * (v - u**2) - 2 * (b - u), 2 * a * (v - u**2) - c * np.exp(-v)])


SQUARES = Minimum(
    entry="least_squares",
    function=_residual,
    jac=_jacobian,
    gradient=lambda y, theta: _jacobian(y, theta).T @ _residual(y, theta),
    theta=np.array([1.2, 0.7, 2.0]),
    start=np.ones(2),
    tolerance={"rtol": 1e-6},
    coarseness=1,
)
OBJECTIVE = Minimum(
    entry="minimize",
    function=_valley,
    jac=_slope,
    gradient=_slope,
    theta=np.array([3.0, 0.7, 1.5]),
    start=-np.ones(2),
    tolerance={"rtol": 2e-6, "atol": 2e-6},  # of differences of differences
    coarseness=10,
)
