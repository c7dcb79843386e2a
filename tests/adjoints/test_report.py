"""The certificate: its estimate against true errors, its words, its table."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

import rootdiff
from tests.adjoints.quadratic import N, Quadratic, draw

EPS = np.finfo(float).eps
#: The whole study where tests are thorough, else its beginning.
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
TRIALS = 1000 if THOROUGH else 60
#: Where the derivatives come from; all but the rules at every third trial, unless tests are thorough.
SOURCES: dict[str, Any] = {
    "rules": {},
    "differences": {},
    "complex steps": {"derivatives": "complex-step"},
    "torch": {},
}
EVERY = 1 if THOROUGH else 3


def _trials(seed: int, every: int = EVERY) -> list[tuple[str, float, float, float]]:
    """Return for each source of derivatives a description, the true error, the error of luck, and the estimate."""
    rng = np.random.default_rng(seed)
    condition = 10 ** rng.uniform(0, 10)
    problem = draw(rng, condition)
    loose, truncated = rng.integers(2, size=2)
    y = _loose(rng, problem, condition) if loose else _tight(rng, problem, condition)
    adjoint = rootdiff.GMRES(rtol=10 ** rng.uniform(-12, -1)) if truncated else rootdiff.LU()
    trials = []
    for source, options in SOURCES.items():
        if source != "rules" and seed % every:
            continue
        given = {name: getattr(problem, name) for name in ("jac", "vjp")} if source == "rules" else options
        if source == "torch":
            report, gradient = _in_torch(problem, y, adjoint), _exact_gradient(problem, y, adjoint)
        else:
            report = rootdiff.gradient_report(
                problem.f, y, problem.theta, cotangent=problem.w, adjoint=adjoint, **given
            )
            gradient = _gradient(problem, y, adjoint, given)
        if source == "differences" and condition > 1e9:
            continue  # singular to their accuracy, which is said: there is no gradient
        error = np.linalg.norm(gradient - problem.gradient) / np.linalg.norm(problem.gradient)
        name = f"seed {seed}, {source}: condition {condition:.0e}, {'loose' if loose else 'tight'} root, {adjoint}"
        trials.append((name, float(error), problem.rounding, report.gradient_error))
    return trials


def _exact_gradient(problem: Quadratic, y: np.ndarray, adjoint: Any) -> np.ndarray:
    u, _ = adjoint.solve(_operator(problem.jac(y, None)).T, problem.w)
    return problem.b.T @ u


def _gradient(problem: Quadratic, y: np.ndarray, adjoint: Any, options: Any) -> np.ndarray:
    """Return the gradient through `y` that a user gets."""
    if "jac" in options:
        return _exact_gradient(problem, y, adjoint)
    from rootdiff import _implicit
    from rootdiff._numpy_adapter import NUMPY
    from rootdiff._task import Options, task

    given = Options(adjoint=adjoint, derivatives=options.get("derivatives", "finite-difference"))
    residual = NUMPY.measured(task(NUMPY, problem.f, y, (problem.theta,), given))
    with np.errstate(all="ignore"):
        return _implicit.vjps(residual, adjoint, y, [problem.w], None, "ignore")[0][0]


def _in_torch(problem: Quadratic, y: np.ndarray, adjoint: Any) -> Any:
    return _elsewhere("torch", problem, y, adjoint=adjoint)


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

    return rootdiff.LinearOperator(
        NumpyBackend(), lambda v: matrix @ v, lambda u: matrix.T @ u, lambda: matrix, EPS, matrix.shape
    )


def test_estimate_is_within_a_factor_ten_in_99_of_100_cases() -> None:
    outliers = []
    trials = [trial for seed in range(TRIALS) for trial in _trials(seed)]
    for name, error, luck, estimate in trials:
        assert estimate >= error / 10, name  # none is too low
        # an error that happens to be smaller than what a rounding of the data makes of it cannot be told
        if not error / 10 <= estimate <= 10 * max(error, luck, EPS):
            outliers.append(f"{name}: true {error:.1e} (luck below {luck:.1e}), estimated {estimate:.1e}")
    print("\n".join(outliers))
    assert len(trials) > 1.5 * TRIALS
    assert len(outliers) <= len(trials) // 100, outliers


@given(seed=st.integers(0, 2**32 - 1))
def test_estimate_is_never_far_below(seed: int) -> None:
    name, error, _, estimate = _trials(seed)[0]
    assert estimate >= error / 100, name  # a tenth in nearly all cases, a hundredth always


def _square(y: Any, a: Any) -> Any:
    return y**2 - a


def test_it_is_a_plain_dataclass_that_prints_as_a_table() -> None:
    report = rootdiff.gradient_report(_square, np.array([2.0**0.5]), 2.0)
    assert dataclasses.is_dataclass(report)
    lines = str(report).splitlines()
    assert lines[0].startswith("residual norm")
    assert lines[8].startswith("gradient error, estimated")
    digits = re.fullmatch(r"verdict: about (\d+) digits of the gradient can be trusted\.", lines[-1])
    assert digits
    gradient = rootdiff.root(_square, np.array([2.0**0.5]), 2.0).vjp(np.ones(1))[0]
    assert int(digits[1]) <= -np.log10(abs(gradient * 8**0.5 - 1)) + 1


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


def _float32_product(y: Any, t: Any) -> Any:
    return np.astype(MATRIX @ np.astype(np.tanh(y), np.float32), float) + y - FEED @ t


def _with_brentq(y: Any, t: Any) -> Any:
    inner = [optimize.brentq(lambda x, v=v: x**3 + x - v, -50, 50, xtol=1e-5) for v in y]
    return y + np.array(inner) - t


SMOOTH: dict[str, Any] = {
    "exp": lambda y: np.exp(-y),
    "lorentz": lambda y: 1 / (1 + y**2),
    "hill": lambda y: y**4 / (1 + y**4),
    "gauss": lambda y: np.exp(-(y**2) / 2),
}
MATRIX = (np.eye(3) + 0.3 * np.random.default_rng(3).standard_normal((3, 3))).astype(np.float32)
FEED = np.random.default_rng(4).standard_normal((3, 2))


def test_a_residual_that_computes_in_float32_inside() -> None:
    theta = np.array([0.6, -1.1])
    exact = rootdiff.root(lambda y, t: np.astype(MATRIX, float) @ np.tanh(y) + y - FEED @ t, np.zeros(3), theta)
    slope = np.astype(MATRIX, float) * (1 - np.tanh(exact.y) ** 2) + np.eye(3)
    gradient = np.linalg.solve(slope.T, np.ones(3)) @ FEED
    sol = rootdiff.root(_float32_product, np.zeros(3), theta, on_failure="ignore")
    error = np.linalg.norm(sol.vjp(np.ones(3))[0] - gradient) / np.linalg.norm(gradient)
    report = rootdiff.gradient_report(_float32_product, sol.y, theta)
    assert error < 1e-2
    assert error / 10 < report.gradient_error < 10 * max(error, 1e-4)


@pytest.mark.parametrize("feed", [3.0, 7.3, 10.0])
def test_a_residual_that_iterates_to_a_tolerance_inside(feed: float) -> None:
    # y + x = a with x^3 + x = y: dy/da = (3 x^2 + 1) / (3 x^2 + 2)
    theta = np.array([feed])
    x = optimize.brentq(lambda x: x**3 + 2 * x - feed, 0, 10, xtol=1e-14)
    gradient = (3 * x**2 + 1) / (3 * x**2 + 2)
    sol = rootdiff.root(_with_brentq, np.ones(1), theta, on_failure="ignore")
    error = abs(sol.jacobian()[0][0, 0] / gradient - 1)
    report = rootdiff.gradient_report(_with_brentq, sol.y, theta)
    assert error > 1e-6
    assert error / 10 < report.gradient_error < 10 * error
    assert "digits" in report.verdict


def test_a_smooth_error_of_the_residual_is_another_residual() -> None:
    # the limit that the docstring states: the gradient of what is computed is right, that of what was meant is not
    def meant(y: Any, a: Any) -> Any:
        return y**3 - a

    def computed(y: Any, a: Any) -> Any:
        return y**3 - a + 1e-7 * np.sin(y)

    options: dict[str, Any] = {"derivatives": "complex-step"}
    root = {f: rootdiff.root(f, np.array([2.0]), 8.0, **options) for f in (meant, computed)}
    gradients = [sol.vjp(np.ones(1))[0] for sol in root.values()]
    report = rootdiff.gradient_report(computed, root[computed].y, 8.0, **options)
    y = root[computed].y
    np.testing.assert_allclose(gradients[1], 1 / (3 * y**2 + 1e-7 * np.cos(y)), rtol=10 * report.gradient_error)
    assert report.gradient_error < 1e-12 < abs(gradients[1] / gradients[0] - 1)


@pytest.mark.parametrize("constant", [1e-14, 1e-18])
def test_a_trace_species_in_logarithms(constant: float) -> None:
    # dissociation: a + b = 1, a + c = 1, b c / a = K; in logarithms the rows of the Jacobian are nearly parallel
    def residual(u: Any, k: Any) -> Any:
        return np.stack([np.exp(u[0]) + np.exp(u[1]) - 1, np.exp(u[0]) + np.exp(u[2]) - 1, u[1] + u[2] - u[0] - k[0]])

    b = (np.sqrt(constant**2 + 4 * constant) - constant) / 2
    y, ratio = np.array([np.log1p(-b), np.log(b), np.log(b)]), b / (1 - b)
    gradient = (2 - ratio) / (2 + ratio)
    theta = np.array([np.log(constant)])
    sol = rootdiff.root(residual, y, theta, on_failure="ignore")
    error = abs(sol.vjp(np.ones(3))[0][0] / gradient - 1)
    assert error <= 10 * rootdiff.gradient_report(residual, sol.y, theta).gradient_error


def test_rounding_that_nudges_of_the_unknown_do_not_show() -> None:
    # in the first equation of this problem the slopes of large terms cancel, and f is zero at the polished root
    for name, error, _, estimate in _trials(10277, every=1):
        assert estimate >= error / 10, name


def test_minimum_norm_is_said() -> None:
    def twice(y: Any, a: Any) -> Any:
        return np.stack([y[0] + y[1] - a, 2 * (y[0] + y[1] - a)])

    report = rootdiff.gradient_report(twice, np.ones(2), 2.0, adjoint="lstsq", cotangent=np.ones(2))
    assert report.rank_deficient
    assert "minimum norm" in report.verdict


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_the_three_packages_agree(package: str) -> None:
    rng = np.random.default_rng(1)
    problem = draw(rng, 1e3, n=3)  # in JAX each operation of a report is a program, for each shape: here the same
    y = problem.y + 1e-7 * rng.standard_normal(3)
    given = {"jac": problem.jac, "vjp": problem.vjp}
    numpy = rootdiff.gradient_report(problem.f, y, problem.theta, cotangent=problem.w, **given)
    other = _elsewhere(package, problem, y)
    for name in ("y_error", "condition", "root_error"):
        assert getattr(other, name) == pytest.approx(getattr(numpy, name), rel=1e-3)
    assert numpy.rounding_error / 10 < other.rounding_error < 10 * numpy.rounding_error
    assert other.verdict == numpy.verdict


@pytest.mark.parametrize("package", ["numpy", "torch", "jax"])
def test_what_y_and_the_cotangent_may_be(package: str) -> None:
    rd = pytest.importorskip({"numpy": "rootdiff"}.get(package, f"rootdiff_{package}"))
    residual = lambda y, a: y**2 - a
    for y, cotangent in ((1.5, 1.0), ([1.5] * 3, [1.0, 2.0, 3.0]))[package == "jax" :]:
        report = rd.gradient_report(residual, y, 2.0, cotangent=cotangent)
        assert float(report.y_error) == pytest.approx(1.5 / 2**0.5 - 1, rel=0.1)
    with pytest.raises(rootdiff.ArgumentError, match=r"gradient_report: the cotangent has leaves of shape \[\(2,\)\]"):
        rd.gradient_report(residual, [1.5] * 3, 2.0, cotangent=np.ones(2))
    with pytest.raises(rootdiff.ArgumentError, match="gradient_report: the cotangent is complex, but y is real"):
        rd.gradient_report(residual, [1.5] * 3, 2.0, cotangent=[1j] * 3)


def _elsewhere(package: str, problem: Quadratic, y: np.ndarray, **options: Any) -> Any:
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
    return rd.gradient_report(lambda y, t: a @ y + s * y**2 / 2 - b @ t - c, start, theta, cotangent=w, **options)


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


@pytest.mark.parametrize("package", ["numpy", "torch", "jax"])
def test_the_error_of_the_root_that_rounding_hides_counts(package: str) -> None:
    # at K = 1e-22 rounding leaves y an error of 5e-6, which cancels in the sum of y, but in no other loss
    rd, xp = _package(package)

    def residual(u: Any, k: Any) -> Any:
        return xp.stack([xp.exp(u[0]) + xp.exp(u[1]) - 1, xp.exp(u[0]) + xp.exp(u[2]) - 1, u[1] + u[2] - u[0] - k])

    k = xp.asarray(np.log(1e-22))
    sol = rd.root(residual, xp.asarray(np.log([0.9, 0.1, 0.05])), k, solver="newton")
    report = rd.gradient_report(residual, sol.y, k)
    error = float(abs(sol.y[1] - sol.y[2])) / 2
    assert error > 1e-6
    assert report.y_error > error / float(abs(sol.y[1])) / 10
    assert error / 10 < report.gradient_error < 1e-2
    assert rd.gradient_report(residual, sol.y, k, cotangent=xp.asarray(np.ones(3))).gradient_error < 1e-10


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_products_in_float32_are_no_failure_of_the_adjoint(package: str) -> None:
    # the derivative solves with the entries of a small Jacobian, not with products that round anew
    rd, xp = _package(package)
    matrix, feed = xp.asarray(MATRIX), xp.asarray(FEED)
    double = {"torch": lambda v: v.double(), "jax": lambda v: v.astype(float)}[package]
    single = {"torch": lambda v: v.float(), "jax": lambda v: v.astype(np.float32)}[package]

    def residual(y: Any, t: Any) -> Any:
        return double(matrix @ single(xp.tanh(y))) + y - feed @ t

    theta = xp.asarray(np.array([0.6, -1.1]))
    y = rd.root(residual, xp.asarray(np.zeros(3)), theta, solver="newton", on_failure="ignore").y
    report = rd.gradient_report(residual, y, theta)
    assert "can be trusted" in report.verdict
    assert 1e-9 < report.gradient_error < 1e-5


@pytest.mark.parametrize("feed", np.linspace(2.0, 12.0, 8))
@pytest.mark.parametrize("xtol", [1e-3, 1e-4, 1e-5])
def test_a_residual_that_iterates_inside_promises_few_digits(feed: float, xtol: float) -> None:
    def residual(y: Any, t: Any) -> Any:
        return y + np.array([optimize.brentq(lambda x, v=v: x**3 + x - v, -50, 50, xtol=xtol) for v in y]) - t

    x = optimize.brentq(lambda x: x**3 + 2 * x - feed, 0, 10, xtol=1e-14)
    gradient = (3 * x**2 + 1) / (3 * x**2 + 2)
    sol = rootdiff.root(residual, np.ones(1), np.array([feed]), on_failure="ignore")
    error = abs(sol.jacobian()[0][0, 0] / gradient - 1)
    assert error / 10 < rootdiff.gradient_report(residual, sol.y, np.array([feed])).gradient_error


@pytest.mark.parametrize("feed", np.linspace(2.0, 12.0, 4))
@pytest.mark.parametrize("xtol", [1e-3, 1e-5, 1e-7])
def test_an_iteration_inside_over_a_parameter_promises_few_digits(feed: float, xtol: float) -> None:
    # y + tanh y = x + b with x^3 + x = a
    def residual(y: Any, a: Any, b: Any) -> Any:
        return y + np.tanh(y) - optimize.brentq(lambda x: x**3 + x - a[0], -50, 50, xtol=xtol) - b

    x = optimize.brentq(lambda x: x**3 + x - feed, 0, 10, xtol=1e-14)
    y = rootdiff.root(lambda y, c: y + np.tanh(y) - c, 0.5, x + 0.3, derivatives="complex-step").y
    slope = 1 / (1 + 1 / np.cosh(y) ** 2)
    exact = slope * np.array([1 / (3 * x**2 + 1), 1.0])
    args = np.array([feed]), np.array([0.3])
    sol = rootdiff.root(residual, np.ones(1), *args, on_failure="ignore")
    error = np.linalg.norm(np.concat(sol.vjp(np.ones(1))) - exact) / np.linalg.norm(exact)
    assert error <= 10 * rootdiff.gradient_report(residual, sol.y, *args).gradient_error


@pytest.mark.parametrize("decimals", [2, 3, 5, 7])
@pytest.mark.parametrize("feed", [0.61754951, 2.62322522, 3.69464452])
def test_a_parameter_that_is_rounded_inside_promises_few_digits(feed: float, decimals: int) -> None:
    def residual(y: Any, a: Any, b: Any) -> Any:
        return y - 2 * np.round(a, decimals) - b

    args = np.array([feed]), np.array([1.3])
    sol = rootdiff.root(residual, np.ones(1), *args, on_failure="ignore")
    error = np.linalg.norm(np.concat(sol.vjp(np.ones(1))) - [2, 1])
    report = rootdiff.gradient_report(residual, sol.y, *args)
    assert report.gradient_error > 1e-6
    assert error <= 10 * report.gradient_error


@pytest.mark.parametrize("package", ["torch", "jax"])
def test_a_parameter_that_is_cast_to_float32_inside(package: str) -> None:
    rd, xp = _package(package)
    double = {"torch": lambda v: v.double(), "jax": lambda v: v.astype(float)}[package]
    single = {"torch": lambda v: v.float(), "jax": lambda v: v.astype(np.float32)}[package]
    feed = np.array([0.3, 0.7, 2.9])
    y, exact = np.tan(feed.astype(np.float32).astype(float)), 1 / np.cos(feed) ** 2
    for w in np.eye(3):
        report = rd.gradient_report(
            lambda y, a: xp.arctan(y) - double(single(a)), *map(xp.asarray, (y, feed)), cotangent=xp.asarray(w)
        )
        error = abs(w @ (1 + y**2 - exact)) / (w @ exact)
        assert 1e-10 < error <= 10 * report.gradient_error


@pytest.mark.parametrize("size", [0.1, 0.5, 1.7, 6.0, 30.0])
@pytest.mark.parametrize("name", ["tanh", "exp", "sqrt", "log1p", "lorentz", "gauss"])
def test_a_smooth_parameter_is_not_taken_for_a_rough_one(name: str, size: float) -> None:
    g = SMOOTH.get(name) or getattr(np, name)

    def residual(y: Any, a: Any) -> Any:
        return np.stack([y[0] + 0.3 * y[1] ** 2 - g(a[0]), y[1] - 0.4 * y[0] - g(a[1]) - a[0]])

    a = size * np.array([1.0, 1.3])
    sol = rootdiff.root(residual, np.array([0.5, 0.5]), a, derivatives="complex-step")
    assert rootdiff.gradient_report(residual, sol.y, a, derivatives="complex-step").gradient_error < 1e-12


@pytest.mark.parametrize("size", [0.1, 0.5, 1.7, 6.0, 30.0])
@pytest.mark.parametrize("name", ["tanh", "exp", "atan", "sqrt", "log", "lorentz", "hill", "gauss"])
def test_a_smooth_residual_is_not_taken_for_a_rough_one(name: str, size: float) -> None:
    g = SMOOTH.get(name) or getattr(np, name)

    def residual(y: Any, t: Any) -> Any:
        return np.stack([y[0] + 0.3 * g(y[1]) - t[0], y[1] - 0.4 * g(y[0]) - t[1]])

    y = np.array([size, 1.3 * size])
    report = rootdiff.gradient_report(residual, y, residual(y, np.zeros(2)), derivatives="complex-step")
    assert report.gradient_error < 1e-12


def _package(package: str) -> tuple[Any, Any]:
    """Return a package and its array namespace."""
    rd = pytest.importorskip({"numpy": "rootdiff"}.get(package, f"rootdiff_{package}"))
    xp = pytest.importorskip({"jax": "jax.numpy"}.get(package, package))
    if package == "jax":
        import jax

        jax.config.update("jax_enable_x64", True)
    return rd, xp
