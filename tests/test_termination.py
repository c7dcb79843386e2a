"""Success is claimed at roots, and only there."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ConvergenceError, Newton, Status
from tests.harness import THOROUGH, Harness


def _status(out: Any) -> Status:
    return Status(int(out.status))


def test_root_exact_to_the_last_bit_in_float32(backend: Harness) -> None:
    solver = Newton(rtol=1e-7, atol=0.0)  # the default tolerance allows seventy times the spacing
    out = backend.solve(lambda y, a: y**3 - a, np.float32([1.0]), np.float32([8e4]), solver=solver)
    assert _status(out).success
    assert abs(out.y[0] - np.cbrt(8e4)) <= np.spacing(np.float32(43.0))


def test_start_at_the_root(backend: Harness) -> None:
    out = backend.solve(lambda y, a: y - a, np.array([2.0]), np.array([2.0]), solver="newton")
    assert _status(out) is Status.CONVERGED
    assert out.steps == 0


def test_root_at_zero(backend: Harness) -> None:
    out = backend.solve(lambda y, a: a * y, np.array([1.0]), np.array([-0.5]), solver="fixed_point")
    assert _status(out).success
    assert abs(out.y[0]) < 1e-11


# Functions that more than one test or case has, so that JAX compiles each once by solver.


def _scaled_cubic(y: Any, a: Any) -> Any:
    return (y / a) ** 3 + y / a - 2  # the root is a


def _pole(y: Any, a: Any) -> Any:
    return 1 / (y - a)


@pytest.mark.parametrize("scale", [1e-14, 1e14])
@pytest.mark.parametrize("solver", ["newton", "broyden", "scipy:hybr"])
def test_unknowns_of_any_size_are_resolved(backend: Harness, solver: str, scale: float) -> None:
    out = backend.solve(_scaled_cubic, np.array([0.0]), np.array([scale]), solver=solver)
    np.testing.assert_allclose(out.y, scale, rtol=1e-11)


def test_double_root_is_found(backend: Harness) -> None:
    out = backend.solve(lambda y, a: y**2 - 2 * y + a, np.array([3.0]), np.array([1.0]), solver="newton")
    assert _status(out).success
    assert abs(out.y[0] - 1) < 1e-7  # sqrt(eps): no better point exists


@pytest.mark.each_in_jax
@pytest.mark.parametrize("solver", ["newton", "broyden", "anderson", "scipy:hybr", "scipy:lm"])
def test_no_root_is_never_a_success(backend: Harness, solver: str) -> None:
    out = backend.solve(lambda y, a: y**2 + a, np.array([3.0]), np.array([1.0]), solver=solver, on_failure="ignore")
    assert not _status(out).success


def test_near_a_pole_is_no_root(backend: Harness) -> None:
    out = backend.solve(_pole, np.array([1 + 1e-6]), np.array([1.0]), solver="newton", on_failure="ignore")
    assert not _status(out).success


@pytest.mark.parametrize("solver", ["anderson", "fixed_point", "df_sane"])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_the_far_side_of_a_pole_is_no_root(backend: Harness, solver: str, offset: float) -> None:
    # the first step ends at |f| = 1e-6, small beside rtol |y|, and its secant is not the slope there
    out = backend.solve(
        _pole,
        np.array([offset + 1e-6]),
        np.array([offset]),
        solver=solver,
        on_failure="ignore",
    )
    assert not _status(out).success


def test_a_stall_next_to_a_multiple_root_is_taken_to_it(backend: Harness) -> None:
    """SciPy's Anderson mixing ends with |y| = 1e-5, where the residual of this triple root is 1e-15."""

    def f(y: Any, a: Any) -> Any:
        return a * y**3

    out = backend.solve(f, np.array([0.3, -0.2]), np.array([1.0, 2.0]), solver="scipy:anderson")
    assert _status(out) is Status.CONVERGED
    assert np.max(np.abs(out.y)) < 1e-11


@pytest.mark.parametrize("solver", ["scipy:broyden1", "scipy:krylov"])
def test_corrections_claim_no_root_at_infinity(solver: str) -> None:
    # each Newton step leaves 1/e of the residual
    sol = rootdiff.root(lambda y: np.exp(-y), np.array([0.0]), solver=solver, on_failure="ignore")
    assert not sol.converged


@pytest.mark.parametrize("solver", ["auto", "trust_region", "levenberg_marquardt", "pseudo_transient"])
def test_equations_in_units_far_apart(solver: str) -> None:
    """The start satisfies the large equation, so that its rounding at the root is as large as the residual was."""

    def f(y: Any, a: Any) -> Any:
        return np.stack([1e8 * (y[0] ** 3 + y[1] - a[0]), 2 * y[1] - 0.3 * y[0] - a[1]])

    (root,) = (z.real for z in np.roots([1, 0, 0.15, -1.75]) if z.imag == 0)
    for start in np.random.default_rng(0).uniform(-2, 2, 400 if THOROUGH else 12):
        sol = rootdiff.root(f, np.array([start, 2 - start**3]), np.array([2.0, 0.5]), solver=solver)
        # y0^3 + 0.15 y0 = 1.75
        np.testing.assert_allclose(sol.y, [root, 2 - root**3], rtol=1e-11)


