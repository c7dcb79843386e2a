"""`implicit`: the derivative at a root found elsewhere; `implicit.wrap`; has_aux; residuals of another structure."""

from __future__ import annotations

import pickle
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, ConvergenceWarning, Status
from rootdiff.testing.problems import all_problems
from tests.harness import Harness

THETA = np.array([1.5, 0.8, 2.1])
W, V = np.array([0.7, -1.3]), np.array([0.3, -0.4, 1.1])


def residual(y: Any, theta: Any) -> Any:
    """Two equations of three parameters, whose Jacobian is not symmetric."""
    xp = array_namespace(y)
    first = y[..., 0] ** 3 - theta[..., 0] * y[..., 1]
    return xp.stack([first, y[..., 1] - theta[..., 1] * theta[..., 2]], axis=-1)


def with_product(y: Any, theta: Any) -> Any:
    return residual(y, theta), {"product": y[..., 0] * theta[..., 0]}


def closed_form(theta: np.ndarray) -> np.ndarray:
    last = theta[..., 1] * theta[..., 2]
    return np.stack([np.cbrt(theta[..., 0] * last), last], axis=-1)


def sensitivity(theta: np.ndarray) -> np.ndarray:
    """Return dy/dtheta, (*batch, 2, 3)."""
    first = closed_form(theta)[..., :1] / (3 * theta)
    last = np.stack([0 * theta[..., 0], theta[..., 2], theta[..., 1]], axis=-1)
    return np.stack([first, last], axis=-2)


def curvature(theta: np.ndarray) -> np.ndarray:
    """Return the Hessian of the first unknown, (3, 3)."""
    return closed_form(theta)[0] * (1 / 9 - np.eye(3) / 3) / np.outer(theta, theta)


def test_vjp_and_jvp_are_those_of_the_root(backend: Harness) -> None:
    y = closed_form(THETA)
    exact = sensitivity(THETA)
    pulled = backend.vjp(residual, y, THETA, w=W, entry="implicit")
    pushed = backend.jvp(residual, y, THETA, v=(V,), entry="implicit")
    np.testing.assert_allclose(pulled.derivative[0], W @ exact, rtol=1e-7)
    np.testing.assert_allclose(pushed.derivative, exact @ V, rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e12])
def test_y_comes_back_bit_for_bit(backend: Harness, scale: float) -> None:
    """No step is taken, though a Newton correction would change the last digits; in any units."""
    y = closed_form(THETA) * (1 + 1e-13 * np.array([1.0, -2.0]))
    found = backend.solve(lambda y, theta: residual(y / scale, theta), y * scale, THETA, entry="implicit")
    np.testing.assert_array_equal(found.y, y * scale)
    assert (int(found.steps), bool(found.solution.converged)) == (0, True)


@pytest.mark.parametrize("part", [1e-10, 1e-7, 1e-3, 0.1])
def test_what_is_no_root_raises_and_tells_how_far_off_it_is(backend: Harness, part: float) -> None:
    y = closed_form(THETA) * np.array([1.0, 1 + part])
    if backend.name == "jax-jit":  # nothing can raise there
        assert np.isnan(backend.solve(residual, y, THETA, entry="implicit").y).all()
        return
    with pytest.raises(ConvergenceError, match=r"^implicit: (.|\n)*y is no root: a Newton step changes") as caught:
        backend.solve(residual, y, THETA, entry="implicit")
    told = float(re.search(r"an unknown of size [\d.]+ by ([\d.e+-]+);", str(caught.value))[1])
    assert told == pytest.approx(part * closed_form(THETA)[1], rel=0.1)
    error = np.asarray(caught.value.solution.error)
    assert error[1] == pytest.approx(part * closed_form(THETA)[1], rel=0.1)
    found = backend.solve(residual, y, THETA, entry="implicit", rtol=2 * part)
    np.testing.assert_array_equal(found.y, y)


