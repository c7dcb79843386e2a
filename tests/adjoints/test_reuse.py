"""The factorisation that the solver ended with serves the adjoint; a stale or missing one costs a new one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status, _implicit
from rootdiff._numpy import NumpyBackend
from rootdiff._sizes import FEW
from tests.adjoints.oracles import exact_solve, matrix_of_condition

B = np.array([[1.0, 0.5], [-0.3, 1.0], [0.2, 0.7]])


def _residual(y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return y + 0.3 * np.tanh(np.roll(y, 1)) * y[0] - B @ theta


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of factorisations so far, as the only entry of a list."""
    calls = [0]
    original = NumpyBackend.lu_factor

    def counted(matrix: Any) -> Any:
        calls[0] += 1
        return original(matrix)

    monkeypatch.setattr(NumpyBackend, "lu_factor", staticmethod(counted))
    return calls


@pytest.mark.parametrize("derivatives", ["finite-difference", "complex-step"])
def test_backward_of_newton_factors_nothing(count: list[int], derivatives: Any) -> None:
    n = FEW + 1  # to fewer unknowns new factors cost less than a refinement

    def residual(y: np.ndarray, theta: np.ndarray) -> np.ndarray:
        return y + 0.3 * np.tanh(np.roll(y, 1)) * y[0] - np.tile(theta, n)[:n]

    sol = rootdiff.root(residual, np.ones(n), np.array([1.0, 2.0]), solver="newton", derivatives=derivatives)
    assert count[0] == sol.steps
    sol.vjp(np.ones(n))
    sol.jvp(np.ones(2))
    assert count[0] == sol.steps


