"""Gradients of every solver, adjoint and backend against closed forms.

By default every solver runs with one adjoint and every adjoint with one solver; ``make test-all`` runs the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rootdiff
import rootdiff_jax
import rootdiff_torch
from tests.families import FAMILIES, PARAMETERS, UNKNOWNS
from tests.harness import HARNESSES, Harness
from tests.jax.closed_form import PEERS

PACKAGES = {"numpy": rootdiff, "torch": rootdiff_torch, "jax": rootdiff_jax}
COMPILED = ("jax", "jax-jit")

seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(sorted(FAMILIES))

#: The root is found to 1.8e-12 (rtol) times a condition below 3, and NumPy's differences add eps^(2/3) = 4e-11.
EXACT = {"rtol": 1e-9, "atol": 1e-9}
#: float32: eps^(3/4) = 6e-6 for the root, eps^(2/3) = 2.4e-5 for differences, times the same condition.
SINGLE = {"rtol": 3e-4, "atol": 3e-4}

#: A minimiser sees the square of the residual, and so stops near sqrt(eps) of its scale: it is asked for less.
MINIMISERS = ("optimistix:BFGS",)


def _solvers(name: str) -> list[str]:
    """Return the solvers of systems."""
    backend = HARNESSES[name].backend
    names = PACKAGES[backend].available_solvers(backend)
    return [solver for solver in names if not isinstance(rootdiff.get_solver(solver), rootdiff.BracketSolver)]


def _adjoints(name: str) -> list[str]:
    """Return the adjoints that solve any regular system: exact, and not for symmetric matrices only."""
    names = rootdiff.available_adjoints(HARNESSES[name].backend)
    return [adjoint for adjoint in names if adjoint != "cg" and rootdiff.get_adjoint(adjoint).exact]


def _combinations() -> list[Any]:
    combinations = []
    for name in HARNESSES:
        for solver in _solvers(name):
            for adjoint in _adjoints(name):
                some = adjoint == "auto" or (solver == "newton" and name in ("numpy", "torch", "jax-jit"))
                some = some and (name not in COMPILED or ":" not in solver or solver in PEERS)
                some = some and (name != "numpy" or solver == "newton")  # the others with inputs that are read-only
                marks = [] if some else [pytest.mark.exhaustive]
                combinations.append(pytest.param(name, solver, adjoint, marks=marks, id=f"{name}-{solver}-{adjoint}"))
    return combinations


def _check(name: str, solver: Any, adjoint: str, family: str, seed: int, dtype: Any = np.float64) -> None:
    backend: Harness = HARNESSES[name]()
    tolerance = EXACT if dtype is np.float64 else SINGLE
    if solver == "pseudo_transient":
        solver = rootdiff.PseudoTransient(mass=-1.0)  # the families are dy/dt = f(y)
    if solver in MINIMISERS:
        solver = replace(rootdiff.get_solver(solver), rtol=1e-10, atol=1e-10)
        tolerance = {"rtol": 1e-8, "atol": 1e-8}
    rng = np.random.default_rng(seed)
    case = FAMILIES[family](rng, dtype)
    w = rng.standard_normal(UNKNOWNS).astype(dtype)
    out = backend.vjp(case.f, case.y0, case.theta, w=w, solver=solver, adjoint=adjoint)
    assert out.y.dtype == dtype
    assert out.derivative[0].dtype == dtype
    np.testing.assert_allclose(out.derivative[0], w @ case.sensitivity(out.y), **tolerance)
    if case.root is not None:
        np.testing.assert_allclose(out.y, case.root, **tolerance)


@pytest.mark.each_in_jax
@pytest.mark.parametrize(("name", "solver", "adjoint"), _combinations())
def test_vjp_is_closed_form(name: str, solver: str, adjoint: str) -> None:
    @given(family=families, seed=seeds)
    def check(family: str, seed: int) -> None:
        _check(name, solver, adjoint, family, seed)

    if name in COMPILED:  # which takes about a second for each
        check = settings(max_examples=1)(check)
    check()


@pytest.mark.elsewhere_in_jax("tests/jax/test_failure.py::test_float32_throughout")
@pytest.mark.parametrize("name", HARNESSES)
@pytest.mark.parametrize("solver", ["newton", "anderson"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_float32(name: str, solver: str, family: str) -> None:
    _check(name, solver, "auto", family, 7, np.float32)


def _forward() -> Iterator[Any]:
    """Yield each backend and family with both adjoints; those that compile take Newton's, a short program."""
    for name, adjoint, family in product(HARNESSES, ("lu", "gmres"), sorted(FAMILIES)):
        yield pytest.param(name, "auto", adjoint, family, marks=[pytest.mark.exhaustive] if name in COMPILED else [])
        if name in COMPILED:
            yield pytest.param(name, "newton", adjoint, family)


