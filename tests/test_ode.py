"""`ode.integrate`: implicit steps, whose derivative is that of the numbers they return."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, Status
from rootdiff._implicit_steps import METHODS
from tests.stiff import HIRES, POLLUTION, Stiff

ORDERS = {"backward_euler": 1, "bdf2": 2, "trapezoid": 2, "radau3": 3, "radau5": 5, "lobatto4": 4}
A, Y0, T = np.array([1.0, 0.5, 0.3]), np.array([1.0, 0.5]), np.array([0.0, 0.2, 0.5, 0.6, 1.0])
W = np.array([[0.5, 0.0], [0.0, 0.0], [0.3, 0.1], [0.0, -0.4], [1.0, 2.0]])


def of(xp: Any) -> Any:
    """Return an equation with three parameters for two unknowns, which depends on t."""
    return lambda t, y, a: xp.stack([-a[0] * y[0] + xp.cos(t) * y[1], a[2] * t - a[1] * y[0] * y[1]])


@pytest.mark.parametrize("method", METHODS)
def test_orders(method: Any) -> None:
    """y' = -2 t y^2 from y(0) = 1 is 1 / (1 + t^2); the times are no equal distances apart."""
    errors = []
    for steps in (4, 8, 16):
        t = np.linspace(0, 1, steps + 1) ** 1.5
        sol = rootdiff.ode.integrate(lambda t, y: -2 * t * y**2, np.ones(1), t, method=method)
        errors.append(np.max(np.abs(sol.y[:, 0] - 1 / (1 + t**2))))
        assert sol.status == Status.CONVERGED
    assert abs(np.log2(errors[1] / errors[2]) - ORDERS[method]) < 0.5
    assert errors[2] < errors[0] / 2 ** (2 * ORDERS[method] - 1)


def robertson(t: Any, y: Any) -> Any:
    slow, back, fast = 0.04 * y[0], 1e4 * y[1] * y[2], 3e7 * y[1] ** 2
    return np.stack([back - slow, slow - back - fast, fast])


def van_der_pol(t: Any, y: Any) -> Any:
    return np.stack([y[1], 1e3 * (1 - y[0] ** 2) * y[1] - y[0]])


@pytest.mark.parametrize(
    ("f", "y0", "t"),
    [  # of van der Pol's equation until shortly before the jump at 807
        pytest.param(robertson, [1.0, 0.0, 0.0], np.r_[0.0, np.geomspace(1e-5, 40.0, 40)], id="Robertson"),
        pytest.param(van_der_pol, [2.0, 0.0], np.r_[0.0, np.geomspace(1e-5, 600.0, 40)], id="van der Pol"),
    ],
)
def test_stiff_equations(f: Any, y0: Any, t: Any) -> None:
    exact = solve_ivp(f, (0, t[-1]), y0, method="Radau", t_eval=t, rtol=1e-9, atol=1e-13).y.T
    size = np.max(np.abs(exact), axis=0)
    sol = rootdiff.ode.integrate(f, np.array(y0), t)
    assert np.max(np.abs(sol.y - exact) / size) < 1e-4


@pytest.mark.parametrize("stiff", [pytest.param(HIRES, id="HIRES"), pytest.param(POLLUTION, id="pollution")])
def test_stiff_derivatives_are_those_of_diffrax(stiff: Stiff) -> None:
    """And of differences along one direction; the steps are those that SciPy's Radau takes."""
    import torch

    import rootdiff_torch

    t = solve_ivp(stiff.f, (0, stiff.end), stiff.y0, "Radau", args=(stiff.rates,), rtol=1e-3, atol=1e-7).t

    def solve(logs: Any) -> Any:
        y0 = torch.tensor(stiff.y0)
        return rootdiff_torch.ode.integrate(stiff.f, y0, torch.tensor(t), torch.exp(logs), solver="newton").y[-1]

    logs = torch.tensor(np.log(stiff.rates), requires_grad=True)
    last = solve(logs)
    np.testing.assert_allclose(last.detach(), stiff.last, rtol=3e-5)
    slope = torch.autograd.grad(last[0], logs)[0].numpy()
    largest = np.max(np.abs(stiff.slope))
    np.testing.assert_allclose(slope, stiff.slope, rtol=1e-3, atol=1e-6 * largest)
    direction = np.sin(np.arange(1.0, logs.shape[0] + 1))
    with torch.no_grad():
        up, down = (solve(logs + way * 1e-4 * torch.tensor(direction))[0].item() for way in (1, -1))
    assert (up - down) / 2e-4 == pytest.approx(slope @ direction, abs=3e-6 * largest)  # h^2 = 1e-8


