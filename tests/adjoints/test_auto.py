"""`adjoint="auto"`: direct while small or factored, else iterative, and again by another method where that fails."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import Status, _implicit, _sizes
from rootdiff.linear import AutoLinear, _auto
from tests.harness import HARNESSES

LARGE = 1100  # above `DENSE_UNKNOWNS`


def _record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the linear solvers in the order they are called."""
    called: list[str] = []
    for solver in (rootdiff.LU, rootdiff.GMRES, rootdiff.LSMR):
        original = solver.solve

        def solve(self: Any, operator: Any, rhs: Any, original: Any = original) -> Any:
            called.append(type(self).__name__)
            return original(self, operator, rhs)

        monkeypatch.setattr(solver, "solve", solve)
    return called


def _solve(arrays: Any, matrix: np.ndarray, factors: Any = None) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(matrix.shape[-1])
    solve = arrays.compiled(
        lambda a, b: _implicit.solve(arrays.operator(a), AutoLinear().starting_from(factors), b, "raise")
    )
    found, info = solve(*map(arrays.array, (matrix, (matrix @ x[..., None])[..., 0])))
    assert int(info.status) <= Status.AT_PRECISION
    np.testing.assert_allclose(arrays.numpy(found), x, rtol=1e-9)  # conditions below 10


def _cycle(n: int) -> np.ndarray:
    """Return a permutation, on which GMRES makes no progress before n steps, while its A^T A is the identity."""
    return np.roll(np.eye(n), 1, axis=0)


