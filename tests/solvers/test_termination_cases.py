"""What each solver claims at roots of every kind, and where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff
from rootdiff import Status
from tests.kernels import MOST_STEPS
from tests.solvers.cases import ALL, ROOTED, ROOTLESS, SOLVERS, on_backends

#: JAX compiles each case: the two that the default chain starts with are always tested.
FEW = ("newton", "trust_region")


@pytest.mark.parametrize("case", ROOTED)
@pytest.mark.parametrize(("backend", "solver"), on_backends(SOLVERS, FEW[:1]))
def test_a_root_is_found_and_claimed(backend, solver, case):
    f, y0, root = ROOTED[case]
    out = backend.solve(f, np.array(y0), solver=solver, on_failure="ignore")
    # a double root is known to the square root of the tolerance on f, 1e-6 at worst
    assert Status(int(out.status)).success
    np.testing.assert_allclose(out.y, root, rtol=1e-6 if case == "double" else 1e-10, atol=3e-12)


@pytest.mark.parametrize("case", ROOTLESS)
@pytest.mark.parametrize(("backend", "solver"), on_backends(ALL, FEW))
def test_no_root_is_claimed_where_there_is_none(backend, solver, case):
    f, y0 = ROOTLESS[case]
    # a thousand steps with long line searches take 20 s behind the stiff row
    solver = rootdiff.DFSane(max_steps=100) if solver == "df_sane" else solver
    out = backend.solve(f, np.array(y0), solver=solver, on_failure="ignore")
    assert not Status(int(out.status)).success


@pytest.mark.parametrize(("backend", "solver"), on_backends(ALL))
def test_nan_at_the_start_has_its_status(backend, solver):
    out = backend.solve(lambda y: xp(y).log(y), np.array([-1.0]), solver=solver, on_failure="ignore")
    assert out.status == Status.NONFINITE_START
    assert out.steps == 0


@pytest.mark.parametrize("solver", ["newton", "chord"])
def test_a_singular_start_has_its_status(solver):
    sol = rootdiff.root(lambda y: y**2 - 4 * np.ones_like(y), np.array([1e-300]), solver=solver, on_failure="ignore")
    assert sol.status in (Status.SINGULAR, Status.STALLED)


@pytest.mark.parametrize("solver", ["trust_region", "levenberg_marquardt", "auto"])
def test_a_singular_jacobian_off_the_root_is_left_behind(solver):
    # the Jacobian [[1, 1], [1, 1]] + diag of the bend is singular at the start y = (1, 1) exactly
    def f(y):
        s = y[0] + y[1]
        return np.stack([s - 3, s + (y[0] - 1) ** 2 * y[1] - 3])

    sol = rootdiff.root(f, np.array([1.0, 1.0]), solver=solver, derivatives="complex-step")
    assert np.max(np.abs(f(sol.y))) < 1e-9


@pytest.mark.parametrize(("backend", "solver"), on_backends(SOLVERS, FEW))
def test_a_root_exact_to_rounding_in_float32_is_a_success(backend, solver):
    start = np.array([1.0 if solver != "pseudo_transient" else 60.0], np.float32)
    out = backend.solve(lambda y, a: y**3 - a, start, np.array([8e4], np.float32), solver=solver, on_failure="ignore")
    assert Status(int(out.status)).success
    np.testing.assert_allclose(out.y, 8e4 ** (1 / 3), rtol=6.4e-6)  # the default rtol of float32


def test_each_row_is_judged_by_itself():
    # from 100x the start of this problem SciPy stops at |f| = 489; the slope of the last row must not excuse that
    from rootdiff.testing.problems import get_problem

    problem = get_problem("brown-almost-linear-10")
    for solver in ("scipy:broyden1", "newton_krylov"):
        sol = rootdiff.root(problem.residual, problem.starts()[2], problem.theta, solver=solver, on_failure="ignore")
        # SciPy's path hangs on roundings
        assert sol.converged or solver == "scipy:broyden1"
        assert not sol.converged or np.max(np.abs(problem.residual(sol.y, problem.theta))) < 1e-9


def _linear(y, a, b):  # one function, so that JAX compiles it once by solver and dtype
    return a @ y - b


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("digits", [2, 4, 5])  # of float32 lost to the condition; in float64 twice as many
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("solver", ["newton", "auto"])
def test_newton_does_not_follow_roundings(backend, solver, dtype, digits, near):
    rng = np.random.default_rng(digits)
    left, right = (np.linalg.qr(rng.standard_normal((20, 20)))[0] for _ in range(2))
    condition = 10.0 ** (digits if dtype is np.float32 else 2 * digits)
    a = ((left * np.logspace(0, -np.log10(condition), 20)) @ right.T).astype(dtype)
    root = rng.standard_normal(20)
    b = (a @ root).astype(dtype)
    y0 = (root if near else np.zeros(20)).astype(dtype)
    out = backend.solve(_linear, y0, a, b, solver=solver, on_failure="ignore")
    status = Status(int(out.status))
    # five of seven digits lost may leave the smallest unknowns none
    assert status.success or (status is Status.ILL_DETERMINED and digits == 5 and dtype is np.float32)
    assert out.steps <= MOST_STEPS
    assert np.linalg.norm(out.y - root) <= 100 * np.finfo(dtype).eps * condition * np.linalg.norm(root)
