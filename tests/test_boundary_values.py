"""`ode.collocation` and `ode.periodic_orbit`: whole solutions as roots, with the derivatives of closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy.integrate import solve_bvp, solve_ivp
from scipy.optimize import brentq

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError
from tests.harness import Harness

#: The packages by their backends' names.
PACKAGES = {"numpy": "rootdiff", "torch": "rootdiff_torch", "jax-jit": "rootdiff_jax"}
THREE = pytest.mark.parametrize("backend", list(PACKAGES), indirect=True)


def ode(backend: Harness) -> Any:
    return __import__(PACKAGES[backend.name]).ode


# --- boundary values


def bratu(t: Any, y: Any, a: Any) -> Any:
    """u'' = -a_0 exp(u), as two equations."""
    xp = array_namespace(y)
    return xp.stack([y[..., 1], -a[0] * xp.exp(y[..., 0])], axis=-1)


def ends(start: Any, end: Any, a: Any) -> Any:
    """Both ends are at a_1."""
    return array_namespace(start).stack([start[0] - a[1], end[0] - a[1]])


def bratu_middle(a: np.ndarray) -> float:
    """u(1/2) = u_0 + 2 log cosh(theta / 4) for u(0) = u(1) = u_0, where theta = sqrt(2 a exp(u_0)) cosh(theta / 4)."""
    theta = brentq(lambda theta: theta - np.sqrt(2 * a[0] * np.exp(a[1])) * np.cosh(theta / 4), 0, 4, xtol=1e-15)
    return float(a[1] + 2 * np.log(np.cosh(theta / 4)))


A = np.array([1.0, 0.2])


def of_middle(a: np.ndarray) -> np.ndarray:
    """Return the derivatives of u(1/2) in a, by differences of the closed form."""
    steps = 1e-4 * np.eye(2)
    return np.array([(bratu_middle(a + h) - bratu_middle(a - h)) / 2e-4 for h in steps])


@THREE
def test_the_equation_of_bratu(backend: Harness) -> None:
    """The times are no equal distances apart."""
    t = np.linspace(0, 1, 31) + 0.1 * np.sin(2 * np.pi * np.linspace(0, 1, 31)) / np.pi
    residual, start = ode(backend).collocation(bratu, ends, backend.array(t)), np.zeros((31, 2))
    w = np.zeros((31, 2))
    w[15, 0] = 1.0
    # a pattern is looked for where values are known
    options = {"jac_sparsity": "detect"} if backend.name != "jax-jit" else {}
    found = backend.vjp(residual, start, A, w=w, **options)
    assert found.status == 0
    assert found.y[15, 0] == pytest.approx(bratu_middle(A), abs=1e-6)
    np.testing.assert_allclose(found.derivative[0], of_middle(A), rtol=3e-6)


def test_the_order_is_four() -> None:
    errors = []
    for number in (5, 9, 17):
        residual = rootdiff.ode.collocation(bratu, ends, np.linspace(0, 1, number))
        sol = rootdiff.root(residual, np.zeros((number, 2)), A)
        errors.append(abs(sol.y[number // 2, 0] - bratu_middle(A)))
    assert np.log2(np.array(errors[:2]) / errors[1:]) == pytest.approx(4, abs=0.1)


def test_it_agrees_with_scipy() -> None:
    """An equation with layers at both ends, and the same by `solve_bvp`; its derivative by differences of that."""

    def f(t: Any, y: Any, a: Any) -> Any:
        return np.stack([y[..., 1], a[0] * (y[..., 0] ** 3 - np.cos(a[1] * t))], axis=-1)

    def fixed(start: Any, end: Any, a: Any) -> Any:
        return np.stack([start[0], end[1] + end[0] - 1])

    def by_scipy(a: np.ndarray) -> Any:
        sol = solve_bvp(
            lambda t, y: f(t, y.T, a).T,
            lambda p, q: fixed(p, q, a),
            t,
            np.zeros((2, t.size)),
            tol=1e-9,
            max_nodes=50000,
        )
        assert sol.success
        return sol.sol(t)[0]

    t, a = (1 - np.cos(np.linspace(0, np.pi, 121))) / 2, np.array([25.0, 1.5])
    sol = rootdiff.root(rootdiff.ode.collocation(f, fixed, t), np.zeros((121, 2)), a, jac_sparsity="detect")
    np.testing.assert_allclose(sol.y[:, 0], by_scipy(a), atol=1e-6)
    w = np.zeros((121, 2))
    w[:, 0] = np.cos(3 * t)
    steps = np.diag(1e-4 * a)
    exact = [w[:, 0] @ (by_scipy(a + h) - by_scipy(a - h)) / 2e-4 for h in steps]
    np.testing.assert_allclose(sol.vjp(w)[0] * a, exact, rtol=1e-5)


def test_a_parameter_is_an_unknown_too() -> None:
    """u'' + a k^2 u = 0 from zero to zero with slope a at 0: k = pi / sqrt(a); y is a pytree."""

    def f(t: Any, y: Any, k: Any, a: Any) -> Any:
        return {"u": y["v"], "v": -a * k**2 * y["u"]}

    def boundary(start: Any, end: Any, k: Any, a: Any) -> Any:
        return start["u"], start["v"] - a, end["u"]

    t = np.linspace(0, 1, 65)
    residual = rootdiff.ode.collocation(f, boundary, t)
    guess = {"u": t * (1 - t), "v": 1 - 2 * t}, np.array(2.0)
    sol = rootdiff.root(lambda unknown, a: residual(*unknown, a), guess, np.array(1.7), y_scale=1.0)
    assert sol.y[1] == pytest.approx(np.pi / 1.7**0.5, rel=1e-6)
    np.testing.assert_allclose(sol.y[0]["u"], 1.7 / np.pi * np.sin(np.pi * t), atol=1e-6)
    (of_a,) = sol.vjp(({"u": 0 * t, "v": 0 * t}, np.array(1.0)))
    assert of_a == pytest.approx(-np.pi / 1.7**1.5 / 2, rel=1e-6)


# --- periodic orbits

T = np.linspace(0, 1, 61)
GUESS = np.stack([np.cos(2 * np.pi * T), np.sin(2 * np.pi * T)], axis=-1)


def hopf(t: Any, y: Any, a: Any) -> Any:
    """r' = r (a_0 - r^2), and the angle turns by a_1 + a_2 r^2: on the orbit r^2 = a_0, its period is known."""
    x, z = y[..., 0], y[..., 1]
    grown, turned = a[0] - x**2 - z**2, a[1] + a[2] * (x**2 + z**2)
    return array_namespace(y).stack([x * grown - z * turned, z * grown + x * turned], axis=-1)


