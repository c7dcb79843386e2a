"""`minimize`: a minimum has the derivative of a root of the gradient; what is none says so."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ConvergenceError, Status
from tests.harness import Harness
from tests.minima import OBJECTIVE

valley, THETA, minimum = OBJECTIVE.function, OBJECTIVE.theta, OBJECTIVE.minimum
#: Of differences of differences, in NumPy.
ROUGH = 2e-6
TWO = pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)


def double_well(y: Any, a: Any) -> Any:
    """Minima at (a - 2, 0) and (a + 2, 0), a saddle between them."""
    return ((y[..., 0] - a) ** 2 - 4) ** 2 + y[..., 1] ** 2


# --- the derivative


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


# --- where an unknown of the minimum is zero: its size tells no step


@pytest.mark.parametrize("start", [(1.0, 1.0), (0.2, 0.2), (0.0, 0.0), (-1.0, 3.0)])
def test_numpy_finds_a_minimum_with_a_zero(start: tuple[float, float]) -> None:
    """(0, 2) is the minimum of y.A y/2 - b.y, and A^-1 its derivative by b."""
    a, b = np.array([[2, 0.5], [0.5, 1]]), np.array([1.0, 2])
    sol = rootdiff.minimize(lambda y, b: y @ a @ y / 2 - b @ y, np.array(start), b)
    assert sol.evaluations < 1000
    np.testing.assert_allclose(sol.y, [0, 2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(sol.jacobian()[0], np.linalg.inv(a), rtol=0, atol=ROUGH)


def test_numpy_finds_random_minima_with_zeros() -> None:
    """Half of the unknowns are zero at the minima of these quadratic forms."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = int(rng.integers(1, 5))
        basis, values = np.linalg.qr(rng.normal(size=(n, n)))[0], rng.uniform(0.3, 3, n)
        y = rng.normal(size=n) * (rng.random(n) < 0.5)
        a = basis @ np.diag(values) @ basis.T
        sol = rootdiff.minimize(lambda y, b, a=a: y @ a @ y / 2 - b @ y, rng.normal(size=n), a @ y)
        np.testing.assert_allclose(sol.y, y, rtol=0, atol=1e-8)


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


#: Of y next to an inflection, each with a start; the last ones have two unknowns, coupled or not.
INFLECTIONS: list[tuple[Any, list[float]]] = [
    (lambda y: (y**3).sum(), [1.0]),
    (lambda y: ((y - 1) ** 3).sum(), [3.0]),
    (lambda y: (y**5).sum(), [1.0]),
    (lambda y: (y**3 - 3 * y**2 + 3 * y).sum(), [3.0]),
    (lambda y: y[0] ** 3 + y[1] ** 2, [1.0, 1.0]),
    (lambda y: (y[0] + y[1] / 2 - 1) ** 3 + (y[1] - y[0]) ** 2, [1.0, 1.0]),
    (lambda y: (y[0] + y[1] - 1) ** 3 + (y[1] - 2) ** 2, [3.0, 3.0]),
    (lambda y: (y[0] + y[1] / 10 - 1) ** 3 + (y[1] - 2) ** 2, [3.0, 3.0]),
]


@pytest.mark.parametrize("solver", ["auto", "torch:LBFGS"])
def test_an_inflection_is_no_success(solver: str) -> None:
    """There the gradient is zero, and so is the Hessian: f falls on one side."""
    import torch

    import rootdiff_torch

    def solve(f: Any, start: list[float], **options: Any) -> Any:
        return rootdiff_torch.minimize(
            f, torch.tensor(start).double(), solver=solver, on_failure="ignore", **options
        ).status

    for f, start in INFLECTIONS:
        assert solve(f, start) > Status.AT_PRECISION
    if solver == "auto":
        assert solve(*INFLECTIONS[0], bounds=(-1.0, None)) == Status.SADDLE
        for f, start in INFLECTIONS[::4]:
            found = rootdiff.minimize(f, np.array(start), on_failure="ignore").status
            assert found == solve(f, start) == Status.SADDLE


