"""Residuals with known roots and closed-form derivatives, for any array-API namespace and any batch of starts.

Each but `quadratic` is f(y, theta) = s (F(y) - F(g(theta))), whose root g(theta) = C theta + (c . theta)^2 d is known
for every theta, whatever F is. The number of parameters differs from that of unknowns, and Jacobians are nonsymmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device


@dataclass(frozen=True, eq=False)
class Case:
    """A residual with everything that is known about it.

    Attributes
    ----------
    name : str. The family.
    f : callable
        ``f(y, theta)`` with y, (*batch, n), and theta, (p) or (*batch, p), of any framework; returns (*batch, n).
    y0 : array, (n). A start from which the family's solvers reach `root`.
    theta : array, (p)
    root : array, (n). The root at `theta` that is nearest to `y0`.
    sensitivity : array, (n, p). The derivative of `root` with respect to theta.
    contractive : bool. Whether y + f(y) is a contraction, so that a plain fixed-point iteration converges.
    condition : float. Of the Jacobian at the root.

    Examples
    --------
    >>> import numpy as np
    >>> from rootdiff.testing import make_case
    >>> case = make_case("contraction", np.random.default_rng(0))
    >>> bool(np.max(np.abs(case.f(case.root, case.theta))) < 1e-15)
    True
    """

    name: str
    f: Callable[[Any, Any], Any]
    y0: Any
    theta: Any
    root: Any
    sensitivity: Any
    contractive: bool
    condition: float

    def __repr__(self) -> str:
        return f"Case({self.name!r}, y0={self.y0.tolist()}, theta={self.theta.tolist()})"

    def __iter__(self) -> Any:
        return iter((self.y0, self.theta))


@dataclass(frozen=True)
class _Size:
    unknowns: int
    parameters: int
    dtype: Any
    condition: float


def contraction(rng: np.random.Generator, size: _Size) -> Case:
    """Return y - tanh(W y) + const with a nonsymmetric W of norm 0.4."""
    w = _weak(rng, size)
    return _shifted(
        "contraction", rng, size, lambda y: y - _tanh(_times(w, y)),
        lambda y: np.eye(size.unknowns) - (1 - np.tanh(w @ y) ** 2)[:, None] * w, contractive=True,
    )  # fmt: skip


def monotone(rng: np.random.Generator, size: _Size) -> Case:
    """Return A y + arctan(y) / 5 with a positive definite symmetric part of A, which is skew besides."""
    a = np.eye(size.unknowns) + _weak(rng, size)
    return _shifted(
        "monotone", rng, size, lambda y: _times(a, y) + _atan(y) / 5,
        lambda y: a + np.diag(0.2 / (1 + y**2)), contractive=True,
    )  # fmt: skip


def triangular(rng: np.random.Generator, size: _Size) -> Case:
    """Return y_k + y_k^3 / 3 + the squares of the unknowns before it."""
    lower = np.tril(rng.uniform(-1, 1, (size.unknowns, size.unknowns)), -1)
    return _shifted(
        "triangular", rng, size, lambda y: y + y**3 / 3 + _times(lower, y * y),
        lambda y: np.diag(1 + y**2) + 2 * lower * y,
    )  # fmt: skip


def linear(rng: np.random.Generator, size: _Size) -> Case:
    """Return A y with a chosen condition number."""
    left, right = (np.linalg.qr(rng.standard_normal((size.unknowns, size.unknowns)))[0] for _ in range(2))
    a = left @ np.diag(np.geomspace(1, 1 / size.condition, size.unknowns)) @ right
    return _shifted("linear", rng, size, lambda y: _times(a, y), lambda y: a)


def stiff(rng: np.random.Generator, size: _Size) -> Case:
    """Return one implicit Euler step: y + h (Lambda y + y^3 - y_1 y), with rates h Lambda from 1e-2 to 1e4."""
    rates = np.geomspace(1e-2, 1e4, size.unknowns)
    mix = np.eye(size.unknowns) + 0.1 * _weak(rng, size)

    def jacobian(y: Any) -> Any:
        first = np.zeros((size.unknowns, size.unknowns))
        first[:, 0] = y
        return mix + np.diag(rates + 0.03 * y**2 - 0.1 * y[0]) - 0.1 * first

    return _shifted(
        "stiff",
        rng,
        size,
        lambda y: _times(mix, y) + _like(y, rates) * y + 0.01 * y**3 - 0.1 * y[..., :1] * y,
        jacobian,
    )


def sparse(rng: np.random.Generator, size: _Size) -> Case:
    """Return a chain: each unknown meets its two neighbours only, with convection, so that it is not symmetric."""
    n = size.unknowns
    matrix = 2.5 * np.eye(n) - 1.2 * np.eye(n, k=-1) - 0.8 * np.eye(n, k=1)
    return _shifted("sparse", rng, size, lambda y: _times(matrix, y) + y**3 / 5, lambda y: matrix + np.diag(0.6 * y**2))


def quadratic(rng: np.random.Generator, size: _Size) -> Case:
    """Return M ((y - r)(y - r - 1 - r^2 / 4)) with r = g(theta): two roots per unknown, y0 near the lower."""
    mix = np.eye(size.unknowns) + _weak(rng, size)
    g = _Root(rng, size)

    def f(y: Any, theta: Any) -> Any:
        r = g(theta)
        return _times(mix, (y - r) * (r + 1 + r * r / 4 - y))

    theta = _theta(rng, size)
    root = g(theta)
    slope = mix * (1 + root**2 / 4)
    return _case("quadratic", f, rng, size, theta, root, g.sensitivity(theta), slope, spread=0.1)


FAMILIES: dict[str, Callable[[np.random.Generator, _Size], Case]] = {
    function.__name__: function for function in (contraction, monotone, triangular, linear, quadratic, stiff, sparse)
}


def make_case(
    family: str,
    rng: np.random.Generator,
    unknowns: int = 4,
    parameters: int = 3,
    dtype: Any = np.float64,
    condition: float = 100.0,
) -> Case:
    """Return a random member of a family of residuals.

    Parameters
    ----------
    family : str
        Among "contraction", "monotone", "triangular", "linear", "quadratic", "stiff" and "sparse".
    rng : numpy.random.Generator
    unknowns, parameters : int
    dtype : floating dtype of y0 and theta
    condition : float
        Condition number of "linear".

    Examples
    --------
    >>> import numpy as np
    >>> from rootdiff.testing import make_case
    >>> make_case("linear", np.random.default_rng(0), unknowns=5, condition=1e6).sensitivity.shape
    (5, 3)
    """
    from rootdiff._errors import UnknownNameError

    if family not in FAMILIES:
        raise UnknownNameError(f"family: {family!r} is not among {', '.join(FAMILIES)}.")
    return FAMILIES[family](rng, _Size(unknowns, parameters, np.dtype(dtype), condition))


class _Root:
    """The map g(theta) = C theta + (c . theta)^2 d, on any framework, and its derivative."""

    def __init__(self, rng: np.random.Generator, size: _Size) -> None:
        self.c = rng.uniform(-1, 1, (size.unknowns, size.parameters)) / max(1, size.parameters) ** 0.5
        self.weights = rng.uniform(-0.5, 0.5, (1, size.parameters))
        self.d = rng.uniform(-1, 1, size.unknowns)

    def __call__(self, theta: Any) -> Any:
        return _times(self.c, theta) + _times(self.weights, theta) ** 2 * _like(theta, self.d)

    def sensitivity(self, theta: Any) -> Any:
        """Return dg/dtheta, (n, p)."""
        theta = np.asarray(theta, dtype=np.float64)
        return self.c + 2 * float((self.weights @ theta)[0]) * self.d[:, None] * self.weights


def _shifted(
    name: str, rng: np.random.Generator, size: _Size, of_y: Any, jacobian: Any, contractive: bool = False
) -> Case:
    g = _Root(rng, size)

    def f(y: Any, theta: Any) -> Any:
        return of_y(g(theta)) - of_y(y)

    theta = _theta(rng, size)
    root = g(np.asarray(theta, dtype=np.float64))
    return _case(name, f, rng, size, theta, root, g.sensitivity(theta), jacobian(root), contractive=contractive)


def _case(
    name: str, f: Any, rng: Any, size: _Size, theta: Any, root: Any, sensitivity: Any, slope: Any,
    spread: float = 0.3, contractive: bool = False,
) -> Case:  # fmt: skip
    y0 = (root + spread * rng.uniform(-1, 1, size.unknowns)).astype(size.dtype)
    return Case(name, f, y0, theta, root, sensitivity, contractive, float(np.linalg.cond(slope)))


def _theta(rng: np.random.Generator, size: _Size) -> Any:
    return rng.uniform(-1, 1, size.parameters).astype(size.dtype)


def _weak(rng: np.random.Generator, size: _Size) -> Any:
    """Return a nonsymmetric matrix of spectral norm 0.4."""
    weak = rng.standard_normal((size.unknowns, size.unknowns))
    return 0.4 * weak / np.linalg.norm(weak, 2)


def _like(y: Any, array: Any) -> Any:
    """Return a constant as an array of the framework, dtype and device of `y`."""
    return array_namespace(y).asarray(np.asarray(array), dtype=y.dtype, device=device(y))


def _times(matrix: Any, y: Any) -> Any:
    """Return the product of a matrix with each vector, (*batch, n)."""
    return y @ _like(y, matrix.T)


def _tanh(y: Any) -> Any:
    return array_namespace(y).tanh(y)


def _atan(y: Any) -> Any:
    return array_namespace(y).atan(y)
