"""Gradients of every solver with every adjoint on every backend, against closed forms and differences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from tests.families import FAMILIES, UNKNOWNS
from tests.harness import HARNESSES, Harness

seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(sorted(FAMILIES))

#: The root is found to 1.8e-12 (rtol) times a condition below 3, and NumPy's differences add eps^(2/3) = 4e-11.
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def _solvers(name: str) -> tuple[str, ...]:
    return rootdiff.available_solvers(HARNESSES[name].backend)


PRODUCT = [
    pytest.param(name, solver, adjoint, id=f"{name}-{solver}-{adjoint}")
    for name in HARNESSES
    for solver in _solvers(name)
    for adjoint in rootdiff.available_adjoints(HARNESSES[name].backend)
]


@pytest.mark.parametrize(("name", "solver", "adjoint"), PRODUCT)
@given(family=families, seed=seeds)
def test_vjp_is_closed_form(name: str, solver: str, adjoint: str, family: str, seed: int) -> None:
    backend: Harness = HARNESSES[name]()
    rng = np.random.default_rng(seed)
    case = FAMILIES[family](rng)
    w = rng.standard_normal(UNKNOWNS)
    out = backend.vjp(case.f, case.y0, case.theta, w=w, solver=solver, adjoint=adjoint)
    np.testing.assert_allclose(out.derivative[0], w @ case.sensitivity(out.y), **EXACT)
    if case.root is not None:
        np.testing.assert_allclose(out.y, case.root, **EXACT)
