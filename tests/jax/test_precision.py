"""Products of float32 are computed as such, on devices where JAX would not by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import rootdiff_jax as rd

W = jnp.asarray([[0.3, -0.2, 0.1], [0.1, 0.2, 0.4], [-0.3, 0.1, 0.2]], dtype=jnp.float32)


def loss(W: Any, x: Any, solver: str, adjoint: str) -> Any:
    z = rd.fixed_point(
        lambda z, W, x: jnp.tanh(z @ W.T + x), jnp.zeros_like(x), W, x, solver=solver, adjoint=adjoint, batch_ndim=1
    ).y
    return jnp.sum(z**2)


def products(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        if equation.primitive is lax.dot_general_p:
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize("transform", [jax.grad, jax.hessian, jax.jacfwd])
@pytest.mark.parametrize(("solver", "adjoint"), [("newton", "lu"), ("anderson", "gmres"), ("broyden", "auto")])
def test_every_product_of_a_solve_is_in_full_precision(transform: Any, solver: str, adjoint: str) -> None:
    x = jnp.ones((2, 3), dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(transform(lambda x: loss(W, x, solver, adjoint)))(x).jaxpr
    found = list(products(jaxpr))
    assert len(found) > 4
    assert set(found) == {(lax.Precision.HIGHEST, lax.Precision.HIGHEST)}


def test_a_choice_of_the_user_stands() -> None:
    x = jnp.ones((2, 3), dtype=jnp.float32)
    with jax.default_matmul_precision("tensorfloat32"):
        jaxpr = jax.make_jaxpr(lambda x: loss(W, x, "newton", "lu"))(x).jaxpr
    assert (lax.Precision.HIGHEST, lax.Precision.HIGHEST) not in set(products(jaxpr))


def test_products_outside_of_the_solve_are_left_alone() -> None:
    x = jnp.ones((2, 3), dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x: jnp.sum(x @ W) + loss(W, x, "newton", "lu"))(x).jaxpr
    assert None in set(products(jaxpr))
