"""Residuals that bring derivative rules of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.harness import covering
from tests.jax.closed_form import ADJOINTS, EXACT, SOLVER, SOLVERS, START, THETA, exact, f, loss


@jax.custom_vjp
def reverse_only(y: Any, theta: Any) -> Any:
    return f(y, theta)


reverse_only.defvjp(lambda y, theta: jax.vjp(f, y, theta), lambda pullback, w: pullback(w))


@jax.custom_jvp
def opaque_sine(x: Any) -> Any:
    return jax.pure_callback(np.sin, jax.typeof(x), x, vmap_method="expand_dims")


opaque_sine.defjvps(lambda dx, _, x: dx * jnp.cos(x))


@pytest.mark.transform("a residual that only has a custom_vjp, reverse mode")
@pytest.mark.parametrize(("solver", "adjoint"), covering(SOLVERS, ADJOINTS, together=1))
def test_custom_vjp(solver: str, adjoint: str) -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(reverse_only, jnp.asarray(START), theta, solver=solver, adjoint=adjoint).y)

    np.testing.assert_allclose(jax.grad(objective)(THETA), exact(THETA).gradient, **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp: jit, vmap of grad, closures over tracers")
def test_custom_vjp_under_transforms() -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(lambda y: reverse_only(y, theta), jnp.asarray(START), solver=SOLVER).y)

    thetas = np.stack([THETA, THETA + 0.2])
    found = jax.jit(jax.vmap(jax.grad(objective)))(thetas)
    np.testing.assert_allclose(found, exact(thetas).gradient, **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp, reverse over reverse")
def test_custom_vjp_second_order() -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(reverse_only, jnp.asarray(START), theta, solver=SOLVER).y)

    found = jax.jit(jax.jacrev(jax.grad(objective)))(THETA)
    np.testing.assert_allclose(found, exact(THETA).hessian, **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp, forward mode", refused="TypeError")
def test_custom_vjp_in_forward_mode_is_refused() -> None:
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(lambda t: rd.root(reverse_only, jnp.asarray(START), t, solver=SOLVER).y, (THETA,), (THETA,))


@pytest.mark.transform("a residual that only has a custom_vjp, with an Optimistix solver", refused="ArgumentError")
def test_custom_vjp_with_optimistix_is_refused() -> None:
    with pytest.raises(rd.ArgumentError, match=r"forward-mode derivatives.*custom_vjp"):
        rd.root(reverse_only, jnp.asarray(START), jnp.asarray(THETA), solver="optimistix:Newton")


@pytest.mark.transform("a residual with a custom_jvp and a callback in it")
def test_custom_jvp() -> None:
    def root(a: Any) -> Any:
        return rd.root(lambda y, a: opaque_sine(y) - a, jnp.array([0.3]), a, solver=SOLVER).y[0]

    np.testing.assert_allclose(root(0.5), np.arcsin(0.5), **EXACT)
    np.testing.assert_allclose(jax.jit(jax.grad(root))(0.5), 1 / np.sqrt(0.75), **EXACT)


def test_residuals_that_differ_in_their_rule_alone_are_told_apart() -> None:
    def with_slope(slope: float) -> Any:
        @jax.custom_jvp
        def line(a: Any) -> Any:
            return 2.0 * a

        line.defjvps(lambda da, _, a: slope * da)
        return line

    def gradient(slope: float) -> Any:
        line = with_slope(slope)
        return jax.grad(lambda a: rd.root(lambda y, a: y - line(a), jnp.ones(1), a, solver=SOLVER).y[0])(1.0)

    np.testing.assert_allclose([gradient(2.0), gradient(5.0)], [2.0, 5.0], **EXACT)


def on_host(function: Any) -> Any:
    """Return a function of arrays like its first argument that NumPy computes, without a derivative."""

    def called(y: Any, *args: Any) -> Any:
        kind = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(
            lambda *values: np.asarray(function(*values)), kind, y, *args, vmap_method="expand_dims"
        )

    return called


halved = on_host(lambda z, a: 0.5 * z + a)


@pytest.mark.transform("a callback in the residual, by solvers that need no derivative")
@pytest.mark.parametrize(
    ("solver", "compiled"),
    covering(["auto", "anderson", "df_sane", "scipy:krylov", "scipy:hybr"], [False, True], together=1),
)
def test_a_cell_that_calls_numpy(solver: str, compiled: bool) -> None:
    def found(a: Any) -> Any:
        return rd.fixed_point(halved, jnp.zeros(2), a, solver=solver).y

    mapped = jax.vmap(found) if solver == "scipy:hybr" else lambda a: found(a[0])[None]
    y = (jax.jit(mapped) if compiled else mapped)(jnp.array([[1.0, -2.0]]))
    np.testing.assert_allclose(y, [[2.0, -4.0]], rtol=1e-10)  # the default tolerance is 1.8e-12, f is linear


def test_scipy_takes_differences_of_a_residual_that_calls_numpy_under_vmap() -> None:
    cubes = on_host(lambda y, a: y**3 - a)
    found = jax.vmap(lambda a: rd.root(cubes, jnp.full(2, 1.5), a, solver="scipy:hybr").y)
    np.testing.assert_allclose(found(jnp.array([[8.0, 27.0], [1.0, 64.0]])), [[2.0, 3.0], [1.0, 4.0]], rtol=1e-10)


@pytest.mark.parametrize("compiled", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_auto_finds_roots_of_a_residual_that_calls_numpy(compiled: bool) -> None:
    """Cubes, and Rosenbrock's from its standard start, in which the first of the solvers stalls: in one program."""

    def either(y: Any, a: Any, bent: Any) -> Any:
        valley = np.stack([10 * (y[..., 1] - y[..., 0] ** 2), a[..., 0] - y[..., 0]], axis=-1)
        return np.where(bent, valley, y**3 - a)

    def found(y0: Any, *args: Any) -> Any:
        return rd.root(on_host(either), y0, *args).y

    solve = jax.jit(found) if compiled else found
    for y0, a, bent, root in (
        ([1.5, 1.0], [8.0, 27.0], False, [2.0, 3.0]),
        ([-1.2, 1.0], [1.0, 0.0], True, [1.0, 1.0]),
    ):
        np.testing.assert_allclose(solve(*map(jnp.asarray, (y0, a, bent))), root, rtol=1e-10)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "jit"])
