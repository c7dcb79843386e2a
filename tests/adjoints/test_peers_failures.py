"""Wrong gradients that other libraries hand out without a word: each is right here, or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import Status
from tests.adjoints.oracles import exact_solve, matrix_of_condition
from tests.harness import HARNESSES, Harness


@pytest.fixture(params=["numpy", "torch", "jax"])
def harness(request: pytest.FixtureRequest) -> Harness:
    return HARNESSES[request.param]()


def _short(harness: Harness) -> dict[str, Any]:
    """Return a solver of one step here, where the default one would be compiled."""
    return {"solver": "newton"} if harness.backend == "jax" else {}


def _pairs(values: tuple[str, ...], few: tuple[str, ...]) -> list[Any]:
    """Return each backend with each value; JAX, whose rule for a root is one for all, takes a `few`."""
    return [
        pytest.param(HARNESSES[name](), value, marks=[pytest.mark.exhaustive] if rare else [], id=f"{name}-{value}")
        for name in ("numpy", "torch", "jax")
        for value in values
        for rare in [name == "jax" and value not in few]
    ]


def _linear(matrix: np.ndarray, b: np.ndarray) -> Any:
    def f(y: Any, theta: Any) -> Any:
        xp = array_namespace(y)
        return xp.asarray(matrix) @ y - xp.asarray(b) @ theta

    return f


def test_jaxopt_74_percent_off_at_condition_1e4_in_float32(harness: Harness) -> None:
    rng = np.random.default_rng(0)
    matrix = matrix_of_condition(rng, 50, 1e4, np.float32)
    b = rng.standard_normal((50, 3)).astype(np.float32)
    w, theta = rng.standard_normal(50).astype(np.float32), np.ones(3, np.float32)
    out = harness.vjp(_linear(matrix, b), np.linalg.solve(matrix, b @ theta), theta, w=w, **_short(harness))
    expected = b.T @ exact_solve(matrix.T, w)
    # 10 eps times the condition; NumPy's differences are of relative accuracy eps^(2/3)
    accuracy = np.finfo(np.float32).eps ** (2 / 3) if harness.name == "numpy" else np.finfo(np.float32).eps
    assert np.linalg.norm(out.derivative[0] - expected) <= 10 * accuracy * 1e4 * np.linalg.norm(expected)


@pytest.mark.parametrize(("harness", "solver"), _pairs(("auto", "anderson", "fixed_point", "broyden"), ("broyden",)))
def test_torchdeq_89_percent_off_at_its_default_tolerance(harness: Harness, solver: str) -> None:
    rng = np.random.default_rng(1)
    weak = rng.standard_normal((20, 20))
    weak *= 0.9 / np.abs(np.linalg.eigvals(weak)).max()
    b, theta, w = rng.standard_normal((20, 3)), np.array([0.1, -0.2, 0.3]), rng.standard_normal(20)

    def cell(z: Any, theta: Any) -> Any:
        xp = array_namespace(z)
        return xp.asarray(weak) @ z + xp.asarray(b) @ theta

    out = harness.vjp(cell, np.zeros(20), theta, w=w, entry="fixed_point", solver=solver)
    expected = b.T @ np.linalg.solve(np.eye(20) - weak.T, w)
    # the cell is linear, so that the gradient does not depend on the root; 1e-8: eps^(2/3) times the condition
    np.testing.assert_allclose(out.derivative[0], expected, rtol=1e-8)


@pytest.mark.parametrize("solver", ["scipy:lm", "newton"])
def test_optimistix_through_a_minimiser_0_instead_of_0_354(harness: Harness, solver: str) -> None:
    out = harness.vjp(lambda y, a: y**2 - a, np.array([1.0]), np.array([2.0]), w=np.ones(1), solver=solver)
    np.testing.assert_allclose(out.derivative[0], 1 / (2 * np.sqrt(2)), rtol=1e-9)


@pytest.mark.parametrize(("harness", "adjoint"), _pairs(("auto", "lu", "gmres", "bicgstab", "lsmr"), ("auto",)))
def test_optimistix_singular_jacobian_0_with_success_flag(harness: Harness, adjoint: str) -> None:
    # the second equation is twice the first but for the parameter: there is a root only at a_0 = a_1
    def f(y: Any, a: Any) -> Any:
        total = y[0] + y[1]
        return array_namespace(y).stack([total - a[0], 2 * total - 2 * a[1]])

    options = {"adjoint": adjoint, "on_failure": "nan", "solver": "anderson"}
    out = harness.vjp(f, np.array([0.5, 0.5]), np.ones(2), w=np.array([1.0, -0.5]), **options)
    assert out.status == Status.AT_PRECISION
    assert np.isnan(out.derivative[0]).all()


def test_gradient_of_an_unconverged_root_is_refused(harness: Harness) -> None:
    solver = rootdiff.Newton(max_steps=2)
    f, y0, a = (lambda y, a: y**3 - a), np.array([10.0]), np.array([2.0])
    out = harness.vjp(f, y0, a, w=np.ones(1), solver=solver, on_failure="nan")
    assert out.status == Status.MAX_STEPS
    assert np.isnan(out.derivative[0]).all()
    if harness.name != "jax":  # its values may be traced: there "raise" means "nan"
        with pytest.raises(rootdiff.ConvergenceError, match="MAX_STEPS"):
            harness.vjp(f, y0, a, w=np.ones(1), solver=solver)


def test_adjoint_solve_that_stopped_early_is_refused(harness: Harness) -> None:
    rng = np.random.default_rng(2)
    matrix, b = matrix_of_condition(rng, 20, 1e4), rng.standard_normal((20, 3))
    adjoint = rootdiff.GMRES(restart=5, max_restarts=1, preconditioner=None)
    y0, theta = np.linalg.solve(matrix, b @ np.ones(3)), np.ones(3)
    options = {"adjoint": adjoint, "on_failure": "nan", **_short(harness)}
    out = harness.vjp(_linear(matrix, b), y0, theta, w=np.ones(20), **options)
    assert out.status <= Status.AT_PRECISION
    assert np.isnan(out.derivative[0]).all()


def test_root_of_a_rewritten_problem_is_differentiated_as_the_users(harness: Harness) -> None:
    # Gauss-Newton's J^T J would square the condition of 1e6; the user's residual has a gradient of 1e-6 accuracy
    rng = np.random.default_rng(3)
    matrix, b = matrix_of_condition(rng, 8, 1e6), rng.standard_normal((8, 3))
    y0, w = np.linalg.solve(matrix, b @ np.ones(3)), np.ones(8)
    out = harness.vjp(_linear(matrix, b), y0, np.ones(3), w=w, solver="scipy:lm")
    expected = b.T @ exact_solve(matrix.T, w)
    accuracy = np.finfo(float).eps ** (2 / 3) if harness.name == "numpy" else np.finfo(float).eps
    assert np.linalg.norm(out.derivative[0] - expected) <= 10 * accuracy * 1e6 * np.linalg.norm(expected)
