"""The certificate: its estimate against true errors, its words, its table."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from tests.adjoints.quadratic import N, Quadratic, draw

EPS = np.finfo(float).eps
TRIALS = 200


def _trial(seed: int) -> tuple[str, float, float, float]:
    """Return a description, the true error of a gradient, the error of luck, and the estimate."""
    rng = np.random.default_rng(seed)
    condition = 10 ** rng.uniform(0, 10)
    problem = draw(rng, condition)
    loose, truncated = rng.integers(2, size=2)
    y = _loose(rng, problem, condition) if loose else _tight(rng, problem, condition)
    adjoint = rootdiff.GMRES(rtol=10 ** rng.uniform(-12, -1)) if truncated else rootdiff.LU()
    given = {"jac": problem.jac, "vjp": problem.vjp}
    report = rootdiff.gradient_report(problem.f, y, problem.theta, cotangent=problem.w, adjoint=adjoint, **given)
    u, _ = adjoint.solve(_operator(problem.jac(y, None)).T, problem.w)
    gradient = problem.b.T @ u
    error = np.linalg.norm(gradient - problem.gradient) / np.linalg.norm(problem.gradient)
    name = f"seed {seed}: condition {condition:.0e}, {'loose' if loose else 'tight'} root, {adjoint}"
    return name, float(error), problem.rounding, report.gradient_error


def _tight(rng: np.random.Generator, problem: Quadratic, condition: float) -> np.ndarray:
    solver = rootdiff.Newton(rtol=1e-14, atol=0)
    start = problem.y + 1e-3 / condition * rng.standard_normal(N)
    given = {"jac": problem.jac, "vjp": problem.vjp}
    return rootdiff.root(problem.f, start, problem.theta, solver=solver, on_failure="ignore", **given).y


def _loose(rng: np.random.Generator, problem: Quadratic, condition: float) -> np.ndarray:
    """Return the root with an error that float64 can see, and that leaves it within the basin of Newton's method."""
    least, most = 20 * EPS * condition, 0.1 / (condition * np.abs(problem.s).max())
    return problem.y + 10 ** rng.uniform(np.log10(least), np.log10(most)) * rng.standard_normal(N)


def _operator(matrix: np.ndarray) -> rootdiff.LinearOperator:
    from rootdiff._numpy import NumpyBackend

    return rootdiff.LinearOperator(NumpyBackend(), lambda v: matrix @ v, lambda u: matrix.T @ u, lambda: matrix, EPS)


def test_estimate_is_within_a_factor_ten_in_99_of_100_cases() -> None:
    outliers = []
    for seed in range(TRIALS):
        name, error, luck, estimate = _trial(seed)
        # an error that happens to be smaller than what a rounding of the data makes of it cannot be told
        if not error / 10 <= estimate <= 10 * max(error, luck, EPS):
            outliers.append(f"{name}: true {error:.1e} (luck below {luck:.1e}), estimated {estimate:.1e}")
    print("\n".join(outliers))
    assert len(outliers) <= TRIALS // 100, outliers


@given(seed=st.integers(0, 2**32 - 1))
def test_estimate_is_never_far_below(seed: int) -> None:
    name, error, _, estimate = _trial(seed)
    assert estimate >= error / 100, name  # a tenth in 99 % of cases, a hundredth always


def _square(y: Any, a: Any) -> Any:
    return y**2 - a


def test_it_is_a_plain_dataclass_that_prints_as_a_table() -> None:
    report = rootdiff.gradient_report(_square, np.array([2.0**0.5]), 2.0)
    assert dataclasses.is_dataclass(report)
    lines = str(report).splitlines()
    assert lines[0].startswith("residual norm")
    assert lines[7].startswith("gradient error, estimated")
    assert "verdict: about 10 digits of the gradient can be trusted." in lines


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        ([1.4], {}, "the error comes from the root"),
        ([5.0], {}, "no digit of the gradient can be trusted, because of the root"),
        ([2.0**0.5], {"adjoint": "one_step"}, "no digit of the gradient can be trusted, because of the adjoint"),
        ([0.0], {}, "no gradient: the Jacobian is singular"),
        ([np.nan], {}, "no gradient: the Jacobian or the cotangent has NaN"),
    ],
)
def test_verdict(y: Any, options: Any, words: str) -> None:
    report = rootdiff.gradient_report(_square, np.array(y), 2.0, derivatives="complex-step", **options)
    assert report.verdict.startswith(words) or words in report.verdict
    assert report.remedy


