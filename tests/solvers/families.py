"""Random systems with everything that spoils a solve, and 60 digits to judge what is claimed of them.

Each family is written once, from lists of numbers to a list of numbers, for arrays and for mpmath alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from array_api_compat import array_namespace

#: Parameters per system: a matrix, two vectors, scales of the unknowns and of the rows.
_N = 3


class _Mp:
    """The functions that the families use, of mpmath's numbers."""

    exp, tanh, log, sqrt = mpmath.exp, mpmath.tanh, mpmath.log, mpmath.sqrt

    @staticmethod
    def abs(x: Any) -> Any:
        return abs(x)

    @staticmethod
    def step(x: Any) -> Any:
        return mpmath.mpf(1) if x > 0 else mpmath.mpf(-1)


class _Arrays:
    """The same of arrays of a namespace."""

    def __init__(self, xp: Any) -> None:
        self.exp, self.tanh, self.log, self.sqrt, self.abs = xp.exp, xp.tanh, xp.log, xp.sqrt, xp.abs
        self.step = lambda x: xp.where(x > 0, xp.ones_like(x), -xp.ones_like(x))


def _times(a: Any, u: Any) -> list[Any]:
    return [a[3 * i] * u[0] + a[3 * i + 1] * u[1] + a[3 * i + 2] * u[2] for i in range(_N)]