def test_a_derivative_of_a_callback_is_refused_by_name(compiled: bool) -> None:
    a = jnp.array([1.0, -2.0])

    def found(a: Any, solver: str = "auto") -> Any:
        return jnp.sum(rd.fixed_point(halved, jnp.zeros(2), a, solver=solver).y)

    def by_newton(a: Any) -> Any:
        return found(a, "newton")

    for function in (by_newton, jax.grad(found), jax.jacfwd(found)):
        with pytest.raises(rd.ArgumentError, match=r"^residual: a derivative .* 'df_sane' .* jax.custom_jvp"):
            (jax.jit(function) if compiled else function)(a)


def test_callbacks_that_do_not_depend_on_y_leave_the_derivative_alone() -> None:
    a = jnp.array([0.5, 2.0])

    def residual(y: Any, a: Any) -> Any:
        jax.debug.callback(lambda _: None, y)
        return y**3 - a - on_host(np.square)(jax.lax.stop_gradient(a))

    def found(a: Any) -> Any:
        sol = rd.root(residual, jnp.ones(2), a)
        return sol.y, sol

    slope, sol = jax.jit(jax.jacobian(found, has_aux=True))(a)
    assert sol.method == rd.Method.NEWTON
    np.testing.assert_allclose(sol.y, np.cbrt(a + a**2), **EXACT)
    np.testing.assert_allclose(slope, np.diag((a + a**2) ** (-2 / 3) / 3), **EXACT)
