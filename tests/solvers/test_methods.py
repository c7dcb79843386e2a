"""What is particular to each solver: its options, its batches, what it is good at."""

from __future__ import annotations

import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff
from rootdiff import (
    GMRES,
    LU,
    ArgumentError,
    Broyden,
    Chord,
    DFSane,
    LevenbergMarquardt,
    Newton,
    NewtonKrylov,
    PseudoTransient,
    Status,
    TrustRegion,
)
from tests.solvers.cases import on_backends, powell_singular, rosenbrock

BATCH = np.array([[-1.2, 1.0], [12.0, -10.0], [1.0, 1.0], [0.3, 4.0]])
VARIANTS = [
    Newton(),
    Newton(memory=5),
    TrustRegion(),
    TrustRegion(radius=0.5, scale="none"),
    LevenbergMarquardt(),
    LevenbergMarquardt(geodesic=True, radius=1.0),
    Chord(),
    NewtonKrylov(),
]


#: Those whose loops differ most; JAX compiles each.
FEW = (Newton(memory=5), LevenbergMarquardt(geodesic=True, radius=1.0), Chord())


@pytest.mark.elsewhere_in_jax("tests/jax/test_vmap.py::test_systems_of_a_batch_stop_each_on_its_own")
@pytest.mark.parametrize(("backend", "solver"), on_backends(VARIANTS, FEW))
def test_a_batch_gives_what_each_system_gives(backend, solver):
    a = np.array(1.5)
    batch = backend.solve(rosenbrock, BATCH, a, solver=solver, batch_ndim=1)
    for k, y0 in enumerate(BATCH):
        single = backend.solve(rosenbrock, y0, a, solver=solver)
        np.testing.assert_allclose(batch.y[k], single.y, rtol=1e-10)
        # the inner products of one system and of several are rounded differently: f may be zero by that, or not quite
        assert abs(batch.steps[k] - single.steps) <= isinstance(solver, NewtonKrylov)
    np.testing.assert_allclose(batch.y, np.broadcast_to([1.5, 2.25], (4, 2)), rtol=1e-10)


@pytest.mark.parametrize(("backend", "solver"), on_backends(VARIANTS))
def test_gradient_is_that_of_the_root(backend, solver):
    outcome = backend.vjp(rosenbrock, BATCH[0], np.array(1.5), w=np.array([1.0, 10.0]), solver=solver)
    # y = (a, a^2): closed form; differences of f are good to eps^(2/3), 4e-11
    np.testing.assert_allclose(outcome.derivative[0], 1.0 + 10 * 3.0, rtol=1e-8)


@pytest.mark.parametrize(("backend", "solver"), on_backends([NewtonKrylov(), NewtonKrylov(linear=GMRES(restart=2))]))
@pytest.mark.parametrize("start", [[-1.0, -2.0], [0.0, 1.0]])
def test_newton_krylov_follows_the_valley_of_powells_badly_scaled_function(backend, solver, start):
    def badly_scaled(y):
        e = xp(y).exp(-y)
        return xp(y).stack([1e4 * y[..., 0] * y[..., 1] - 1, e[..., 0] + e[..., 1] - 1.0001], axis=-1)

    outcome = backend.solve(badly_scaled, start, solver=solver)
    # Powell (1970): the root to seven digits
    np.testing.assert_allclose(outcome.y, [1.098159e-5, 9.106147], rtol=1e-6)


@pytest.mark.parametrize("solver", [TrustRegion(), LevenbergMarquardt()], ids=repr)
def test_units_do_not_matter(solver):
    # scaled unknowns and equations, by powers of two so that rounding is the same: the same path
    def scaled(y):
        return np.stack([2.0**40, 2.0**-30]) * rosenbrock(y * np.array([2.0**-20, 2.0**30]), 1.0)

    plain = rootdiff.root(lambda y: rosenbrock(y, 1.0), np.array([-1.2, 1.0]), solver=solver)
    other = rootdiff.root(scaled, np.array([-1.2, 1.0]) * [2.0**20, 2.0**-30], solver=solver)
    assert abs(int(other.steps) - int(plain.steps)) <= 2  # the noise of differences is not scaled alike
    np.testing.assert_allclose(other.y * [2.0**-20, 2.0**30], [1.0, 1.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("backend", "solver"), on_backends([TrustRegion(), LevenbergMarquardt(), Newton(max_steps=100)], [TrustRegion()])
)
def test_a_singular_root(backend, solver):
    out = backend.solve(powell_singular, np.array([3.0, -1.0, 0.0, 1.0]), solver=solver, on_failure="ignore")
    assert Status(int(out.status)).success
    assert np.max(np.abs(out.y)) < 1e-6  # a double root: the square root of the tolerance


def test_non_monotone_search_needs_fewer_steps_along_a_valley():
    y0 = np.array([-3.0, -1.0])
    monotone = rootdiff.root(rosenbrock, y0, np.array(1.0), solver=Newton(memory=1))
    free = rootdiff.root(rosenbrock, y0, np.array(1.0), solver=Newton(memory=8))
    assert free.steps <= monotone.steps


@pytest.mark.parametrize(("curvature", "unit", "first"), [(0.5, 10.0, [0.9, -0.4]), (0.05, 100.0, [0.0, 0.05])])
def test_newton_takes_a_step_that_f_grows_along_if_the_next_correction_is_a_tenth(backend, curvature, unit, first):
    # a whole step leads to f = (0, unit curvature), of size 5 where it was 1; the next correction is that curvature
    def f(y, curvature, unit):
        return xp(y).stack([y[0], unit * (y[1] + curvature * y[0] ** 2)])

    newton = Newton(max_steps=1)
    out = backend.solve(f, [1.0, -curvature], curvature, unit, solver=newton, on_failure="ignore")
    np.testing.assert_allclose(out.y, first, rtol=1e-12, atol=1e-12)


def test_broyden_makes_no_update_that_tells_no_slope():
    # the first step, of length f, leads from 0 to 2, where f is the same
    sol = rootdiff.root(lambda y, a: a - (y - 1) ** 2, np.array([0.0]), 3.0, solver=Broyden(initial="identity"))
    np.testing.assert_allclose(sol.y, 1 + 3**0.5)


@pytest.mark.parametrize("start", [3.0, 0.7, 1.9])
def test_a_failed_solve_reports_the_residual_of_its_iterate(start):
    f = lambda y: y**2 + 1 + 0.1 * np.sin(3 * y)
    sol = rootdiff.root(f, np.array([start]), solver="newton", on_failure="ignore")
    assert not sol.converged
    np.testing.assert_array_equal(sol.residual_norm, np.abs(f(sol.y))[0])


def test_chord_forms_few_jacobians():
    calls = []

    def jac(y, a):
        calls.append(1)
        return np.array([[3 * y[0] ** 2, 1.0], [0.0, 2 * y[1]]])

    def f(y, a):
        return np.stack([y[0] ** 3 + y[1] - a, y[1] ** 2 - 4])

    sol = rootdiff.root(f, np.array([1.9, 2.1]), np.array(10.0), solver="chord", jac=jac)
    np.testing.assert_allclose(sol.y, [2.0, 2.0], rtol=1e-11)
    assert len(calls) <= 2
    assert sol.steps > 4


def _poisson(n):
    h = 1 / (n + 1)

    def f(u):
        padded = np.concatenate([[0.0], u, [0.0]])
        return (padded[2:] - 2 * u + padded[:-2]) / h**2 + 0.5 * np.exp(u)

    lower = np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)
    return f, np.linalg.inv(lower / h**2)


