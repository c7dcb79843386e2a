"""Second and third derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, HYBR, NEWTON, START, THETA, exact, f, loss

RARE = pytest.param(NEWTON, "gmres", marks=pytest.mark.exhaustive)


def solve(solver: str, adjoint: str) -> Callable[[Any], Any]:
    return lambda theta: rd.root(f, jnp.asarray(START), theta, solver=solver, adjoint=adjoint).y


@pytest.mark.transform("hessian")
@pytest.mark.parametrize(
    ("solver", "adjoint", "jit"),
    [
        (HYBR, "gmres", True),  # Newton's method and LU: of a batch in test_vmap
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [
                (NEWTON, "gmres", True),
                (HYBR, "lu", False),
                (NEWTON, "lu", True),
                (NEWTON, "lu", False),
                (NEWTON, "gmres", False),
                (HYBR, "lu", True),
                (HYBR, "gmres", False),
            ]
        ),
    ],
)
def test_hessian(solver: str, adjoint: str, jit: bool) -> None:
    hessian = jax.hessian(lambda theta: loss(solve(solver, adjoint)(theta)))
    hessian = jax.jit(hessian) if jit else hessian
    np.testing.assert_allclose(hessian(THETA), exact(THETA).hessian, **EXACT)


@pytest.mark.transform("every mix of jacfwd and jacrev")
@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (jax.jacfwd, jax.jacfwd),
        # by a scan of roots; by the hessian; by the residuals below, and by those with a rule of their own
        *(
            pytest.param(*pair, marks=pytest.mark.exhaustive)
            for pair in [(jax.jacrev, jax.jacfwd), (jax.jacfwd, jax.jacrev), (jax.jacrev, jax.jacrev)]
        ),
    ],
)
def test_mixed_second_order(outer: Any, inner: Any) -> None:
    found = jax.jit(outer(inner(solve(NEWTON, "lu"))))(THETA)
    np.testing.assert_allclose(found, exact(THETA).curvature, **EXACT)


@pytest.mark.transform("third order")
@pytest.mark.parametrize(
    ("solver", "adjoint"), [(NEWTON, "lu"), RARE, pytest.param(HYBR, "lu", marks=pytest.mark.exhaustive)]
)
def test_third_order(solver: str, adjoint: str) -> None:
    found = jax.jit(jax.jacfwd(jax.jacrev(jax.grad(lambda theta: loss(solve(solver, adjoint)(theta))))))(THETA)
    np.testing.assert_allclose(found, exact(THETA).third, **EXACT)


@pytest.mark.exhaustive  # the oracle of the same hessian above is in closed form
def test_hessian_is_the_difference_of_gradients() -> None:
    gradient = jax.jit(jax.grad(lambda theta: loss(solve(NEWTON, "lu")(theta))))
    steps = 1e-5 * np.eye(2)  # eps^(1/3): a central difference is then right to about 1e-10
    differences = [(gradient(THETA + step) - gradient(THETA - step)) / 2e-5 for step in steps]
    hessian = jax.jit(jax.hessian(lambda theta: loss(solve(NEWTON, "lu")(theta))))(THETA)
    np.testing.assert_allclose(hessian, differences, rtol=1e-7, atol=1e-7)


#: By residual: linear, with kinks, and linear in y alone.
PIECEWISE = {
    "linear": (lambda y, x: 3 * y - x, 0.0),
    "relu": (lambda y, x: y + jax.nn.relu(y) - x, 0.0),
    "shift": (lambda y, x: 2 * y - x**3, 6.0),
}


@pytest.mark.transform("hessian where the Jacobian is constant or piecewise constant: reverse over reverse")
@pytest.mark.parametrize("name", PIECEWISE)
def test_a_jacobian_that_does_not_depend_on_y_has_second_derivatives(name: str) -> None:
    residual, exact = PIECEWISE[name]

    def solve(x: Any) -> Any:
        return rd.root(residual, jnp.zeros(()), x, solver="newton", adjoint="lu").y

    np.testing.assert_allclose(jax.jit(jax.jacrev(jax.jacrev(solve)))(2.0), exact, **EXACT)


@pytest.mark.transform("reverse over reverse of a linear residual: each adjoint, entry point and batch")
def test_second_derivatives_of_linear_residuals_by_each_way() -> None:
    x, matrix = jnp.array([2.0, 3.0]), jnp.array([[3.0, 1.0], [0.5, 2.0]])

    def of_cell(x: Any) -> Any:
        return rd.fixed_point(lambda z, x: 0.1 * z + 0.9 * x**2, jnp.zeros(2), x, solver="newton", adjoint="gmres").y

    def of_batch(x: Any) -> Any:
        options = {"batch_ndim": 1, "solver": "newton", "batched_args": (0,)}
        return rd.root(lambda y, x: 3 * y - 3 * x**2, x[:, None], x[:, None], **options).y

    ways = {
        "fixed_point": of_cell,
        "closure": lambda x: rd.root(lambda y: matrix @ (y - x**2), x, solver="newton", adjoint="lstsq").y,
        "batch": of_batch,
        "scalar": lambda x: rd.root_scalar(lambda y, x: 3 * y - 3 * x**2, (-50.0, 50.0), x).y,
    }
    for name, way in ways.items():
        twice = jax.jacrev(jax.jacrev(lambda x, way=way: way(x).sum()))
        if name == "batch":
            np.testing.assert_allclose(jax.jit(twice)(x), 2 * np.eye(2), **EXACT)
        else:  # refused, if at all, while it is traced
            assert jax.eval_shape(twice, x).shape == (2, 2)
