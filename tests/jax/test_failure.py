"""Failures: raised where values are known, NaN inside a trace, and never a gradient that looks right."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.harness import covering
from tests.jax.closed_form import EXACT, SOLVER

ONE = np.ones(1)


def no_root(y: Any, a: Any) -> Any:
    return y**2 + a


@pytest.mark.transform("a failed solve, eagerly and under grad or jvp", refused="ConvergenceError")
def test_eager_failure_raises() -> None:
    with pytest.raises(rd.ConvergenceError, match="no root") as caught:
        rd.root(no_root, jnp.asarray(ONE), jnp.asarray(ONE), solver=SOLVER)
    assert np.isfinite(caught.value.solution.y).all()
    with pytest.raises(rd.ConvergenceError):
        jax.grad(lambda a: rd.root(no_root, jnp.asarray(ONE), a, solver=SOLVER).y[0])(ONE)


@pytest.mark.transform("a failed solve inside jit or vmap: NaN, with NaN derivatives")
def test_traced_failure_is_nan() -> None:
    y, gradient = jax.jit(jax.value_and_grad(lambda a: rd.root(no_root, jnp.asarray(ONE), a, solver=SOLVER).y[0]))(ONE)
    assert np.isnan(y)
    assert np.isnan(gradient).all()


def test_failed_system_stays_alone_in_its_batch() -> None:
    a = jnp.array([[-4.0], [1.0], [-9.0]])  # the second system has no root

    def solve(a: Any) -> Any:
        return rd.root(no_root, jnp.full((3, 1), 2.5), a, batch_ndim=1, on_failure="nan", solver=SOLVER)

    gradient = jax.jit(jax.grad(lambda a: solve(a).y.sum()))(a)  # y = sqrt(-a)
    np.testing.assert_allclose(gradient, [[-1 / 4], [np.nan], [-1 / 6]], **EXACT)

    def shared(s: Any) -> Any:
        sol = solve(s * a)
        return jnp.where(sol.converged, sol.y[:, 0], 0.0).sum()

    # masked out by its status, the failed system takes no part in the gradient of what it shares
    np.testing.assert_allclose(jax.jit(jax.grad(shared))(1.0), (2 + 3) / 2, **EXACT)
    assert np.isnan(jax.jit(jax.grad(lambda s: solve(s * a).y.sum()))(1.0))


def test_warning() -> None:
    with pytest.warns(rd.ConvergenceWarning, match="no root"):
        sol = rd.root(no_root, jnp.asarray(ONE), jnp.asarray(ONE), on_failure="warn", solver=SOLVER)
    assert np.isnan(sol.y).all()


@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_singular_jacobian_has_no_gradient(adjoint: str) -> None:
    """y1 + y2 = a, twice: solved where it starts, but with a singular Jacobian."""

    def root(a: Any) -> Any:
        return rd.root(
            lambda y, a: jnp.full(2, y.sum() - a[0]), jnp.array([0.5, 0.5]), a, solver="newton", adjoint=adjoint
        ).y[0]

    assert np.isnan(jax.jit(jax.grad(root))(ONE)).all()


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        ("newton", "lu"),
        ("scipy:hybr", "gmres"),
        *(pytest.param(*p, marks=pytest.mark.exhaustive) for p in (("broyden", "gmres"), ("optimistix:Dogleg", "lu"))),
    ],
)
def test_float32_throughout(solver: str, adjoint: str) -> None:
    with jax.enable_x64(False):
        y0, a = jnp.array([30.0, 60.0]), jnp.array([8e4])
        options: Any = {"solver": solver, "adjoint": adjoint}
        value, pullback = jax.vjp(lambda a: rd.root(lambda y, a: y**3 - a, y0, a, **options).y, a)
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, np.cbrt(8e4), rtol=1e-6)
        np.testing.assert_allclose(pullback(jnp.ones(2))[0], [2 * 8e4 ** (-2 / 3) / 3], rtol=1e-5)


def test_missing_optimistix_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optimistix", None)
    with pytest.raises(rd.ArgumentError, match=r"pip install 'rootdiff\[optimistix\]'"):
        rd.root(lambda y: y + 4.25, jnp.asarray(ONE), solver="optimistix:Newton")


def test_gradient_after_a_minimiser_is_that_of_the_residual() -> None:
    """Optimistix itself gives 0.0 here, the derivative of the minimum of a square; the root is sqrt(a)."""

    def root(a: Any) -> Any:
        return rd.root(lambda y, a: y**2 - a, jnp.asarray(ONE), a, solver="optimistix:BFGS").y[0]

    np.testing.assert_allclose(jax.jit(jax.grad(root))(2.0), 0.5 / np.sqrt(2.0), rtol=1e-6)  # BFGS is less exact


def test_a_failed_system_leaves_what_systems_share_alone() -> None:
    """y = sqrt(a k): of a = -1 neither the root nor the derivative of the residual is finite."""
    a = jnp.array([[4.0], [-1.0]])

    def objective(k: Any, a: Any) -> Any:
        options = {"batch_ndim": 1, "batched_args": (0, None), "on_failure": "nan", "solver": "newton"}
        sol = rd.root(lambda y, a, k: y - jnp.sqrt(a * k), jnp.ones((2, 1)), a, k, **options)
        return jnp.where(sol.converged, sol.y[:, 0], 0.0).sum(), sol.y.sum()

    @jax.jit
    def gradients(k: Any, a: Any) -> Any:
        _, pullback = jax.vjp(objective, k, a)
        return pullback((1.0, 0.0)), pullback((0.0, 1.0))

    (masked, _), (whole, by_system) = gradients(2.0, a)
    np.testing.assert_allclose(masked, np.sqrt(0.5), **EXACT)
    assert np.isnan(whole)
    np.testing.assert_allclose(by_system, [[np.sqrt(2.0) / 4], [np.nan]], **EXACT)


#: Functions of one system's `a` and of the shared `k` that are NaN, or have no finite derivative, where a < 0.
UNREAL = {
    "elementwise": lambda a, k: jnp.sqrt(a * k[0, 0]),
    "matrix": lambda a, k: jnp.sqrt(a) * k.sum(),  # k has as many rows as there are systems
}
#: Of a function of the shared k; a derivative of a derivative in reverse mode, and in both modes.
DERIVATIVES = {
    "grad": jax.grad,
    "grad of grad": lambda f: jax.grad(lambda k: jax.grad(f)(k).sum()),
    "jvp of grad": lambda f: lambda k: jax.jvp(jax.grad(f), (k,), (jnp.ones_like(k),))[1],
}


@pytest.mark.parametrize(
    ("name", "way", "derivative"),
    covering([*UNREAL], ["args", "batched_args", "closure", "vmap"], [*DERIVATIVES], together=1),
)
def test_a_masked_system_leaves_shared_derivatives_alone(name: str, way: str, derivative: str) -> None:
    """The Jacobian of the failed system is NaN too, and it is not said which arguments are of systems."""

    def f(y: Any, a: Any, k: Any) -> Any:
        value = UNREAL[name](a, k)
        return y * (1 + value) + y**3 - 2 * value

    def loss(k: Any, a: Any, weight: Any) -> Any:
        options: Any = {"batch_ndim": 1, "on_failure": "nan", "solver": "newton"}
        if way == "vmap":
            sol = jax.vmap(lambda a: rd.root(f, jnp.ones(1), a, k, on_failure="nan", solver="newton"))(a)
        elif way == "closure":
            sol = rd.root(lambda y: f(y, a, k), jnp.ones_like(a), **options)
        else:
            batched = {"batched_args": (0, None)} if way == "batched_args" else {}
            sol = rd.root(f, jnp.ones_like(a), a, k, **options, **batched)
        return (weight * jnp.where(sol.converged[:, None], sol.y, 0.0) ** 2).sum()

    found = jax.jit(lambda a, weight, k: DERIVATIVES[derivative](lambda k: loss(k, a, weight))(k))
    k = jnp.linspace(0.5, 1.5, 9).reshape(3, 3)
    masked = found(jnp.array([[4.0], [-1.0], [9.0]]), jnp.ones((3, 1)), k)
    without = found(jnp.array([[4.0], [1.0], [9.0]]), jnp.array([[1.0], [0.0], [1.0]]), k)
    np.testing.assert_allclose(masked, without, rtol=1e-12)


def test_a_shared_matrix_is_not_taken_for_data_of_systems() -> None:
    """At a root of zero, and with a parameter of zero, its rows have no effect on the value of the residual."""
    matrix = jnp.array([[2.0, 1.0], [0.5, 3.0]])
    data = jnp.array([1.0, -1.0])  # of the second system, which has no root

    def root(k: Any, matrix: Any) -> Any:
        def f(y: Any, k: Any, matrix: Any) -> Any:
            return y @ matrix.T - k * jnp.sqrt(data)[:, None]

        return rd.root(f, jnp.ones((2, 2)), k, matrix, batch_ndim=1, on_failure="nan", solver="newton").y[0].sum()

    found = jax.jit(jax.grad(root, argnums=(0, 1)))(0.0, matrix)
    np.testing.assert_allclose(found[0], np.linalg.solve(matrix, np.ones(2)).sum(), **EXACT)
    np.testing.assert_array_equal(found[1], np.zeros((2, 2)))


def test_a_good_system_without_a_finite_derivative_is_not_hidden() -> None:
    """y = sqrt(a k): of a = 0 the derivative of the residual is not finite, of a = -1 there is no root."""

    def loss(k: Any) -> Any:
        a = jnp.array([[4.0], [-1.0], [0.0]])
        sol = rd.root(lambda y: y - jnp.sqrt(a * k), jnp.ones((3, 1)), batch_ndim=1, on_failure="nan", solver="newton")
        return jnp.where(sol.converged[:, None], sol.y, 0.0).sum()

    assert not np.isfinite(jax.jit(jax.grad(loss))(2.0))


@pytest.mark.transform("jax_debug_nans: a failed solve is a failed solve")
def test_failures_while_jax_looks_for_nans() -> None:
    with jax.debug_nans(True):
        with pytest.raises(rd.ConvergenceError, match="no root"):
            rd.root(no_root, jnp.asarray(ONE), jnp.asarray(ONE), solver="newton")
        with pytest.raises(rd.ConvergenceError, match="no root"):
            jax.jit(lambda y0: rd.root(no_root, y0, jnp.asarray(ONE), solver="newton").y)(jnp.asarray(ONE))
        sol = rd.root(no_root, jnp.asarray(ONE), jnp.asarray(ONE), solver="newton", on_failure="nan")
    assert np.isnan(sol.y).all()
