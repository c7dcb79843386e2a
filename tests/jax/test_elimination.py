"""Many small systems, eliminated together: as good as LAPACK, whatever pivots they want."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax
from rootdiff._sizes import are_better_together
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax.xla import _lu
from tests.harness import covering

COUNT = 96


def _matrices(kind: str, n: int) -> np.ndarray:
    matrix = np.random.default_rng(n).standard_normal((4, COUNT // 4, n, n))
    if kind == "dominant":
        matrix = 0.5 * matrix / n**0.5 + np.eye(n)
    elif kind == "zero diagonal":
        matrix *= 1 - np.eye(n)
    elif kind == "rows scaled":
        matrix = (0.3 * matrix / n**0.5 + np.eye(n)) * np.logspace(-9, 9, n)[:, None]
    return matrix


@pytest.mark.parametrize(
    ("kind", "n", "transpose"),
    covering(["dominant", "random", "zero diagonal", "rows scaled"], [2, 5, 8], [False, True], together=1),
)
def test_solutions_are_as_exact_as_with_pivots(kind: str, n: int, transpose: bool) -> None:
    matrix, rhs = _matrices(kind, n), np.random.default_rng(0).standard_normal((4, COUNT // 4, n))
    assert are_better_together(rhs.shape)
    solve = jax.jit(partial(JaxBackend().eliminate, transpose=transpose))
    x, known = solve(jnp.asarray(matrix), jnp.asarray(rhs))
    again = JaxBackend().eliminate_again(known, jnp.asarray(2 * rhs), transpose)
    across = np.matrix_transpose(matrix) if transpose else matrix
    for found, b in ((np.asarray(x), rhs), (np.asarray(again), 2 * rhs)):
        # the backward error of each row: a few roundings, and the growth that pivots allow too
        residual = np.abs(np.matvec(across, found) - b)
        size = np.sum(np.abs(across), axis=-1) * np.max(np.abs(found), axis=-1, keepdims=True) + np.abs(b)
        assert np.max(residual / size) < 16 * n * np.finfo(float).eps


def test_the_ones_without_pivots_are_taken_only_where_they_are_good() -> None:
    rhs = jnp.ones((COUNT, 3))
    stable = {}
    for kind in ("dominant", "zero diagonal"):
        matrix = jnp.asarray(_matrices(kind, 3).reshape(COUNT, 3, 3))
        stable[kind] = bool(JaxBackend().eliminate(matrix, rhs)[1][1])
    assert stable == {"dominant": True, "zero diagonal": False}


@pytest.mark.parametrize("spoilt", [0.0, np.nan, np.inf])
def test_a_system_without_solution_leaves_the_others_alone(spoilt: float) -> None:
    matrix, rhs = _matrices("dominant", 4), np.ones((4, COUNT // 4, 4))
    matrix[1, 2] = spoilt
    x, known = JaxBackend().eliminate(jnp.asarray(matrix), jnp.asarray(rhs))
    again = JaxBackend().eliminate_again(known, jnp.asarray(rhs))
    good = np.ones((4, COUNT // 4), dtype=bool)
    good[1, 2] = False
    for found in map(np.asarray, (x, again)):
        assert not np.all(np.isfinite(found[1, 2]))
        np.testing.assert_allclose(found[good], np.linalg.solve(matrix[good], rhs[good][..., None])[..., 0], rtol=1e-13)


def test_roots_and_gradients_of_a_batch_that_wants_pivots() -> None:
    """Saddle-point Jacobians [[a, 1], [1, 0]]: eliminated from the second unknown on, the pivot is zero."""

    def residual(y: Any, a: Any) -> Any:
        return jnp.stack([y[:, 1] + a[:, 0] * y[:, 0] ** 3 - 1, y[:, 0] - a[:, 1]], axis=-1)[:, ::-1]

    a = np.random.default_rng(0).uniform(1.0, 2.0, (COUNT, 2))

    def total(a: Any) -> Any:
        return rootdiff_jax.root(residual, jnp.ones((COUNT, 2)), a, batch_ndim=1, solver="newton").y[:, 1].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.asarray(a))
    # y1 = 1 - a0 a1^3
    np.testing.assert_allclose(value, np.sum(1 - a[:, 0] * a[:, 1] ** 3), rtol=1e-13)
    np.testing.assert_allclose(gradient, np.stack([-(a[:, 1] ** 3), -3 * a[:, 0] * a[:, 1] ** 2], axis=-1), rtol=1e-12)


def _powers(y: Any, a: Any) -> Any:
    return y**3 + 0.1 * y[:, ::-1] - a


def _chained(a: Any, **options: Any) -> Any:
    chain = rootdiff_jax.Chain([rootdiff_jax.Newton(max_steps=5), rootdiff_jax.PseudoTransient()])
    return rootdiff_jax.root(_powers, jnp.ones((COUNT, 2)), a, batch_ndim=1, solver=chain, **options)


def test_the_factors_of_a_chain_are_those_at_the_root_whichever_method_found_it() -> None:
    a = jnp.asarray(np.random.default_rng(0).uniform(0.9, 9.0, (COUNT, 2)))

    def total(a: Any) -> Any:
        sol = _chained(a, adjoint="reuse")
        return sol.y.sum(), sol

    found, sol = jax.jit(jax.grad(total, has_aux=True))(a)
    assert 0 < jnp.sum(sol.method == rootdiff_jax.Method.NEWTON) < COUNT
    jacobian = 3 * np.asarray(sol.y)[..., None] ** 2 * np.eye(2) + 0.1 * np.eye(2)[::-1]  # which is symmetric
    np.testing.assert_allclose(found, np.linalg.solve(jacobian, np.ones((COUNT, 2, 1)))[..., 0], rtol=1e-11)


def test_a_chain_factors_nothing_that_no_derivative_wants() -> None:
    program = jax.jit(lambda a: _chained(a).y).lower(jnp.ones((COUNT, 2))).compile().as_text()
    assert "getrf" in program  # in the branches of the method that may not be needed
    assert "getrf" not in program[program.index("ENTRY") :]


@pytest.mark.parametrize("shape", [(2, 2), (7, 7), (8, 8), (9, 9), (3, 1, 17, 17)])
def test_the_order_of_rows_is_that_of_jax(shape: tuple[int, ...]) -> None:
    matrix = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    factors, _, order = jax.lax.linalg.lu(matrix)
    found = jax.jit(_lu.lu_factor)(matrix)
    assert found[1].dtype == order.dtype
    # entries of 1, to a few roundings: with some of OpenBLAS' kernels they depend on where a matrix lies in memory
    np.testing.assert_allclose(found[0], factors, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found[1], order)
