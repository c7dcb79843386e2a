"""Chains: per system, the best iterate, what they cost, and `auto` on hard problems."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff
from rootdiff import (
    ArgumentError,
    ArgumentTypeError,
    Broyden,
    Chain,
    LevenbergMarquardt,
    Method,
    Newton,
    PseudoTransient,
    TrustRegion,
)
from rootdiff.testing.problems import get_problem
from tests.harness import HARNESSES
from tests.solvers.cases import on_backends, rosenbrock

CHAIN = Chain([Newton(max_steps=2), TrustRegion()])


@pytest.mark.parametrize(("backend", "solver"), on_backends([CHAIN], [CHAIN]))
def test_the_method_is_told_per_system(backend, solver):
    # one Newton step solves the linear system only; the other one needs the second solver
    def f(y):
        return xp(y).stack([y[..., 0] - 2, xp(y).atan(y[..., 1] - 8) * y[..., 0]], axis=-1)

    y0 = np.array([[0.5, 8.0], [0.5, 30.0]])
    out = backend.solve(f, y0, solver=solver, batch_ndim=1)
    assert [Method(int(k)) for k in out.solution.method] == [Method.NEWTON, Method.TRUST_REGION]
    np.testing.assert_allclose(out.y, [[2.0, 8.0]] * 2, rtol=1e-11)
    alone = backend.solve(f, y0[:1], solver=solver.solvers[0], batch_ndim=1)
    assert Method(int(alone.solution.method[0])) == Method.NEWTON
    np.testing.assert_array_equal(out.y[0], alone.y[0])  # frozen bit for bit while the other one goes on


MIXED = Chain([Broyden(max_steps=2), Newton()])


@pytest.mark.parametrize(("backend", "solver"), on_backends([MIXED], [MIXED]))
def test_a_quasi_newton_method_and_one_that_factors(backend, solver):
    target = np.linspace(1.0, 2.0, 70)
    out = backend.solve(lambda y: y**3 + y - xp(y).asarray(target), np.zeros(70), solver=solver)
    assert Method(int(out.solution.method)) == Method.NEWTON
    np.testing.assert_allclose(out.y**3 + out.y, target, rtol=1e-12)


def test_a_later_solver_does_not_run_when_none_failed():
    class Trap(Newton):
        def init(self, residual, y):
            raise AssertionError("not needed")

    sol = rootdiff.root(rosenbrock, np.array([-1.2, 1.0]), np.array(1.0), solver=Chain([Newton(), Trap()]))
    assert sol.method == Method.NEWTON


def test_the_best_iterate_of_all_is_kept():
    def f(y):
        return y**2 + 1 + 0.1 * np.sin(3 * y)

    chain = Chain([Newton(), PseudoTransient(max_steps=3), TrustRegion()])
    sol = rootdiff.root(f, np.array([3.0]), solver=chain, on_failure="ignore")
    single = [rootdiff.root(f, np.array([3.0]), solver=s, on_failure="ignore") for s in chain.solvers]
    assert not sol.converged
    assert sol.residual_norm == min(s.residual_norm for s in single)
    assert sol.steps == sum(s.steps for s in single)


def test_a_later_failure_that_came_closer_is_kept():
    f = lambda y: y**3 - 8
    chain = Chain([Newton(max_steps=1), Newton(max_steps=6)])
    sol = rootdiff.root(f, np.array([100.0]), solver=chain, on_failure="ignore")
    alone = rootdiff.root(f, np.array([100.0]), solver=chain.solvers[1], on_failure="ignore")
    assert not sol.converged
    np.testing.assert_array_equal(sol.y, alone.y)


def test_any_solver_may_be_in_a_chain():
    chain = Chain([Newton(max_steps=1), rootdiff.SciPy(method="hybr")])
    sol = rootdiff.root(rosenbrock, np.array([-1.2, 1.0]), np.array(1.0), solver=chain)
    assert sol.method == Method.SCIPY


def test_solvers_that_share_a_compiled_loop_keep_their_own_steps_and_settings():
    def f(y):
        return xp(y).stack([xp(y).atan(y[0] - 8) + 0.1 * y[1], y[1] - 0.1 * y[0] ** 2 + y[1] ** 3], axis=-1)

    for few in ([50, 50], [1, 50], [1, 1]):  # limits are values of one compiled program
        chain = Chain(
            [
                Newton(max_steps=1),
                TrustRegion(max_steps=few[0], radius=1.0),
                LevenbergMarquardt(max_steps=few[1], rtol=1e-6, scale="none"),
                PseudoTransient(growth=5.0, time_step=2.0),
            ]
        )
        alone, compiled = (HARNESSES[name]().solve(f, np.array([14.0, 1.0]), solver=chain) for name in ("numpy", "jax"))
        assert Method(int(alone.solution.method)) == Method(4 + few.count(1))
        assert (compiled.solution.method, compiled.status, compiled.steps) == (
            alone.solution.method,
            alone.status,
            alone.steps,
        )
        np.testing.assert_allclose(compiled.y, alone.y, rtol=1e-9)


def test_a_callback_is_told_whose_step_it_was():
    names = []
    chain = Chain([Newton(max_steps=1), TrustRegion(max_steps=1), LevenbergMarquardt(max_steps=2)])
    options = {"solver": chain, "callback": lambda step: names.append(step.method), "on_failure": "ignore"}
    HARNESSES["jax"]().solve(rosenbrock, np.array([-1.2, 1.0]), np.array(1.0), **options)
    jax.effects_barrier()
    assert names == ["Newton", "TrustRegion", "LevenbergMarquardt", "LevenbergMarquardt"]


def test_bad_chains_are_refused():
    with pytest.raises(ArgumentError, match="no solvers"):
        Chain([])
    with pytest.raises(ArgumentTypeError, match="newton"):
        Chain(["newton"])


@pytest.mark.parametrize(
    ("name", "power"),
    [
        ("chebyquad-7", 2),
        ("brown-almost-linear-40", 0),
        ("trigonometric-10", 2),
        ("wood-4", 2),
        ("freudenstein-roth", 0),
        ("generalized-rosenbrock", 0),
        ("powell-badly-scaled-2", 1),
        ("matrix-square-root-3", 0),
    ],
)
def test_auto_solves_what_newton_or_the_others_do_not(name, power):
    problem = get_problem(name)
    sol = rootdiff.root(problem.residual, problem.starts(3)[power], problem.theta)
    assert np.max(np.abs(problem.residual(sol.y, problem.theta))) < 1e-9


@pytest.mark.parametrize("start", [-9.0, -2.0, 1.5, 5.0, 9.0])
def test_auto_leaves_a_minimum_of_the_residual_of_one_unknown(start):
    sol = rootdiff.root(lambda y, a: y / (1 + y**2) - a, np.array([start]), 0.3)
    np.testing.assert_allclose(0.3 * sol.y**2 - sol.y, -0.3, rtol=1e-10)
