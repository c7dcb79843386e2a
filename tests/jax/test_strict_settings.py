"""JAX's settings that refuse implicit promotion of ranks and dtypes: they are for the user's code, and hold there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, of_peers_a_few

BRACKETED = ("chandrupatla", "itp", "bisection", "bracketed_newton")
SOLVERS = [name for name in rd.available_solvers("jax") if name not in BRACKETED]
W = 0.1 * np.array([[2.0, -0.7, 0.1], [0.4, 1.8, 0.5], [-0.3, 0.2, 2.2]])


@pytest.fixture(autouse=True)
def _strict() -> Iterator[None]:
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def cell(z: Any, a: Any) -> Any:
    return jnp.tanh(z @ W.T) + a


def gradient(batch: bool = True, of: Any = jax.grad, **options: Any) -> Any:
    """Return the gradient as `jax.eval_shape` knows it: what is refused is refused while a program is traced."""
    start = jnp.zeros((2, 3) if batch else 3)
    options = {"solver": "newton", "batch_ndim": int(batch), **options}
    return jax.eval_shape(of(lambda a: rd.fixed_point(cell, start, a, **options).y.sum()), start)


@pytest.mark.parametrize("solver", of_peers_a_few(SOLVERS))
def test_each_solver(solver: str) -> None:
    """Finds the root; the derivative is that of each adjoint."""
    assert gradient(solver=solver, of=jax.jit).shape == ()


@pytest.mark.parametrize("adjoint", rd.available_adjoints("jax"))
def test_each_adjoint(adjoint: str) -> None:
    assert gradient(solver="broyden", adjoint=adjoint).shape == (2, 3)


@pytest.mark.parametrize("solver", BRACKETED)
def test_each_bracketing_solver(solver: str) -> None:
    a = jnp.array([8.0, 27.0])
    found = jax.eval_shape(lambda a: rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), a, solver=solver).y, a)
    assert found.shape == (2,)


def test_other_entry_points_and_options() -> None:
    assert gradient(batch=False).shape == (3,)
    assert gradient(batched_args=(0,)).shape == (2, 3)
    y0, batch = jnp.zeros(3), jnp.zeros((2, 3))
    sol = jax.eval_shape(lambda a: rd.continuation(lambda y, a: y**3 + y - a, y0, y0, a), y0 + 1)
    assert sol.y.shape == (3,)
    options = {"solver": "newton", "batch_ndim": 1, "check": True, "bounds": (-5.0, 5.0)}
    assert rd.root(lambda y, a: a - y, batch, batch + 1, **options).converged.all()
    radius = jax.eval_shape(lambda z: rd.nn.spectral_radius(cell, z, batch, batch_ndim=1), batch)
    assert radius.shape == (2,)


def test_complex_unknowns_and_values() -> None:
    def root(a: Any) -> Any:
        return rd.root(lambda z, a: z**2 + a, jnp.array([0.2 + 1.0j]), a, solver="newton").y

    found, slope = jax.value_and_grad(lambda a: root(a).imag.sum())(jnp.array([4.0 + 0.0j]))
    np.testing.assert_allclose(found, 2.0, **EXACT)
    np.testing.assert_allclose(slope, [0.25], **EXACT)


def test_the_residual_is_still_refused() -> None:
    with pytest.raises(ValueError, match="rank_promotion"):
        rd.root(lambda y: y - jnp.ones((1, 1)), jnp.zeros(3))
