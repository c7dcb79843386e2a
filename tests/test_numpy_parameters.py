"""What is a parameter in NumPy; a derivative is that of the solve, whatever happens to its arguments afterwards."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError

ALL_OF_THEM = {
    "differences": {},
    "jac": {"jac": lambda y, a: np.diag(3 * y**2)},
    "jvp": {"jvp": lambda p, t: 3 * p[0] ** 2 * t[0] - t[1]},
    "vjp": {"vjp": lambda p, w: (3 * p[0] ** 2 * w, -w)},
}


def cube(y: Any, a: Any) -> Any:
    return y**3 - a


@pytest.mark.parametrize("rules", ALL_OF_THEM)
def test_arguments_changed_in_place_after_the_solve(rules: str) -> None:
    theta = np.array([8.0, 27.0])
    sol = rootdiff.root(cube, np.ones(2), theta, **ALL_OF_THEM[rules])
    theta *= 1000
    np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(sol.vjp(np.ones(2))[0], [1 / 12, 1 / 27], rtol=1e-8)
    np.testing.assert_allclose(sol.jvp(np.ones(2)), [1 / 12, 1 / 27], rtol=1e-8)


def test_integers_and_containers_changed_after_the_solve() -> None:
    power, options = np.array([3]), {"shift": np.array([1.0])}
    sol = rootdiff.root(lambda y, a, k, o: y**k - a + o["shift"], np.ones(1), np.array([9.0]), power, options)
    power[0] = 1
    options["shift"] = np.array([5.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_the_start_changed_after_a_solve_of_no_steps() -> None:
    y0 = np.array([2.0])
    sol = rootdiff.root(cube, y0, np.array([8.0]))
    y0[:] = 100.0
    np.testing.assert_allclose(sol.y, [2.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_what_the_residual_closes_over_has_changed() -> None:
    w = np.array([2.0])
    sol = rootdiff.root(lambda y, a: w * y - a, np.zeros(1), np.array([6.0]))
    np.testing.assert_allclose(sol.jacobian()[0], [[0.5]])
    again = rootdiff.root(lambda y, a: w * y - a, np.zeros(1), np.array([6.0]))
    w[:] = 3.0
    with pytest.raises(ArgumentError, match=r"residual: at the root.*closes over|reads besides y and args"):
        again.jacobian()


@pytest.mark.parametrize("rules", ALL_OF_THEM)
def test_a_residual_that_returns_the_same_buffer_again(rules: str) -> None:
    buffer = np.empty(2)

    def residual(y: Any, a: Any) -> Any:
        return np.subtract(y**3, a, out=buffer)

    sol = rootdiff.root(residual, np.ones(2), np.array([8.0, 27.0]), **ALL_OF_THEM[rules])
    np.testing.assert_allclose(sol.y, [2, 3])
    np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)


def test_rules_that_return_the_same_buffers_again() -> None:
    matrix, tangent, cotangents = np.zeros((2, 2)), np.empty(2), (np.empty(2), np.empty(2))

    def jac(y: Any, a: Any) -> Any:
        np.fill_diagonal(matrix, 3 * y**2)
        return matrix

    def jvp(primals: Any, tangents: Any) -> Any:
        return np.subtract(3 * primals[0] ** 2 * tangents[0], tangents[1], out=tangent)

    def vjp(primals: Any, w: Any) -> Any:
        return np.multiply(3 * primals[0] ** 2, w, out=cotangents[0]), np.negative(w, out=cotangents[1])

    for rules in ({"jac": jac}, {"jvp": jvp}, {"vjp": vjp}, {"jac": jac, "jvp": jvp, "vjp": vjp}):
        sol = rootdiff.root(cube, np.ones(2), np.array([8.0, 27.0]), **rules)  # type: ignore[arg-type]
        np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(sol.vjp(np.array([1.0, 2.0]))[0], [1 / 12, 2 / 27], rtol=1e-8)


@dataclass
class Constants:
    a: Any


@pytest.mark.parametrize(
    ("constant", "name"),
    [(3, "int"), (np.array([3]), "ndarray of int64"), (np.array([3j]), "complex128"), (Constants(3.0), "Constants")],
)
def test_a_tangent_for_what_is_not_differentiated(constant: Any, name: str) -> None:
    def residual(y: Any, a: Any, c: Any) -> Any:
        return y - a * np.abs(c.a if isinstance(c, Constants) else c)

    sol = rootdiff.root(residual, np.zeros(1), np.array([2.0]), constant)
    with pytest.raises(ArgumentError, match=rf"jvp: tangent 1.*{name}.*not differentiated"):
        sol.jvp(np.ones(1), np.ones(1))
    np.testing.assert_allclose(sol.jvp(np.ones(1), None), [3.0])
    assert sol.vjp(np.ones(1))[1] is None


def test_a_complex_tangent_or_cotangent_of_what_is_real() -> None:
    sol = rootdiff.root(cube, np.ones(1), np.array([8.0]))
    with pytest.raises(ArgumentError, match="jvp: tangent 0 is complex"):
        sol.jvp(np.array([1j]))
    with pytest.raises(ArgumentError, match="vjp: the cotangent is complex"):
        sol.vjp(np.array([1j]))


def test_a_mask_of_what_is_passed_on_stays() -> None:
    weights = np.ma.masked_array([1, 7], [False, True])  # integers, so no parameter
    sol = rootdiff.root(lambda y, a, w: y**3 - a * w.sum(), np.ones(1), np.array([8.0]), weights)
    np.testing.assert_allclose(sol.y, [2.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_a_masked_residual_is_refused() -> None:
    data = np.ma.masked_array([8.0, 27.0], [False, True])
    with pytest.raises(ArgumentTypeError, match="residual: it returned a masked array"):
        rootdiff.root(lambda y: y**3 - data, np.ones(2))


def test_a_memory_map_is_an_array(tmp_path: Any) -> None:
    stored = np.memmap(tmp_path / "a", dtype=float, mode="w+", shape=(1,))
    stored[:] = 8.0
    sol = rootdiff.root(cube, np.ones(1), stored)
    np.testing.assert_allclose(sol.vjp(np.ones(1))[0], [1 / 12], rtol=1e-8)


@pytest.mark.parametrize("number", [8.0, np.float64(8.0), np.float32(8.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_a_number_takes_the_precision_of_the_unknown(number: Any, dtype: Any) -> None:
    sol = rootdiff.root(cube, np.ones(1, dtype), number)
    assert sol.y.dtype == dtype
    np.testing.assert_allclose(sol.y, [2.0], rtol=1e-5)
    (gradient,) = sol.vjp(np.ones(1, dtype))
    assert gradient.dtype == np.ones(1, dtype).real.dtype
    np.testing.assert_allclose(gradient, 1 / 12, rtol=1e-3)


def test_a_number_among_the_parameters_of_a_continuation_in_float32() -> None:
    sol = rootdiff.continuation(lambda y, a: y**3 + y - a, np.zeros(1, np.float32), 0.0, 10.0)
    assert sol.y.dtype == np.float32
    np.testing.assert_allclose(sol.y, [2.0], rtol=1e-5)


def test_a_solution_is_pickled_with_its_derivatives() -> None:
    sol = rootdiff.root(cube, np.ones(2), np.array([8.0, 27.0]))
    again = pickle.loads(pickle.dumps(sol))
    np.testing.assert_array_equal(again.y, sol.y)
    np.testing.assert_array_equal(again.jacobian()[0], sol.jacobian()[0])
    np.testing.assert_array_equal(again.vjp(np.ones(2))[0], sol.vjp(np.ones(2))[0])


def root_in_its_domain(y: Any, a: Any) -> Any:
    return np.array([math.sqrt(y[0])]) - a  # raises where y is negative


def test_a_solution_is_pickled_with_its_bounds() -> None:
    sol = rootdiff.root(root_in_its_domain, np.array([1.0]), np.array([1e-6]), bounds=(0, None))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(sol)).jacobian()[0], sol.jacobian()[0])
    np.testing.assert_allclose(sol.jacobian()[0], [[2e-6]], rtol=1e-5)


def test_a_solution_of_a_lambda_is_pickled_without_its_derivatives() -> None:
    sol = rootdiff.root(lambda y, a: y**3 - a, np.ones(1), np.array([8.0]), callback=lambda info: None, history=True)
    again = pickle.loads(pickle.dumps(sol))
    np.testing.assert_array_equal(again.y, sol.y)
    assert again.converged
    with pytest.raises(ArgumentTypeError, match=r"pickled without its derivatives.*lambda"):
        again.jacobian()


def test_a_deep_copy_of_a_solution_keeps_its_derivatives() -> None:
    sol = copy.deepcopy(rootdiff.root(lambda y, a: y**3 - a, np.ones(1), np.array([8.0])))
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_solutions_of_the_other_entry_points_are_pickled() -> None:
    for sol in (
        rootdiff.fixed_point(np.cos, np.ones(1)),
        rootdiff.root_scalar(cube, (0.0, 10.0), np.array([8.0, 27.0])),
        rootdiff.continuation(cube, np.ones(1), np.array([1.0]), np.array([8.0])),
        rootdiff.root(cube, np.ones(1), np.array([8.0]), solver="broyden", adjoint="reuse", bounds=(0.0, None)),
    ):
        again = pickle.loads(pickle.dumps(sol))
        for one, other in zip(again.jacobian(), sol.jacobian(), strict=True):
            np.testing.assert_array_equal(one, other)