@pytest.mark.parametrize(("name", "solver", "adjoint", "family"), list(_forward()))
def test_jvp_is_closed_form(name: str, solver: str, adjoint: str, family: str) -> None:
    backend: Harness = HARNESSES[name]()
    rng = np.random.default_rng(11)
    case = FAMILIES[family](rng)
    v = rng.standard_normal(PARAMETERS)
    out = backend.jvp(case.f, case.y0, case.theta, v=[v], solver=solver, adjoint=adjoint)
    np.testing.assert_allclose(out.derivative, case.sensitivity(out.y) @ v, **EXACT)


@pytest.mark.elsewhere_in_jax("tests/jax/test_first_order.py::test_initial_guess_has_no_gradient")
@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_gradient_does_not_depend_on_the_start(name: str) -> None:
    backend: Harness = HARNESSES[name]()

    @settings(max_examples=1 if name in COMPILED else 3)
    @given(seed=seeds)
    def check(seed: int) -> None:
        rng = np.random.default_rng(seed)
        case = FAMILIES["contraction"](rng)
        options = {"w": rng.standard_normal(UNKNOWNS), "solver": "newton" if name == "jax" else "auto"}
        near = backend.vjp(case.f, case.y0, case.theta, **options)
        far = backend.vjp(case.f, case.y0 + 10 * rng.standard_normal(UNKNOWNS), case.theta, **options)
        np.testing.assert_allclose(far.y, near.y, **EXACT)
        np.testing.assert_allclose(far.derivative[0], near.derivative[0], **EXACT)

    check()


@given(seed=seeds, family=families)
def test_same_gradient_from_every_solver(seed: int, family: str) -> None:
    rng = np.random.default_rng(seed)
    case = FAMILIES[family](rng)
    w = rng.standard_normal(UNKNOWNS)
    gradients = {
        solver: HARNESSES["numpy"]().vjp(case.f, case.y0, case.theta, w=w, solver=solver).derivative[0]
        for solver in _solvers("numpy")
        if solver != "pseudo_transient"  # which wants the other sign, see _check
    }
    for gradient in gradients.values():
        np.testing.assert_allclose(gradient, gradients["newton"], **EXACT)


@given(seed=seeds, family=families)
def test_vjp_is_central_difference_of_resolves(seed: int, family: str) -> None:
    """An oracle without algebra: the root, solved again at theta +- h."""
    rng = np.random.default_rng(seed)
    case = FAMILIES[family](rng)
    w, v = rng.standard_normal(UNKNOWNS), rng.standard_normal(PARAMETERS)
    sol = rootdiff.root(case.f, case.y0, case.theta)
    h = 1e-4  # truncation h^2 = 1e-8, rounding of the root 1e-12 / h = 1e-8
    ends = [rootdiff.root(case.f, case.y0, case.theta + sign * h * v).y for sign in (1, -1)]
    np.testing.assert_allclose(sol.vjp(w)[0] @ v, w @ (ends[0] - ends[1]) / (2 * h), rtol=1e-6, atol=1e-6)
