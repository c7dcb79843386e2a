"""n = 50, condition 1e2 to 1e12: each exact adjoint is right to 10 eps times the condition, or says it failed."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status
from tests.adjoints.oracles import exact_solve, matrix_of_condition

N = 50
CONDITIONS = (1e2, 1e4, 1e6, 1e8, 1e10, 1e12)
EXACT = ("auto", "lu", "lstsq", "gmres", "bicgstab", "cg", "lsmr")
#: What must succeed, so that failing everywhere is no way to pass: the largest condition, per precision.
REACH = {
    "auto": {"float64": 1e12, "float32": 1e6},
    "lu": {"float64": 1e12, "float32": 1e6},
    "lstsq": {"float64": 1e12, "float32": 1e4},  # its default rcond, 10 eps, cuts off what is smaller
    "gmres": {"float64": 1e12, "float32": 1e6},
    "bicgstab": {"float64": 0, "float32": 0},  # a spectrum all around zero is not for it, and it says so
    "cg": {"float64": 1e8, "float32": 1e4},
    "lsmr": {"float64": 1e4, "float32": 1e2},
}
#: LSMR takes all its steps where it fails, a second each: in between that waits for test-all.
CASES = [
    pytest.param(name, c, marks=[pytest.mark.exhaustive] if name == "lsmr" and 1e4 < c < 1e12 else [])
    for name in EXACT
    for c in CONDITIONS
]


@cache
def _system(condition: float, dtype: str, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(int(np.log10(condition)))
    matrix = matrix_of_condition(rng, N, condition, dtype, symmetric)
    w = rng.standard_normal(N).astype(dtype)
    return matrix, w, exact_solve(matrix.T, w)


def _check(arrays: Any, name: str, condition: float, dtype: str) -> None:
    matrix, w, expected = _system(condition, dtype, name == "cg")
    u, info = arrays.solve(matrix, w, name, transposed=True)
    error = np.linalg.norm(u - expected) / np.linalg.norm(expected)
    success = int(info.status) <= Status.AT_PRECISION
    assert not success or error <= 10 * np.finfo(dtype).eps * condition
    assert success or condition > REACH[name][dtype]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "condition"), CASES)
def test_error_is_at_most_ten_eps_times_condition(numpy_arrays: Any, name: str, condition: float, dtype: str) -> None:
    _check(numpy_arrays, name, condition, dtype)


@pytest.mark.each_in_jax
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("condition", [1e4, 1e12])
@pytest.mark.parametrize("name", ["auto", "lstsq", "gmres"])
def test_so_it_is_on_every_backend(arrays: Any, name: str, condition: float, dtype: str) -> None:
    _check(arrays, name, condition, dtype)


@pytest.mark.parametrize("condition", [1e2, 1e6, 1e12])
@pytest.mark.parametrize("adjoint", ["auto", "gmres"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_of_a_root(dtype: str, adjoint: str, condition: float) -> None:
    matrix, w, expected = _system(condition, dtype, False)
    b = np.random.default_rng(0).standard_normal((N, 3)).astype(dtype)
    theta = np.ones(3, dtype=dtype)
    sol = rootdiff.root(
        lambda y, theta: matrix @ y - b @ theta,
        np.linalg.solve(matrix, b @ theta),
        theta,
        jac=lambda y, theta: matrix,
        adjoint=adjoint,
        on_failure="nan",
    )
    error = sol.vjp(w)[0] - b.T @ expected
    bound = 10 * np.finfo(dtype).eps * condition * np.linalg.norm(b, 2) * np.linalg.norm(expected)
    # differences of the linear residual in theta are exact to eps^(2/3)
    bound += np.finfo(dtype).eps ** (2 / 3) * np.linalg.norm(b, 2) * np.linalg.norm(expected)
    failed = np.isnan(error).all()
    assert failed or np.linalg.norm(error) <= bound
    # in float32 a condition of 1e6 leaves the smallest unknowns no digit: then there is no root to differentiate at
    assert not failed or (dtype == "float32" and condition >= 1e6)
