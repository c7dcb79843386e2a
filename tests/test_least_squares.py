"""`least_squares`: its minimum has the derivative of a root of J^T r, with the whole Hessian; what is none says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, Status
from tests.harness import Harness
from tests.minima import SQUARES, V, W

residual, jacobian, THETA = SQUARES.function, SQUARES.jac, SQUARES.theta
minimum, sensitivity = SQUARES.minimum, SQUARES.sensitivity


# --- the derivative


def test_a_wrong_jac_is_refused() -> None:
    """At once, since it moves the minimum: each row by its own part here."""
    with pytest.raises(ArgumentError, match=r"^jac: it is not the derivative of the residual"):
        rootdiff.least_squares(
            lambda y: np.stack([y[0] - 1, y[0] ** 2 - 2]), np.ones(1), jac=lambda y: np.array([[1.0], [y[0]]])
        )
    with pytest.raises(ArgumentError, match=r"^jac: it returned .* of shape \(2, 5\)"):
        rootdiff.least_squares(residual, np.ones(2), THETA, jac=lambda y, theta: jacobian(y, theta).T)


@pytest.mark.parametrize("m", [3, 4, 15, 30])
def test_ridge_regression_from_as_many_equations_to_ten_times_as_many(m: int) -> None:
    """Linear: y = (X^T X + a)^-1 X^T d, and dy/da = -(X^T X + a)^-1 y."""
    import torch

    import rootdiff_torch

    x, d = (torch.tensor(np.random.default_rng(m).normal(size=size)) for size in ((m, 3), m))

    def stacked(y: Any, a: Any) -> Any:
        return torch.cat([x @ y - d, a.sqrt() * y])

    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    found = rootdiff_torch.least_squares(stacked, torch.zeros(3).double(), a)
    matrix = x.T @ x + a * torch.eye(3, dtype=a.dtype)
    y = torch.linalg.solve(matrix, x.T @ d)
    np.testing.assert_allclose(found.y.detach(), y.detach(), rtol=1e-12)
    found.y.sum().backward()
    np.testing.assert_allclose(a.grad, -torch.linalg.solve(matrix, y).sum().detach(), rtol=1e-10)


def test_as_many_equations_as_unknowns_give_the_root() -> None:
    def f(y: Any, a: Any) -> Any:
        return np.stack([y[0] ** 3 - a[0] * y[1], y[1] - a[1] * a[2]])

    fit, root = (entry(f, np.ones(2), THETA) for entry in (rootdiff.least_squares, rootdiff.root))
    np.testing.assert_allclose(fit.y, root.y, rtol=1e-11)
    np.testing.assert_allclose(fit.vjp(W)[0], root.vjp(W)[0], rtol=1e-6)


def test_any_solver_of_roots_and_a_looser_tolerance() -> None:
    import torch

    import rootdiff_torch

    for solver in ("newton", "trust_region", rootdiff.GaussNewton(rtol=1e-4), rootdiff.GaussNewton(geodesic=True)):
        found = rootdiff_torch.least_squares(residual, torch.ones(2).double(), torch.tensor(THETA), solver=solver)
        np.testing.assert_allclose(found.y, minimum(THETA), rtol=1e-4)
        assert bool(found.converged)


# --- losses

LOSSES = {
    "linear": lambda z: z,
    "soft_l1": lambda z: 2 * (np.sqrt(1 + z) - 1),
    "huber": lambda z: np.where(np.abs(z) <= 1, z, 2 * np.sqrt(z) - 1),
    "cauchy": np.log1p,
    "arctan": np.arctan,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_scipy(loss: Any) -> None:
    """At the minimum the slope of the sum of rho(r^2), by complex steps, is zero; so is its derivative along theta."""
    rho, theta = LOSSES[loss], THETA * np.array([1.0, 1.0, 3.0])

    def slope(y: Any, theta: Any) -> Any:
        return np.array([np.imag(np.sum(rho(residual(y + 1e-20j * e, theta) ** 2))) / 1e-20 for e in np.eye(2)])

    for options in ({"derivatives": "complex-step"}, {"jac": jacobian}):
        found = rootdiff.least_squares(residual, np.ones(2), theta, loss=loss, **options)
        assert np.abs(slope(found.y, theta)).max() < 1e-11
        h = 1e-5 * V
        moved = found.y + 1e-5 * found.jvp(V), found.y - 1e-5 * found.jvp(V)
        change = slope(moved[0], theta + h) - slope(moved[1], theta - h)
        assert np.abs(change).max() < 1e-11


def test_a_loss_of_a_zero_residual_has_finite_derivatives() -> None:
    import torch

    import rootdiff_torch

    for loss in LOSSES:
        a = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
        y = rootdiff_torch.least_squares(lambda y, a: torch.cat([y - a, 0 * y]), torch.ones(1).double(), a, loss=loss).y
        assert torch.autograd.grad(y, a)[0].item() == pytest.approx(1, rel=1e-9)


def test_losses_hold_over_the_whole_range_of_the_dtype() -> None:
    """In float32, against float64; what overflowed inside the loss counted as zero."""
    from rootdiff._squares import slopes_of_loss, with_loss

    r = np.concatenate([10.0 ** np.arange(-12, 38), [1.0, 0.9, 1.1]]).astype(np.float32)
    for loss, rho in LOSSES.items():
        for signed in (r, -r):
            exact = with_loss(np, loss, signed.astype(float))
            np.testing.assert_allclose(with_loss(np, loss, signed), exact, rtol=1e-6)
            np.testing.assert_allclose(exact[12:40] ** 2, rho(r[12:40].astype(float) ** 2), rtol=1e-7)
            given, precise = slopes_of_loss(np, loss, signed), slopes_of_loss(np, loss, signed.astype(float))
            np.testing.assert_allclose(given[0], precise[0], rtol=1e-6, atol=1e-37)
            np.testing.assert_allclose(given[1], precise[1], rtol=2e-5, atol=1e-37)
    found = rootdiff.least_squares(
        lambda y: np.concat([1e160 * (y - 1), y - 2, y - 2.5]), np.array([3.0]), loss="soft_l1", on_failure="ignore"
    )
    assert found.y[0] == pytest.approx(1) or not found.converged


@pytest.mark.parametrize("loss", ["huber", "arctan"])
def test_differences_of_a_loss_are_those_of_the_residual(loss: Any) -> None:
    """As many equations as unknowns: y = A^-1 d for any loss; in an outlier no slope of the loss can be measured."""
    t = np.array([0.72, 1.17, 1.72])
    matrix = np.stack([t**0, t, t**2], axis=-1)
    found = rootdiff.least_squares(
        lambda y, d: 0.1 * (matrix @ y - d), np.ones(3), np.array([2.6, 4.3, 307.0]), loss=loss
    )
    np.testing.assert_allclose(found.jacobian()[0], np.linalg.inv(matrix), rtol=1e-6)

    import torch

    import rootdiff_torch

    t = np.array([0.11, 0.32, 0.86, 1.88, 2.45, 2.84])
    d, start = np.array([0.3554, 301.0, 1.8163, 1.9338, 1.816, 1.8288]), np.array([1.96, 1.63])

    def fit(tanh: Any, t: Any) -> Any:
        return lambda y, d: 100 * (y[0] * tanh(y[1] * t) - d)

    by_tape = torch.tensor(d, requires_grad=True)
    tape = rootdiff_torch.least_squares(fit(torch.tanh, torch.tensor(t)), torch.tensor(start), by_tape, loss=loss)
    tape.y.sum().backward()
    found = rootdiff.least_squares(fit(np.tanh, t), start, d, loss=loss)
    assert (np.abs(found.y - tape.y.detach().numpy()) <= 10 * found.error + 1e-14).all()
    exact = by_tape.grad.numpy()
    # differences of measured slopes know four digits, more or fewer as f is rounded
    np.testing.assert_allclose(found.vjp(np.ones(2))[0], exact, atol=1e-4 * np.abs(exact).max())


# --- what is no minimum, or not the only one


@pytest.mark.parametrize("backend", ["numpy", "torch", "jax"], indirect=True)
def test_a_saddle_is_no_success(backend: Harness) -> None:
    def double_well(y: Any, a: Any) -> Any:
        return array_namespace(y).stack([(y[0] - a[0]) ** 2 - 4, y[1]])

    a, top = np.array([1.0]), np.array([1.0, 0.0])
    with pytest.raises(ConvergenceError, match=r"^least_squares: the system has no minimum(.|\n)*SADDLE: the gradient"):
        backend.solve(double_well, top, a, entry="least_squares")
    if backend.name != "jax":
        found = backend.solve(double_well, top + 1e-3, a, entry="least_squares")
        np.testing.assert_allclose(found.y, [3.0, 0.0], atol=1e-9)
        kept = backend.vjp(double_well, top, a, w=np.ones(2), entry="least_squares", on_failure="nan")
        assert kept.status == Status.SADDLE
        assert np.isnan(kept.derivative[0]).all()


@pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
def test_unknowns_that_are_not_determined_are_no_success(backend: Harness) -> None:
    def of_the_sum(y: Any, a: Any) -> Any:
        return array_namespace(y).stack([y[0] + y[1] - a[0], 2 * (y[0] + y[1]) - a[0] ** 2, (y[0] + y[1]) ** 2 - 1])

    def of_one(y: Any, a: Any) -> Any:
        return array_namespace(y).stack([y[0] - a[0], y[0] ** 2 - a[0], 2 * y[0]])

    for f in (of_the_sum, of_one):
        with pytest.raises(ConvergenceError, match=r"SINGULAR: the Hessian is singular(.|\n)*one minimum of many"):
            backend.solve(f, np.array([1.0, 2.0]), np.array([3.0]), entry="least_squares")


@pytest.mark.filterwarnings("ignore:least_squares")
def test_of_minima_that_are_not_determined_the_nearest_one_to_the_start_is_kept() -> None:
    """In lengths that are not scaled, of a linear residual: where (1, 2) . y = 3.5, along (1, 2) from the start."""
    import torch

    import rootdiff_torch

    def of_one_combination(y: Any) -> Any:
        along = y[0] + 2 * y[1]
        return torch.stack([along - 3, 2 * along - 9, along])

    start, solver = torch.tensor([1.0, 5.0]).double(), rootdiff.GaussNewton(scale="none")
    found = rootdiff_torch.least_squares(of_one_combination, start, solver=solver, on_failure="keep")
    assert found.status == Status.SINGULAR
    np.testing.assert_allclose(found.y - start, np.array([1, 2]) * (3.5 - 11) / 5, rtol=1e-12)


def test_a_minimum_where_the_jacobian_is_zero_but_the_hessian_is_not() -> None:
    found = rootdiff.least_squares(lambda y, a: np.concat([1 + (y - a) ** 2, y**0]), np.ones(1), 0.3)
    assert found.y[0] == pytest.approx(0.3, abs=1e-6)
    assert found.vjp(np.ones(1))[0] == pytest.approx(1, rel=1e-4)


def test_a_gradient_that_is_no_noise_is_no_success() -> None:
    """The smallest eigenvalue of the Hessian makes of noise an error that is longer than the step to the minimum."""
    import torch

    import rootdiff_torch

    t = torch.tensor([0.571, 0.573, 1.08, 1.277, 2.065, 2.586, 2.911], dtype=torch.float64)
    d = torch.tensor([0.18, 0.181, 0.633, 0.881, 1.397, 0.884, 300.5], dtype=torch.float64)
    found = rootdiff_torch.least_squares(
        lambda y: y[0] * torch.exp(-((t - y[1]) ** 2) * y[2]) - d,
        torch.tensor([0.967, 2.109, 0.875], dtype=torch.float64),
        solver=rootdiff.GaussNewton(max_steps=60),
        on_failure="ignore",
    )
    assert found.residual_norm > 1e-3
    assert not found.converged


@pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
def test_what_differences_do_not_feel_determines_nothing(backend: Harness) -> None:
    def flat(y: Any, a: Any) -> Any:
        return 1 + (y - a) ** 4

    def saturated(y: Any, a: Any) -> Any:
        xp, t = array_namespace(y), (0.296, 1.69, 1.939, 2.167, 2.458)
        d = (10.28, 0.7373, 0.7452, 0.7491, 0.7516)
        return xp.stack([0.1 * a[0] * (y[0] * xp.tanh(y[1] * time) - datum) for time, datum in zip(t, d, strict=True)])

    for f, y0, loss in ((flat, [1.0], "linear"), (saturated, [2.65, 63.5], "huber")):
        a = np.array([2.0 if f is flat else 1.0])
        with pytest.raises(ConvergenceError, match="SINGULAR"):
            backend.solve(f, np.array(y0), a, entry="least_squares", loss=loss)


def test_differences_that_leave_an_unknown_no_digit_are_no_success() -> None:
    t = np.array([0.21462294819718533, 1.9403806181593954, 2.1891053825921922, 2.80445805182511])
    d = np.array([2.499839779449146, 11.326785319471986, 1.284770114775652, 1.2196308283165125])
    found = rootdiff.least_squares(
        lambda y: 0.1 * (y[0] * np.exp(-y[1] * t) + y[2] - d),
        np.array([7251.0225557, 1.6354497428e-05, -7246.7278099]),
        loss="huber",
        solver=rootdiff.GaussNewton(max_steps=3),
        on_failure="ignore",
    )
    assert not found.converged


def test_no_minimum_at_all_is_no_success() -> None:
    import torch

    import rootdiff_torch

    with pytest.raises(ConvergenceError, match="STALLED: no step reduces the sum of squares"):
        rootdiff_torch.least_squares(lambda y: torch.cat([torch.exp(-y), y**0]), torch.ones(1).double())
    with pytest.raises(ConvergenceError, match="ILL_DETERMINED"):  # differences do not tell the slope from zero
        rootdiff.least_squares(lambda y: np.concat([np.exp(-y), y**0]), np.ones(1))


# --- fewer equations than unknowns


ROWS, START, RHS = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), np.array([0.5, -1.0, 2.0]), np.array([1.0, 2.0])


def nearest(start: Any, rhs: Any) -> Any:
    return start + np.linalg.pinv(ROWS) @ (rhs - ROWS @ start)


def test_fewer_equations_than_unknowns_have_the_nearest_root_and_its_derivatives() -> None:
    import torch

    import rootdiff_torch

    inverse = np.linalg.pinv(ROWS)
    sol = rootdiff.least_squares(lambda y, rhs: ROWS @ y - rhs, START, RHS, derivatives="complex-step")
    np.testing.assert_allclose(sol.y, nearest(START, RHS), rtol=1e-10)
    np.testing.assert_allclose(sol.vjp(np.array([1.0, 0.0, 0.0]))[0], inverse[0], rtol=1e-8)
    rows, start, rhs = (torch.tensor(value) for value in (ROWS, START, RHS))
    start.requires_grad_()
    rhs.requires_grad_()
    found = rootdiff_torch.least_squares(lambda y, rhs: rows @ y - rhs, start, rhs).y
    np.testing.assert_allclose(found.detach().numpy(), nearest(START, RHS), rtol=1e-12)
    found[0].backward()
    np.testing.assert_allclose(rhs.grad, inverse[0], rtol=1e-12)
    np.testing.assert_allclose(start.grad, (np.eye(3) - inverse @ ROWS)[0], rtol=1e-12)


def test_the_nearest_roots_of_a_batch_in_jax_carry_structure_and_aux() -> None:
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    def sphere(y: Any, radius: Any) -> Any:
        squares = jnp.sum(y["a"] ** 2, axis=-1) + y["b"] ** 2
        return squares[..., None] - radius[..., None] ** 2, 2 * radius

    start = {"a": jnp.array([[1.0, 2.0], [0.0, 3.0]]), "b": jnp.array([2.0, 4.0])}

    def found(radius: Any) -> Any:
        return rootdiff_jax.least_squares(sphere, start, radius, batch_ndim=1, has_aux=True)

    radii = jnp.array([6.0, 1.0])
    y, tangent = jax.jvp(lambda radii: found(radii).y, (radii,), (radii,))
    np.testing.assert_allclose(y["b"], [4.0, 0.8], rtol=1e-6)  # float32
    np.testing.assert_allclose(tangent["b"], [4.0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(found(radii).aux, [12.0, 2.0])


def test_fewer_equations_that_have_no_root_and_options_that_ask_for_more() -> None:
    import torch

    import rootdiff_torch

    with pytest.raises(ConvergenceError, match=r"^least_squares: the system has no nearest solution(.|\n)*INFEASIBLE"):
        rootdiff_torch.least_squares(lambda y: y[:1] ** 2 + 1, torch.ones(2).double())
    for name, value in (("loss", "huber"), ("jac", lambda y, rhs: ROWS)):
        with pytest.raises(ArgumentError, match=f"^{name}: .*2 equations for 3 unknowns"):
            rootdiff.least_squares(lambda y, rhs: ROWS @ y - rhs, START, RHS, **{name: value})


# --- inputs


def test_errors_name_what_came_and_what_to_do() -> None:
    y0, a = np.ones(2), 1.0
    for function, match in (
        (lambda y, a: np.array([1, 2, 3]), "^residual: it returned .* needs floating numpy arrays"),
        (lambda y, a: None, "^residual: it returned .* needs floating numpy arrays"),
    ):
        with pytest.raises((ArgumentError, ArgumentTypeError), match=match):
            rootdiff.least_squares(function, y0, a)
    with pytest.raises(ArgumentError, match=r"^loss: got 'l1'; allowed are 'linear', 'soft_l1'"):
        rootdiff.least_squares(residual, y0, THETA, loss="l1")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="minimise their sum of squares with least_squares"):
        rootdiff.root(residual, y0, THETA)
    with pytest.raises(ArgumentError, match=r"^solver: GaussNewton minimises a sum of squares. Call least_squares"):
        rootdiff.root(lambda y: y, y0, solver=rootdiff.GaussNewton())
    with pytest.raises(ArgumentError, match=r"does not begin with the batch axes of y0, \(4,\)"):
        rootdiff.least_squares(lambda y: y[0], np.ones((4, 2)), batch_ndim=1)
