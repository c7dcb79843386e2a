"""The approximate adjoints are what their formulas say, and say that they are approximate."""

from __future__ import annotations

import importlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status

APPROXIMATE = ("one_step", "neumann", "phantom", "reuse")


def test_which_are_approximate() -> None:
    inexact = {name for name in rootdiff.available_adjoints() if not rootdiff.get_adjoint(name).exact}
    assert inexact == set(APPROXIMATE)
    assert all(type(rootdiff.get_adjoint(name)).__doc__.startswith("Approximate: ") for name in APPROXIMATE)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("adjoint", "weights"),
    [
        (rootdiff.OneStep(), lambda g: np.eye(4)),
        (rootdiff.Neumann(terms=3), lambda g: np.eye(4) + g + g @ g),
        (rootdiff.Phantom(steps=2, damping=0.5), lambda g: 0.5 * (np.eye(4) + 0.5 * np.eye(4) + 0.5 * g)),
    ],
)
def test_is_its_partial_sum(arrays: Any, adjoint: Any, weights: Any, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    g = 0.3 * rng.standard_normal((4, 4))
    b = rng.standard_normal(4)
    x, info = arrays.solve(g - np.eye(4), b, adjoint, transposed, "raise")
    np.testing.assert_allclose(x, -weights(g.T if transposed else g) @ b, rtol=1e-13)
    assert int(info.status) == Status.CONVERGED
    assert np.isnan(float(info.relative_residual))  # not computed: it would cost a product


@pytest.mark.parametrize("make", [lambda k: rootdiff.Neumann(terms=k), lambda k: rootdiff.Phantom(steps=k)])
def test_bias_vanishes_with_the_number_of_terms(make: Any) -> None:
    rng = np.random.default_rng(1)
    weak = rng.standard_normal((5, 5))
    weak *= 0.5 / np.linalg.norm(weak, 2)
    b = rng.standard_normal((5, 3))
    expected = np.linalg.solve(np.eye(5) - weak, b)
    biases = []
    for terms in (1, 4, 16, 64):
        sol = rootdiff.fixed_point(
            lambda z, t: weak @ z + b @ t, np.zeros(5), np.ones(3), adjoint=make(terms), derivatives="complex-step"
        )
        biases.append(np.abs(sol.jacobian()[0] - expected).max())
    assert all(later < earlier / 2 for earlier, later in pairwise(biases))
    assert biases[-1] < 1e-6  # 0.75^64 = 1e-8 for the damped steps


def test_reuse_after_newton_is_off_by_the_last_step_only() -> None:
    solver = rootdiff.Newton(rtol=1e-3, atol=0)  # ends with a Jacobian that is clearly not of the root
    sol = rootdiff.root(lambda y, a: y**2 - a, np.ones(2), np.array([2.0]), solver=solver, adjoint="reuse")
    error = abs(sol.vjp(np.array([1.0, 0.0]))[0][0] - 0.5**1.5)
    assert 1e-12 < error < 1e-3


def test_reuse_without_an_inverse_is_an_error() -> None:
    sol = rootdiff.root(lambda y, a: y**2 - a, np.ones(1), np.array([2.0]), solver="scipy:hybr", adjoint="reuse")
    with pytest.raises(rootdiff.ArgumentError, match="hands over none"):
        sol.vjp(np.ones(1))


def test_reuse_of_a_placeholder_fails_by_status() -> None:
    sol = rootdiff.root(lambda y, a: y - a, np.ones(2), np.ones(2), solver="newton", adjoint="reuse")
    with pytest.raises(rootdiff.AdjointError, match="NONFINITE"):
        sol.vjp(np.ones(2))


@pytest.mark.parametrize("shape", [(1,), (70, 1), (70, 3)])
def test_reuse_after_newton_where_there_are_no_factors_on_the_way(backend: Any, shape: tuple[int, ...]) -> None:
    """One unknown per system, or many systems that are eliminated together: what is handed over is of the root."""
    a = np.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)
    w = np.cos(np.arange(a.size)).reshape(shape)
    options = {"solver": "newton", "adjoint": "reuse", "batch_ndim": len(shape) - 1}
    out = backend.vjp(lambda y, a: y**2 + y - a, np.ones(shape), a, w=w, **options)
    np.testing.assert_allclose(out.derivative[0], w / np.sqrt(1 + 4 * a), rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rootdiff.Neumann(terms=0),
        lambda: rootdiff.Phantom(steps=0),
        lambda: rootdiff.Phantom(damping=1.5),
        lambda: rootdiff.LeastSquares(rcond=2.0),
        lambda: rootdiff.GMRES(restart=0),
        lambda: rootdiff.CG(max_steps=0),
        lambda: rootdiff.LSMR(preconditioner="ilu"),
        lambda: rootdiff.BiCGStab(rtol=-1.0),
    ],
)
def test_bad_settings_are_errors(make: Any) -> None:
    with pytest.raises(rootdiff.ArgumentError):
        make()


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch", "rootdiff_jax"])
def test_the_solution_says_so(package: str) -> None:
    rd = importlib.import_module(package)
    array = {
        "rootdiff": np.asarray,
        "rootdiff_torch": lambda value: importlib.import_module("torch").tensor(value),
        "rootdiff_jax": lambda value: importlib.import_module("jax.numpy").asarray(value),
    }[package]
    for adjoint, approximate in (("one_step", True), ("auto", False)):
        sol = rd.fixed_point(lambda z: 0.5 * z, array(np.ones((2, 1))), batch_ndim=1, adjoint=adjoint)
        np.testing.assert_array_equal(np.asarray(sol.approximate), [approximate] * 2)