def test_an_inflection_is_no_success_in_jax_nor_of_a_sum_of_squares() -> None:
    import jax
    import jax.numpy as jnp
    import torch

    import rootdiff_jax
    import rootdiff_torch

    with jax.enable_x64(True):
        assert rootdiff_jax.minimize(INFLECTIONS[0][0], jnp.ones(1), on_failure="ignore").status == Status.SADDLE
    found = rootdiff_torch.least_squares(
        lambda y: torch.sqrt(20 + 2 * (y - 1) ** 3), torch.ones(1).double() * 2, on_failure="ignore"
    )
    assert found.status == Status.SADDLE


@pytest.mark.parametrize("expanded", [False, True])
def test_a_minimum_without_curvature_is_one(expanded: bool) -> None:
    import torch

    import rootdiff_torch

    def quartic(y: Any) -> Any:
        return (y**4 - 4 * y**3 + 6 * y**2 - 4 * y).sum() if expanded else ((y - 1) ** 4).sum()

    for f, start in ((quartic, [3.0]), (lambda y: (y**4).sum(), [1.0])):
        rootdiff_torch.minimize(f, torch.tensor(start).double())


def test_a_minimum_in_a_well_that_is_narrow_beside_y_is_one() -> None:
    import torch

    import rootdiff_torch

    for place, width in ((1e9, 1e-2), (1e6, 1e-5)):
        start = torch.tensor([place + width / 4]).double()
        y = rootdiff_torch.minimize(lambda y: (-1 / (1 + ((y - place) / width) ** 2)).sum(), start).y
        assert y == place


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


def test_curvature_of_many_unknowns_is_looked_at_by_products() -> None:
    import torch

    import rootdiff_torch

    goal = torch.linspace(0.1, 3, 1100).double()

    def saddle(y: Any) -> Any:
        return torch.cat([y[:1] ** 2 - 1, goal[1:] * (y - goal)[1:]])

    def stiff(y: Any) -> Any:
        return goal * (y - goal)

    for r, status in ((saddle, [Status.SADDLE]), (stiff, [0, 1])):
        sol = rootdiff_torch.minimize(
            lambda y, r=r: (r(y) ** 2).sum(), 0 * goal, solver="torch:LBFGS", on_failure="ignore"
        )
        assert sol.status in status
    found = rootdiff_torch.least_squares(saddle, 0 * goal, on_failure="ignore")
    assert found.status == Status.SADDLE


@TWO
def test_an_objective_without_a_minimum_is_no_success(backend: Harness) -> None:
    solver = rootdiff.NewtonTrustRegion(max_steps=9)
    for f, match in (
        (lambda y: y[0] + 0 * y[0] ** 2, "MAX_STEPS: (.|\n)*bounded below"),
        (lambda y: array_namespace(y).exp(-y[0]), "minimize: the system has no minimum"),
        (lambda y: y[0] ** 2 - y[1] ** 2, "minimize: the system has no minimum"),
    ):
        with pytest.raises(ConvergenceError, match=match):
            backend.solve(f, np.ones(2), entry="minimize", solver=solver)


