"""First derivatives, in every way that JAX has to ask for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import ADJOINTS, EXACT, HYBR, NEWTON, SOLVER, SOLVERS, START, THETA, exact, f, loss


def one_of(solver: str, adjoint: str) -> Any:
    """Return the product of solvers and adjoints, of which all but one pair wait for test-all."""
    rare = [pytest.mark.exhaustive]
    pairs = [pytest.param(*p, marks=[] if p == (solver, adjoint) else rare) for p in product(SOLVERS, ADJOINTS)]
    return pytest.mark.parametrize(("solver", "adjoint"), pairs)


V = np.array([0.3, -1.1])


def solve(solver: str, adjoint: str) -> Callable[[Any], Any]:
    return lambda theta: rd.root(f, jnp.asarray(START), theta, solver=solver, adjoint=adjoint).y


@pytest.mark.transform("jit")
@pytest.mark.parametrize("solver", [HYBR, pytest.param(NEWTON, marks=pytest.mark.exhaustive)])
def test_jit(solver: str) -> None:
    y = jax.jit(solve(solver, "lu"))(THETA)
    np.testing.assert_allclose(y, exact(THETA).y, **EXACT)


@pytest.mark.transform("grad, value_and_grad")
@one_of(NEWTON, "lu")
def test_value_and_grad(solver: str, adjoint: str) -> None:
    y = solve(solver, adjoint)
    value, gradient = jax.value_and_grad(lambda theta: loss(y(theta)))(THETA)
    np.testing.assert_allclose(value, exact(THETA).loss, **EXACT)
    np.testing.assert_allclose(gradient, exact(THETA).gradient, **EXACT)


@pytest.mark.transform("jit of grad")
@one_of(HYBR, "gmres")
def test_jit_of_grad(solver: str, adjoint: str) -> None:
    y = solve(solver, adjoint)
    gradient = jax.jit(jax.grad(lambda theta: loss(y(theta))))(THETA)
    np.testing.assert_allclose(gradient, exact(THETA).gradient, **EXACT)


@pytest.mark.transform("jvp")
@one_of(NEWTON, "gmres")
def test_jvp(solver: str, adjoint: str) -> None:
    _, tangent = jax.jvp(solve(solver, adjoint), (THETA,), (V,))
    np.testing.assert_allclose(tangent, exact(THETA).jacobian @ V, **EXACT)


@pytest.mark.transform("vjp")
def test_vjp() -> None:
    w = jnp.array([1.0, -0.5, 2.0])
    y, pullback = jax.vjp(solve("newton", "lu"), THETA)
    np.testing.assert_allclose(pullback(w)[0], w @ exact(THETA).jacobian, **EXACT)
    np.testing.assert_allclose(y, exact(THETA).y, **EXACT)


@pytest.mark.transform("jacrev")
@pytest.mark.parametrize("adjoint", ["lu", pytest.param("gmres", marks=pytest.mark.exhaustive)])
def test_jacrev(adjoint: str) -> None:
    np.testing.assert_allclose(jax.jacrev(solve("newton", adjoint))(THETA), exact(THETA).jacobian, **EXACT)


@pytest.mark.transform("jacfwd")
@pytest.mark.parametrize("adjoint", ["lu", pytest.param("gmres", marks=pytest.mark.exhaustive)])
def test_jacfwd(adjoint: str) -> None:
    np.testing.assert_allclose(jax.jacfwd(solve("newton", adjoint))(THETA), exact(THETA).jacobian, **EXACT)


@pytest.mark.transform("linearize, linear_transpose")
def test_linearize() -> None:
    _, pushforward = jax.linearize(solve("newton", "lu"), jnp.asarray(THETA))
    w = jnp.array([1.0, -0.5, 2.0])
    (back,) = jax.linear_transpose(pushforward, jnp.asarray(THETA))(w)
    np.testing.assert_allclose(pushforward(jnp.asarray(V)), exact(THETA).jacobian @ V, **EXACT)
    np.testing.assert_allclose(back, w @ exact(THETA).jacobian, **EXACT)


@pytest.mark.transform("checkpoint")
@pytest.mark.parametrize("jit", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_checkpoint(jit: bool) -> None:
    gradient = jax.grad(lambda theta: loss(jax.checkpoint(solve("newton", "lu"))(theta)))
    gradient = jax.jit(gradient) if jit else gradient
    np.testing.assert_allclose(gradient(THETA), exact(THETA).gradient, **EXACT)


@pytest.mark.transform("grad with respect to the initial guess: zero")
def test_initial_guess_has_no_gradient() -> None:
    gradient = jax.grad(lambda y0: loss(rd.root(f, y0, jnp.asarray(THETA), solver=SOLVER).y))(jnp.asarray(START))
    assert not gradient.any()