def test_sources_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    problem = draw(rng, 1e3)
    given = {"cotangent": problem.w, "jac": problem.jac, "vjp": problem.vjp}
    good = rootdiff.gradient_report(problem.f, problem.y, problem.theta, **given)
    assert good.gradient_error < 1e-8
    assert good.condition == pytest.approx(np.linalg.cond(problem.jac(problem.y, None), 1), rel=0.9)
    off = rootdiff.gradient_report(problem.f, problem.y + 1e-6, problem.theta, **given)
    assert off.root_error > 100 * off.adjoint_error
    assert off.y_error == pytest.approx(1e-6 * np.sqrt(N) / np.linalg.norm(problem.y), rel=1e-2)
    truncated = rootdiff.gradient_report(
        problem.f, problem.y, problem.theta, adjoint=rootdiff.GMRES(rtol=1e-2, restart=3, max_restarts=1), **given
    )
    assert truncated.adjoint_error > 100 * truncated.root_error


def test_minimum_norm_is_said() -> None:
    def twice(y: Any, a: Any) -> Any:
        return np.stack([y[0] + y[1] - a, 2 * (y[0] + y[1] - a)])

    report = rootdiff.gradient_report(twice, np.ones(2), 2.0, adjoint="lstsq")
    assert report.rank_deficient
    assert "minimum norm" in report.verdict


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_the_three_packages_agree(package: str) -> None:
    rng = np.random.default_rng(1)
    problem = draw(rng, 1e3)
    y = problem.y + 1e-7 * rng.standard_normal(N)
    given = {"jac": problem.jac, "vjp": problem.vjp}
    numpy = rootdiff.gradient_report(problem.f, y, problem.theta, cotangent=problem.w, **given)
    other = _elsewhere(package, problem, y)
    for name in ("y_error", "condition", "root_error"):
        assert getattr(other, name) == pytest.approx(getattr(numpy, name), rel=1e-3)
    assert numpy.rounding_error / 10 < other.rounding_error < 10 * numpy.rounding_error
    assert other.verdict == numpy.verdict


def _elsewhere(package: str, problem: Quadratic, y: np.ndarray) -> Any:
    if package == "torch":
        import torch as xp

        import rootdiff_torch as rd
    else:
        import jax
        import jax.numpy as xp

        import rootdiff_jax as rd

        jax.config.update("jax_enable_x64", True)
    a, s, b, c, theta, w, start = map(
        xp.asarray, (problem.a, problem.s, problem.b, problem.c, problem.theta, problem.w, y)
    )
    return rd.gradient_report(lambda y, t: a @ y + s * y**2 / 2 - b @ t - c, start, theta, cotangent=w)


def test_mask_of_a_batch() -> None:
    report = rootdiff.gradient_report(_square, np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), batch_ndim=1)
    np.testing.assert_array_equal(report.status > rootdiff.Status.AT_PRECISION, [False, True])


def test_torch_counts_captured_parameters() -> None:
    torch = pytest.importorskip("torch")
    import rootdiff_torch

    a = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    y = a.detach() ** 0.5 + torch.tensor([1e-3, 0.0])
    given = rootdiff_torch.gradient_report(lambda y, a: y**2 - a, y, a)
    captured = rootdiff_torch.gradient_report(lambda y: y**2 - a, y)
    assert captured.gradient_error == pytest.approx(given.gradient_error, rel=1e-6)
    assert 1e-5 < captured.root_error < 1e-3