def test_newton_factors_once_a_step_and_solves_twice(count: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    solves = [0]
    original = NumpyBackend.lu_solve

    def counted(*inputs: Any, **options: Any) -> Any:
        solves[0] += 1
        return original(*inputs, **options)

    monkeypatch.setattr(NumpyBackend, "lu_solve", staticmethod(counted))
    sol = rootdiff.root(_residual, np.ones(3), np.array([1.0, 2.0]), solver="newton")
    assert count[0] == sol.steps
    # the correction, and the simplified one that estimates the error; at the end a change that f must give back, in one
    # solve with the direction that f feels least
    assert solves[0] == 2 * sol.steps + 1


def test_placeholder_of_a_start_that_is_the_root_is_replaced(count: list[int]) -> None:
    sol = rootdiff.root(lambda y, t: y - B @ t, B @ np.array([1.0, 2.0]), np.array([1.0, 2.0]), solver="newton")
    assert sol.steps == 0
    np.testing.assert_allclose(sol.vjp(np.ones(3))[0], B.sum(0), rtol=1e-9)  # differences: eps^(2/3)
    assert count[0] == 2  # one to see that f is not zero around it too


@pytest.mark.parametrize("distance", [1e-8, 1e-2, 1.0])
def test_refinement_or_new_factors_give_the_same(arrays: Any, distance: float) -> None:
    rng, n = np.random.default_rng(0), FEW + 1
    matrix = matrix_of_condition(rng, n, 1e4)
    near = matrix + distance * matrix_of_condition(rng, n, 10.0)
    w = rng.standard_normal((n,))
    factors = arrays.backend.lu_factor(arrays.array(near))
    u, info = arrays.solve(matrix, w, "lu", transposed=True, factors=factors)
    assert int(info.status) <= Status.AT_PRECISION
    expected = exact_solve(matrix.T, w)
    error = np.linalg.norm(u - expected) / np.linalg.norm(expected)
    assert error <= 10 * np.finfo(float).eps * 1e4
    renewed = not np.array_equal(arrays.numpy(info.factors[0]), arrays.numpy(factors[0]))
    assert renewed == (distance > 1e-6)  # 1e-8 times 1 / 1e-4 contracts; 1e-2 times it does not


def test_only_the_stale_system_of_a_batch_is_factored_anew(arrays: Any) -> None:
    rng = np.random.default_rng(1)
    matrices = np.stack([matrix_of_condition(rng, 6, 10.0) for _ in range(3)])
    stale = matrices.copy()
    stale[1] = matrix_of_condition(rng, 6, 10.0)
    factors = arrays.backend.lu_factor(arrays.array(stale))
    w = rng.standard_normal((3, 6))
    u, info = arrays.solve(matrices, w, "lu", factors=factors)
    changed = np.any(arrays.numpy(info.factors[0]) != arrays.numpy(factors[0]), axis=(1, 2))
    np.testing.assert_array_equal(changed, [False, True, False])
    np.testing.assert_allclose(u, np.linalg.solve(matrices, w[..., None])[..., 0], rtol=1e-12)


@pytest.mark.parametrize("initial", ["jacobian", "identity"])
@pytest.mark.parametrize("adjoint", ["auto", "lu", "gmres", "bicgstab", "lsmr"])
def test_broydens_inverse_starts_or_preconditions(adjoint: str, initial: Any) -> None:
    theta = np.array([1.0, 2.0])
    exact = rootdiff.root(_residual, np.ones(3), theta, solver="newton", derivatives="complex-step").jacobian()[0]
    solver = rootdiff.Broyden(initial="jacobian")
    f = _residual if initial == "jacobian" else (lambda y, t: -_residual(y, t))
    if initial == "identity":
        solver = rootdiff.Broyden(initial="identity")
    sol = rootdiff.root(f, np.ones(3), theta, solver=solver, adjoint=adjoint)
    np.testing.assert_allclose(sol.jacobian()[0], exact, rtol=1e-8)  # the roots differ by rtol, 1.8e-12


@pytest.mark.parametrize("memory", [3, 30])
@pytest.mark.parametrize("initial", ["jacobian", "identity"])
def test_the_inverse_of_a_system_that_finished_early_is_kept(initial: Any, memory: int) -> None:
    """What `reuse` makes of it shows each of its pairs."""
    weights = np.array([[0.5, -0.8, 0.1], [0.3, 0.9, 0.2], [-0.3, 0.2, 0.4]])
    weights = np.stack([0.1 * weights, 3 * weights])  # the second system takes many more steps
    drive = np.array([[0.1, 0.2, -0.1], [0.3, 0.1, 0.2]])
    # a coarse end: of the changes of the last step, of which the last pair is made, ten digits are right
    solver = rootdiff.Broyden(initial=initial, memory=memory, rtol=1e-4)
    options = {"solver": solver, "adjoint": "reuse", "batch_ndim": 1, "on_failure": "ignore"}

    def cell(z: Any, drive: Any, weights: Any) -> Any:
        return np.tanh((weights @ z[..., None])[..., 0] + drive)

    together = rootdiff.fixed_point(cell, np.zeros((2, 3)), drive, weights, **options)
    alone = rootdiff.fixed_point(cell, np.zeros((1, 3)), drive[:1], weights[:1], **options)
    assert together.steps[1] > together.steps[0] + 3
    w = np.array([[1.0, -2.0, 0.5]])
    found = together.vjp(np.concatenate([w, np.zeros_like(w)]))[0][:1]
    np.testing.assert_allclose(found, alone.vjp(w)[0], rtol=1e-6)


def test_a_preconditioner_saves_products() -> None:
    rng = np.random.default_rng(2)
    matrix = matrix_of_condition(rng, 60, 1e5)
    inverse = np.linalg.inv(matrix + 1e-7 * rng.standard_normal((60, 60)))
    products = {}
    for preconditioner in (None, lambda operator, v: (inverse.T if operator.transposed else inverse) @ v):
        calls = [0]

        def product(v: np.ndarray, calls: list[int] = calls) -> np.ndarray:
            calls[0] += 1
            return matrix @ v

        operator = rootdiff.LinearOperator(
            NumpyBackend(), product, lambda u: matrix.T @ u, lambda: matrix, np.finfo(float).eps, matrix.shape
        )
        adjoint = rootdiff.GMRES(preconditioner=preconditioner)
        x, info = _implicit.solve(operator, adjoint, matrix @ np.ones(60), "raise")
        assert info.status <= Status.AT_PRECISION
        np.testing.assert_allclose(x, 1.0, rtol=1e-9)
        products[preconditioner is None] = calls[0]
    assert products[False] < products[True] / 4
