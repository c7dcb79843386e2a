"""Random problems f = A y + s y^2 / 2 - B theta - c with a Jacobian of chosen condition, and their exact gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

from tests.adjoints.oracles import matrix_of_condition

N, PARAMETERS = 5, 3


@dataclass(frozen=True)
class Quadratic:
    """A problem in float64 whose root, near `y`, and gradient are known to 60 digits."""

    a: np.ndarray
    s: np.ndarray
    b: np.ndarray
    c: np.ndarray
    theta: np.ndarray
    w: np.ndarray
    y: np.ndarray  # the root, rounded
    gradient: np.ndarray  # w^T dy/dtheta at the root, rounded
    rounding: float  # relative change of the gradient when the entries of a and c are rounded at random

    def f(self, y: Any, theta: Any) -> Any:
        return self.a @ y + self.s * y**2 / 2 - self.b @ theta - self.c

    def jac(self, y: Any, theta: Any) -> Any:
        return self.a + np.diag(self.s * y)

    def vjp(self, primals: Any, u: Any) -> Any:
        return self.jac(*primals).T @ u, -self.b.T @ u


def draw(rng: np.random.Generator, condition: float, n: int = N) -> Quadratic:
    """Return a problem whose Jacobian at the root has nearly this condition."""
    jacobian = matrix_of_condition(rng, n, condition)
    y, s, theta, w = (rng.standard_normal(size) for size in (n, n, PARAMETERS, n))
    b = rng.standard_normal((n, PARAMETERS))
    # where a rounding of c moves the root out of its own basin there is no root to speak of in this precision
    s *= min(1.0, 1e-4 / (np.finfo(float).eps * condition**2))
    a = jacobian - np.diag(s * y)
    c = a @ y + s * y**2 / 2 - b @ theta
    y, gradient = _exact(a, s, b, c, theta, w, y)
    changes = []
    for _ in range(3):
        a_rounded, c_rounded = (
            part * (1 + rng.uniform(-0.5, 0.5, part.shape) * np.finfo(float).eps * 2**10) for part in (a, c)
        )
        other = _exact(a_rounded, s, b, c_rounded, theta, w, y)[1]
        changes.append(np.linalg.norm(other - gradient) / np.linalg.norm(gradient) / 2**10)
    return Quadratic(a, s, b, c, theta, w, y, gradient, float(np.sqrt(np.mean(np.square(changes)))))


def _exact(a: Any, s: Any, b: Any, c: Any, theta: Any, w: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return root and gradient by Newton's method with 60 digits, rounded."""
    with mpmath.workdps(60):
        exact = mpmath.matrix(y.tolist())
        known = [mpmath.matrix(part.tolist()) for part in (a, b, c, theta)]
        for _ in range(8):
            square = mpmath.matrix([mpmath.mpf(float(k)) * v**2 / 2 for k, v in zip(s, exact, strict=True)])
            residual = known[0] * exact + square - known[1] * known[3] - known[2]
            slope = known[0] + mpmath.diag([mpmath.mpf(float(k)) * v for k, v in zip(s, exact, strict=True)])
            if mpmath.norm(residual) < mpmath.mpf(10) ** -50:
                break
            exact -= mpmath.lu_solve(slope, residual)
        assert mpmath.norm(residual) < mpmath.mpf(10) ** -50
        gradient = known[1].T * mpmath.lu_solve(slope.T, mpmath.matrix(w.tolist()))
    root, gradient = (np.array([float(v) for v in vector]) for vector in (exact, gradient))
    return root, gradient