def test_policies_of_a_batch(backend: Harness) -> None:
    theta = THETA * np.array([[1.0], [1.3], [0.6], [2.0]])
    y, bad = closed_form(theta), np.array([False, False, True, False])
    y[bad] += 0.25
    w = np.ones((4, 1)) * W
    exact = np.einsum("bi,bij->bj", w, sensitivity(theta))
    options = {"batch_ndim": 1, "entry": "implicit"}
    nan = backend.vjp(residual, y, theta, w=w, on_failure="nan", **options)
    np.testing.assert_array_equal(np.isnan(nan.y[:, 0]), bad)
    np.testing.assert_allclose(nan.derivative[0][~bad], exact[~bad], rtol=1e-7)
    assert np.isnan(nan.derivative[0][bad]).all()
    kept = backend.solve(residual, y, theta, on_failure="ignore", **options)
    np.testing.assert_array_equal(kept.y, y)
    np.testing.assert_array_equal(kept.status > Status.AT_PRECISION, bad)
    if backend.name != "jax-jit":
        with pytest.raises(ConvergenceError, match=r"1 of 4 systems has no root(.|\n)*\(systems 2\)"):
            backend.solve(residual, y, theta, **options)
        for policy in ("warn", "keep"):
            with pytest.warns(ConvergenceWarning, match="y is no root"):
                found = backend.solve(residual, y, theta, on_failure=policy, **options)
            np.testing.assert_array_equal(np.isnan(found.y[:, 0]), bad & (policy == "warn"))


def test_an_unknown_that_is_zero_to_rounding_has_the_size_of_the_others(backend: Harness) -> None:
    def shifted(y: Any, a: Any) -> Any:
        return y - a * a + a[..., 0] * array_namespace(y).asarray([1.0, 0.0])

    found = backend.solve(shifted, np.array([2.0, 3e-17]), np.array([2.0, 0.0]), entry="implicit")
    assert bool(found.solution.converged)


def test_zero_to_rounding_alone_needs_a_scale(backend: Harness) -> None:
    def sine(y: Any, a: Any) -> Any:
        return a * array_namespace(y).sin(y)

    a = np.array([2.0])
    assert bool(backend.solve(sine, np.zeros(1), a, entry="implicit").solution.converged)
    nearly = {"entry": "implicit", "on_failure": "ignore"}
    assert not bool(backend.solve(sine, np.array([1e-20]), a, **nearly).solution.converged)
    assert bool(backend.solve(sine, np.array([1e-20]), a, y_scale=1e-6, **nearly).solution.converged)
    assert bool(backend.solve(sine, np.array([1e-20]), a, atol=1e-15, **nearly).solution.converged)


@pytest.mark.parametrize("problem", all_problems(), ids=lambda problem: problem.name)
def test_what_root_found_is_a_root(problem: Any) -> None:
    found = rootdiff.root(problem.residual, problem.y0, problem.theta, on_failure="ignore")
    if not found.converged:
        return
    zero = None if np.max(np.abs(found.y)) > 1e-8 else max(1e-3, float(np.max(np.abs(problem.y0))))
    again = rootdiff.implicit(problem.residual, found.y, problem.theta, y_scale=zero)
    np.testing.assert_array_equal(again.y, found.y)


def test_a_point_without_a_value_is_named(backend: Harness) -> None:
    if backend.name == "jax-jit":
        return
    with pytest.raises(ConvergenceError, match=r"NONFINITE_START: the residual at y has NaN.* because y holds NaN"):
        backend.solve(residual, np.array([1.0, np.nan]), THETA, entry="implicit")


def test_where_there_is_no_root_but_a_small_residual(backend: Harness) -> None:
    """exp(-y) at 30 is 1e-13, yet y is no root."""
    found = backend.solve(
        lambda y, a: a * array_namespace(y).exp(-y), [30.0], [1.0], entry="implicit", on_failure="ignore"
    )
    assert not bool(found.solution.converged)


