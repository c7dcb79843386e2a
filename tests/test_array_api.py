"""The mathematics is written once against the array-API standard: it runs on arrays that have nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import _verdict
from tests import strict
from tests.harness import covering

BRACKETING = ("chandrupatla", "itp", "bisection", "bracketed_newton")
SOLVERS = [name for name in rootdiff.available_solvers("strict") if name not in BRACKETING]


def _coupled(y: Any, a: Any) -> Any:
    xp = array_namespace(y)
    return a - 0.5 * xp.exp(y) - 0.3 * xp.sum(y, axis=-1, keepdims=True)


def _cubic(y: Any, a: Any) -> Any:
    return y**3 + y - a


def _cell(z: Any, a: Any) -> Any:
    xp = array_namespace(z)
    return 0.3 * xp.cos(z) - 0.3 * xp.mean(z, axis=-1, keepdims=True) + a


PROBLEMS: dict[str, tuple[Callable[..., Any], Any, Any, dict[str, Any]]] = {
    "coupled": (_coupled, np.zeros(3), np.array([1.0, 2.0, 3.0]), {}),
    "batch of one unknown": (_cubic, np.ones((4, 1)), np.linspace(1.0, 9.0, 4)[:, None], {"batch_ndim": 1}),
}
#: What solvers end differently, and a verdict tells: (residual, start, parameters).
ENDS = {
    "no root": (lambda y, a: y**2 + a, np.ones((3, 2)), np.array([1.0, 2.0])),
    "a double root": (lambda y, a: (y - a) ** 2, np.zeros((3, 2)), np.array([1.0, 2.0])),
    "a singular Jacobian": (lambda y, a: y[..., ::-1] + y - a, np.zeros((3, 2)), np.array([1.0, 1.0])),
    "a start that is no number": (lambda y, a: y - a, np.full((3, 2), np.nan), np.array([1.0, 2.0])),
}


def _strict(value: Any) -> Any:
    return strict.outside(value) if isinstance(value, np.ndarray) else value


def _both(entry: str, *args: Any, **options: Any) -> tuple[Any, Any]:
    """Return the solution of NumPy and that of the strict arrays, of as many steps and the same statuses."""
    own = getattr(rootdiff, entry)(*args, **options)
    other = getattr(strict, entry)(*map(_strict, args), **options)
    assert all(isinstance(part, strict.Array) for part in (other.y, other.status, other.steps, other.method))
    np.testing.assert_array_equal(strict.inside(other.status), own.status)
    np.testing.assert_array_equal(strict.inside(other.steps), own.steps)
    np.testing.assert_allclose(strict.inside(other.y), own.y, rtol=1e-13)
    return own, other


@pytest.mark.parametrize(("solver", "problem"), covering(SOLVERS, [*PROBLEMS], together=1))
def test_a_solver(solver: str, problem: str) -> None:
    f, y0, a, options = PROBLEMS[problem]
    own, _ = _both("root", f, y0, a, solver=solver, on_failure="ignore", **options)
    assert own.converged.all() or solver in ("fixed_point", "anderson", "scipy:anderson")  # made for other problems


def _overdetermined(y: Any, a: Any) -> Any:
    xp = array_namespace(y)
    return xp.concat([_cubic(y, a), xp.exp(y) - 2.0], axis=-1)


@pytest.mark.parametrize("loss", ["linear", "soft_l1", "huber", "cauchy", "arctan"])
def test_a_sum_of_squares(loss: str) -> None:
    y0, a = np.ones((4, 2)), np.linspace(1.0, 9.0, 8).reshape(4, 2)
    own, other = (
        module.least_squares(_overdetermined, *map(take, (y0, a)), loss=loss, batch_ndim=1)
        for module, take in ((rootdiff, np.array), (strict, _strict))
    )
    np.testing.assert_allclose(strict.inside(other.y), own.y, rtol=1e-7)


def test_an_objective() -> None:
    y0, a = np.zeros((2, 2)), np.linspace(1.0, 9.0, 4).reshape(2, 2)

    def wells(y: Any, a: Any) -> Any:
        xp = array_namespace(y)
        return xp.sum((y**2 - a) ** 2, axis=-1) + 0.1 * y[..., 0] * y[..., 1]

    own, other = (
        module.minimize(wells, *map(take, (y0, a)), batch_ndim=1)
        for module, take in ((rootdiff, np.array), (strict, _strict))
    )
    np.testing.assert_allclose(np.abs(strict.inside(other.y)), np.abs(own.y), rtol=1e-7)


@pytest.mark.parametrize("solver", ["auto", "fixed_point", "anderson"])
def test_a_fixed_point(solver: str) -> None:
    own, _ = _both("fixed_point", _cell, np.zeros(70), np.linspace(0.0, 1.0, 70), solver=solver)
    assert own.converged


@pytest.mark.parametrize(("solver", "problem"), covering(["auto", "broyden"], [*ENDS], together=1))
def test_a_verdict(solver: str, problem: str) -> None:
    f, y0, a = ENDS[problem]
    _both("root", f, y0, a, solver=solver, on_failure="ignore", batch_ndim=1)


@pytest.mark.parametrize("problem", ENDS)
def test_a_verdict_without_a_jacobian(problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_verdict, "is_dense", lambda shape: False)
    f, y0, a = ENDS[problem]
    _both("root", f, y0, a, solver="newton_krylov", on_failure="ignore", batch_ndim=1)


def test_a_batch_that_becomes_smaller() -> None:
    start = np.concat([np.zeros((8, 2)), np.full((1, 2), 30.0)])
    options = {"batch_ndim": 1, "batched_args": (0,)}
    own, _ = _both("root", _coupled, start, np.linspace(1.0, 2.0, 9)[:, None], **options)
    assert own.steps[-1] > 2 * own.steps[0]


@pytest.mark.parametrize(
    ("adjoint", "problem"), covering(rootdiff.available_adjoints("strict"), [*PROBLEMS], together=1)
)
def test_a_derivative(adjoint: str, problem: str) -> None:
    f, y0, a, options = PROBLEMS[problem]
    own, other = _both("root", f, y0, a, solver="newton", adjoint=adjoint, **options, on_failure="ignore")
    (gradient,) = other.vjp(_strict(np.ones_like(y0)))
    np.testing.assert_allclose(strict.inside(gradient), own.vjp(np.ones_like(y0))[0], rtol=1e-10)
    tangent = other.jvp(_strict(np.ones_like(a)))
    np.testing.assert_allclose(strict.inside(tangent), own.jvp(np.ones_like(a)), rtol=1e-10)


@pytest.mark.parametrize("end", [10.0, np.inf])
@pytest.mark.parametrize("solver", BRACKETING)
def test_a_bracket(solver: str, end: float) -> None:
    own, _ = _both("root_scalar", _cubic, (0.0, end), np.linspace(1.0, 9.0, 4), solver=solver)
    assert own.converged.all()


@pytest.mark.parametrize("method", ["arclength", "natural"])
def test_a_path(method: str) -> None:
    own, _ = _both("continuation", _cubic, np.zeros(2), np.zeros(2), np.array([3.0, 40.0]), method=method)
    assert own.converged


def test_a_report_of_a_gradient() -> None:
    y, a = np.array([1.0, 1.58]), np.array([1.0, 4.0])
    own, other = rootdiff.gradient_report(_cubic, y, a), strict.gradient_report(_cubic, _strict(y), _strict(a))
    assert other.verdict == own.verdict


def test_hooks() -> None:
    options = {"bounds": (0.0, 3.0), "history": True, "check": True, "batch_ndim": 1}
    own, other = _both("root", _cubic, np.zeros((2, 3)), np.array([1.0, 2.0, 3.0]), **options)
    np.testing.assert_allclose(strict.inside(other.history.residual_norm), own.history.residual_norm, atol=1e-13)