def test_best_iterate_is_returned(backend: Harness) -> None:
    def f(y: Any, a: Any) -> Any:
        return array_namespace(y).exp(-y) + 0 * a  # falls forever, without a root

    out = backend.solve(f, np.array([0.0]), np.array([1.0]), solver=Newton(max_steps=7), on_failure="ignore")
    assert _status(out) is Status.MAX_STEPS
    assert out.steps == 7
    np.testing.assert_allclose(out.y, [7.0], rtol=1e-6)  # each Newton step adds one


def test_domain_edge_is_backed_away_from(backend: Harness) -> None:
    def f(y: Any, a: Any) -> Any:
        return array_namespace(y).log(y) - a  # the full step from 30 ends below zero

    out = backend.solve(f, np.array([30.0]), np.array([0.5]), solver="newton")
    np.testing.assert_allclose(out.y, np.exp([0.5]), rtol=1e-12)


def test_singular_start_is_named(backend: Harness) -> None:
    out = backend.solve(lambda y, a: y**2 - a, np.array([0.0]), np.array([1.0]), solver="newton", on_failure="ignore")
    assert _status(out) is Status.SINGULAR


def test_nan_at_the_start_is_named(backend: Harness) -> None:
    out = backend.solve(lambda y, a: y - a, np.array([0.0]), np.array([np.nan]), on_failure="ignore")
    assert _status(out) is Status.NONFINITE_START
    assert out.steps == 0


def test_failed_system_leaves_the_others_alone(backend: Harness) -> None:
    out = backend.solve(
        lambda y, a: y**2 - a,
        np.array([[1.0], [1.0], [1.0]]),
        np.array([[4.0], [-1.0], [9.0]]),
        solver="newton",
        batch_ndim=1,
        on_failure="nan",
    )
    np.testing.assert_allclose(out.y[[0, 2], 0], [2.0, 3.0])
    assert np.isnan(out.y[1, 0])


def test_error_names_solver_status_and_remedy() -> None:
    with pytest.raises(ConvergenceError) as caught:
        rootdiff.root(lambda y, a: y**2 + a, np.array([3.0]), np.array([1.0]), solver=Newton(rtol=1e-9, max_steps=2))
    message = str(caught.value)
    for part in ("MAX_STEPS", "after 2 steps", "Newton(rtol=1e-09", "residual norm", "raise max_steps", "on_failure"):
        assert part in message
    assert caught.value.solution.y.shape == (1,)
    assert caught.value.solution.residual_norm >= 1


def test_an_underflow_does_not_ask_for_more_steps() -> None:
    with pytest.raises(ConvergenceError, match=r"MAX_STEPS.*underflows[^T]*To do: start elsewhere; scale"):
        rootdiff.root(lambda y: np.exp(-y), np.array([1.0]), solver=Newton(max_steps=730))


_TENDING: dict[str, tuple[Any, float]] = {
    "exponential": (lambda y: array_namespace(y).exp(-y), 10.0),
    "gaussian": (lambda y: (y - 3) * array_namespace(y).exp(-(y**2) / 2), 20.0),
    "hyperbola": (lambda y: 1 / y, 3.0),
}
_NO_MORE = r"no root is in sight(?s:.*)To do: give a better start"


@pytest.mark.parametrize("case", _TENDING)
@pytest.mark.parametrize("solver", ["auto", "newton", "chord", "trust_region"])
def test_where_f_only_tends_to_zero_no_more_steps_are_advised(solver: str, case: str) -> None:
    f, start = _TENDING[case]
    with pytest.raises(ConvergenceError, match=_NO_MORE):
        rootdiff.root(f, np.array([start]), solver=solver)


@pytest.mark.parametrize(
    ("f", "solver"),
    [
        (lambda y: y * y + 1, "pseudo_transient"),
        (lambda y: 1 / y, "pseudo_transient"),
        (lambda y: 1 / array_namespace(y).log(y + 2), "newton_krylov"),
        (lambda y: array_namespace(y).exp(-y), Newton(max_steps=5)),
    ],
)
def test_nor_where_f_has_not_fallen_far(f: Any, solver: Any) -> None:
    with pytest.raises(ConvergenceError, match=_NO_MORE):
        rootdiff.root(f, np.array([1.0]), solver=solver)


@pytest.mark.parametrize(("package", "namespace"), [("rootdiff_torch", "torch"), ("rootdiff_jax", "jax.numpy")])
def test_nor_where_it_does_in_the_other_packages(package: str, namespace: str) -> None:
    f, start = _TENDING["hyperbola"]  # the only one that float32 does not underflow
    y0 = pytest.importorskip(namespace).asarray(np.array([start]))
    with pytest.raises(ConvergenceError, match=_NO_MORE):
        pytest.importorskip(package).root(f, y0)


