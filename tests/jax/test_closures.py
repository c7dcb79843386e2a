"""What a residual closes over is differentiated like its arguments, whatever transform it is a tracer of."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.harness import THOROUGH
from tests.jax.closed_form import EXACT, HYBR, NEWTON, SOLVER, START, THETA, exact, f, loss


def closing(theta: Any, **options: Any) -> Any:
    return rd.root(lambda y: f(y, theta), jnp.asarray(START), **options).y


@pytest.mark.transform("closures over tracers: grad, hessian")
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (NEWTON, "lu"),
        *(pytest.param(*pair, marks=pytest.mark.exhaustive) for pair in [(NEWTON, "gmres"), (HYBR, "lu")]),
    ],
)
def test_closure(solver: str, adjoint: str) -> None:
    def objective(theta: Any) -> Any:
        return loss(closing(theta, solver=solver, adjoint=adjoint))

    def gradient(theta: Any) -> Any:
        return (jax.grad(objective)(theta),) * 2

    second, first = jax.jit(jax.jacfwd(gradient, has_aux=True))(THETA)
    np.testing.assert_allclose(first, exact(THETA).gradient, **EXACT)
    np.testing.assert_allclose(second, exact(THETA).hessian, **EXACT)


@pytest.mark.transform("closures over tracers: vmap of grad, jvp inside vmap")
@pytest.mark.parametrize("solver", [NEWTON, HYBR])
def test_closure_under_vmap(solver: str) -> None:
    thetas = np.stack([THETA, THETA + 0.2])
    solve = partial(closing, solver=solver)
    if THOROUGH or solver == HYBR:  # the rule is the same whichever solver found the root
        found = jax.jit(jax.vmap(jax.grad(lambda theta: loss(solve(theta)))))(thetas)
        np.testing.assert_allclose(found, exact(thetas).gradient, **EXACT)
    if THOROUGH or solver == NEWTON:
        tangent = jax.jit(jax.vmap(lambda t: jax.jvp(solve, (t,), (jnp.ones(2),))[1]))(thetas)
        np.testing.assert_allclose(tangent, exact(thetas).jacobian.sum(-1), **EXACT)


@pytest.mark.transform("closures over tracers of two transforms at once, beside args")
def test_closure_over_two_levels() -> None:
    def mixed(a: Any, b: Any) -> Any:  # a belongs to the outer derivative, b to the inner one
        residual = partial(lambda b, y, s: f(y, jnp.stack([a * s, b])), b)
        return loss(rd.root(residual, jnp.asarray(START), 1.0, solver=SOLVER).y)

    found = jax.jit(jax.grad(jax.grad(mixed, argnums=1)))(*THETA)
    np.testing.assert_allclose(found, exact(THETA).hessian[0, 1], **EXACT)


@pytest.mark.transform("bound methods and partials")
def test_bound_method() -> None:
    class Model:
        def __init__(self, theta: Any) -> None:
            self.theta = theta

        def residual(self, y: Any) -> Any:
            return f(y, self.theta)

    model = Model(jnp.asarray(THETA))
    first = rd.root(model.residual, jnp.asarray(START), solver=SOLVER).y
    model.theta = jnp.asarray(THETA) + 0.1  # a changed attribute must be seen, though the method is the same
    second = rd.root(model.residual, jnp.asarray(START), solver=SOLVER).y
    np.testing.assert_allclose(first, exact(THETA).y, **EXACT)
    np.testing.assert_allclose(second, exact(THETA + 0.1).y, **EXACT)
    gradient = jax.grad(lambda t: loss(rd.root(Model(t).residual, jnp.asarray(START), solver=SOLVER).y))(THETA)
    np.testing.assert_allclose(gradient, exact(THETA).gradient, **EXACT)


@pytest.mark.transform("a pullback that waits, while what the residual reads changes in place")
def test_what_the_residual_reads_is_that_of_the_trace() -> None:
    gain, options = np.zeros(1), {"gain": 0.0}

    def residual(y: Any, t: Any) -> Any:
        return (y - 2) - (t - 2) * (1 + gain + options["gain"])

    _, pull = jax.vjp(lambda t: rd.root(residual, jnp.zeros(1), t, solver=SOLVER).y, jnp.full(1, 2.0))
    gain[:] = options["gain"] = 5.0
    np.testing.assert_allclose(pull(jnp.ones(1))[0], [1.0], **EXACT)
