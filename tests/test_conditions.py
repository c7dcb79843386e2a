"""`conditions`: residuals of optimality, whose roots have the derivatives of closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError
from tests.harness import Harness

X, D = np.array([[1.0, 0.5], [-0.3, 2.0], [0.7, 0.1]]), np.array([1.0, -2.0, 0.5])
#: The projection of this point onto the simplex is (0.65, 0.35, 0).
POINT = np.array([0.9, 0.6, -0.7])


def of(backend: Harness) -> Any:
    name = {"numpy": "rootdiff"}.get(backend.backend, f"rootdiff_{backend.backend}")
    return __import__(name).conditions


def distance(y: Any, point: Any) -> Any:
    xp = array_namespace(y)
    return xp.sum((y - point) ** 2, axis=-1) / 2


def total(y: Any, point: Any) -> Any:
    return array_namespace(y).sum(y, axis=-1, keepdims=True) - 1


def below(y: Any, point: Any) -> Any:
    return -y


def ridge(y: Any, a: Any) -> Any:
    xp = array_namespace(y)
    x, d = xp.asarray(X), xp.asarray(D)
    return (xp.sum((x @ y - d) ** 2) + a[0] * xp.sum(y**2)) / 2


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"], indirect=True)
def test_ridge_by_stationarity(backend: Harness) -> None:
    """y = (X^T X + a)^-1 X^T d, dy/da = -(X^T X + a)^-1 y; found elsewhere, and by root."""
    matrix = X.T @ X + 0.4 * np.eye(2)
    y = np.linalg.solve(matrix, X.T @ D)
    w = np.array([1.0, -2.0])
    condition = of(backend).stationarity(ridge)
    exact = -w @ np.linalg.solve(matrix, y)
    found = backend.vjp(condition, y, np.array([0.4]), w=w, entry="implicit", rtol=1e-7)
    np.testing.assert_allclose(found.derivative[0], [exact], rtol=1e-5)
    if backend.name == "torch":
        solved = backend.vjp(condition, np.zeros(2), np.array([0.4]), w=w)
        np.testing.assert_allclose(solved.y, y, rtol=1e-12)
        np.testing.assert_allclose(solved.derivative[0], [exact], rtol=1e-11)


@pytest.mark.parametrize("backend", ["torch", "jax"], indirect=True)
def test_the_simplex_by_kkt(backend: Harness) -> None:
    """The projection moves with the point less its mean over the support; multipliers have derivatives too."""
    array, condition = backend.array, of(backend).kkt(distance, total, below)
    start = (array(np.full(3, 1 / 3)), array(np.zeros(1)), array(np.ones(3)))
    if backend.name == "torch":
        from torch.func import jacrev as jacobian

        import rootdiff_torch as rd
    else:
        from jax import jacrev as jacobian

        import rootdiff_jax as rd
    (of_y, of_equality, of_bounds), (y, _, multipliers) = jacobian(
        lambda point: (lambda sol: (sol.y, sol.y))(rd.root(condition, start, point, solver="newton")), has_aux=True
    )(array(POINT))
    support = np.array([1.0, 1.0, 0.0])
    exact = np.diag(support) - np.outer(support, support) / 2
    np.testing.assert_allclose(np.asarray(y), [0.65, 0.35, 0.0], atol=1e-9)
    np.testing.assert_allclose(np.asarray(of_y), exact, atol=1e-8)
    np.testing.assert_allclose(np.asarray(of_equality)[0], support / 2, atol=1e-8)
    np.testing.assert_allclose(np.asarray(multipliers), [0.0, 0.0, 0.95], atol=1e-8)
    np.testing.assert_allclose(np.asarray(of_bounds)[2], support / 2 - [0, 0, 1], atol=1e-8)


def test_a_batch_of_projections_onto_a_box() -> None:
    import torch

    import rootdiff_torch

    def box(y: Any, point: Any, top: Any) -> Any:
        return torch.minimum(torch.clamp(y, min=0.0), top)

    condition = rootdiff_torch.conditions.projected_gradient(lambda y, point, top: distance(y, point), box)
    point = torch.tensor([[0.5, -1.0], [2.0, 0.3]], dtype=torch.float64, requires_grad=True)
    top = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    found = rootdiff_torch.root(condition, torch.full_like(point, 0.4).detach(), point, top, batch_ndim=1)
    np.testing.assert_allclose(found.y.detach(), [[0.5, 0.0], [1.0, 0.3]], atol=1e-12)
    of_point, of_top = torch.autograd.grad(found.y.sum(), (point, top))
    np.testing.assert_allclose(of_point, [[1.0, 0.0], [0.0, 1.0]], atol=1e-12)
    assert of_top.item() == pytest.approx(1)  # an active bound passes its own derivative


def test_a_vertex_of_a_linear_program() -> None:
    """min c^T y for y0 + 2 y1 >= b0, 3 y0 + y1 >= b1: both hold with equality."""
    import torch

    import rootdiff_torch

    rows = torch.tensor([[1.0, 2.0], [3.0, 1.0]], dtype=torch.float64)
    condition = rootdiff_torch.conditions.kkt(lambda y, b: y.sum(-1), inequality=lambda y, b: b - rows @ y)
    b = torch.tensor([4.0, 7.0], dtype=torch.float64)

    def vertex(b: Any) -> Any:
        return rootdiff_torch.root(condition, (torch.ones_like(b), torch.ones_like(b)), b).y[0]

    np.testing.assert_allclose(vertex(b), [2.0, 1.0], rtol=1e-10)
    np.testing.assert_allclose(torch.func.jacrev(vertex)(b), torch.linalg.inv(rows), rtol=1e-9)


def test_a_weakly_active_constraint_has_no_derivative() -> None:
    """Neither at the root to the bit, nor where a solver ends."""
    import torch

    import rootdiff_torch

    def half_plane(y: Any, point: Any) -> Any:
        return (y[0] + y[1] - 1.6)[None]

    point = torch.tensor([1.0, 0.6], dtype=torch.float64, requires_grad=True)
    condition = rootdiff_torch.conditions.kkt(distance, inequality=half_plane)
    for y, u in (([1.0, 0.6], [0.0]), ([1.5, 2.2], [-0.7]), ([0.5, 0.2], [0.7])):
        start = torch.tensor(y, dtype=torch.float64), torch.tensor(u, dtype=torch.float64)
        with pytest.raises(ConvergenceError):  # an AdjointError is one
            torch.autograd.grad(rootdiff_torch.root(condition, start, point).y[0].sum(), point)


def test_unknowns_that_do_not_fit_are_named() -> None:
    def residual(unknown: Any) -> Any:
        return rootdiff.root(
            rootdiff.conditions.kkt(distance, inequality=lambda y, a: y[:1] - 1), unknown, np.array([1.0, 0.6])
        )

    with pytest.raises(ArgumentError, match=r"has 0 multipliers; give the tuple \(y, multipliers of inequality\)"):
        residual(np.zeros(2))
    with pytest.raises(ArgumentError, match=r"has 2 multipliers"):
        residual((np.zeros(2), np.zeros(1), np.zeros(1)))
    with pytest.raises(ArgumentError, match=r"inequality returned an array of shape \(1,\), .* have shape \(2,\)"):
        residual((np.zeros(2), np.zeros(2)))
    stationarity = rootdiff.conditions.stationarity
    with pytest.raises(ArgumentTypeError, match="y is complex"):
        rootdiff.root(stationarity(lambda y: np.sum(np.abs(y - 1) ** 2)), np.zeros(2, dtype=complex))
    with pytest.raises(ArgumentTypeError, match="objective: it returned None"):
        rootdiff.root(stationarity(lambda y: None), np.zeros(2))
    shrunk = rootdiff.conditions.projected_gradient(lambda y: np.sum((y - 1) ** 2), lambda y: y[:1])
    with pytest.raises(ArgumentError, match="projection: it returned another structure"):
        rootdiff.root(shrunk, np.zeros(3))
    assert rootdiff.root(stationarity(lambda y: float(np.sum((y - 1) ** 2))), np.zeros(2)).y == pytest.approx(1)


def test_what_is_no_function_is_named() -> None:
    with pytest.raises(ArgumentTypeError, match=r"^objective: got 3; it must be a function"):
        rootdiff.conditions.stationarity(3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"^inequality: got 3; it must be a function"):
        rootdiff.conditions.kkt(distance, inequality=3)  # type: ignore[arg-type]
