"""Bracketed roots: elementwise, per-element status, derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, Status

METHODS = ("chandrupatla", "itp", "bisection", "bracketed_newton")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_each_element_has_its_root_and_derivative(method, dtype):
    a = np.array([[8.0, 27.0, 1e-9], [1.0, -2.0, 0.3]], dtype)
    sol = rootdiff.root_scalar(lambda y, a: y**3 - a, (-10.0, 10.0), a, solver=method)
    assert sol.y.shape == sol.status.shape == (2, 3)
    assert sol.y.dtype == dtype
    rtol = 4 * np.finfo(dtype).eps ** 0.75  # atol counts as well as rtol
    np.testing.assert_allclose(sol.y, np.cbrt(a), rtol=rtol, atol=rtol)
    w = np.arange(1.0, 7.0, dtype=dtype).reshape(2, 3)
    if dtype == np.float64:  # dy/da = 1 / (3 y^2)
        np.testing.assert_allclose(sol.vjp(w)[0], w / (3 * np.cbrt(a) ** 2), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_status_is_per_element(method):
    def f(y):
        return np.stack([1 / (y[0] - 1), np.where(y[1] > 0.3, 1.0, -1.0), y[2] ** 2 + 1, (y[3] - 1) ** 7, y[4] - 2])

    bracket = (np.zeros(5), np.array([3.0, 30.0, 30.0, 30.0, 30.0]))
    sol = rootdiff.root_scalar(f, bracket, solver=method, on_failure="ignore")
    failed = (Status.STALLED, Status.NONFINITE)
    assert sol.status[0] in failed  # a pole
    assert sol.status[1] == Status.STALLED  # a jump
    assert sol.status[2] == Status.INVALID_BRACKET
    np.testing.assert_array_equal(sol.converged, [False, False, False, True, True])
    np.testing.assert_allclose(sol.y[3:], [1.0, 2.0], rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [1 / 3, 1 / 9, 5.0])
def test_roots_of_any_order(method, power):
    sol = rootdiff.root_scalar(lambda y: np.sign(y - 0.7) * np.abs(y - 0.7) ** power, (-3.0, 11.0), solver=method)
    np.testing.assert_allclose(sol.y, 0.7, rtol=1e-11)


def test_steps_never_exceed_bisection_by_more_than_the_slack_of_itp():
    f = lambda y: np.exp(y) - 1e-3
    itp = rootdiff.root_scalar(f, (-50.0, 60.0), solver="itp")
    bisection = rootdiff.root_scalar(f, (-50.0, 60.0), solver="bisection")
    chandrupatla = rootdiff.root_scalar(f, (-50.0, 60.0), solver="chandrupatla")
    assert itp.steps <= bisection.steps + 3  # n_0 = 1, and the end of either bracket
    assert chandrupatla.steps < bisection.steps / 2


def test_one_point_is_enough_to_search_from():
    a = np.array([2.0, 1e5, 1e-8])
    sol = rootdiff.root_scalar(lambda y, a: np.exp(y) - a, 0.0, a)
    np.testing.assert_allclose(sol.y, np.log(a), rtol=1e-11)
    start = np.array([0.1, 3.0])  # the search stops at the edge of the domain, log(0)
    np.testing.assert_allclose(rootdiff.root_scalar(lambda y: np.log(y) + 3, start).y, np.exp(-3.0), rtol=1e-11)


def test_an_invalid_bracket_is_an_error_by_policy():
    with pytest.raises(ConvergenceError, match=r"INVALID_BRACKET.*opposite|INVALID_BRACKET") as caught:
        rootdiff.root_scalar(lambda y: y**2 + 1, (0.0, 1.0))
    assert "opposite signs" in str(caught.value)
    sol = rootdiff.root_scalar(lambda y: y**2 + 1, (0.0, 1.0), on_failure="nan")
    assert np.isnan(sol.y)


def test_an_end_that_is_a_root_is_returned():
    sol = rootdiff.root_scalar(lambda y: y - 2, (2.0, 5.0))
    assert sol.y == 2.0
    assert sol.steps == 0


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentTypeError, match="newton"):
        rootdiff.root_scalar(lambda y: y, (0.0, 1.0), solver="newton")
    with pytest.raises(ArgumentError, match="bracket"):
        rootdiff.root_scalar(lambda y: y, (0.0, 1.0, 2.0))
    with pytest.raises(ArgumentTypeError, match="bracket"):
        rootdiff.root_scalar(lambda y: y, ("0", 1.0))