@pytest.mark.parametrize("method", ["bdf2", "radau5", "lobatto4"])
def test_derivatives_in_numpy(method: Any) -> None:
    """In y0, in t, and in args: by differences of the trajectory, which share no linear solve with it."""

    def loss(*args: Any) -> float:
        return float(np.sum(W * rootdiff.ode.integrate(of(np), *args, method=method).y))

    inputs = [Y0, T, A]
    sol = rootdiff.ode.integrate(of(np), *inputs, method=method)
    gradients, jacobians = sol.vjp(W), sol.jacobian()
    for place, (gradient, jacobian) in enumerate(zip(gradients, jacobians, strict=True)):
        for entry in range(gradient.size):
            step = 1e-5 * (np.arange(gradient.size) == entry)
            ends = [loss(*inputs[:place], inputs[place] + way * step, *inputs[place + 1 :]) for way in (1, -1)]
            assert gradient[entry] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=2e-8)
        np.testing.assert_allclose(np.tensordot(W, jacobian, 2), gradient, atol=1e-12)
    tangents = [np.ones(2), np.arange(5.0), np.array([1.0, -1.0, 2.0])]
    along = sum(np.sum(gradient * v) for gradient, v in zip(gradients, tangents, strict=True))
    assert np.sum(W * sol.jvp(*tangents)) == pytest.approx(along, rel=1e-9)
    both = sol.vjp(np.stack([0 * W, W]), argnums=2, several=True)
    np.testing.assert_allclose(both, [0 * A, gradients[2]], rtol=1e-12)
    both = sol.jvp(*(np.stack([v, 2 * v]) for v in tangents), several=True)
    np.testing.assert_allclose(both, np.multiply.outer([1, 2], sol.jvp(*tangents)), rtol=1e-8)


@pytest.mark.parametrize("method", ["bdf2", "radau5"])
def test_derivatives_in_torch(method: Any) -> None:
    import torch

    import rootdiff_torch

    inputs = [torch.tensor(value, requires_grad=True) for value in (Y0, T, A)]
    exact = rootdiff.ode.integrate(of(np), Y0, T, A, method=method)
    sol = rootdiff_torch.ode.integrate(of(torch), *inputs, method=method)
    np.testing.assert_allclose(sol.y.detach(), exact.y, rtol=1e-13)
    gradients = torch.autograd.grad(torch.sum(torch.tensor(W) * sol.y), inputs)
    for found, gradient in zip(gradients, exact.vjp(W), strict=True):
        np.testing.assert_allclose(found, gradient, atol=1e-8)
    a = torch.stack([inputs[2].detach(), 1.1 * inputs[2].detach()])

    def end(a: Any) -> Any:
        return rootdiff_torch.ode.integrate(of(torch), torch.tensor(Y0), T.tolist(), a, method=method).y[-1]

    np.testing.assert_allclose(torch.func.vmap(torch.func.jacrev(end))(a)[0], exact.jacobian(2)[-1], atol=1e-8)


def test_derivatives_in_jax() -> None:
    """Of a linear equation, whose steps divide by 1 + a h, under jit: in y0, in t, and in what f closes over."""
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)

    def loss(y0: Any, t: Any, a: Any) -> Any:
        sol = rootdiff_jax.ode.integrate(lambda t, y: -a * y, y0, t, method="backward_euler", solver="newton")
        return jnp.sum(jnp.asarray([0.0, 1.0, 3.0])[:, None] * sol.y), sol

    t = np.array([0.0, 0.5, 0.7])
    gradients, sol = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(jnp.ones(2), jnp.asarray(t), 2.0)
    p, q = 1 + 2.0 * 0.5, 1 + 2.0 * (0.7 - 0.5)
    np.testing.assert_allclose(sol.y, np.array([[1], [1 / p], [1 / (p * q)]]) * [1, 1], rtol=1e-14)
    assert (sol.status, sol.y.shape) == (0, (3, 2))
    np.testing.assert_allclose(gradients[0], np.full(2, 1 / p + 3 / (p * q)), rtol=1e-12)
    of_p, of_q = -2 * (1 / p**2 + 3 / (p**2 * q)), -2 * 3 / (p * q**2)
    np.testing.assert_allclose(gradients[1], [-2.0 * of_p, 2.0 * (of_p - of_q), 2.0 * of_q], rtol=1e-12)
    assert gradients[2] == pytest.approx(0.5 * of_p + (0.7 - 0.5) * of_q, rel=1e-12)


