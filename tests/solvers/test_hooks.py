"""Corrections of trial points, bounds, callbacks, printed lines and the history."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError
from tests.solvers.cases import rosenbrock

SOLVERS = ("newton", "trust_region", "levenberg_marquardt", "auto")


@pytest.mark.parametrize("solver", SOLVERS)
def test_bounds_choose_the_root(solver):
    seen = []
    sol = rootdiff.root(
        lambda y: y**2 - 4, np.array([-0.1]), solver=solver, bounds=(-10.0, -1.0), callback=lambda i: seen.append(i.y)
    )
    np.testing.assert_allclose(sol.y, -2.0, rtol=1e-11)
    assert all(-10 <= y[0] <= -1 for y in seen)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_root_on_the_border_is_found(solver):
    # sqrt has no value below zero; the roots are (0, 3) on the border and none inside
    def f(y, a):
        return np.stack([y[0] * (y[0] + 1), np.sqrt(y[0] + 1) * y[1] - a])

    sol = rootdiff.root(f, np.array([5.0, 1.0]), np.array(3.0), solver=solver, bounds=(np.array([0.0, -9.0]), None))
    np.testing.assert_allclose(sol.y, [0.0, 3.0], atol=1e-10)
    np.testing.assert_allclose(sol.jacobian()[0], [0.0, 1.0], atol=1e-8)


def test_correct_limits_the_steps_of_a_diode():
    # a diode behind a resistor: from 10 V up plain Newton overflows; SPICE limits the junction voltage per step
    def f(v, supply):
        return 1e-14 * np.expm1(v / 0.02585) - (supply - v) / 1e3

    def limit(trial, v):
        return np.where(trial > 0.7, np.minimum(trial, v + 0.1), trial)

    largest = []
    sol = rootdiff.root(
        f,
        np.array([0.6]),
        np.array(5.0),
        solver="newton",
        correct=limit,
        callback=lambda i: largest.append(i.step_norm),
    )
    # closed form by the Lambert function: v = V + R I - 0.02585 W(...)
    from scipy.special import lambertw

    vt, i_s, r = 0.02585, 1e-14, 1e3
    v = 5.0 + r * i_s - vt * lambertw(r * i_s / vt * np.exp((5.0 + r * i_s) / vt)).real
    np.testing.assert_allclose(sol.y, v, rtol=1e-9)
    assert max(largest) <= 0.1 + 1e-12


def test_callback_history_and_lines_tell_the_same(capsys):
    infos = []
    sol = rootdiff.root(
        rosenbrock,
        np.array([[-1.2, 1.0], [3.0, 2.0]]),
        np.array(1.0),
        solver="trust_region",
        batch_ndim=1,
        callback=infos.append,
        history=True,
        verbose=True,
    )
    steps = int(np.max(sol.steps))
    assert sol.history.residual_norm.shape == sol.history.step_norm.shape == (steps, 2)
    assert len(infos) == steps
    assert sol.history.method == ("TrustRegion",) * steps
    np.testing.assert_array_equal(sol.history.residual_norm[-1], sol.residual_norm)
    np.testing.assert_array_equal(infos[-1].y, sol.y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == steps
    assert "TrustRegion" in lines[0]
    assert "of 2 running" in lines[0]


def test_history_of_a_chain_names_the_methods():
    chain = rootdiff.Chain([rootdiff.Newton(max_steps=2), rootdiff.TrustRegion()])
    sol = rootdiff.root(rosenbrock, np.array([-1.2, 1.0]), np.array(1.0), solver=chain, history=True)
    assert sol.history.method[:3] == ("Newton", "Newton", "TrustRegion")


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"bounds": (1.0, 0.0)}, ArgumentError, "lo is above hi"),
        ({"bounds": 3.0}, ArgumentTypeError, "tuple"),
        ({"bounds": (np.zeros(3), None)}, ArgumentError, "broadcast"),
        ({"bounds": (0.0, None), "solver": "scipy:hybr"}, ArgumentError, "native"),
        ({"correct": lambda trial, y: trial[:1]}, ArgumentError, "correct"),
    ],
)
def test_bad_hooks_are_named(options, error, word):
    with pytest.raises(error, match=word):
        rootdiff.root(lambda y: y**2 - 4, np.array([1.0, 1.0]), **options)