def _linear(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [row - b[i] for i, row in enumerate(_times(a, u))]


def _polynomial(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [u[i] ** 3 + c[i] * u[i] + row - b[i] for i, row in enumerate(_times(a, u))]


def _rational(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [b[i] / (1 + u[i] * u[i]) + c[i] * u[i] / (2 + u[i]) + row for i, row in enumerate(_times(a, u))]


def _kinks(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [2 * u[i] + m.abs(u[i] - c[i]) + 0.1 * row - b[i] for i, row in enumerate(_times(a, u))]


def _exponential(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [m.exp(c[i] * u[i]) + 0.1 * row - m.abs(b[i]) for i, row in enumerate(_times(a, u))]


def _domains(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [m.log(u[i]) + m.sqrt(u[i] + 1) - b[i] + 0.05 * row for i, row in enumerate(_times(a, u))]


def _saturating(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [m.tanh(3 * c[i] * u[i]) - 0.6 * b[i] + 0.02 * row for i, row in enumerate(_times(a, u))]


def _steps(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [m.step(u[i] - c[i]) * (1 + m.abs(u[i])) for i in range(_N)]


def _duplicated(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    rows = _polynomial(m, u, a, b, c)
    return [rows[0], rows[1], rows[0] + rows[1]]


def _double(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    first = u[0] - b[0]
    return [first * first, u[1] + c[1] * u[0] - b[1], u[2] - c[2] * u[1] - b[2]]


def _expanded(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    square = u[0] * u[0] - 2 * b[0] * u[0] + b[0] * b[0] - 1e-3 * c[0] ** 7
    return [square, u[1] + c[1] * u[0] - b[1], u[2] - c[2] * u[1] - b[2]]


def _rootless(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [u[i] * u[i] + m.abs(b[i]) * 1e-3 + (row * row if i else 0) for i, row in enumerate(_times(a, u))]


def _decaying(m: Any, u: Any, a: Any, b: Any, c: Any) -> list[Any]:
    return [m.exp(-u[0] * m.abs(c[0])), u[1] - b[1] + 0.1 * u[2], u[2] ** 3 + u[2] - b[2]]


FAMILIES: dict[str, Callable[..., list[Any]]] = {
    "linear": _linear,
    "polynomial": _polynomial,
    "rational": _rational,
    "kinks": _kinks,
    "exponential": _exponential,
    "domains": _domains,
    "saturating": _saturating,
    "steps": _steps,
    "duplicated": _duplicated,
    "double": _double,
    "expanded": _expanded,
    "rootless": _rootless,
    "decaying": _decaying,
}


@dataclass(frozen=True)
class System:
    """A member of a family: its parameters, (21), and a start, (3)."""

    family: str
    parameters: np.ndarray
    start: np.ndarray


def draw(family: str, seed: int, spread: float, dtype: Any = np.float64) -> System:
    """Return a random member whose unknowns and rows are scaled by up to ``10^spread``."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((_N, _N)))[0] for _ in range(2))
    worst = rng.uniform(0, 14 if dtype is np.float64 else 6) if family == "linear" else 1.0
    a = (left * np.logspace(0, -worst, _N)) @ right.T
    root = rng.standard_normal(_N)
    b = a @ root if family == "linear" else rng.standard_normal(_N)
    scales = 10.0 ** rng.uniform(-spread, spread, (2, _N))
    start = scales[0] * rng.standard_normal(_N) * 10.0 ** rng.uniform(-1, 1)
    if family == "domains":
        start = np.abs(start)
    parameters = np.concatenate([a.ravel(), b, rng.uniform(0.3, 2, _N), *scales])
    return System(family, parameters.astype(dtype), start.astype(dtype))


def residual(family: str) -> Callable[[Any, Any], Any]:
    """Return the residual of a family for arrays, ``f(y, parameters)``."""
    rows = FAMILIES[family]

    def f(y: Any, p: Any) -> Any:
        xp = array_namespace(y)
        u = [y[k] / p[15 + k] for k in range(_N)]
        values = rows(
            _Arrays(xp), u, [p[k] for k in range(9)], [p[9 + k] for k in range(3)], [p[12 + k] for k in range(3)]
        )
        return xp.stack([p[18 + k] * (values[k] + 0 * u[0]) for k in range(_N)])

    return f


class Judge:
    """The same system in 60 digits."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.p = [mpmath.mpf(float(value)) for value in system.parameters]

    def residual(self, y: Any) -> Any:
        p = self.p
        u = [y[k] / p[15 + k] for k in range(_N)]
        rows = FAMILIES[self.system.family](_Mp, u, p[:9], p[9:12], p[12:15])
        return [p[18 + k] * rows[k] for k in range(_N)]

    def jacobian(self, y: Any) -> Any:
        matrix = mpmath.matrix(_N, _N)
        for k in range(_N):
            h = mpmath.mpf(10) ** -30 * max(abs(y[k]), abs(self.p[15 + k]) * mpmath.mpf(10) ** -12)
            plus, minus = list(y), list(y)
            plus[k], minus[k] = y[k] + h, y[k] - h
            for i, (upper, lower) in enumerate(zip(self.residual(plus), self.residual(minus), strict=True)):
                matrix[i, k] = (upper - lower) / (2 * h)
        return matrix

    def _step(self, point: Any) -> Any:
        """Return the Newton correction, in units of the scales; that of least norm where a row is a sum of others."""
        rows = mpmath.matrix([row / self.p[18 + i] for i, row in enumerate(self.residual(point))])
        matrix = self.jacobian(point)
        for i in range(_N):
            for k in range(_N):
                matrix[i, k] *= self.p[15 + k] / self.p[18 + i]
        if self.system.family == "duplicated":
            matrix, rows = matrix[:2, :], rows[:2]
            return matrix.T * mpmath.lu_solve(matrix * matrix.T, rows)
        return mpmath.lu_solve(matrix, rows)

    def distance(self, y: np.ndarray) -> np.ndarray | None:
        """Return how far each unknown is from the root that Newton's method leads to from `y`; None if to none."""
        with mpmath.workdps(60):
            start = [mpmath.mpf(float(value)) for value in y]
            point = list(start)
            for _ in range(400):
                try:
                    step = self._step(point)
                except (ZeroDivisionError, ValueError, TypeError):
                    rows = [abs(value) for value in self.residual(point)]
                    return self._apart(point, start) if max(rows) == 0 else None
                point = [
                    value - change * scale for value, change, scale in zip(point, step, self.p[15:18], strict=True)
                ]
                if any(isinstance(value, mpmath.mpc) for value in point):
                    return None
                if max(abs(change) for change in step) <= mpmath.mpf(10) ** -35:
                    return self._apart(point, start)
            return None

    def rounding(self, f: Callable[[np.ndarray], np.ndarray], y: np.ndarray) -> np.ndarray:
        """Return the errors of the unknowns, (3), that the rounding of `f` near `y` explains."""
        with mpmath.workdps(60):
            eps = float(np.finfo(y.dtype).eps)
            noise = [mpmath.mpf(0)] * _N
            for signs in ((0, 0, 0), (1, 1, 1), (-1, 1, -1), (1, -1, -1), (-1, -1, 1)):
                near = (y * (1 + 2 * eps * np.array(signs))).astype(y.dtype)
                exact = self.residual([mpmath.mpf(float(value)) for value in near])
                noise = [max(n, abs(mpmath.mpf(float(v)) - e)) for n, v, e in zip(noise, f(near), exact, strict=True)]
            if self.system.family == "duplicated":
                return np.full(_N, np.inf)  # a root among many: how near is what `distance` tells
            try:
                inverse = self.jacobian([mpmath.mpf(float(value)) for value in y]) ** -1
            except ZeroDivisionError:
                return np.full(_N, np.inf)
            return np.array([float(sum(abs(inverse[i, k]) * noise[k] for k in range(_N))) for i in range(_N)])

    @staticmethod
    def _apart(point: Any, start: Any) -> np.ndarray:
        return np.array([float(abs(a - b)) for a, b in zip(point, start, strict=True)])
