"""Strategies draw what they promise, and a failure shrinks to the smallest input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from rootdiff.testing import CheckFailed, check_residual, make_case, parameters, residuals, starts


@given(residuals())
def test_roots_and_derivatives_are_known(case: Any) -> None:
    n, p = case.y0.size, case.theta.size
    assert case.sensitivity.shape == (n, p)
    assert np.max(np.abs(case.f(case.root, case.theta))) <= 1e-12 * 1e4  # rounding times the largest rate, of "stiff"
    sol = rootdiff.root(case.f, case.y0, case.theta, solver="newton")
    np.testing.assert_allclose(sol.y, case.root, rtol=1e-9, atol=1e-9 * case.condition)
    # differences of NumPy, eps^(2/3) = 4e-11, times the condition
    np.testing.assert_allclose(sol.jacobian()[0], case.sensitivity, rtol=0, atol=1e-8 * (1 + case.condition))


@given(residuals(["contraction", "monotone"]))
def test_contractions_contract(case: Any) -> None:
    assert case.contractive
    assert rootdiff.root(case.f, case.y0, case.theta, solver="fixed_point").converged


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_condition_is_the_chosen_one(condition: float) -> None:
    case = make_case("linear", np.random.default_rng(0), unknowns=5, condition=condition)
    assert case.condition == pytest.approx(condition, rel=1e-6)


def test_unknown_family_lists_the_names() -> None:
    with pytest.raises(rootdiff.UnknownNameError, match=r"'cubic'.*contraction, monotone"):
        make_case("cubic", np.random.default_rng(0))


@given(parameters((2, 3), -2, 5, np.float32))
def test_parameters_keep_to_their_bounds(theta: Any) -> None:
    assert theta.shape == (2, 3)
    assert theta.dtype == np.float32
    assert np.all((theta >= -2) & (theta <= 5))


@given(starts(near=np.array([3.0, -4.0]), radius=0.5))
def test_starts_are_near(y0: Any) -> None:
    assert np.max(np.abs(y0 - np.array([3.0, -4.0]))) <= 2


def test_strategy_reports_the_worst_of_all_draws() -> None:
    drawn = st.tuples(starts(near=np.ones(2)), parameters(2, 0.5, 2))
    report = check_residual(
        lambda y, a: y**3 - a, np.ones(2), np.ones(2), strategy=drawn, solvers=["newton"], adjoints=["lu"]
    )
    assert report.passed
    assert "the worst of" in report.conditions[0]


def test_failure_is_shrunk_to_the_smallest_input() -> None:
    def f(y: Any, a: Any) -> Any:
        return y - a[:1] - 0.01 * y**2 * a[1:]

    def jac(y: Any, a: Any) -> Any:
        slip = 0.9 if a[1] > 1.5 else 1.0  # wrong in one part of the domain only
        return slip * np.array([[1 - 0.02 * y[0] * a[1]]])

    drawn = st.tuples(st.just(np.zeros(1)), parameters(2, 0, 4))
    with pytest.raises(CheckFailed, match="given jac") as caught:
        check_residual(
            f, np.zeros(1), np.zeros(2), strategy=drawn, jac=jac, solvers=["newton"], adjoints=["lu"], modes=["vjp"]
        )
    assert "args[0] = np.array([0.0, 2.0])" in str(caught.value)
