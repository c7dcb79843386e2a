"""A solve does no more work than it needs: residuals evaluated, steps taken."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff


@pytest.mark.parametrize("solver", ["newton", "chord", "broyden"])
def test_finished_systems_do_not_prolong_line_searches(solver: str) -> None:
    """At a root f is rounding, which no step reduces: searches there would double the evaluations."""
    rng = np.random.default_rng(0)
    root, e = rng.uniform(0.0, np.pi, 5000), rng.uniform(0.0, 0.9, 5000)
    mean = root - e * np.sin(root)
    calls = 0

    def kepler(y: Any, mean: Any, e: Any) -> Any:
        nonlocal calls
        calls += 1
        return y - e * np.sin(y) - mean

    def slope(y: Any, mean: Any, e: Any) -> Any:
        return 1 - e * np.cos(y)

    sol = rootdiff.root(kepler, mean + 0.5 * e, mean, e, jac=slope, batch_ndim=1, solver=solver)
    np.testing.assert_allclose(sol.y, root, rtol=1e-10, atol=1e-11)
    assert calls <= np.max(sol.steps) + 4  # the check of the residual, the start, and a shortened step or two
