"""Residuals that bring derivative rules of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import ADJOINTS, EXACT, SOLVER, START, THETA, c, f, loss


@jax.custom_vjp
def reverse_only(y: Any, theta: Any) -> Any:
    return f(y, theta)


reverse_only.defvjp(lambda y, theta: jax.vjp(f, y, theta), lambda pullback, w: pullback(w))


@jax.custom_jvp
def opaque_sine(x: Any) -> Any:
    return jax.pure_callback(np.sin, jax.typeof(x), x, vmap_method="expand_dims")


opaque_sine.defjvps(lambda dx, _, x: dx * jnp.cos(x))


@pytest.mark.transform("a residual that only has a custom_vjp, reverse mode")
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("solver", ["newton", "scipy:hybr"])
def test_custom_vjp(solver: str, adjoint: str) -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(reverse_only, jnp.asarray(START), theta, solver=solver, adjoint=adjoint).y)

    np.testing.assert_allclose(jax.grad(objective)(THETA), jax.grad(lambda t: loss(c(t)))(THETA), **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp: jit, vmap of grad, closures over tracers")
def test_custom_vjp_under_transforms() -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(lambda y: reverse_only(y, theta), jnp.asarray(START), solver=SOLVER).y)

    thetas = np.stack([THETA, THETA + 0.2])
    found = jax.jit(jax.vmap(jax.grad(objective)))(thetas)
    np.testing.assert_allclose(found, jax.vmap(jax.grad(lambda t: loss(c(t))))(thetas), **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp, reverse over reverse")
def test_custom_vjp_second_order() -> None:
    def objective(theta: Any) -> Any:
        return loss(rd.root(reverse_only, jnp.asarray(START), theta, solver=SOLVER).y)

    found = jax.jit(jax.jacrev(jax.grad(objective)))(THETA)
    np.testing.assert_allclose(found, jax.hessian(lambda t: loss(c(t)))(THETA), **EXACT)


@pytest.mark.transform("a residual that only has a custom_vjp, forward mode", refused="TypeError")
def test_custom_vjp_in_forward_mode_is_refused() -> None:
    with pytest.raises(TypeError, match="can't apply forward-mode"):
        jax.jvp(lambda t: rd.root(reverse_only, jnp.asarray(START), t).y, (THETA,), (THETA,))


@pytest.mark.transform("a residual that only has a custom_vjp, with an Optimistix solver", refused="ArgumentError")
def test_custom_vjp_with_optimistix_is_refused() -> None:
    with pytest.raises(rd.ArgumentError, match=r"forward-mode derivatives.*custom_vjp"):
        rd.root(reverse_only, jnp.asarray(START), jnp.asarray(THETA), solver="optimistix:Newton")


@pytest.mark.transform("a residual with a custom_jvp and a callback in it")
def test_custom_jvp() -> None:
    def root(a: Any) -> Any:
        return rd.root(lambda y, a: opaque_sine(y) - a, jnp.array([0.3]), a).y[0]

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
        return jax.grad(lambda a: rd.root(lambda y, a: y - line(a), jnp.ones(1), a).y[0])(1.0)

    np.testing.assert_allclose([gradient(2.0), gradient(5.0)], [2.0, 5.0], **EXACT)


@pytest.mark.transform("a callback in the residual, by solvers that need no derivative")
@pytest.mark.parametrize("solver", ["anderson", "df_sane", "scipy:krylov"])
def test_a_cell_that_calls_numpy(solver: str) -> None:
    def cell(z: Any, a: Any) -> Any:
        kind = jax.ShapeDtypeStruct(z.shape, z.dtype)
        return jax.pure_callback(lambda z, a: np.asarray(0.5 * z + a), kind, z, a, vmap_method="expand_dims")

    found = rd.fixed_point(cell, jnp.zeros(2), jnp.array([1.0, -2.0]), solver=solver).y
    np.testing.assert_allclose(found, [2.0, -4.0], rtol=1e-10)  # the default tolerance is 1.8e-12, f is linear
