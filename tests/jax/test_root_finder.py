"""`RootFinder`: our solvers inside Optimistix, beside its own."""

from __future__ import annotations

import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rootdiff import Status

optimistix: Any = pytest.importorskip("optimistix")
RootFinder: Any = pytest.importorskip("rootdiff_jax.optimistix").RootFinder

jax.config.update("jax_enable_x64", True)


def residual(y: Any, a: Any) -> Any:
    """Two unknowns each in p and q, two parameters; another structure comes out."""
    return {"r": y["p"] ** 3 - a * y["q"], "s": y["q"] + jnp.sum(y["p"]) - 4.0}


def test_the_root_and_its_derivative_are_those_of_optimistix() -> None:
    y0, a = {"p": jnp.array([1.0, 2.0]), "q": jnp.ones(2)}, jnp.array([1.5, 2.0])

    def run(a: Any, solver: Any) -> Any:
        found = optimistix.root_find(residual, solver, y0, a)
        return found.value["p"], found

    found = [
        jax.jacrev(run, has_aux=True)(a, solver) for solver in (RootFinder("newton"), optimistix.Newton(1e-11, 1e-11))
    ]
    (ours, solution), (theirs, _) = found
    assert solution.stats["status"] == Status.CONVERGED
    np.testing.assert_allclose(residual(solution.value, a)["r"], 0, atol=1e-14)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_a_failure_is_told() -> None:
    def ended(f: Any, **settings: Any) -> Any:
        return optimistix.root_find(f, RootFinder("newton", **settings), jnp.array(1.0), 9.0, throw=False).result

    results = optimistix.RESULTS
    assert ended(lambda y, a: y**2 - a) == results.successful
    assert ended(lambda y, a: y**2 - a, max_steps=1) == results.nonlinear_max_steps_reached
    assert ended(lambda y, a: jnp.sqrt(y - a)) == results.nonfinite
    assert ended(lambda y, a: (y - 3) ** 2 + a) == results.nonlinear_divergence


def test_the_example_runs() -> None:
    (test,) = doctest.DocTestFinder(recurse=False).find(RootFinder, "RootFinder", globs={})
    failures: list[str] = []
    doctest.DocTestRunner().run(test, out=failures.append)
    assert not failures, "".join(failures)
