"""`least_squares` and `minimize`: a minimum has the derivative of a root of the gradient, with the whole Hessian."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError
from tests.harness import THOROUGH, Harness
from tests.minima import OBJECTIVE, SQUARES, Minimum, V, W

EACH = pytest.mark.parametrize("case", [SQUARES, OBJECTIVE], ids=lambda case: case.entry)


def test_the_derivative_of_gauss_newton_would_be_another() -> None:
    y, theta = SQUARES.minimum(SQUARES.theta), SQUARES.theta
    matrix = SQUARES.jac(y, theta)
    assert np.linalg.norm(SQUARES.function(y, theta)) > 1
    of_gauss_newton = -np.linalg.solve(matrix.T @ matrix, SQUARES.slopes(y, theta)[1])
    assert np.abs(of_gauss_newton - SQUARES.sensitivity(theta)).max() > 0.05


@pytest.mark.elsewhere_in_jax("tests/test_minima.py::test_transforms_of_jax")
@EACH
def test_vjp_and_jvp(backend: Harness, case: Minimum) -> None:
    pulled = backend.vjp(case.function, case.start, case.theta, w=W, entry=case.entry)
    pushed = backend.jvp(case.function, case.start, case.theta, v=(V,), entry=case.entry)
    np.testing.assert_allclose(pulled.y, case.minimum(case.theta), rtol=1e-10 * case.coarseness)
    np.testing.assert_allclose(pulled.derivative[0], W @ case.sensitivity(case.theta), **case.tolerance)
    np.testing.assert_allclose(pushed.derivative, case.sensitivity(case.theta) @ V, **case.tolerance)


@EACH
@pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
def test_a_batch_is_that_of_its_systems(backend: Harness, case: Minimum) -> None:
    theta = case.theta * np.array([[1.0], [1.1], [0.9], [1.3]])
    w, options = np.ones((4, 1)) * W, {"batch_ndim": 1, "entry": case.entry}
    found = backend.vjp(case.function, np.ones((4, 2)), theta, w=w, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.y, [case.minimum(one) for one in theta], rtol=1e-9)
    np.testing.assert_allclose(found.derivative[0], [W @ case.sensitivity(one) for one in theta], **case.tolerance)


@EACH
def test_transforms_of_jax(case: Minimum) -> None:
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    thetas = np.stack([case.theta, 1.1 * case.theta])

    def first(theta: Any) -> Any:
        y = case.find(rootdiff_jax)(case.function, jnp.ones(2), theta).y[0]
        return y, y

    def slope(theta: Any) -> Any:
        found, y = jax.grad(first, has_aux=True)(theta)
        return found, (found, y)

    # the rule is one for both: of squares the second derivative is for test-all
    derivative = jax.jacfwd(slope, has_aux=True) if case is OBJECTIVE or THOROUGH else slope
    found, (gradient, values) = jax.jit(jax.vmap(derivative))(thetas)
    np.testing.assert_allclose(values, [case.minimum(theta)[0] for theta in thetas], rtol=1e-12 * case.coarseness)
    np.testing.assert_allclose(gradient, [case.sensitivity(theta)[0] for theta in thetas], rtol=1e-9)
    if found.ndim == 3:
        np.testing.assert_allclose(found, [case.curvature(theta) for theta in thetas], rtol=1e-6, atol=1e-8)


@EACH
def test_transforms_of_torch(case: Minimum) -> None:
    import torch

    import rootdiff_torch

    def solve(theta: Any) -> Any:
        return case.find(rootdiff_torch)(case.function, torch.ones(2).double(), theta).y

    thetas = np.stack([case.theta, 1.1 * case.theta])
    found = torch.func.vmap(torch.func.hessian(lambda theta: solve(theta)[0]))(torch.tensor(thetas))
    np.testing.assert_allclose(found, [case.curvature(theta) for theta in thetas], rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(solve, torch.tensor(case.theta, requires_grad=True))


@EACH
def test_what_the_function_closes_over_is_differentiated(case: Minimum) -> None:
    import torch

    import rootdiff_torch

    theta = torch.tensor(case.theta, requires_grad=True)
    y = case.find(rootdiff_torch)(lambda y: case.function(y, theta), torch.ones(2).double()).y
    (y @ torch.tensor(W)).backward()
    np.testing.assert_allclose(theta.grad, W @ case.sensitivity(case.theta), rtol=1e-9)


@EACH
@pytest.mark.parametrize("source", ["jac", "complex step"])
def test_exact_slopes_in_numpy(case: Minimum, source: str) -> None:
    options: Any = {"jac": case.jac} if source == "jac" else {"derivatives": "complex-step"}
    found = case.find()(case.function, np.ones(2), case.theta, **options)
    np.testing.assert_allclose(found.y, case.minimum(case.theta), rtol=1e-13 * case.coarseness)
    np.testing.assert_allclose(found.jacobian()[0], case.sensitivity(case.theta), rtol=1e-8 * case.coarseness)


@EACH
def test_a_wrong_jac_is_refused(case: Minimum) -> None:
    """At once, since it moves the minimum."""
    for wrong, match in (
        (lambda y, theta: case.jac(y, theta) + 0.1, r"^jac: it is not the derivative"),
        (lambda y, theta: np.ones(7), r"^jac: it returned .* of shape \(7,\)"),
    ):
        with pytest.raises(ArgumentError, match=match):
            case.find()(case.function, np.ones(2), case.theta, jac=wrong)


@EACH
def test_single_precision(case: Minimum) -> None:
    import torch

    import rootdiff_torch

    theta = torch.tensor(case.theta).float().requires_grad_()
    found = case.find(rootdiff_torch)(case.function, torch.ones(2), theta).y
    np.testing.assert_allclose(found.detach(), case.minimum(case.theta), rtol=1e-5)
    (found @ torch.tensor(W).float()).backward()
    np.testing.assert_allclose(theta.grad, W @ case.sensitivity(case.theta), rtol=1e-4)


@EACH
def test_pickles_and_history(case: Minimum) -> None:
    found = case.find()(case.function, np.ones(2), case.theta, history=True)
    assert len(found.history.residual_norm) >= 3
    again = pickle.loads(pickle.dumps(case.find()(case.function, np.ones(2), case.theta)))
    np.testing.assert_allclose(again.vjp(W)[0], W @ case.sensitivity(case.theta), **case.tolerance)


EACH_TREE = pytest.mark.parametrize(
    ("entry", "function", "p"),
    [
        (
            rootdiff.least_squares,
            lambda y, a: ({"far": y["p"] - a, "near": [2 * y["p"] + 0j, y["q"] - 1j]}, a.sum()),
            [1.0, 2.0],
        ),
        (
            rootdiff.minimize,
            lambda y, a: (np.sum((y["p"] - a) ** 2) + np.abs(y["q"] - 1j) ** 2, a.sum()),
            [5.0, 10.0],
        ),
    ],
)


@EACH_TREE
def test_pytrees_complex_numbers_and_aux(entry: Any, function: Any, p: list[float]) -> None:
    found = entry(function, {"p": np.ones(2), "q": np.array(0j)}, np.array([5.0, 10.0]), has_aux=True)
    np.testing.assert_allclose(found.y["p"], p, rtol=1e-9)
    np.testing.assert_allclose(found.y["q"], 1j, rtol=1e-9)
    assert found.aux == 15