@pytest.mark.parametrize("n", [100, 2000])
def test_large_systems(backend: Harness, n: int) -> None:
    """2000 unknowns, of which no Jacobian is formed: row by row."""
    y = 1 + 0.3 * np.sin(np.arange(n))

    def ring(y: Any, s: Any) -> Any:
        xp = array_namespace(y)
        return y**3 + 0.3 * xp.roll(y, 1, axis=-1) - s * xp.asarray(load)

    load = y**3 + 0.3 * np.roll(y, 1)
    found = backend.jvp(ring, y, np.array([1.0]), v=(np.array([1.0]),), entry="implicit")
    t = found.derivative
    np.testing.assert_allclose(3 * y**2 * t + 0.3 * np.roll(t, 1), load, rtol=1e-6)
    y[n // 2] += 1e-6
    off = backend.solve(ring, y, np.array([1.0]), entry="implicit", on_failure="ignore")
    assert not bool(off.solution.converged)


@pytest.mark.elsewhere_in_jax("tests/test_implicit.py::test_vjp_and_jvp_are_those_of_the_root")
def test_float32(backend: Harness) -> None:
    y, theta = closed_form(THETA).astype(np.float32), THETA.astype(np.float32)
    found = backend.vjp(residual, y, theta, w=W.astype(np.float32), entry="implicit")
    np.testing.assert_allclose(
        found.derivative[0], W @ sensitivity(THETA), rtol=2e-3 if "numpy" in backend.name else 1e-5
    )
    assert found.y.dtype == np.float32


# --- NumPy


def test_numpy_takes_rules_and_keeps_its_derivatives_through_a_pickle() -> None:
    def jac(y: Any, theta: Any) -> Any:
        return np.array([[3 * y[0] ** 2, -theta[0]], [0.0, 1.0]])

    sol = rootdiff.implicit(residual, closed_form(THETA), THETA, jac=jac, has_aux=False)
    np.testing.assert_allclose(sol.jacobian()[0], sensitivity(THETA), rtol=1e-8)
    exact = rootdiff.implicit(residual, closed_form(THETA), THETA, derivatives="complex-step")
    np.testing.assert_allclose(exact.jacobian()[0], sensitivity(THETA), rtol=1e-14)
    with_aux = rootdiff.implicit(with_product, closed_form(THETA), THETA, has_aux=True)
    again = pickle.loads(pickle.dumps(with_aux))
    np.testing.assert_allclose(again.jacobian()[0], sensitivity(THETA), rtol=1e-8)
    assert again.aux["product"] == with_aux.aux["product"]


def test_y_may_be_a_number_or_a_list() -> None:
    assert float(rootdiff.implicit(lambda y, a: y**2 - a, 2.0, 4.0).vjp(1.0)[0]) == pytest.approx(0.25)
    sol = rootdiff.implicit(residual, closed_form(THETA).tolist(), THETA)
    np.testing.assert_allclose(sol.vjp(W)[0], W @ sensitivity(THETA), rtol=1e-7)


# --- second order, transforms, closures


def test_torch_second_order_and_torch_func() -> None:
    import torch

    import rootdiff_torch as rd

    theta = torch.tensor(THETA, requires_grad=True)
    y = torch.tensor(closed_form(THETA))

    def first(theta: Any) -> Any:
        return rd.implicit(residual, y, theta).y[0]

    (gradient,) = torch.autograd.grad(first(theta), theta, create_graph=True)
    rows = [torch.autograd.grad(part, theta, retain_graph=True)[0].numpy() for part in gradient]
    np.testing.assert_allclose(rows, curvature(THETA), rtol=1e-9)
    np.testing.assert_allclose(torch.func.hessian(first)(theta.detach()), curvature(THETA), rtol=1e-9)
    thetas = THETA * np.array([[1.0], [1.3], [0.6]])
    roots = torch.tensor(closed_form(thetas))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda theta, y: rd.implicit(residual, y, theta).y))
    np.testing.assert_allclose(jacobian(torch.tensor(thetas), roots), sensitivity(thetas), rtol=1e-9)