@THREE
def test_the_period_of_a_hopf_orbit(backend: Harness) -> None:
    def unknowns(vector: Any, a: Any) -> Any:
        return residual((array_namespace(vector).reshape(vector[:-1], (61, 2)), vector[-1]), a)

    a, tangent = np.array([2.0, 1.0, 0.3]), np.array([0.2, -0.5, 1.0])
    period = 2 * np.pi / (a[1] + a[2] * a[0])
    of_a = -period / (a[1] + a[2] * a[0]) * np.array([a[2], 1, a[0]])
    residual = ode(backend).periodic_orbit(hopf, lambda start, a: start[1], backend.array(T))
    start = np.append(GUESS.ravel(), 5.0)
    options = {"y_scale": 1.0} | ({"jac_sparsity": "detect"} if backend.name != "jax-jit" else {})
    found = backend.jvp(unknowns, start, a, v=(tangent,), **options)
    assert found.status == 0
    assert found.y[-1] == pytest.approx(period, rel=1e-6)
    np.testing.assert_allclose(found.y[:-1].reshape(61, 2), 2**0.5 * GUESS, atol=1e-5)
    assert found.derivative[-1] == pytest.approx(of_a @ tangent, rel=1e-6)


def van_der_pol(t: Any, y: Any, mu: Any) -> Any:
    return array_namespace(y).stack([y[..., 1], mu * (1 - y[..., 0] ** 2) * y[..., 1] - y[..., 0]], axis=-1)