def test_direct_while_small(arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _record(monkeypatch)
    _solve(arrays, _cycle(20))
    assert called == ["LU"]


def test_iterative_when_large(numpy_arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _record(monkeypatch)
    rng = np.random.default_rng(1)
    _solve(numpy_arrays, np.eye(LARGE) + 0.1 * rng.standard_normal((LARGE, LARGE)) / np.sqrt(LARGE))
    assert called == ["GMRES"]


def test_direct_where_a_factorisation_is_at_hand(numpy_arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _record(monkeypatch)
    matrix = _cycle(LARGE)
    _solve(numpy_arrays, matrix, numpy_arrays.backend.lu_factor(matrix))
    assert called == ["LU"]


def test_direct_where_the_iteration_stalls(arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _record(monkeypatch)
    _solve(arrays, _cycle(LARGE))
    assert called == ["GMRES", "LU"]


def test_least_squares_where_the_matrix_is_too_large(arrays: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    called = _record(monkeypatch)
    monkeypatch.setattr(_sizes, "DENSE_ENTRIES", 1000)
    _solve(arrays, _cycle(LARGE))
    assert called == ["GMRES", "LSMR"]


ONE = 300  # one system that a short GMRES is tried on


def _clustered(n: int = ONE) -> np.ndarray:
    rng = np.random.default_rng(1)
    return np.eye(n) + 0.1 * rng.standard_normal((n, n)) / np.sqrt(n)


@pytest.mark.parametrize("transposed", [False, True])
def test_one_system_is_solved_without_factors(arrays: Any, transposed: bool) -> None:
    matrix = _clustered()
    x = np.random.default_rng(0).standard_normal(ONE)
    system = matrix.T if transposed else matrix
    found, info = arrays.solve(system, matrix @ x, transposed=transposed, by=_auto.attempt)
    assert int(info.status) == Status.CONVERGED
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-13)
    _, info = arrays.solve(_cycle(ONE), x, transposed=transposed, by=_auto.attempt)
    assert int(info.status) > Status.AT_PRECISION
    found, info = arrays.solve(_cycle(ONE), _cycle(ONE) @ x, "auto")
    assert int(info.status) <= Status.AT_PRECISION
    np.testing.assert_allclose(found, x, rtol=1e-9)  # conditions below 10


@pytest.mark.parametrize("kind", ["units", "decay"])
def test_the_trial_resolves_each_row(arrays: Any, kind: str) -> None:
    # a solution that is zero in the rows of small units has a small residual too
    units = np.where(np.arange(ONE) % 3 == 0, 1e-20, 1.0) if kind == "units" else np.ones(ONE)
    matrix = _clustered()
    x = np.random.default_rng(0).standard_normal(ONE) * (1.0 if kind == "units" else 0.9 ** np.arange(ONE))
    found, info = arrays.solve(units[:, None] * matrix, units * (matrix @ x), "auto")
    assert int(info.status) <= Status.AT_PRECISION
    np.testing.assert_allclose(found, x, rtol=0, atol=1e-11)  # LU's error, with rows of small pivots


@pytest.mark.parametrize("small", [0.0, 1e-18, 1e-16])
def test_the_trial_does_not_hide_a_singular_matrix(arrays: Any, small: float) -> None:
    for seed in arrays.seeds(4):
        rng = np.random.default_rng(seed)
        u = rng.standard_normal(ONE)
        u = u / np.linalg.norm(u)
        matrix = _clustered()
        matrix = matrix - (1 - small) * np.outer(u, u @ matrix)
        rhs = matrix @ rng.standard_normal(ONE)
        _, info = arrays.solve(matrix, rhs, "auto")
        _, trial = arrays.solve(matrix, rhs, by=_auto.attempt)
        assert int(info.status) == Status.SINGULAR
        assert int(trial.status) > Status.AT_PRECISION


def _repeated() -> Iterator[Any]:
    """Yield each backend with both sizes and solvers; of those that compile, one each but for test-all."""
    for name, n, solver in product(HARNESSES, (80, ONE), ("newton_krylov", "auto")):
        rare = name == "jax" or (name == "jax-jit" and (solver, n) != ("newton_krylov", ONE))
        yield pytest.param(name, n, solver, marks=[pytest.mark.exhaustive] if rare else [], id=f"{name}-{solver}-{n}")


@pytest.mark.parametrize(("name", "n", "solver"), list(_repeated()))
def test_a_root_with_a_repeated_equation_has_no_derivative(name: str, n: int, solver: str) -> None:
    def residual(y: Any, a: Any) -> Any:
        xp = array_namespace(y)
        rows = y + 0.3 * xp.roll(y, 1) - a[0] - a[1] ** 2
        return xp.concat([rows[:-1], rows[:1]])

    jacobian = np.eye(n) + 0.3 * np.roll(np.eye(n), 1, axis=0)
    jacobian[-1] = jacobian[0]
    w = jacobian.T @ np.random.default_rng(0).standard_normal(n)  # so that the linear system has solutions
    y0, a = np.full(n, 1.0), np.array([0.3, 1.0])
    outcome = HARNESSES[name]().vjp(residual, y0, a, w=w, solver=solver, on_failure="nan")
    assert int(outcome.status) <= Status.AT_PRECISION
    assert np.isnan(outcome.derivative[0]).all()


def test_many_right_hand_sides_share_factors_in_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    original, tried = _auto.attempt, []

    def attempt(operator: Any, rhs: Any) -> Any:
        shape = jax.ShapeDtypeStruct(rhs.shape, rhs.dtype)
        rhs = jax.pure_callback(lambda v: tried.append(1) or v, shape, rhs, vmap_method="sequential")
        return original(operator, rhs)

    monkeypatch.setattr(_auto, "attempt", attempt)
    matrix = _clustered(ONE + 1)  # a size of its own, since programs are cached

    def root(b: Any) -> Any:
        start = jnp.ones_like(b)
        return rootdiff_jax.root(lambda y, b: jnp.asarray(matrix) @ y - b, start, b, solver="newton_krylov").y

    b, unit, inverse = jnp.ones(ONE + 1), jnp.eye(ONE + 1), np.linalg.inv(matrix)
    _, push = jax.linearize(root, b)
    pull = jax.linear_transpose(push, b)
    np.testing.assert_allclose(pull(unit[0])[0], inverse[0], rtol=0, atol=1e-13)
    assert tried
    tried.clear()
    np.testing.assert_allclose(jax.vmap(pull)(unit)[0], inverse, rtol=0, atol=1e-13)  # jacrev
    np.testing.assert_allclose(jax.vmap(push)(unit).T, inverse, rtol=0, atol=1e-13)  # jacfwd
    assert not tried
    stacked = jax.jit(jax.vmap(jax.grad(lambda b: root(b)[0])))(jnp.stack([b, 2 * b]))
    np.testing.assert_allclose(stacked, [inverse[0]] * 2, rtol=0, atol=1e-13)
