"""Bracketed roots in JAX: under jit, vmap and grad, with brackets that are traced."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import lambertw

import rootdiff_jax as rd

METHODS = ("chandrupatla", "itp", "bisection", "bracketed_newton")
A = np.array([0.5, 2.0, 30.0])
#: y exp(y) = a: W(a), with W' = W / (a (1 + W)); solvers stop at an error of eps^(3/4) = 2e-12.
W = lambertw(A).real
SLOPE = W / (A * (1 + W))
TOL = 1e-10


def lambert(y, a):
    return y * jnp.exp(y) - a


@pytest.mark.parametrize("method", METHODS)
def test_roots_and_gradients_under_jit(method):
    @jax.jit
    def solve(a, hi):
        sol = rd.root_scalar(lambert, (0.0, hi), a, solver=method)
        return jnp.sum(sol.y), sol

    (_, sol), (of_a, of_hi) = jax.value_and_grad(solve, argnums=(0, 1), has_aux=True)(jnp.asarray(A), 10.0)
    np.testing.assert_allclose(sol.y, W, rtol=TOL)
    np.testing.assert_allclose(of_a, SLOPE, rtol=TOL)
    assert of_hi == 0
    assert sol.status.shape == (3,)


@pytest.mark.parametrize("batched", ["args", "bracket", "both"])
def test_vmap_over_args_and_bracket(batched):
    his = jnp.array([5.0, 10.0, 20.0])
    axes = {"args": (0, None), "bracket": (None, 0), "both": (0, 0)}[batched]
    a = jnp.asarray(A) if axes[0] == 0 else jnp.asarray(A[1])
    hi = his if axes[1] == 0 else his[0]
    solve = jax.grad(lambda a, hi: rd.root_scalar(lambert, (hi, 0.0), a).y)
    found = jax.jit(jax.vmap(solve, in_axes=axes))(a, hi)
    np.testing.assert_allclose(found, SLOPE if axes[0] == 0 else [SLOPE[1]] * 3, rtol=TOL)


def test_one_point_forward_mode_and_closures():
    def solve(a):
        return rd.root_scalar(lambda y: lambert(y, a), 1.0).y

    y, tangent = jax.jvp(solve, (jnp.asarray(A),), (jnp.ones(3),))
    np.testing.assert_allclose(y, W, rtol=TOL)
    np.testing.assert_allclose(tangent, SLOPE, rtol=TOL)


def test_an_invalid_bracket_is_nan_in_its_element_only():
    def solve(a):
        return rd.root_scalar(lambert, (0.0, 10.0), a)

    a = jnp.array([2.0, -3.0])  # y exp(y) = -3 has no root
    with pytest.raises(rd.ConvergenceError, match="INVALID_BRACKET"):
        solve(a)
    sol = jax.jit(solve)(a)
    assert sol.status[1] == rd.Status.INVALID_BRACKET
    np.testing.assert_allclose(sol.y, [W[1], np.nan], rtol=TOL)
    slopes = jax.jit(jax.vmap(jax.grad(lambda a: solve(a).y)))(a)
    np.testing.assert_allclose(slopes, [SLOPE[1], np.nan], rtol=TOL)


def test_one_program_for_all_brackets():
    from rootdiff_jax._rule import solve

    def run(hi):
        return rd.root_scalar(lambert, (0.0, hi), jnp.asarray(A)).y

    run(10.0)
    before = solve._cache_size()
    run(11.0)
    run(np.asarray(12.0))
    assert solve._cache_size() == before


def test_a_bracket_of_another_framework_is_named():
    torch = pytest.importorskip("torch")
    with pytest.raises(rd.ArgumentTypeError, match="bracket: it holds a Tensor"):
        rd.root_scalar(lambert, (torch.tensor(0.0), torch.tensor(1.0)), jnp.asarray(A))