def period_of_van_der_pol(mu: float) -> float:
    """By SciPy: the time between two tops, after some rounds."""

    def slope(t: float, y: np.ndarray, mu: float) -> float:
        return float(y[1])

    slope.direction = -1  # type: ignore[attr-defined]
    found = solve_ivp(
        van_der_pol, (0, 60), [2.0, 0.0], "DOP853", events=slope, args=(mu,), rtol=1e-12, atol=1e-12
    ).t_events[0]
    return float(found[-1] - found[-2])


def test_the_period_of_van_der_pol() -> None:
    """Its derivative by differences of periods that were integrated with steps of DOP853."""
    import torch

    import rootdiff_torch

    mu, t = torch.tensor(2.0, dtype=torch.float64, requires_grad=True), torch.linspace(0, 1, 161).double()
    guess = torch.stack([2 * torch.cos(2 * torch.pi * t), -2 * torch.sin(2 * torch.pi * t)], -1)
    residual = rootdiff_torch.ode.periodic_orbit(van_der_pol, lambda start, mu: start[1], t)
    sol = rootdiff_torch.root(residual, (guess, torch.tensor(7.0).double()), mu, jac_sparsity="detect", y_scale=1.0)
    assert sol.y[1].item() == pytest.approx(period_of_van_der_pol(2.0), rel=1e-5)
    (of_mu,) = torch.autograd.grad(sol.y[1], mu)
    exact = (period_of_van_der_pol(2.001) - period_of_van_der_pol(1.999)) / 2e-3
    assert of_mu.item() == pytest.approx(exact, rel=3e-5)


def test_a_periodic_orbit_by_shooting() -> None:
    """A root whose residual integrates by steps, which are roots: y' = cos t - a y, y = (a cos t + sin t)/(a^2 + 1)."""
    import torch

    import rootdiff_torch

    def left(start: Any, a: Any) -> Any:
        t = torch.linspace(0, 2 * torch.pi, 9, dtype=torch.float64)
        sol = rootdiff_torch.ode.integrate(lambda t, y, a: torch.cos(t) - a * y, start, t, a, solver="newton")
        return sol.y[-1] - start

    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = rootdiff_torch.root(left, torch.ones(1).double(), a, solver="newton").y
    assert y.item() == pytest.approx(0.4 / 1.16, abs=1e-5)
    assert torch.autograd.grad(y, a)[0].item() == pytest.approx((1 - 0.16) / 1.16**2, abs=1e-4)


# --- inputs


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"f": 3}, ArgumentTypeError, "f: got 3; it must be a function"),
        ({"boundary": 3}, ArgumentTypeError, "boundary: got 3; it must be a function"),
        ({"t": [0.0, 1.0]}, ArgumentTypeError, r"t: got \[0.0, 1.0\]; it must be a numpy array"),
        ({"t": np.array([1.0, 0.0])}, ArgumentError, "t: it must be finite, and increase"),
        (
            {"t": np.array([0.0, 0.5, 1.0])},
            ArgumentError,
            r"y0: its leaves have shapes \[\(2, 1\)\].* that of the 3 times of t",
        ),
        ({"f": lambda t, y: y[:1]}, ArgumentError, "f: it returned another structure, or other shapes"),
        (
            {"boundary": lambda start, end: (start, end)},
            ArgumentError,
            r"residual: it returned .*, but y0 is one array",
        ),
    ],
)
def test_bad_input_is_named(change: Any, error: Any, words: str) -> None:
    call = {"f": lambda t, y: -y, "boundary": lambda start, end: start - 1, "t": np.array([0.0, 1.0])} | change
    with pytest.raises(error, match=words):
        rootdiff.root(rootdiff.ode.collocation(**call), np.ones((2, 1)))
    with pytest.raises(ArgumentTypeError, match="phase: got 3; it must be a function"):
        rootdiff.ode.periodic_orbit(hopf, 3, T)  # type: ignore[arg-type]
