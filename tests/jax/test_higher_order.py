"""Second and third derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, HYBR, NEWTON, START, THETA, c, f, loss


def solve(solver: str, adjoint: str) -> Callable[[Any], Any]:
    return lambda theta: rd.root(f, jnp.asarray(START), theta, solver=solver, adjoint=adjoint).y


@pytest.mark.transform("hessian")
@pytest.mark.parametrize(("solver", "adjoint"), [(NEWTON, "lu"), (NEWTON, "gmres"), (HYBR, "lu"), (HYBR, "gmres")])
@pytest.mark.parametrize("jit", [False, True])
def test_hessian(solver: str, adjoint: str, jit: bool) -> None:
    hessian = jax.hessian(lambda theta: loss(solve(solver, adjoint)(theta)))
    hessian = jax.jit(hessian) if jit else hessian
    np.testing.assert_allclose(hessian(THETA), jax.hessian(lambda theta: loss(c(theta)))(THETA), **EXACT)


@pytest.mark.transform("every mix of jacfwd and jacrev")
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("inner", [jax.jacfwd, jax.jacrev])
def test_mixed_second_order(outer: Any, inner: Any) -> None:
    found = jax.jit(outer(inner(solve(NEWTON, "lu"))))(THETA)
    np.testing.assert_allclose(found, jax.hessian(c)(THETA), **EXACT)


@pytest.mark.transform("third order")
@pytest.mark.parametrize(("solver", "adjoint"), [(NEWTON, "lu"), (NEWTON, "gmres"), (HYBR, "lu")])
def test_third_order(solver: str, adjoint: str) -> None:
    found = jax.jit(jax.jacfwd(jax.jacrev(jax.grad(lambda theta: loss(solve(solver, adjoint)(theta))))))(THETA)
    np.testing.assert_allclose(found, jax.jacfwd(jax.hessian(lambda theta: loss(c(theta))))(THETA), **EXACT)


def test_hessian_is_the_difference_of_gradients() -> None:
    gradient = jax.jit(jax.grad(lambda theta: loss(solve(NEWTON, "lu")(theta))))
    steps = 1e-5 * np.eye(2)  # eps^(1/3): a central difference is then right to about 1e-10
    differences = [(gradient(THETA + step) - gradient(THETA - step)) / 2e-5 for step in steps]
    hessian = jax.jit(jax.hessian(lambda theta: loss(solve(NEWTON, "lu")(theta))))(THETA)
    np.testing.assert_allclose(hessian, differences, rtol=1e-7, atol=1e-7)
