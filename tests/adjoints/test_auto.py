"""`adjoint="auto"`: direct while small or factored, else iterative, and again by another method where that fails."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status, _implicit
from rootdiff.linear import AutoLinear, _auto

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
    found, info = _implicit.solve(
        arrays.operator(matrix, factors), AutoLinear(), arrays.array((matrix @ x[..., None])[..., 0]), "raise"
    )
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
    monkeypatch.setattr(_auto, "DENSE_ENTRIES", 1000)
    _solve(arrays, _cycle(LARGE))
    assert called == ["GMRES", "LSMR"]