@TWO
def test_an_objective_that_is_not_bounded_below(backend: Harness) -> None:
    """Early: it ran to 1e153, and in NumPy called the objective 30,000 to 60,000 times."""
    calls = [0]
    for f, y0 in (
        (lambda y: y[0] ** 2 - y[1] ** 2, [0.0, 0.0]),
        (lambda y: y[0] ** 2 - 1e-9 * y[1] ** 2 + 1e5, [1.0, 1.0]),
        (lambda y: y[0] * y[1], [0.3, 0.2]),
        (lambda y: y[0] + y[1] ** 2, [1.0, 1.0]),
        (lambda y: -(y**4).sum(), [1.0, 0.1]),
    ):

        def counted(y: Any, f: Any = f) -> Any:
            calls[0] += 1
            return f(y)

        sol = backend.solve(counted, np.array(y0), entry="minimize", on_failure="ignore")
        assert sol.status == Status.UNBOUNDED
        assert np.isfinite(sol.y).all()
    assert calls[0] < 5 * 2500
    with pytest.raises(
        ConvergenceError, match=r"UNBOUNDED: the objective falls no slower(.|\n)*add bounds, or check the"
    ):
        backend.solve(lambda y: -y[0], np.ones(1), entry="minimize")
    held = backend.solve(lambda y: y[0] ** 2 - y[1] ** 2, np.ones(2), entry="minimize", bounds=(None, (9.0, 3.0)))
    assert held.status == Status.UNBOUNDED if held.y[1] < 0 else held.y[1] == 3


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_bounded_objectives_are_not_taken_for_unbounded(backend: Harness) -> None:
    def beale(y: Any) -> Any:
        return sum((a - y[0] * (1 - y[1] ** k)) ** 2 for k, a in ((1, 1.5), (2, 2.25), (3, 2.625)))

    def small(y: Any) -> Any:
        xp = array_namespace(y)
        return (1e4 * y[0] * y[1] - 1) ** 2 + (xp.exp(-y[0]) + xp.exp(-y[1]) - 1.0001) ** 2

    def log(y: Any) -> Any:
        return array_namespace(y).log(y)

    for f, y0, found in (
        (lambda y: 100 * (y[1] - y[0] ** 2) ** 2 + (1 - y[0]) ** 2, [-120.0, 100.0], True),
        (beale, [8.0, 0.8], True),
        (small, [0.0, 1.0], True),
        (lambda y: (y - log(y)).sum(), [1e-3, 40.0], True),
        (lambda y: y[0] ** 4 - y[0] ** 2 + y[1] ** 2, [1e-15, 1.0], True),
        (lambda y: 1e-12 * y[0] ** 4 - y[0] ** 2 + y[1] ** 2, [1.0, 1.0], True),
        (lambda y: (y[0] - 1e20) ** 2 + y[1] ** 2, [0.0, 1.0], True),
        (lambda y: 1 + array_namespace(y).exp(-y[0]) + y[1] ** 2, [1.0, 1.0], False),
        (lambda y: -array_namespace(y).atan(y[0]) + y[1] ** 2, [1.0, 1.0], False),
    ):
        sol = backend.solve(f, np.array(y0), entry="minimize", on_failure="ignore")
        assert sol.status != Status.UNBOUNDED
        assert (sol.status <= Status.AT_PRECISION) == found


@pytest.mark.parametrize("backend", ["torch", "jax-jit"], indirect=True)
def test_one_system_of_a_batch_is_not_bounded_below(backend: Harness) -> None:
    a = np.array([1.0, -1.0, 2.0])
    found = backend.vjp(
        lambda y, a: (y[..., 0] - 1) ** 2 + a * (y[..., 1] - a) ** 2,
        np.zeros((3, 2)),
        a,
        w=np.ones((3, 2)),
        entry="minimize",
        batch_ndim=1,
        on_failure="nan",
    )
    np.testing.assert_array_equal(found.status, [0, Status.UNBOUNDED, 0])
    np.testing.assert_allclose(found.derivative[0], [1, np.nan, 1], rtol=1e-12)


# --- inputs


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
    with pytest.raises(
        ArgumentError, match=r"NewtonTrustRegion minimises an objective without constraints\. Call minimize"
    ):
        rootdiff.root(lambda y: y, np.ones(2), solver=rootdiff.NewtonTrustRegion())
    with pytest.raises(ArgumentError, match=r"GaussNewton minimises a sum of squares\. Call least_squares"):
        rootdiff.minimize(valley, np.ones(2), THETA, solver=rootdiff.GaussNewton())