def test_a_batch_of_pytrees() -> None:
    """y' = i a y for a complex y, and x' = -x; the axis of times comes after that of the batch."""
    a, t = np.array([1.0, 2.0, 3.0]), [0.0, 0.1, 0.2]
    y0 = {"x": np.ones((3, 2, 1)), "y": np.full(3, 1 + 0j)}

    def f(t: Any, y: Any, a: Any) -> Any:
        return {"x": -y["x"], "y": 1j * a * y["y"]}

    sol = rootdiff.ode.integrate(f, y0, t, a, batch_ndim=1)
    turned = np.exp(1j * a[:, None] * t)
    assert sol.y["x"].shape == (3, 3, 2, 1)
    np.testing.assert_allclose(sol.y["y"], turned, atol=1e-6)
    np.testing.assert_allclose(sol.y["x"][..., 0], np.exp(-np.array(t))[:, None] * np.ones((3, 1, 2)), atol=1e-7)
    assert sol.status.shape == sol.steps.shape == (3,)
    jacobian = sol.jacobian(2)["y"]
    assert jacobian.shape == (3, 3, 3)
    np.testing.assert_allclose(np.einsum("bta->tba", jacobian)[2], np.diag(0.2j * turned[:, 2]), atol=1e-5)
    none = rootdiff.ode.integrate(f, {name: leaf[:0] for name, leaf in y0.items()}, t, a[:0], batch_ndim=1)
    assert none.y["x"].shape == (0, 3, 2, 1)
    of_x = sol.jvp({"x": np.ones((3, 2, 1)), "y": None}, None, None)["x"]
    np.testing.assert_allclose(of_x, sol.y["x"], atol=1e-8)


def test_a_step_that_fails_is_named() -> None:
    """y' = y^2 by a step that has no real root; what follows the failure is not told in its place."""
    f, t = (lambda t, y: y**2), [0.0, 0.2, 2.0, 2.5]
    with pytest.raises(ConvergenceError, match="STALLED") as caught:
        rootdiff.ode.integrate(f, np.ones(1), t, method="backward_euler", solver="newton")
    assert any("In the step from t = 0.2 to 2:" in note for note in caught.value.__notes__)
    sol = rootdiff.ode.integrate(
        f, np.array([[1.0], [-1.0]]), t, method="backward_euler", batch_ndim=1, solver="newton", on_failure="nan"
    )
    assert sol.status.tolist() == [Status.STALLED, Status.CONVERGED]
    assert np.isnan(sol.y[0, :, 0]).tolist() == [False, False, True, True]
    gradient, _ = sol.vjp(np.ones_like(sol.y))
    assert np.isnan(gradient[0, 0])
    assert np.isfinite(gradient[1, 0])


def test_a_derivative_of_another_equation_is_refused() -> None:
    scale = np.array([1.0])
    sol = rootdiff.ode.integrate(lambda t, y: -scale[0] * y, np.ones(1), [0.0, 0.5, 1.0])
    before = sol.vjp(np.ones((3, 1)))[0]
    scale[0] = 2.0  # restored for the derivative
    np.testing.assert_allclose(sol.vjp(np.ones((3, 1)))[0], before)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"method": ["bdf2"]}, ArgumentError, r"method: got \['bdf2'\]"),
        ({"method": "rk4"}, ArgumentError, "method: got 'rk4'; allowed are 'backward_euler', 'bdf2'"),
        ({"t": [0.0]}, ArgumentError, r"t: it has shape \(1,\); it must be \(times,\), with at least two"),
        ({"t": [0.0, 1.0, 1.0]}, ArgumentError, "t: it must be finite, and increase from each time to the next"),
        ({"t": [1.0, 0.0]}, ArgumentError, "integrate -f over -t"),
        ({"t": [0.0, np.inf]}, ArgumentError, "t: it must be finite"),
        ({"t": [[0.0, 1.0], [2.0]]}, ArgumentError, "t: got .*different lengths"),
        ({"t": "now"}, ArgumentTypeError, "t: got 'now'; it must be a numpy array of real times"),
        ({"t": np.array([0j, 1j])}, ArgumentTypeError, "of real times"),
        ({"f": 3}, ArgumentTypeError, "f: got 3; it must be a function"),
        ({"f": lambda t, y: y[:1]}, ArgumentError, r"f: it returned shape \(1,\), but y0 has shape \(2,\).*arrange"),
        ({"f": lambda t, y: None}, ArgumentError, "f: it returned None"),
        ({"y0": np.array([1, 2])}, ArgumentTypeError, "y0: "),
        ({"on_failure": "stop"}, ArgumentError, "on_failure: got 'stop'"),
    ],
)
def test_bad_input_is_named(change: Any, error: Any, words: str) -> None:
    call = {"f": lambda t, y: -y, "y0": np.ones(2), "t": [0.0, 1.0]} | change
    with pytest.raises(error, match=words):
        rootdiff.ode.integrate(call.pop("f"), call.pop("y0"), call.pop("t"), **call)


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch"])
def test_the_example_runs(package: str) -> None:
    integrate = __import__(package).ode.integrate
    assert "$" not in integrate.__doc__
    (test,) = doctest.DocTestFinder(recurse=False).find(integrate, "integrate", globs={})
    failures: list[str] = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)