@pytest.mark.exhaustive  # by the same rule, of `implicit.wrap`: test_wrap_in_jax_whatever_the_solver_is_made_of
def test_jax_second_order_vmap_and_jit() -> None:
    import jax
    import jax.numpy as jnp

    import rootdiff_jax as rd

    jax.config.update("jax_enable_x64", True)
    y = jnp.asarray(closed_form(THETA))

    def first(theta: Any) -> Any:
        return rd.implicit(residual, y, theta).y[0]

    hessian = jax.jit(jax.hessian(first))
    np.testing.assert_allclose(hessian(jnp.asarray(THETA)), curvature(THETA), rtol=1e-9)
    thetas = THETA * np.array([[1.0], [1.3], [0.6]])
    roots = jnp.asarray(closed_form(thetas))
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda theta, y: rd.implicit(residual, y, theta).y)))
    np.testing.assert_allclose(jacobian(jnp.asarray(thetas), roots), sensitivity(thetas), rtol=1e-9)


@pytest.mark.parametrize("package", ["rootdiff_torch", "rootdiff_jax"])
def test_what_y_depends_on_and_what_the_residual_closes_over(package: str) -> None:
    """A root that carries a derivative of its own, a wrong one, gets that of the theorem."""
    y = closed_form(THETA)
    if package == "rootdiff_torch":
        import torch

        import rootdiff_torch

        jacobian, given = torch.func.jacrev, torch.tensor(THETA)

        def solve(theta: Any) -> Any:
            return rootdiff_torch.implicit(lambda y: residual(y, theta), torch.tensor(y) + 0 * theta[:2]).y
    else:
        import jax

        import rootdiff_jax

        jax.config.update("jax_enable_x64", True)
        jacobian, given = jax.jacrev, jax.numpy.asarray(THETA)

        def solve(theta: Any) -> Any:
            return rootdiff_jax.implicit(lambda y: residual(y, theta), y + 0 * theta[:2]).y

    np.testing.assert_allclose(jacobian(solve)(given), sensitivity(THETA), rtol=1e-9)


# --- pytrees, other structures


def of_dict(y: Any, theta: Any) -> Any:
    """The residual of a dict, of parameters in a tuple; its values are a tuple of an array and a number's array."""
    (a,), b = theta["a"], theta["b"]
    return y["last"] - b[..., :1] * b[..., 1:], (y["first"] ** 3 - a * y["last"][..., 0],)


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch", "rootdiff_jax"])
@pytest.mark.parametrize("name", ["implicit", "root"])
def test_pytrees_and_a_residual_of_another_structure(package: str, name: str) -> None:
    import jax
    import torch

    jax.config.update("jax_enable_x64", True)
    module = {"rootdiff": rootdiff}.get(package) or __import__(package)
    array = {"rootdiff": np.array, "rootdiff_torch": torch.tensor, "rootdiff_jax": jax.numpy.asarray}[package]
    exact = closed_form(THETA)
    y = {"first": array(exact[0]), "last": array(exact[1:])}
    if name == "root":
        y = {"first": y["first"] + 0.3, "last": y["last"] - 0.2}
    theta = {"a": (array(THETA[0]),), "b": array(THETA[1:])}
    entry = partial(module.root, solver="newton") if name == "root" else module.implicit
    if package == "rootdiff":
        found = entry(of_dict, y, theta)
        (gradient,) = found.vjp({"first": W[0], "last": W[1:]})
    elif package == "rootdiff_torch":
        leaves = [theta["a"][0].requires_grad_(), theta["b"].requires_grad_()]
        found = entry(of_dict, y, theta)
        got = torch.autograd.grad(W[0] * found.y["first"] + W[1] * found.y["last"][0], leaves)
        gradient = {"a": (got[0],), "b": got[1]}
    else:

        def loss(theta: Any) -> Any:
            found = entry(of_dict, y, theta)
            return W[0] * found.y["first"] + W[1] * found.y["last"][0], found

        gradient, found = jax.grad(loss, has_aux=True)(theta)
    values = np.array([float(gradient["a"][0]), *np.asarray(gradient["b"])])
    np.testing.assert_allclose(values, W @ sensitivity(THETA), rtol=1e-7)
    assert found.y["last"].shape == (1,)


