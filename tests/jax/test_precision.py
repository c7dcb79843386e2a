"""Products of float32 are computed as such, on devices where JAX would not by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import rootdiff_jax as rd
from rootdiff_jax._trace import equations

W = jnp.asarray([[0.3, -0.2, 0.1], [0.1, 0.2, 0.4], [-0.3, 0.1, 0.2]], dtype=jnp.float32)


def loss(W: Any, x: Any, solver: str, adjoint: str) -> Any:
    z = rd.fixed_point(
        lambda z, W, x: jnp.tanh(z @ W.T + x), jnp.zeros_like(x), W, x, solver=solver, adjoint=adjoint, batch_ndim=1
    ).y
    return jnp.sum(z**2)


def products(jaxpr: Any) -> list[Any]:
    return [e.params["precision"] for e in equations(jaxpr) if e.primitive is lax.dot_general_p]


@pytest.mark.parametrize(
    ("transform", "solver", "adjoint"),
    [
        pytest.param(transform, *pair, marks=[] if i == k else [pytest.mark.exhaustive])
        for i, transform in enumerate((jax.grad, jax.hessian, jax.jacfwd))
        for k, pair in enumerate((("anderson", "gmres"), ("newton", "lu"), ("broyden", "auto")))
    ],
)
def test_every_product_of_a_solve_is_in_full_precision(transform: Any, solver: str, adjoint: str) -> None:
    x = jnp.ones((2, 3), dtype=jnp.float32)
    jaxpr = jax.make_jaxpr(transform(lambda x: loss(W, x, solver, adjoint)))(x).jaxpr
    found = products(jaxpr)
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


@pytest.mark.parametrize(
    ("dtype", "solver", "adjoint"),
    [
        (jnp.float16, "newton", "lu"),
        (jnp.bfloat16, "newton", "lstsq"),
        pytest.param(jnp.bfloat16, "anderson", "gmres", marks=pytest.mark.exhaustive),
    ],
)
def test_half_precision(dtype: Any, solver: str, adjoint: str) -> None:
    """z = c + tanh(z) / 2 with c such that z = 1: to a few roundings, as the default tolerance eps^(3/4) allows."""
    c = jnp.full(2, 1 - np.tanh(1.0) / 2, dtype)

    def solve(c: Any) -> Any:
        start = jnp.full(2, 0.8, dtype)
        return rd.fixed_point(lambda z, c: c + jnp.tanh(z) / 2, start, c, solver=solver, adjoint=adjoint).y

    rtol = 2 * float(jnp.finfo(dtype).eps) ** 0.75
    y, slope = jax.jit(lambda c: (solve(c), jax.grad(lambda c: solve(c).sum())(c)))(c)
    assert y.dtype == slope.dtype == dtype
    np.testing.assert_allclose(y.astype(float), 1.0, rtol=rtol)
    np.testing.assert_allclose(slope.astype(float), 1 / (1 - 0.5 / np.cosh(1.0) ** 2), rtol=rtol)