@pytest.mark.parametrize("f", [lambda y: 0.001 * (1 - y), lambda y: 1e-3 * (1 - y) ** 3])
def test_a_root_in_sight_is_worth_more_steps(f: Any) -> None:
    with pytest.raises(ConvergenceError, match=r"MAX_STEPS: the step limit was reached;(?s:.*)To do: raise max_steps"):
        rootdiff.root(f, np.array([0.0]), solver="fixed_point")


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch"])
def test_unknowns_without_a_digit_are_counted(package: str) -> None:
    xp = pytest.importorskip({"rootdiff": "numpy", "rootdiff_torch": "torch"}[package])
    f = lambda y: xp.stack([y[0] ** 3 - 8, (y[1] - 1e-3) * 1e-20 + (y[0] - 2)])
    with pytest.raises(ConvergenceError, match=r"ILL_DETERMINED: .* without a digit \(1 of 2 unknowns\)"):
        pytest.importorskip(package).root(f, xp.ones(2, dtype=xp.float64))


def test_a_singular_jacobian_may_be_that_of_a_residual_that_tends_to_zero() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ConvergenceError, match=r"SINGULAR(?s:.*)To do: .*tends to zero without a root"):
        pytest.importorskip("rootdiff_torch").root(lambda y: 1 / torch.cosh(y), torch.tensor([300.0]).double())


def test_a_jacobian_that_is_singular_to_differences_asks_for_jac() -> None:
    f = lambda y: np.stack([3 * y[0] + y[1] - 4, 3 * y[0] + (1 + 1e-11) * y[1] - 4 - 1e-11])
    for solver in ("auto", "newton"):
        with pytest.raises(ConvergenceError, match=r"To do: .*give jac if its condition"):
            rootdiff.root(f, np.array([5.0, -7.0]), solver=solver)


class _Raising(rootdiff.Solver):
    """A solver of a user's that steps once, and then raises."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def solve(self, residual: Any, y0: Any) -> Any:
        residual(y0 + 1)
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        np.linalg.LinAlgError("no inverse"),
        RuntimeError("gave up"),
        ZeroDivisionError(),
        ValueError("array must not contain infs or NaNs"),
        KeyError("best"),
        IndexError("no step left"),
    ],
)
def test_what_a_solver_raises_is_a_status(backend: Harness, error: Exception) -> None:
    def f(y: Any, a: Any) -> Any:
        return y**2 - a

    start, a = np.ones(1), np.full(1, 4.0)
    out = backend.solve(f, start, a, solver=_Raising(error), on_failure="ignore")
    assert _status(out) is Status.STALLED
    if not backend.name.startswith("jax"):
        with pytest.raises(ConvergenceError, match="the solver raised " + re.escape(repr(error))):
            backend.solve(f, start, a, solver=_Raising(error))
    out = backend.solve(f, start, a, solver=rootdiff.Chain([_Raising(error), Newton()]))
    np.testing.assert_allclose(out.y, [2.0])


def test_a_mistake_in_a_solver_or_a_residual_is_not_hidden() -> None:
    for error in (TypeError("mistake"), rootdiff.ArgumentError("bounds: mistake"), NotImplementedError("mistake")):
        with pytest.raises(type(error), match="mistake"):
            rootdiff.root(lambda y: y, np.ones(1), solver=_Raising(error), on_failure="nan")

    def outside(y: Any) -> Any:
        if y[0] != 1:
            raise ValueError("math domain error")
        return y

    with pytest.raises(ValueError, match="math domain"):
        rootdiff.root(outside, np.ones(1), solver=_Raising(RuntimeError("never")), on_failure="nan")

    def f(y: Any) -> Any:
        if y[0] != 1:
            raise RuntimeError("out of its domain")
        return y

    with pytest.raises(RuntimeError, match="out of its domain"):
        rootdiff.root(f, np.ones(1), solver=_Raising(RuntimeError("never")), on_failure="nan")


def test_a_given_atol_counts_from_a_warm_start() -> None:
    """Implicit Euler steps of Robertson's kinetics: the start is so close that the residual cannot fall by rtol."""
    rates = np.array([0.04, 3e7, 1e4])

    def step(y: Any, before: Any, length: Any, rates: Any) -> Any:
        a, b, c = y[..., 0], y[..., 1], y[..., 2]
        forward, quadratic, back = rates[0] * a, rates[1] * b * b, rates[2] * b * c
        return y - before - length * np.stack([back - forward, forward - back - quadratic, quadratic], axis=-1)

    y = np.array([1.0, 0.0, 0.0])
    for length in np.diff(np.geomspace(1e-6, 1e-3, 40)):
        sol = rootdiff.root(step, y, y, length, rates, solver=Newton(atol=1e-12), derivatives="complex-step")
        assert sol.steps < 6
        y = sol.y
    assert abs(y.sum() - 1) < 1e-13  # mass is conserved