@pytest.mark.elsewhere_in_jax("tests/test_implicit.py::test_vjp_and_jvp_are_those_of_the_root")
def test_a_batch_may_return_its_equations_one_by_one(backend: Harness) -> None:
    theta = THETA * np.array([[1.0], [1.3], [0.6]])

    def listed(y: Any, theta: Any) -> Any:
        value = residual(y, theta)
        return value[..., 1], {"two": value[..., 0]}

    found = backend.vjp(listed, np.ones((3, 2)), theta, w=np.ones((3, 1)) * W, batch_ndim=1, solver="newton")
    np.testing.assert_allclose(found.derivative[0], np.einsum("i,bij->bj", W, sensitivity(theta)), rtol=1e-7)


@pytest.mark.elsewhere_in_jax("tests/test_implicit.py::test_vjp_and_jvp_are_those_of_the_root")
def test_real_equations_of_a_complex_unknown_and_the_other_way_round(backend: Harness) -> None:
    def real(z: Any, a: Any) -> Any:  # z^2 = a + 2i
        xp = array_namespace(z)
        return [xp.real(z * z) - a, xp.imag(z * z) - 2.0]

    found = backend.solve(real, np.array([1.0 + 1.0j]), np.array([3.0]), solver="newton")
    np.testing.assert_allclose(found.y, np.sqrt([3.0 + 2.0j]), rtol=1e-12)

    def complex_(y: Any, a: Any) -> Any:
        z = y[..., :1] + 1j * y[..., 1:]
        return (z * z - a - 2.0j,)

    found = backend.solve(complex_, np.array([1.0, 1.0]), np.array([3.0]), solver="newton")
    np.testing.assert_allclose(found.y[0] + 1j * found.y[1], np.sqrt(3.0 + 2.0j), rtol=1e-12)


@pytest.mark.each_in_jax
@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (lambda y: (y, y[..., :1]), ["structure", "as many numbers", "has_aux=True"]),
        (lambda y: (y[..., :1],), ["structure", "as many numbers"]),
        (lambda y: {"one": y[..., 0], "two": y[..., 1] > 0}, ["structure"]),
        (lambda y: y[..., None], [r"\(2, 1\)", "arrange them as y is"]),
    ],
    ids=["more", "fewer", "bool", "column"],
)
def test_a_residual_of_another_size_is_named(backend: Harness, returned: Any, words: list[str]) -> None:
    with pytest.raises((ArgumentError, ArgumentTypeError)) as caught:
        backend.solve(lambda y, a: returned(y), np.ones(2), THETA, entry="implicit")
    for word in ["^residual: it returned", *words]:
        assert re.search(word, str(caught.value))


def test_a_cell_returns_the_structure_of_its_unknown(backend: Harness) -> None:
    with pytest.raises(ArgumentError, match=r"cell: it returned .*, but z0 is one array"):
        backend.solve(lambda z, a: (z,), np.ones(2), THETA, entry="fixed_point")


# --- has_aux


@pytest.mark.parametrize("name", ["root", "implicit", "fixed_point"])
def test_aux_is_what_the_residual_returns_at_the_root(backend: Harness, name: str) -> None:
    def cell(y: Any, theta: Any) -> Any:
        value, aux = with_product(y, theta)
        return y - 0.2 * value, aux

    f = cell if name == "fixed_point" else with_product
    start = closed_form(THETA) if name == "implicit" else np.ones(2)
    options = {} if name == "implicit" else {"solver": "newton"}  # which compiles faster than "auto"
    found = backend.solve(f, start, THETA, entry=name, has_aux=True, **options)
    np.testing.assert_allclose(found.solution.aux["product"], closed_form(THETA)[0] * THETA[0], rtol=1e-10)
    without = backend.solve(residual, closed_form(THETA), THETA, entry="implicit")
    assert without.solution.aux in (None, ())


