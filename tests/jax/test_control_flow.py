"""Roots inside loops, and inside roots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, HYBR, NEWTON, SOLVER, START, THETA, exact, f, loss


def euler(y: Any, rate: Any, solver: str) -> Any:
    """One implicit Euler step of y' = -rate y: z (1 + rate) = y, so that each step divides by 1 + rate."""
    return rd.root(lambda z: (z + rate * z - y) * (1 + z**2), y, solver=solver).y


@pytest.mark.transform("scan around a root: jacrev, jacfwd, reverse over forward")
@pytest.mark.parametrize("solver", [NEWTON, pytest.param(HYBR, marks=pytest.mark.exhaustive)])
def test_scan(solver: str) -> None:
    def final(rate: Any) -> Any:
        y, _ = lax.scan(lambda y, _: (euler(y, rate, solver), None), jnp.array([2.0, 3.0]), length=4)
        return y, y

    def forward(rate: Any) -> Any:
        slope, y = jax.jacfwd(final, has_aux=True)(rate)
        return (y, slope), (y, slope)

    (backward, curvature), (y, slope) = jax.jit(jax.jacrev(forward, has_aux=True))(0.5)
    np.testing.assert_allclose(y, np.array([2.0, 3.0]) / 1.5**4, **EXACT)
    for found in (backward, slope):
        np.testing.assert_allclose(found, -4 * np.array([2.0, 3.0]) / 1.5**5, **EXACT)
    np.testing.assert_allclose(curvature, 20 * np.array([2.0, 3.0]) / 1.5**6, **EXACT)


@pytest.mark.transform("scan around a root: reverse mode, differentiated once more", refused="ValueError")
@pytest.mark.parametrize(("solver", "outer"), [(HYBR, jax.jacfwd), (NEWTON, jax.jacrev)])
def test_scan_reverse_first_is_refused_by_jax(solver: str, outer: Any) -> None:
    """JAX forgets custom derivative rules inside the reverse mode of a scan: take the forward derivative first."""

    def final(rate: Any) -> Any:
        return lax.scan(lambda y, _: (euler(y, rate, solver), None), jnp.array([2.0, 3.0]), length=2)[0]

    messages = "Pure callbacks do not support JVP|Reverse-mode differentiation does not work|Linearization failed"
    with pytest.raises(ValueError, match=messages):
        outer(jax.jacrev(final))(0.5)


@pytest.mark.transform("while_loop around a root, forward mode")
def test_while_loop() -> None:
    def final(rate: Any) -> Any:
        def step(carry: Any) -> Any:
            return carry[0] + 1, euler(carry[1], rate, NEWTON)

        return lax.while_loop(lambda carry: carry[0] < 4, step, (0, jnp.array([2.0, 3.0])))[1]

    y, tangent = jax.jit(lambda rate: jax.jvp(final, (rate,), (1.0,)))(0.5)
    np.testing.assert_allclose(y, np.array([2.0, 3.0]) / 1.5**4, **EXACT)
    np.testing.assert_allclose(tangent, -4 * np.array([2.0, 3.0]) / 1.5**5, **EXACT)


@pytest.mark.transform("while_loop around a root, reverse mode", refused="ValueError")
def test_while_loop_in_reverse_is_refused_by_jax() -> None:
    def final(rate: Any) -> Any:
        return lax.while_loop(lambda y: y[0] > 1.0, lambda y: euler(y, rate, NEWTON), jnp.array([2.0, 3.0])).sum()

    with pytest.raises(ValueError, match=r"Reverse-mode differentiation does not work for lax\.while_loop"):
        jax.grad(final)(0.5)


@pytest.mark.transform("cond around a root")
def test_cond() -> None:
    def branch(theta: Any) -> Any:
        return lax.cond(
            theta[0] > 0, lambda t: loss(rd.root(f, jnp.asarray(START), t, solver=SOLVER).y), lambda t: t.sum(), theta
        )

    gradient = jax.jit(jax.grad(branch))
    np.testing.assert_allclose(gradient(THETA), exact(THETA).gradient, **EXACT)
    np.testing.assert_allclose(gradient(-THETA), np.ones(2), **EXACT)


@pytest.mark.transform("a root inside a root")
@pytest.mark.parametrize("solver", [NEWTON, pytest.param(HYBR, marks=pytest.mark.exhaustive)])
def test_root_inside_root(solver: str) -> None:
    """x = cbrt(z) inside, z - x a = 0 outside: z^(2/3) = a, so that z = a^(3/2)."""

    def outer(z: Any, a: Any) -> Any:
        x = rd.root(lambda x, z: x**3 - z, jnp.ones(1), z, solver=solver).y
        return z - x * a

    def root(a: Any) -> Any:
        return rd.root(outer, jnp.array([3.0]), a, solver=NEWTON).y[0]

    a = jnp.array([2.0])
    both = jax.value_and_grad(root)
    if solver == HYBR:
        value, gradient = jax.jit(both)(a)
    else:  # one of the linear solves is for rounding alone, of which XLA must not make two versions
        twice = jax.jit(jax.vmap(lambda tangent: jax.jvp(both, (a,), (tangent,)), out_axes=(None, 0)))
        (value, gradient), (slope, curvature) = twice(jnp.ones((1, 1)))
        np.testing.assert_allclose(slope, [1.5 * 2**0.5], **EXACT)
        np.testing.assert_allclose(curvature, [[0.75 / 2**0.5]], **EXACT)
    np.testing.assert_allclose(value, 2**1.5, **EXACT)
    np.testing.assert_allclose(gradient, [1.5 * 2**0.5], **EXACT)


@pytest.mark.transform("a scan inside the residual")
def test_scan_inside_residual() -> None:
    def shooting(y: Any, a: Any) -> Any:
        """y' = a y by four Euler steps of length 1/4 must end at 1."""
        return lax.scan(lambda x, _: (x + a * x / 4, None), y, length=4)[0] - 1.0

    def root(a: Any) -> Any:
        return rd.root(shooting, jnp.ones(1), a, solver=SOLVER).y[0]

    np.testing.assert_allclose(jax.grad(root)(0.4), -4 * 0.25 * 1.1**-5, **EXACT)


@pytest.mark.transform("a while_loop inside the residual, forward mode")
def test_while_loop_inside_residual() -> None:
    def halved(y: Any, a: Any) -> Any:
        return lax.while_loop(lambda x: jnp.all(x > 8.0), lambda x: x / 2, y) - a

    def root(a: Any) -> Any:
        return rd.root(halved, jnp.array([30.0]), a, solver=SOLVER, adjoint="lu").y[0]

    np.testing.assert_allclose(root(7.0), 28.0, **EXACT)
    np.testing.assert_allclose(jax.jvp(root, (7.0,), (1.0,))[1], 4.0, **EXACT)
