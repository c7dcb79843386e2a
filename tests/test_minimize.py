"""`minimize`: a minimum has the derivative of a root of the gradient; what is none says so."""

from __future__ import annotations

import importlib
import pickle
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ConvergenceError, Status
from tests.harness import Harness

THETA = np.array([3.0, 0.7, 1.5])
W, V = np.array([0.7, -1.3]), np.array([0.3, -0.4, 1.1])
#: Of differences of differences, in NumPy.
ROUGH = 2e-6
TWO = pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)


def valley(y: Any, theta: Any) -> Any:
    """A curved valley of two unknowns and three parameters."""
    xp = array_namespace(y)
    u, v = y[..., 0], y[..., 1]
    a, b, c = theta[..., 0], theta[..., 1], theta[..., 2]
    return a * (v - u**2) ** 2 + (b - u) ** 2 + c * xp.exp(-v)


def gradient(y: Any, theta: Any) -> Any:
    (u, v), (a, b, c) = y, theta
    return np.stack([-4 * a * u * (v - u**2) - 2 * (b - u), 2 * a * (v - u**2) - c * np.exp(-v)])


def slopes(y: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Hessian, (2, 2), and the derivative of the gradient with respect to theta, (2, 3)."""
    of_y = [np.imag(gradient(y + 1e-20j * e, theta)) / 1e-20 for e in np.eye(2)]
    of_theta = [np.imag(gradient(y + 0j, theta + 1e-20j * e)) / 1e-20 for e in np.eye(3)]
    return np.stack(of_y, axis=-1), np.stack(of_theta, axis=-1)


def minimum(theta: np.ndarray) -> np.ndarray:
    y = np.ones(2)
    for _ in range(50):
        y = y - np.linalg.solve(slopes(y, theta)[0], gradient(y, theta))
    return y


def sensitivity(theta: np.ndarray) -> np.ndarray:
    """Return dy/dtheta, (2, 3)."""
    of_y, of_theta = slopes(minimum(theta), theta)
    return -np.linalg.solve(of_y, of_theta)


def double_well(y: Any, a: Any) -> Any:
    """Minima at (a - 2, 0) and (a + 2, 0), a saddle between them."""
    return ((y[..., 0] - a) ** 2 - 4) ** 2 + y[..., 1] ** 2


# --- the derivative


@TWO
def test_vjp_and_jvp(backend: Harness) -> None:
    pulled = backend.vjp(valley, -np.ones(2), THETA, w=W, entry="minimize")
    pushed = backend.jvp(valley, -np.ones(2), THETA, v=(V,), entry="minimize")
    np.testing.assert_allclose(pulled.y, minimum(THETA), rtol=1e-9)
    np.testing.assert_allclose(pulled.derivative[0], W @ sensitivity(THETA), rtol=ROUGH, atol=ROUGH)
    np.testing.assert_allclose(pushed.derivative, sensitivity(THETA) @ V, rtol=ROUGH, atol=ROUGH)


@TWO
def test_a_batch_is_that_of_its_systems(backend: Harness) -> None:
    theta = THETA * np.array([[1.0], [1.1], [0.9]])
    w = np.ones((3, 1)) * W
    found = backend.vjp(valley, np.ones((3, 2)), theta, w=w, batch_ndim=1, entry="minimize")
    np.testing.assert_allclose(found.y, [minimum(one) for one in theta], rtol=1e-9)
    np.testing.assert_allclose(found.derivative[0], [W @ sensitivity(one) for one in theta], rtol=ROUGH, atol=ROUGH)


def test_transforms_of_jax() -> None:
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    thetas = np.stack([THETA, 1.1 * THETA])

    def first(theta: Any) -> Any:
        return rootdiff_jax.minimize(valley, jnp.ones(2), theta).y[0]

    found = jax.jit(jax.vmap(lambda theta: (first(theta), jax.hessian(first)(theta))))(thetas)
    np.testing.assert_allclose(found[0], [minimum(theta)[0] for theta in thetas], rtol=1e-11)
    np.testing.assert_allclose(found[1], [_curvature(theta) for theta in thetas], rtol=1e-6, atol=1e-8)


def test_transforms_of_torch() -> None:
    import torch

    import rootdiff_torch

    def solve(theta: Any) -> Any:
        return rootdiff_torch.minimize(valley, torch.ones(2).double(), theta).y

    thetas = np.stack([THETA, 1.1 * THETA])
    found = torch.func.vmap(torch.func.hessian(lambda theta: solve(theta)[0]))(torch.tensor(thetas))
    np.testing.assert_allclose(found, [_curvature(theta) for theta in thetas], rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(solve, torch.tensor(THETA, requires_grad=True))


def _curvature(theta: np.ndarray) -> np.ndarray:
    """Return the Hessian of the first unknown, (3, 3), by differences of its gradient."""
    steps = 1e-5 * np.eye(3)
    return np.stack([(sensitivity(theta + h)[0] - sensitivity(theta - h)[0]) / 2e-5 for h in steps])


def test_what_the_objective_closes_over_is_differentiated() -> None:
    import torch

    import rootdiff_torch

    theta = torch.tensor(THETA, requires_grad=True)
    y = rootdiff_torch.minimize(lambda y: valley(y, theta), torch.ones(2).double()).y
    (y @ torch.tensor(W)).backward()
    np.testing.assert_allclose(theta.grad, W @ sensitivity(THETA), rtol=1e-9)


@pytest.mark.parametrize("options", [{"jac": gradient}, {"derivatives": "complex-step"}], ids=["jac", "complex step"])
def test_exact_gradients_in_numpy(options: dict[str, Any]) -> None:
    found = rootdiff.minimize(valley, np.ones(2), THETA, **options)
    np.testing.assert_allclose(found.y, minimum(THETA), rtol=1e-12)
    np.testing.assert_allclose(found.jacobian()[0], sensitivity(THETA), rtol=1e-7)


def test_ridge_regression_in_closed_form() -> None:
    """y = (X^T X + a)^-1 X^T d, and dy/da = -(X^T X + a)^-1 y."""
    import torch

    import rootdiff_torch

    x, d = (torch.tensor(np.random.default_rng(0).normal(size=size)) for size in ((7, 4), 7))

    def ridge(y: Any, a: Any) -> Any:
        return torch.sum((x @ y - d) ** 2) / 2 + a * torch.sum(y**2) / 2

    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = rootdiff_torch.minimize(ridge, torch.zeros(4).double(), a).y
    matrix = x.T @ x + a.detach() * torch.eye(4).double()
    y = torch.linalg.solve(matrix, x.T @ d)
    torch.testing.assert_close(found.detach(), y, rtol=1e-12, atol=0)
    found.sum().backward()
    torch.testing.assert_close(a.grad, -torch.linalg.solve(matrix, y).sum(), rtol=1e-10, atol=0)


def test_the_penalty_of_a_logistic_regression_against_differences() -> None:
    generator = np.random.default_rng(1)
    x, label = generator.normal(size=(20, 3)), np.sign(generator.normal(size=20))

    def loss(y: Any, a: Any) -> Any:
        return np.sum(np.log(1 + np.exp(-label * (x @ y)))) + np.exp(a) * np.sum(y**2)

    def solve(a: float) -> Any:
        return rootdiff.minimize(loss, np.zeros(3), a, derivatives="complex-step")

    (of_a,) = solve(0.2).jacobian()
    np.testing.assert_allclose(of_a, (solve(0.2 + 1e-4).y - solve(0.2 - 1e-4).y) / 2e-4, rtol=1e-6)


def test_the_valley_of_rosenbrock() -> None:
    """y_k = a^(2^(k-1)), so that dy_k/da = 2^(k-1) at one."""
    import torch

    import rootdiff_torch

    def rosenbrock(y: Any, a: Any) -> Any:
        return torch.sum(100 * (y[1:] - y[:-1] ** 2) ** 2) + (a - y[0]) ** 2

    start = torch.tensor([-1.2, 1.0, -0.5, 0.8]).double()
    a = torch.tensor(1.0, dtype=torch.float64)
    y, of_a = torch.func.jvp(lambda a: rootdiff_torch.minimize(rosenbrock, start, a).y, (a,), (a,))
    np.testing.assert_allclose(y, np.ones(4), rtol=1e-10)
    np.testing.assert_allclose(of_a, [1, 2, 4, 8], rtol=1e-8)


def test_single_precision() -> None:
    import torch

    import rootdiff_torch

    theta = torch.tensor(THETA).float().requires_grad_()
    found = rootdiff_torch.minimize(valley, torch.ones(2), theta).y
    np.testing.assert_allclose(found.detach(), minimum(THETA), rtol=1e-5)
    (found @ torch.tensor(W).float()).backward()
    np.testing.assert_allclose(theta.grad, W @ sensitivity(THETA), rtol=1e-4)


# --- saddles, and what is no minimum


@TWO
def test_a_start_at_a_saddle_or_a_maximum_is_left(backend: Harness) -> None:
    found = backend.vjp(double_well, np.array([1.0, 0.0]), np.array(1.0), w=np.ones(2), entry="minimize")
    np.testing.assert_allclose(np.abs(found.y - [1, 0]), [2, 0], atol=1e-9)
    np.testing.assert_allclose(found.derivative[0], 1, rtol=ROUGH)
    for f, y0, answer in (
        (lambda y: y[0] * y[1] + (y**4).sum(), [0.0, 0.0], [0.5, 0.5]),  # the Hessian has a diagonal of zeros
        (lambda y: y[0] * y[1] + (y**4).sum(), [1e-9, 0.0], [0.5, 0.5]),
        (lambda y: (y**4).sum() - (y**2).sum(), [0.0, 0.0], [0.5**0.5, 0.5**0.5]),
    ):
        np.testing.assert_allclose(np.abs(backend.solve(f, np.array(y0), entry="minimize").y), answer, rtol=1e-6)


@TWO
def test_a_saddle_is_no_success(backend: Harness) -> None:
    options = {"entry": "minimize", "solver": "newton"}
    y0, a = np.array([1.1, 0.0]), np.array(1.0)
    with pytest.raises(ConvergenceError, match=r"^minimize: the system has no minimum(.|\n)*SADDLE: the gradient is"):
        backend.solve(double_well, y0, a, **options)
    kept = backend.vjp(double_well, y0, a, w=np.ones(2), on_failure="nan", **options)
    assert kept.status == Status.SADDLE
    assert np.isnan(kept.derivative[0]).all()


@TWO
def test_unknowns_that_are_not_determined_are_no_success(backend: Harness) -> None:
    with pytest.raises(ConvergenceError, match=r"SINGULAR: the Hessian(.|\n)*the objective does not determine y"):
        backend.solve(lambda y, a: (y[0] + y[1] - a) ** 2, np.array([0.0, 3.0]), np.array(1.0), entry="minimize")


def test_an_ill_conditioned_minimum_is_one() -> None:
    import torch

    import rootdiff_torch

    y = rootdiff_torch.minimize(
        lambda y: (y[0] + y[1] - 1) ** 2 + 1e-10 * (y[1] - y[0] + 3) ** 2, torch.zeros(2).double()
    )
    np.testing.assert_allclose(y.y, [2, -1], rtol=1e-5)


def test_sizes_at_which_a_verdict_forms_no_jacobian(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import rootdiff_torch

    for module in ("_correct", "_minimum"):
        monkeypatch.setattr(importlib.import_module(f"rootdiff.solvers.{module}"), "is_dense", lambda shape: False)
    for module in ("_loop", "_verdict"):
        monkeypatch.setattr(importlib.import_module(f"rootdiff.{module}"), "is_dense", lambda shape: False)
    found = rootdiff_torch.minimize(valley, torch.ones(2).double(), torch.tensor(THETA))
    np.testing.assert_allclose(found.y, minimum(THETA), rtol=1e-11)


@TWO
def test_an_objective_without_a_minimum_is_no_success(backend: Harness) -> None:
    solver = rootdiff.NewtonTrustRegion(max_steps=40)
    for f, match in (
        (lambda y: y[0] + 0 * y[0] ** 2, "MAX_STEPS: (.|\n)*bounded below"),
        (lambda y: array_namespace(y).exp(-y[0]), "minimize: the system has no minimum"),
        (lambda y: y[0] ** 2 - y[1] ** 2, "minimize: the system has no minimum"),
    ):
        with pytest.raises(ConvergenceError, match=match):
            backend.solve(f, np.ones(2), entry="minimize", solver=solver)


# --- inputs


def test_pytrees_complex_numbers_aux_and_pickling() -> None:
    def two(y: Any, a: Any) -> Any:
        return np.sum((y["p"] - a) ** 2) + np.abs(y["q"] - 1j) ** 2, a.sum()

    found = rootdiff.minimize(two, {"p": np.ones(2), "q": np.array(0j)}, np.array([5.0, 10.0]), has_aux=True)
    np.testing.assert_allclose(found.y["p"], [5.0, 10.0], rtol=1e-9)
    np.testing.assert_allclose(found.y["q"], 1j, rtol=1e-9)
    assert found.aux == 15
    again = pickle.loads(pickle.dumps(rootdiff.minimize(valley, np.ones(2), THETA)))
    np.testing.assert_allclose(again.vjp(W)[0], W @ sensitivity(THETA), rtol=ROUGH, atol=ROUGH)


def test_errors_name_what_came_and_what_to_do() -> None:
    import torch

    import rootdiff_torch

    one = r"^objective: it returned .*, but minimize needs one real floating number per system, .* of shape "
    for module, y0 in ((rootdiff, np.ones(2)), (rootdiff_torch, torch.ones(2))):
        for f in (lambda y: y, lambda y: y[:1], lambda y: 1j * y[0], lambda y: None):
            with pytest.raises(ArgumentError, match=one + r"\(\)\. Return the sum"):
                module.minimize(f, y0)  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match=one + r"\(4,\)"):
        rootdiff.minimize(lambda y: np.sum(y**2), np.ones((4, 2)), batch_ndim=1)
    with pytest.raises(ArgumentError, match=r"NewtonTrustRegion minimises an objective\. Call minimize"):
        rootdiff.root(lambda y: y, np.ones(2), solver=rootdiff.NewtonTrustRegion())
    with pytest.raises(ArgumentError, match=r"GaussNewton minimises a sum of squares\. Call least_squares"):
        rootdiff.minimize(valley, np.ones(2), THETA, solver=rootdiff.GaussNewton())


def test_a_wrong_jac_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^jac: it is not the derivative"):
        rootdiff.minimize(valley, np.ones(2), THETA, jac=lambda y, theta: gradient(y, theta) + 0.1)
    with pytest.raises(ArgumentError, match=r"^jac: it returned .* of shape \(3,\)"):
        rootdiff.minimize(valley, np.ones(2), THETA, jac=lambda y, theta: theta)


def test_history_tells_the_steps() -> None:
    found = rootdiff.minimize(valley, np.ones(2), THETA, history=True)
    assert len(found.history.residual_norm) >= 3