def test_the_derivative_of_aux_is_the_whole_one() -> None:
    """That of cbrt(a b c) a, of which the partial one is the root alone."""
    import jax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    jax.config.update("jax_enable_x64", True)
    y = closed_form(THETA)
    exact = y[0] * np.array([4 / 3, THETA[0] / THETA[1] / 3, THETA[0] / THETA[2] / 3])

    def product(package: Any, theta: Any, start: Any) -> Any:
        return package.root(with_product, start, theta, solver="newton", has_aux=True).aux["product"]

    of_jax = jax.jit(jax.grad(lambda theta: product(rootdiff_jax, theta, jax.numpy.asarray(y))))
    np.testing.assert_allclose(of_jax(THETA), exact, rtol=1e-9)
    step = 1e-6 * np.eye(3)
    differences = [
        (closed_form(THETA + h)[0] * (THETA + h)[0] - closed_form(THETA - h)[0] * (THETA - h)[0]) / 2e-6 for h in step
    ]
    np.testing.assert_allclose(of_jax(THETA), differences, rtol=1e-8)
    forward = jax.jvp(lambda theta: product(rootdiff_jax, theta, jax.numpy.asarray(y)), (THETA,), (V,))[1]
    np.testing.assert_allclose(forward, exact @ V, rtol=1e-9)
    theta = torch.tensor(THETA, requires_grad=True)
    (gradient,) = torch.autograd.grad(product(rootdiff_torch, theta, torch.tensor(y)), theta, create_graph=True)
    np.testing.assert_allclose(gradient.detach(), exact, rtol=1e-9)
    (second,) = torch.autograd.grad(gradient[1], theta)
    np.testing.assert_allclose(second[0].item(), exact[1] * 4 / 3 / THETA[0], rtol=1e-9)


def test_aux_of_a_batch_under_vmap_is_nan_where_the_system_failed() -> None:
    import jax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    jax.config.update("jax_enable_x64", True)
    thetas = THETA * np.array([[1.0], [1.3], [0.6]])
    y = closed_form(thetas)
    y[1] += 0.5
    exact = np.where([True, False, True], closed_form(thetas)[:, 0] * thetas[:, 0], np.nan)

    def product(package: Any) -> Any:
        return lambda y, theta: package.implicit(with_product, y, theta, has_aux=True, on_failure="nan").aux["product"]

    np.testing.assert_allclose(jax.jit(jax.vmap(product(rootdiff_jax)))(y, thetas), exact, rtol=1e-10)
    mapped = torch.func.vmap(product(rootdiff_torch))(torch.tensor(y), torch.tensor(thetas))
    np.testing.assert_allclose(mapped, exact, rtol=1e-10)
    together = rootdiff.implicit(with_product, y, thetas, batch_ndim=1, has_aux=True, on_failure="nan")
    np.testing.assert_allclose(together.aux["product"], exact, rtol=1e-10)


def test_a_residual_without_aux_is_named(backend: Harness) -> None:
    with pytest.raises(ArgumentError, match=r"residual: it returned .*, but has_aux=True asks for a tuple"):
        backend.solve(residual, np.ones(2), THETA, has_aux=True)
    with pytest.raises(ArgumentTypeError, match=r"has_aux: got 'yes'; it must be True or False"):
        backend.solve(residual, np.ones(2), THETA, has_aux="yes")


def test_running_statistics_move_once_with_aux() -> None:
    import torch

    import rootdiff_torch

    norm = torch.nn.BatchNorm1d(2, dtype=torch.float64)
    x = torch.linspace(-1, 2, 8, dtype=torch.float64).reshape(4, 2).sin()
    sol = rootdiff_torch.root(lambda z: (z - 0.2 * norm(z) - x, z.sum()), torch.zeros_like(x), has_aux=True)
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(sol.aux, sol.y.sum())


# --- wrap


def test_wrap_of_a_solver_of_scipy() -> None:
    from scipy import optimize

    @rootdiff.implicit.wrap(residual)
    def solve(y0: Any, theta: Any, tol: float) -> Any:
        """Powell's hybrid method."""
        return optimize.root(residual, y0, args=(theta,), tol=tol).x

    sol = solve(np.ones(2), THETA, tol=1e-13)
    np.testing.assert_allclose(sol.jacobian()[0], sensitivity(THETA), rtol=1e-7)
    assert (solve.__name__, solve.__doc__) == ("solve", "Powell's hybrid method.")
    with pytest.raises(ConvergenceError, match="y is no root"):
        solve(np.ones(2), THETA, tol=0.3)


