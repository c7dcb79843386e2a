"""Differences for NumPy: unknowns, parameters and equations in any units, rounding of any size, few evaluations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from rootdiff._slopes import Slopes


@pytest.mark.parametrize("start", [1e-10, 0.0, 1e-6])
def test_an_unknown_far_smaller_than_one(start: float) -> None:
    # ligand in mol/l: L + u L / (u + L) = T; at T = 2 u, L = sqrt(2) u and dL/dT = (2 + sqrt(2)) / 4
    u = 1e-10
    sol = rootdiff.root(lambda y, t: y + u * y / (u + y) - t, np.array([start]), np.array([2 * u]))
    np.testing.assert_allclose(sol.y, 2**0.5 * u, rtol=1e-9)
    np.testing.assert_allclose(sol.jacobian()[0], [[(2 + 2**0.5) / 4]], rtol=1e-7)


#: Zeros, but for the rounding of the steps that led there, and entries too small for their own steps to be felt.
NEAR_ZERO = [0.0, 1e-300, 5e-21, -5e-21, 1e-16, -1e-14, 1e-13]


@pytest.mark.parametrize("solver", ["newton", "trust_region", "levenberg_marquardt"])
@pytest.mark.parametrize("small", NEAR_ZERO)
def test_an_unknown_that_is_zero_up_to_rounding(small: float, solver: str) -> None:
    def residual(y: Any, a: Any, b: Any) -> Any:
        return np.stack([y[0] * (y[0] + 1) - b, np.sqrt(y[0] + 1) * y[1] - a])

    # the first equation feels a step of 1e-26 in an unknown of 1e-21, the second one does not
    sol = rootdiff.root(residual, np.array([small, 1.0]), np.array(3.0), np.array(small), solver=solver)
    np.testing.assert_allclose(sol.jacobian(), [[0, 1], [1, -1.5]], atol=1e-8)
    np.testing.assert_allclose(sol.vjp(np.array([1.0, 2.0])), [2, -2], atol=1e-8)
    np.testing.assert_allclose(sol.jvp(np.array(1.0), np.array(2.0)), [2, -2], atol=1e-8)
    report = rootdiff.gradient_report(residual, sol.y, np.array(3.0), np.array(small))
    assert report.gradient_error <= 1e-8


@pytest.mark.parametrize("unit", [1e-12, 1e9])
@pytest.mark.parametrize("small", [5e-21, -1e-14])
def test_an_unknown_that_is_zero_up_to_rounding_in_its_units(small: float, unit: float) -> None:
    def residual(y: Any, a: Any) -> Any:
        x = y / unit
        return np.stack([x[0] * (x[0] + 1) - a[1], np.sqrt(x[0] + 1) * x[1] - a[0]])

    start, scale = unit * np.array([small, 1.0]), np.full(2, unit)
    sol = rootdiff.root(residual, start, np.array([3.0, small]), y_scale=scale)
    np.testing.assert_allclose(sol.jacobian()[0] / unit, [[0, 1], [1, -1.5]], atol=1e-8)


@pytest.mark.parametrize("small", NEAR_ZERO)
@pytest.mark.parametrize("unit", [1.0, 1e-20])
def test_parameters_that_are_zero_up_to_rounding(small: float, unit: float) -> None:
    matrix, weights = np.array([[2.0, 0.3], [-0.4, 1.7]]), np.array([[1.1, 0.7, 0.0], [-0.6, 0.9, 1e-9]])

    def residual(y: Any, p: Any) -> Any:
        return matrix @ y + np.tanh(y) - np.exp(weights @ p)

    p = small * np.array([1.0, -1.0, 0.7])
    sol = rootdiff.root(residual, np.ones(2), p)
    right = np.exp(weights @ p)[:, None] * weights
    expected = np.linalg.solve(matrix + np.diag(1 / np.cosh(sol.y) ** 2), right)
    np.testing.assert_allclose(sol.jacobian()[0], expected, atol=1e-8)
    w, v = np.array([1.0, -2.0]), np.array([0.3, 1.0, 2.0])
    np.testing.assert_allclose(sol.vjp(w)[0], w @ expected, atol=2e-8)
    np.testing.assert_allclose(sol.jvp(unit * v) / unit, expected @ v, atol=1e-8)


#: Functions of one number whose slope at zero is one, and that are straight over far less than that.
SHORT: dict[str, Any] = {
    "sqrt": lambda x: 2 * np.sqrt(x + 1) - 2,
    "domain of math": lambda x: 2 * math.sqrt(x + 1) - 2,
    "exp": np.expm1,
    "tanh": np.tanh,
    "pole": lambda x: x / (x + 1),
    "log": np.log1p,
    "asinh": np.arcsinh,
}


@pytest.mark.parametrize("length", [1e-3, 1e-6, 1e-9, 1e-12, 1e-15])
@pytest.mark.parametrize("name", SHORT)
def test_a_zero_at_a_scale_of_its_own(name: str, length: float) -> None:
    # beside it a parameter, and an equation, of size one
    g = SHORT[name]

    def residual(y: Any, p: Any) -> Any:
        return np.stack(
            [y[0] - 1 - g(p[0] / length) - 0.3 * p[1] + 0.1 * y[1], y[1] - np.sin(p[1]) - p[0] - 0.2 * y[0]]
        )

    sol = rootdiff.root(residual, np.ones(2), np.zeros(2))
    expected = np.linalg.solve([[1, 0.1], [-0.2, 1]], [[1 / length, 0.3], [1, 1]])
    np.testing.assert_allclose(sol.jacobian()[0], expected, rtol=1e-6)
    np.testing.assert_allclose(sol.vjp(np.ones(2))[0], np.sum(expected, axis=0), rtol=1e-6)
    error = np.linalg.norm(sol.vjp(np.ones(2))[0] / np.sum(expected, axis=0) - 1)
    assert error <= 10 * rootdiff.gradient_report(residual, sol.y, np.zeros(2), cotangent=np.ones(2)).gradient_error


@pytest.mark.parametrize("length", [1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("name", ["tanh", "pole", "asinh"])
def test_an_unknown_that_is_zero_at_a_scale_of_its_own(name: str, length: float) -> None:
    g = SHORT[name]
    sol = rootdiff.root(lambda y, a: g(y / length) + y - a, np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(sol.jacobian()[0], length / (1 + length), rtol=1e-6)


@pytest.mark.parametrize("length", [1e-5, 1e-6, 1e-7, 1e-8])
@pytest.mark.parametrize("off", [0.0, 1.0, -2.0])
def test_a_parameter_of_size_one_with_a_bend_far_smaller_than_it(length: float, off: float) -> None:
    p = 2 + off * length
    sol = rootdiff.root(lambda y, p: y - np.tanh((p - 2) / length) - p, np.ones(1), p)
    expected = 1 + 1 / (length * np.cosh((p - 2) / length) ** 2)
    # p is rounded to 4e-8 of the shortest length: of differences the power 2/3 of that is left
    np.testing.assert_allclose(sol.jacobian()[0], [expected], rtol=2e-5)


def test_components_that_want_longer_steps_leave_the_others_what_they_know() -> None:
    # a spectral line: its tails underflow against the data, which asks for steps far longer than it is wide
    x, width, center = np.linspace(400, 500, 64), 4.09, np.array([451.5])
    data = np.abs(np.random.default_rng(0).normal(size=64)) / 100

    def line(center: Any) -> Any:
        return np.exp(-(((x - center) / width) ** 2) / 2) * 1.55 / width - data

    expected = (line(center) + data) * (x - center) / width**2
    sol = rootdiff.root(lambda y, center: y - line(center), np.zeros(64), center)
    np.testing.assert_allclose(sol.jacobian()[0][:, 0], expected, rtol=1e-6, atol=1e-9)
    value, error, _ = Slopes(lambda y: line(y[0]), (center,), line(center)).jacobian()
    assert np.all(np.abs(value[:, 0] - expected) <= 10 * error[:, 0] + 1e-15)
    assert np.max(error) <= 1e-7


@pytest.mark.parametrize("start", [(1.0, 10.0, 500.0), (1.5, 5.0, 450.0)])
def test_the_line_of_eckerle_is_fitted_from_both_starts(start: tuple[float, ...]) -> None:
    # NIST StRD, Eckerle4, and its certified parameters
    x = np.array([*range(400, 436, 5), *np.arange(436.5, 466, 1.5), *range(470, 501, 5)])
    data = [
        *(0.0001575, 0.0001699, 0.000235, 0.0003102, 0.0004917, 0.000871, 0.0017418, 0.00464, 0.0065895, 0.0097302),
        *(0.0149002, 0.023731, 0.0401683, 0.0712559, 0.1264458, 0.2073413, 0.2902366, 0.3445623, 0.3698049, 0.3668534),
        *(0.3106727, 0.2078154, 0.1164354, 0.0616764, 0.03372, 0.0194023, 0.0117831, 0.0074357, 0.0022732, 0.00088),
        *(0.0004579, 0.0002345, 0.0001586, 0.0001143, 0.000071),
    ]
    sol = rootdiff.least_squares(
        lambda b, y: b[0] / b[1] * np.exp(-(((x - b[2]) / b[1]) ** 2) / 2) - y, np.array(start), np.array(data)
    )
    np.testing.assert_allclose(sol.y, [1.5543827178, 4.0888321754, 451.54121844], rtol=1e-10)


@pytest.mark.parametrize("name", ["abs", "maximum", "sign", "sqrt"])
def test_a_zero_without_a_derivative_is_told(name: str) -> None:
    g = {"maximum": lambda a: np.maximum(a, 0)}.get(name) or getattr(np, name)
    report = rootdiff.gradient_report(lambda y, a: y - g(a) - 1, np.ones(1), np.zeros(1))
    assert report.verdict.startswith("no digit of the gradient can be trusted, because of differences")


@pytest.mark.parametrize("seed", [5, 7])
def test_small_parameters_in_equations_whose_terms_cancel(seed: int) -> None:
    # at the root the terms of f cancel, so that its value tells nothing of their rounding
    rng = np.random.default_rng(seed)
    matrix, weights, right = rng.standard_normal((4, 4)), rng.standard_normal((4, 3)), rng.standard_normal(4)

    def residual(y: Any, p: Any) -> Any:
        return 2 * y + 0.2 * matrix @ np.tanh(y) + np.sin(weights @ p) - right

    sol = rootdiff.root(residual, np.ones(4), 1e-12 * rng.uniform(-2, 2, 3))
    expected = -np.linalg.solve(2 * np.eye(4) + 0.2 * matrix / np.cosh(sol.y) ** 2, weights)
    w, v = np.array([1.0, -2.0, 0.5, 1.0]), np.array([0.3, 1.0, 2.0])
    np.testing.assert_allclose(sol.jacobian()[0], expected, atol=1e-8)
    np.testing.assert_allclose(sol.vjp(w)[0], w @ expected, atol=4e-8)
    np.testing.assert_allclose(sol.jvp(v), expected @ v, atol=4e-8)


def test_entries_near_zero_of_a_matrix_square_root() -> None:
    # X^2 = A with one entry of X zero: a change of it by e changes the entry across by 6.25e8 e / 50
    def residual(x: Any, a: Any) -> Any:
        x, a = x.reshape(2, 2), a.reshape(2, 2)
        return (x @ x - a).reshape(4)

    a = np.array([1e-4, 1.0, 0.0, 1e-4])
    for small in (0.0, 1e-23, -1e-19):
        sol = rootdiff.root(residual, np.array([1e-2, 50.0, small, 1e-2]), a)
        np.testing.assert_allclose(sol.jacobian()[0][:, 2], [-1.25e5, 6.25e8, 50, -1.25e5], rtol=1e-6)


def test_a_concentration_near_zero_keeps_its_sign_and_the_domain_of_math() -> None:
    seen = []

    def residual(y: Any, p: Any) -> Any:
        seen.append(float(y[0]))
        # of the root's square root the domain ends at 1e-9, far below the step that the second equation feels best
        log, root = math.log(y[0] / 1e-18), math.sqrt(1e-9 - y[0])
        return np.array([log - p[0], y[1] * (2 + 1e3 * y[0]) - 2 - p[1] + 0 * root])

    sol = rootdiff.root(residual, np.array([1e-18, 1.0]), np.zeros(2))
    # the second equation knows its slope 1e3 from steps below 1e-9 only, which its rounding of 1e-16 leaves 3 digits
    np.testing.assert_allclose(sol.jacobian()[0], [[1e-18, 0], [-5e-16, 0.5]], rtol=1e-3, atol=0)
    assert min(seen) > 0


@pytest.mark.parametrize("small", [1e-20, 0.0])
def test_a_longer_step_stays_within_bounds(small: float) -> None:
    seen = []

    def residual(y: Any) -> Any:
        seen.append(y)
        return np.stack([y[0] * (y[0] + 1), np.cos(y[0] - 1) * y[1], y[2] - 1])

    from rootdiff._numpy import NumpyBackend

    box = np.array([0.0, -9, -9]), np.array([1e-7, 9, 9])
    _, matrix = NumpyBackend(box=box).with_jacobian(residual, np.array([small, 1.5, 1.0]))
    np.testing.assert_allclose(matrix, [[1, 0, 0], [1.5 * np.sin(1), np.cos(1), 0], [0, 0, 1]], atol=1e-6)
    assert all(np.all((y >= box[0]) & (y <= box[1])) for y in seen)


@pytest.mark.parametrize("scale", [1e-12, 1e12, 1e16])
def test_equations_in_other_units(scale: float) -> None:
    def residual(y: Any, p: Any) -> Any:
        return np.stack([scale * (y[0] ** 2 + y[1] - p[0]), y[0] * y[1] - p[1]])

    # what is asked here are the differences: whether the linear solve is vouched for is another promise
    sol = rootdiff.root(residual, np.array([1.0, 1.5]), np.array([2.5, 1.2]), on_failure="ignore")
    x, y = sol.y
    expected = np.linalg.inv([[2 * x, 1], [y, x]])
    np.testing.assert_allclose(sol.jacobian()[0], expected, rtol=1e-8)


@given(seed=st.integers(0, 2**32 - 1))
def test_unknowns_and_parameters_from_1e_minus_12_to_1e12(seed: int) -> None:
    # mass action in random units: y_k = scale_k, with y_k^a_k and couplings of every sign
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.uniform(-12, 12, 3)
    units = 10.0 ** rng.uniform(-12, 12, 3)
    matrix = np.eye(3) + 0.2 * rng.standard_normal((3, 3))
    theta = units * rng.uniform(0.5, 2, 3)

    def residual(y: Any, theta: Any) -> Any:
        return np.log(y / scale) + 0.1 * (matrix @ (y / scale)) - np.sqrt(theta / units)

    sol = rootdiff.root(residual, scale, theta)
    slope = np.diag(1 / sol.y) + 0.1 * matrix / scale
    expected = np.linalg.solve(slope, np.diag(0.5 / np.sqrt(theta * units)))
    np.testing.assert_allclose(sol.jacobian()[0] * theta / sol.y[:, None], expected * theta / sol.y[:, None], atol=1e-7)


def test_a_tangent_through_parameters_of_different_magnitude() -> None:
    sol = rootdiff.root(lambda y, p: y - np.tanh(p[1]) - p[1] - 1e-10 * p[0], np.zeros(1), np.array([1e10, 0.5]))
    np.testing.assert_allclose(sol.jvp(np.ones(2)), 2 - np.tanh(0.5) ** 2 + 1e-10, rtol=1e-8)


def test_a_tangent_through_the_parameters_of_a_stirred_tank() -> None:
    # first-order reaction in a cooled tank: feed 1 - y against k0 exp(-E / T) y, with T = T0 + D (1 - y)
    def residual(y: Any, p: Any) -> Any:
        k0, energy, feed, rise = p
        return 1 - y - k0 * np.exp(-energy / (feed + rise * (1 - y))) * y

    theta = np.array([7e10, 8750.0, 350.0, 20.0])
    sol = rootdiff.root(residual, np.array([0.5]), theta)
    y, (k0, energy, feed, rise) = sol.y[0], theta
    t = feed + rise * (1 - y)
    k = k0 * np.exp(-energy / t)
    grows = k * y * energy / t**2
    gradient = -np.array([k * y / k0, -k * y / t, grows, grows * (1 - y)]) / (1 + k - grows * rise)
    for tangent in (np.ones(4), theta, np.array([1e9, -3.0, 0.0, 1.0])):
        np.testing.assert_allclose(sol.jvp(tangent), gradient @ tangent, rtol=1e-7)


def test_a_residual_that_rounds_to_float32() -> None:
    def residual(y: Any, a: Any) -> Any:
        return (y.astype(np.float32) ** 3 + y.astype(np.float32) - a.astype(np.float32)).astype(float)

    sol = rootdiff.root(residual, np.array([1.0]), np.array([10.0]), on_failure="ignore")
    # the rounding is 1e-6 in f: at the best step a derivative is known to about its power of 2/3
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 13]], rtol=1e-3)


@pytest.mark.parametrize("units", [1.0, 1e-4, 1e5])
@pytest.mark.parametrize("start", [0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.5, 2.0, 3.0])
def test_a_flat_equation_is_solved_to_the_rounding_of_f(start: float, units: float) -> None:
    # van der Waals at the critical point, reduced: a triple root, flat over eps^(1/3)
    def residual(v: Any) -> Any:
        v = v / units
        return 8 / (3 * v - 1) - 3 / v**2 - 1

    sol = rootdiff.root(residual, np.array([start * units]))
    np.testing.assert_allclose(sol.y, units, rtol=5e-5)


@pytest.mark.parametrize("start", [-5.0, -1.0, 0.0, 0.3, 0.7, 0.9, 1.1, 1.5, 2.0, 5.0, 8.0, 11.5, 100.0])
@pytest.mark.parametrize(("dtype", "gap"), [(np.float64, 0.0), (np.float32, 0.0), (np.float32, 1e-5)])
def test_an_expanded_cube_is_solved(start: float, dtype: Any, gap: float) -> None:
    sol = rootdiff.root(lambda y: y**3 - 3 * y**2 + 3 * y - 1 - gap, np.array([start], dtype))
    flat = 10 * np.finfo(dtype).eps ** (1 / 3)  # so far from a triple root f is rounding
    np.testing.assert_allclose(sol.y, 1 + gap ** (1 / 3), atol=flat if gap == 0 else 1e-3)


def test_a_kink_and_an_unknown_without_effect_cost_few_evaluations() -> None:
    calls = 0

    def residual(y: Any, p: Any) -> Any:
        nonlocal calls
        calls += 1
        return np.stack([y[0] - np.abs(p[0]), y[1] - p[1]])

    sol = rootdiff.root(residual, np.ones(2), np.array([1.0, 2.0, 3.0]))
    calls = 0
    np.testing.assert_allclose(sol.jacobian()[0], [[1, 0, 0], [0, 1, 0]], atol=1e-9)
    assert calls <= 50


@pytest.mark.parametrize("n", [5, 20])
def test_a_smooth_jacobian_costs_three_evaluations_a_column(n: int) -> None:
    calls = 0
    matrix = 3 * np.eye(n) + np.random.default_rng(n).standard_normal((n, n)) / n**0.5

    def residual(y: Any, b: Any) -> Any:
        nonlocal calls
        calls += 1
        return matrix @ y + np.exp(0.1 * y) - b

    from rootdiff._numpy import NumpyBackend

    y = np.linspace(0.3, 2, n)
    NumpyBackend().with_jacobian(lambda y: residual(y, 1.0), y)
    assert calls == 3 * n + 3  # and the value, and two looks at its rounding
    calls, y[0] = 0, 1e-20
    NumpyBackend().with_jacobian(lambda y: residual(y, 1.0), y)
    assert calls <= 3 * n + 3 + 12  # another difference, for an entry that may be a zero up to rounding


@pytest.mark.parametrize("constant", [1e-14, 1e-16, 1e-18, 1e-22])
@pytest.mark.parametrize("start", [(0.9, 0.1, 0.05), (0.5, 0.3, 0.2), (0.7, 0.02, 0.4)])
def test_small_entries_that_the_inverse_magnifies(constant: float, start: tuple[float, ...]) -> None:
    # dissociation in logarithms: entries of sqrt(K) beside ones, of which rounding in f leaves eps / sqrt(K)
    def residual(u: Any, k: Any) -> Any:
        return np.stack([np.exp(u[0]) + np.exp(u[1]) - 1, np.exp(u[0]) + np.exp(u[2]) - 1, u[1] + u[2] - u[0] - k])

    sol = rootdiff.root(residual, np.log(start), np.array(np.log(constant)))
    tolerance = 100 * np.finfo(float).eps / constant**0.5
    np.testing.assert_allclose(sol.jacobian()[0][1:], 0.5, rtol=tolerance + constant**0.5)
    np.testing.assert_allclose(sol.jvp(1.0)[1:], 0.5, rtol=tolerance + constant**0.5)
    np.testing.assert_allclose(sol.vjp(np.array([0.0, 1.0, 0.0]))[0], 0.5, rtol=tolerance + constant**0.5)


@pytest.mark.parametrize("gap", [1e-4, 1e-5])
def test_what_the_errors_of_differences_leave_no_digit_of_is_refused(gap: float) -> None:
    matrix = np.array([[1, 1], [1, 1 + gap]], dtype=np.float32)

    def residual(y: Any, t: Any) -> Any:
        return np.astype(matrix @ np.astype(np.sinh(y), np.float32), float) - t

    y = np.array([0.7, 1.3])
    sol = rootdiff.root(residual, y, np.astype(matrix, float) @ np.sinh(y))
    with pytest.raises(rootdiff.AdjointError, match="singular to the accuracy of differences"):
        sol.jacobian()
    report = rootdiff.gradient_report(residual, sol.y, np.astype(matrix, float) @ np.sinh(y))
    assert report.verdict.startswith("no ")


def test_small_entries_beside_large_ones_and_their_errors() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        a, b = (rng.standard_normal((4, 4)) * 10 ** rng.uniform(-8, 0, (4, 4)) for _ in range(2))
        y = rng.standard_normal(4)
        constant = a @ np.sin(y) + b @ np.exp(y / 2)

        def f(y: Any, a: Any = a, b: Any = b, constant: Any = constant) -> Any:
            return a @ np.sin(y) + b @ np.exp(y / 2) - constant

        exact = a * np.cos(y) + b * np.exp(y / 2) / 2
        found = Slopes(f, (y,), f(y)).jacobian()
        large = np.abs(exact) > 1e-9
        assert np.all(np.abs(found.value / exact - 1)[large] < 1e-4)
        assert np.all(found.error[large] > 0)


def test_errors_of_fine_differences_are_of_the_size_of_the_true_ones() -> None:
    ratios = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a, s, y = rng.standard_normal((5, 5)), rng.standard_normal(5), rng.standard_normal(5)
        constant = a @ y + s * y**2 / 2

        def f(y: Any, a: Any = a, s: Any = s, constant: Any = constant) -> Any:
            return a @ y + s * y**2 / 2 - constant

        found = Slopes(f, (y,), f(y), fine=True).jacobian()
        ratios.append(np.linalg.norm(found.error) / np.linalg.norm(found.value - a - np.diag(s * y)))
    # the rounding of f, not the four times larger change of f by a nudge of y: with that the median is 10
    assert 1 < np.median(ratios) < 5
    assert np.min(ratios) > 0.3
    assert np.max(ratios) < 10


@pytest.mark.parametrize("dtypes", [("float64", "float64"), ("float64", "float32")])
def test_differences_of_several_entries_at_once_are_those_of_each(dtypes):
    rng = np.random.default_rng(0)
    y, a = (rng.uniform(0.5, 2.0, (4, 3)).astype(dtype) for dtype in dtypes)
    y[1, 0], y[2, 1] = 0.0, 1e-12

    def f(y, a):
        return np.exp(y) * a - np.roll(y, 1, axis=-1) ** 2

    entries = [(place, (..., k)) for place in (0, 1) for k in range(3)]
    box = np.zeros_like(y), np.full_like(y, np.inf)
    together, alone = (Slopes(f, (y, a), f(y, a), box=box) for _ in range(2))
    found = together.quick(entries)
    for (place, index), slope in zip(entries, found, strict=True):
        one = alone.quick([(place, index)])[0]
        np.testing.assert_array_equal(slope.value, one.value)
        np.testing.assert_array_equal(np.isfinite(slope.error), np.isfinite(one.error))
        # an unknown on its bound has no step to both sides
        assert not np.isfinite(slope.error[1]).any() if (place, index[1]) == (0, 0) else np.isfinite(slope.error).any()


def _noisy(y: Any, a: Any) -> Any:
    f = y**3 + 0.5 * np.roll(y, 1) - a
    return f + 1e-9 * np.sin(1e7 * np.sum(f) + 1e9 * f)


@pytest.mark.parametrize("derivatives", ["finite-difference", "forward-difference"])
def test_the_user_tells_the_step_of_a_noisy_residual(derivatives: Any) -> None:
    start, a = np.array([1.0, 2.0, 3.0]), np.array([3.0, 4.0, 5.0])
    sol = rootdiff.root(_noisy, start, a, diff_step=1e-3, derivatives=derivatives)
    assert sol.evaluations is not None
    assert sol.evaluations <= 1000  # 6772 without
    np.testing.assert_allclose(_noisy(sol.y, a), 0, atol=1e-8)
    exact = np.linalg.inv(np.diag(3 * sol.y**2) + 0.5 * np.roll(np.eye(3), 1, axis=0))
    np.testing.assert_allclose(sol.jacobian()[0], exact, atol=3e-6)  # the square of the step


def _calls(entry: Any, residual: Any, *args: Any, **options: Any) -> tuple[list[Any], Any]:
    points: list[Any] = []

    def seen(y: Any, *args: Any) -> Any:
        points.append(np.array(y))
        return residual(y, *args)

    return points, entry(seen, *args, **options)


@pytest.mark.parametrize("derivatives", ["finite-difference", "forward-difference"])
def test_steps_that_the_user_tells_are_taken_as_they_are(derivatives: Any) -> None:
    start, sides = np.array([4.0, 0.0, -1e-3]), {"finite-difference": 2, "forward-difference": 1}[derivatives]

    def residual(y: Any) -> Any:
        return y - np.array([1.0, 2.0, 3.0])

    points, sol = _calls(rootdiff.root, residual, start, solver="newton", derivatives=derivatives, diff_step=2.0**-10)
    np.testing.assert_array_equal(sol.y, [1, 2, 3])
    moved = [y - start for y in points if np.sum(y != start) == 1]
    lengths = [2.0**-8, 2.0**-10, 2.0**-20]  # a zero counts as one, and a step is a power of two
    expected = [sign * length * unit for unit, length in zip(np.eye(3), lengths, strict=True) for sign in (1, -1)]
    np.testing.assert_allclose(moved, expected[:: 3 - sides], atol=0, rtol=1e-12)


@pytest.mark.parametrize("derivatives", ["finite-difference", "forward-difference"])
def test_steps_that_the_user_tells_do_not_leave_the_bounds(derivatives: Any) -> None:
    lo, hi = np.array([0.0, 0.0]), np.array([1.0, 2.0])

    def residual(y: Any, a: Any) -> Any:
        return np.sqrt(y) * np.sqrt(hi - y) - a + 1e-12 * y

    points, sol = _calls(
        rootdiff.root, residual, np.array([1.0, 0.5]), np.array([0.0, 0.9]), solver="newton",
        bounds=(lo, hi), derivatives=derivatives, diff_step=1e-2, on_failure="keep",
    )  # fmt: skip
    assert np.all((np.array(points) >= lo) & (np.array(points) <= hi))
    np.testing.assert_allclose(sol.y[1], 1 - (1 - 0.81) ** 0.5, rtol=1e-9)


@pytest.mark.parametrize("name", ["least_squares", "minimize"])
@pytest.mark.parametrize("derivatives", ["finite-difference", "forward-difference"])
def test_steps_that_the_user_tells_of_minima(name: str, derivatives: Any) -> None:
    t, w = np.linspace(0, 1, 20), np.array([1.0, 2.0])
    data = 2 * np.exp(-3 * t) + 0.01 * np.sin(50 * t)

    def residual(y: Any, d: Any) -> Any:
        return y[0] * np.exp(-y[1] * t) - d

    function = residual if name == "least_squares" else lambda y, d: np.sum(residual(y, d) ** 2)
    told, plain = (
        getattr(rootdiff, name)(function, np.array([1.0, 1.0]), data, **options)
        for options in ({"derivatives": derivatives, "diff_step": 1e-4}, {})
    )
    assert told.evaluations < 0.6 * plain.evaluations
    np.testing.assert_allclose(told.y, plain.y, rtol=1e-6)
    np.testing.assert_allclose(told.vjp(w)[0], plain.vjp(w)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [0, -1e-3, 1, 1e-16, float("nan"), "auto", [1e-3]])
def test_a_step_that_is_none_is_refused(step: Any) -> None:
    with pytest.raises(rootdiff.ArgumentError, match=r"diff_step: got .*; it must be a number between 0 and 1"):
        rootdiff.root(lambda y: y - 1, np.zeros(2), diff_step=step)