def test_a_preconditioner_saves_products():
    n = 80  # of fewer unknowns the verdict forms the Jacobian, by as many products
    f, inverse = _poisson(n)
    counts = []
    for preconditioner in (None, lambda y, v: v @ inverse.T):
        calls = []

        def jvp(primals, tangents, calls=calls):
            calls.append(1)
            y, t = primals[0], tangents[0]
            return f(y + 1e-7 * t / np.max(np.abs(t))) * 0 + _derivative(f, y, t)

        solver = NewtonKrylov(preconditioner=preconditioner, linear=GMRES(restart=80))
        sol = rootdiff.root(f, np.zeros(n), solver=solver, jvp=jvp)
        assert np.max(np.abs(f(sol.y))) < 1e-8
        counts.append(len(calls))
    assert counts[1] < counts[0] / 4


def _derivative(f, y, t):
    # the residual is linear but for exp(u): an exact product
    step = 1e-30
    return np.imag(_complex(y + 1j * step * t)) / step


def _complex(u):
    h = 1 / (u.shape[0] + 1)
    padded = np.concatenate([[0.0], u, [0.0]])
    return (padded[2:] - 2 * u + padded[:-2]) / h**2 + 0.5 * np.exp(u)


@pytest.mark.parametrize(("backend", "solver"), on_backends([PseudoTransient(time_step=0.1)]))
def test_pseudo_transient_follows_the_stable_branch(backend, solver):
    # y' = -(y^3 - y) from 0.1 ends at 1; the equilibrium at 0 that Newton's method finds is unstable
    transient = backend.solve(lambda y: y**3 - y, np.array([0.1]), solver=solver)
    newton = backend.solve(lambda y: y**3 - y, np.array([0.1]), solver=Newton())
    np.testing.assert_allclose(transient.y, 1.0)
    np.testing.assert_allclose(newton.y, 0.0, atol=1e-11)


@pytest.mark.parametrize(("backend", "solver"), on_backends([PseudoTransient(mass=-1.0)]))
def test_pseudo_transient_of_the_other_sign(backend, solver):
    out = backend.solve(lambda z: 0.5 * xp(z).cos(z), np.array([3.0]), solver=solver, entry="fixed_point")
    np.testing.assert_allclose(out.y, 0.5 * np.cos(out.y), rtol=1e-11)


# an atol of its own: from 0.1 the default one for the root at zero, 2e-13, is hard to reach without derivatives
_DF_SANE = DFSane(max_steps=3000, atol=1e-10)


@pytest.mark.elsewhere_in_jax("tests/jax/test_custom_rules.py::test_a_cell_that_calls_numpy")
@pytest.mark.parametrize(("backend", "solver"), on_backends([_DF_SANE], [_DF_SANE]))
def test_df_sane_needs_no_derivatives(backend, solver):
    # La Cruz, Martinez & Raydan (2006), test function 1 at n = 100: exponential function 1
    def f(y, index):
        rest = (index / 10) * (xp(y).exp(y[1:]) + y[:-1] - 1)
        return xp(y).concat([xp(y).exp(y[:1]) - 1, rest])

    index = np.arange(2.0, 101.0)
    out = backend.solve(f, np.full(100, 0.1), index, solver=solver)
    assert np.max(np.abs(f(out.y, index))) < 1e-9


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: TrustRegion(radius=0.0), "radius"),
        (lambda: TrustRegion(scale="rows"), "scale"),
        (lambda: Newton(memory=0), "memory"),
        (lambda: DFSane(memory=0), "memory"),
        (lambda: Chord(contraction=1.0), "contraction"),
        (lambda: PseudoTransient(mass=0), "mass"),
        (lambda: PseudoTransient(growth=1.0), "growth"),
        (lambda: NewtonKrylov(linear=LU()), "linear"),
        (lambda: NewtonKrylov(preconditioner=3), "preconditioner"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ArgumentError, match=word):
        make()
