"""Paths through parameter space: past folds, to ends that a direct solve does not reach, with derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ConvergenceError


def cubic(y, a):
    """Has folds at y = 1 and y = -1, where a = -2 and a = 2."""
    return y**3 - 3 * y - a


def test_arclength_passes_two_folds():
    # from the lower branch at a = -3 along the S to a = 3, where only the upper branch is left
    sol = rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([3.0]))
    np.testing.assert_allclose(sol.y, 2.103803402735536, rtol=1e-11)  # the real root of y^3 - 3 y - 3
    np.testing.assert_allclose(sol.jacobian()[0][0], 1 / (3 * sol.y**2 - 3), rtol=1e-8)


def test_the_natural_parameter_stays_on_its_branch_and_ends_at_a_fold():
    sol = rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([1.9]), method="natural")
    assert sol.y[0] < -1
    np.testing.assert_allclose(cubic(sol.y, 1.9), 0.0, atol=1e-10)
    with pytest.raises(ConvergenceError, match="STALLED"):
        rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([3.0]), method="natural")


def test_bratu_close_to_its_fold():
    # u'' + c exp(u) = 0 with u = 0 at both ends has its fold at c = 3.5138 (differences with 20 points: 3.507)
    n = 20
    h = 1 / (n + 1)

    def bratu(u, c):
        padded = np.concatenate([[0.0], u, [0.0]])
        return (padded[2:] - 2 * u + padded[:-2]) + h**2 * c[0] * np.exp(u)

    for method in ("natural", "arclength"):
        sol = rootdiff.continuation(bratu, np.zeros(n), np.array([0.0]), np.array([3.4]), method=method)
        assert np.max(np.abs(bratu(sol.y, [3.4]))) < 1e-10
        assert np.max(sol.y) < 1.187  # the lower branch: it ends at max u = 1.1868
        step = 1e-5
        ends = [rootdiff.root(bratu, sol.y, np.array([3.4 + s])).y for s in (step, -step)]
        # central differences: step^2 times the third derivative, large near the fold
        np.testing.assert_allclose(sol.jacobian()[0][:, 0], (ends[0] - ends[1]) / (2 * step), rtol=1e-4)
    with pytest.raises(ConvergenceError):  # beyond the fold there is no solution
        rootdiff.continuation(bratu, np.zeros(n), np.array([0.0]), np.array([4.0]), method="natural")


def test_structures_must_match():
    with pytest.raises(ArgumentError, match="structures"):
        rootdiff.continuation(cubic, np.array([1.0]), (np.array([1.0]), 2.0), np.array([1.0]))
    with pytest.raises(ArgumentError, match="like arrays"):
        rootdiff.continuation(cubic, np.array([1.0]), np.array([1.0, 2.0]), np.array([1.0]))
    with pytest.raises(ArgumentError, match="method"):
        rootdiff.continuation(cubic, np.array([1.0]), np.array([1.0]), np.array([2.0]), method="moore")
