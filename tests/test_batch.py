"""A batch is its systems: solved alone or together, each is the same, and a finished one is frozen."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from tests.harness import HARNESSES, Harness

NATIVE = ("newton", "broyden", "anderson", "fixed_point")
#: The last one is next to the root.
STARTS = np.array([[0.1, 0.2, 0.0], [3.0, -2.0, 5.0], [-40.0, 30.0, 20.0], [-0.6737108, -0.7241165, -0.8822314]])
WEAK = np.array([[0.2, -0.3, 0.0], [0.1, 0.1, 0.2], [-0.3, 0.0, 0.1]])
THETA = np.array([0.3, -1.2])
#: Products of one row and of four are summed in another order: eps, times the dozen terms of f and a condition below 2.
ROUNDING = 5e-15


def cell_residual(y: Any, theta: Any) -> Any:
    xp = array_namespace(y)
    drive = theta[..., :1] * xp.asarray(np.array([1.0, 2.0, -1.0])) + theta[..., 1:]
    return xp.tanh(y @ xp.asarray(WEAK.T) + drive) - y


@pytest.mark.elsewhere_in_jax("tests/jax/test_vmap.py::test_systems_of_a_batch_stop_each_on_its_own")
@pytest.mark.parametrize("solver", NATIVE)
def test_batch_equals_systems_alone(backend: Harness, solver: str) -> None:
    together = backend.solve(cell_residual, STARTS, THETA, solver=solver, batch_ndim=1)
    assert len(set(together.steps.tolist())) > 1  # so that some are frozen while others go on
    for index, start in enumerate(STARTS):
        alone = backend.solve(cell_residual, start, THETA, solver=solver)
        np.testing.assert_allclose(together.y[index], alone.y, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("solver", NATIVE)
def test_finished_system_is_frozen_bit_for_bit(solver: str) -> None:
    def scaled(y: np.ndarray) -> np.ndarray:  # elementwise: no summation order to differ
        return np.cos(y) - y

    easy, hard = np.array([[0.7390851]]), np.array([[0.7390851], [900.0]])
    alone = rootdiff.root(scaled, easy, solver=solver, batch_ndim=1)
    together = rootdiff.root(scaled, hard, solver=solver, batch_ndim=1, on_failure="ignore")
    assert together.steps[1] > together.steps[0]
    assert alone.y[0] == together.y[0]


def test_same_iterates_on_every_backend(backend: Harness) -> None:
    """One Newton, three backends: the iterates agree to rounding, step by step, given the exact Jacobian."""

    def f(y: Any, theta: Any) -> Any:
        xp = array_namespace(y)
        first = y[..., 0] ** 2 + y[..., 1] - theta[..., 0]
        second = y[..., 0] * theta[..., 1] - y[..., 1] ** 3
        return xp.stack([first, second], axis=-1)

    y, theta = np.array([1.0, 1.0]), np.array([3.0, 0.5])
    for steps in (1, 2, 3):  # JAX compiles each solver, and takes the last
        x0, x1 = y
        jacobian = np.array([[2 * x0, 1.0], [theta[1], -3 * x1**2]])
        y = y + np.linalg.solve(jacobian, -np.array([x0**2 + x1 - theta[0], x0 * theta[1] - x1**3]))
        if backend.backend == "jax" and steps < 3:
            continue
        out = backend.solve(
            f, np.array([1.0, 1.0]), theta, solver=rootdiff.Newton(max_steps=steps), on_failure="ignore"
        )
        # NumPy's Jacobian comes from differences, with a relative error near eps^(2/3)
        np.testing.assert_allclose(out.y, y, rtol=1e-9 if backend.backend == "numpy" else 1e-14)


@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_batch_gradient_is_sum_of_systems(backend: Harness, adjoint: str) -> None:
    w = np.arange(12.0).reshape(4, 3) - 5
    together = backend.vjp(cell_residual, STARTS, THETA, w=w, solver="newton", adjoint=adjoint, batch_ndim=1)
    alone = [
        backend.vjp(cell_residual, start, THETA, w=one, solver="newton", adjoint=adjoint).derivative[0]
        for start, one in zip(STARTS, w, strict=True)
    ]
    np.testing.assert_allclose(together.derivative[0], sum(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.elsewhere_in_jax("tests/jax/test_vmap.py::test_systems_of_a_batch_stop_each_on_its_own")
@pytest.mark.parametrize("name", [name for name in HARNESSES if "jit" not in name])
@given(order=st.permutations(range(4)))
def test_batch_order_does_not_matter(name: str, order: list[int]) -> None:
    backend = HARNESSES[name]()
    straight = backend.solve(cell_residual, STARTS, THETA, solver="newton", batch_ndim=1)
    shuffled = backend.solve(cell_residual, STARTS[order], THETA, solver="newton", batch_ndim=1)
    np.testing.assert_allclose(shuffled.y, straight.y[order], rtol=0, atol=ROUNDING)


def test_two_batch_axes(backend: Harness) -> None:
    out = backend.solve(cell_residual, STARTS.reshape(2, 2, 3), THETA, solver="newton", batch_ndim=2)
    flat = backend.solve(cell_residual, STARTS, THETA, solver="newton", batch_ndim=1)
    assert out.status.shape == (2, 2)
    np.testing.assert_allclose(out.y.reshape(4, 3), flat.y, rtol=0, atol=ROUNDING)
