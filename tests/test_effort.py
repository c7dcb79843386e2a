"""A solve does no more work than it needs: residuals evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff


@pytest.mark.parametrize("solver", ["newton", "trust_region", "levenberg_marquardt"])
def test_finished_systems_do_not_prolong_searches(solver: str) -> None:
    """At a root f is rounding, which no step reduces: only systems that run may have a step shortened."""

    def evaluations(y0: Any, a: Any) -> int:
        calls = 0

        def exponential(y: Any, a: Any) -> Any:
            nonlocal calls
            calls += 1
            return np.exp(y) - a

        sol = rootdiff.root(exponential, y0, a, jac=lambda y, a: np.exp(y), batch_ndim=1, solver=solver)
        np.testing.assert_allclose(sol.y, np.log(a), rtol=1e-11)
        return calls

    easy = np.ones(1000), np.random.default_rng(0).uniform(2.0, 3.0, 1000)
    slow = np.array([14.0]), np.array([2.0])  # a step of Newton's method is -1 until it is near
    both = (np.concat([a, b]) for a, b in zip(easy, slow, strict=True))
    assert evaluations(*both) <= evaluations(*easy) + evaluations(*slow)