def test_wrap_tells_of_a_wrong_option_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="solvre"):
        rootdiff.implicit.wrap(residual, solvre="newton")


def test_wrap_in_torch_cuts_what_the_solver_does() -> None:
    import torch

    import rootdiff_torch

    @rootdiff_torch.implicit.wrap(residual)
    def newton(y: Any, theta: Any) -> Any:
        assert not theta.requires_grad
        for _ in range(30):
            y = y - torch.linalg.solve(torch.func.jacrev(residual)(y, theta), residual(y, theta))
        return y

    theta = torch.tensor(THETA, requires_grad=True)
    start = torch.ones(2, dtype=torch.float64, requires_grad=True)
    got, none = torch.autograd.grad((torch.tensor(W) * newton(start, theta).y).sum(), (theta, start), allow_unused=True)
    np.testing.assert_allclose(got, W @ sensitivity(THETA), rtol=1e-9)
    assert none is None or not none.any()
    hessian = torch.func.hessian(lambda theta: newton(torch.ones_like(theta[:2]), theta).y[0])(theta.detach())
    np.testing.assert_allclose(hessian, curvature(THETA), rtol=1e-9)


def _by_loop(y0: Any, theta: Any) -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)

    def step(_: Any, y: Any) -> Any:
        return y - jax.numpy.linalg.solve(jax.jacfwd(residual)(y, theta), residual(y, theta))

    return jax.lax.while_loop(lambda c: c[0] < 30, lambda c: (c[0] + 1, step(*c)), (0, y0))[1]


def _by_callback(y0: Any, theta: Any) -> Any:
    import jax

    jax.config.update("jax_enable_x64", True)
    shape = jax.ShapeDtypeStruct(y0.shape, y0.dtype)
    return jax.pure_callback(
        lambda _, theta: closed_form(np.asarray(theta)), shape, y0, theta, vmap_method="expand_dims"
    )


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(_by_loop, marks=pytest.mark.exhaustive, id="while_loop"),
        pytest.param(_by_callback, id="pure_callback"),
    ],
)
def test_wrap_in_jax_whatever_the_solver_is_made_of(solver: Any) -> None:
    """Neither has a derivative in reverse mode, and the callback has none at all; y0 has none either."""
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    solve = rootdiff_jax.implicit.wrap(residual)(solver)

    def first(theta: Any) -> Any:
        return solve(jnp.ones(2), theta).y[0]

    np.testing.assert_allclose(jax.jit(jax.hessian(first))(THETA), curvature(THETA), rtol=1e-9)
    thetas = jnp.asarray(THETA * np.array([[1.0], [1.3], [0.6]]))
    of_y = jax.vmap(jax.jacrev(lambda theta: solve(jnp.ones(2), theta).y))
    np.testing.assert_allclose(jax.jit(of_y)(thetas), sensitivity(np.asarray(thetas)), rtol=1e-9)
    np.testing.assert_allclose(jax.jacfwd(lambda y0: solve(y0, jnp.asarray(THETA)).y)(jnp.ones(2)), np.zeros((2, 2)))


# --- names


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch", "rootdiff_jax"])
def test_errors_call_the_unknown_as_the_entry_does(package: str) -> None:
    import jax
    import torch

    jax.config.update("jax_enable_x64", True)
    module = __import__(package)
    array = {"rootdiff": np.array, "rootdiff_torch": torch.tensor, "rootdiff_jax": jax.numpy.asarray}[package]
    for name, unknown in (("implicit", "y"), ("fixed_point", "z0"), ("gradient_report", "y"), ("root", "y0")):
        with pytest.raises(ArgumentTypeError, match=f"^{unknown}: it has dtype .*int"):
            getattr(module, name)(residual, array([1, 2]), array([1.0, 2.0, 3.0]))


def test_an_error_of_a_root_inside_the_residual_names_its_own_unknown() -> None:
    def nested(y: Any) -> Any:
        return y - rootdiff.root(lambda z: z - 1, np.array([1])).y

    with pytest.raises(ArgumentTypeError, match=r"^y0: it has dtype int"):
        rootdiff.implicit(nested, np.array([2.0]))
