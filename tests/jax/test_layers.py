"""Roots inside the modules of other libraries."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd

W = np.array([[0.2, -0.3, 0.1], [0.1, 0.1, 0.2], [-0.3, 0.0, 0.1]])
X = np.array([0.5, -1.0, 0.3])
#: The fixed point is solved to 1.8e-12, as is the contraction below after 200 rounds.
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def unrolled(weight: Any, x: Any) -> Any:
    z = jnp.zeros(3)
    for _ in range(60):  # the norm of W is below 1/2: 2^-60 is rounding
        z = jnp.tanh(weight @ z + x)
    return z


@pytest.mark.transform("a root inside an Equinox module: filter_jit, filter_grad, filter_vmap")
def test_equinox() -> None:
    equinox = pytest.importorskip("equinox")

    class Equilibrium(equinox.Module):
        weight: jax.Array

        def __call__(self, x: Any) -> Any:
            return rd.fixed_point(lambda z: jnp.tanh(self.weight @ z + x), jnp.zeros(3), solver="newton").y

    layer = Equilibrium(jnp.asarray(W))

    @equinox.filter_jit
    @equinox.filter_grad
    def gradient(layer: Any, xs: Any) -> Any:
        return jnp.sum(equinox.filter_vmap(layer)(xs) ** 2)

    xs = np.stack([X, -X / 2])
    exact = jax.jit(jax.grad(lambda w: jnp.sum(jax.vmap(lambda x: unrolled(w, x))(xs) ** 2)))(W)
    np.testing.assert_allclose(gradient(layer, jnp.asarray(xs)).weight, exact, **EXACT)


@pytest.mark.transform("a root inside a Flax nnx module: nnx.jit, nnx.grad")
def test_nnx() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class Equilibrium(nnx.Module):
        def __init__(self) -> None:
            self.weight = nnx.Param(jnp.asarray(W))

        def cell(self, z: Any, x: Any) -> Any:
            return jnp.tanh(self.weight[...] @ z + x)

        def __call__(self, x: Any) -> Any:
            return rd.fixed_point(self.cell, jnp.zeros(3), x, solver="newton").y

    layer = Equilibrium()

    @nnx.jit
    @nnx.grad
    def gradient(layer: Any, x: Any) -> Any:
        return jnp.sum(layer(x) ** 2)

    exact = jax.jit(jax.grad(lambda w: jnp.sum(unrolled(w, X) ** 2)))(W)
    np.testing.assert_allclose(gradient(layer, jnp.asarray(X)).weight[...], exact, **EXACT)
    layer.weight[...] = jnp.asarray(W) / 2  # as an optimiser does: the next eager call must see it
    np.testing.assert_allclose(layer(jnp.asarray(X)), jax.jit(unrolled)(W / 2, X), **EXACT)
