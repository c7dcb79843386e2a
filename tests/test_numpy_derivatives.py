"""NumPy's derivatives: given, by complex steps, by differences; and the Solution's vjp, jvp and jacobian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError
from tests.families import FAMILIES, PARAMETERS, UNKNOWNS

A = np.array([[2.0, 1.0], [-0.5, 3.0]])
B = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 1.0]])
THETA = np.array([0.3, -0.2, 0.9])
Y0 = np.zeros(2)


def f(y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return A @ y + y**3 - B @ theta


def jac(y: np.ndarray, theta: np.ndarray) -> np.ndarray:
    return A + np.diag(3 * y**2)


def jvp(primals: Any, tangents: Any) -> np.ndarray:
    (y, _), (v, t) = primals, tangents
    return A @ v + 3 * y**2 * v - B @ t


def vjp(primals: Any, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, _ = primals
    return A.T @ cotangent + 3 * y**2 * cotangent, -B.T @ cotangent


def closed_form(y: np.ndarray) -> np.ndarray:
    return np.linalg.solve(A + np.diag(3 * y**2), B)


#: eps^(2/3) for differences, rounding for everything exact.
CASES = {
    "differences": ({}, 1e-9),
    "complex-step": ({"derivatives": "complex-step"}, 1e-14),
    "jac": ({"jac": jac}, 1e-9),
    "jvp": ({"jvp": jvp}, 1e-9),
    "vjp": ({"vjp": vjp}, 1e-14),
    "jvp and vjp": ({"jvp": jvp, "vjp": vjp}, 1e-14),
    "all": ({"jac": jac, "jvp": jvp, "vjp": vjp}, 1e-14),
}


@pytest.mark.parametrize("solver", ["newton", "scipy:hybr"])
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
@pytest.mark.parametrize("case", CASES)
def test_derivative_source(case: str, adjoint: str, solver: str) -> None:
    options, rtol = CASES[case]
    sol = rootdiff.root(f, Y0, THETA, solver=solver, adjoint=adjoint, **options)  # type: ignore[arg-type]
    w, v = np.array([0.7, -1.1]), np.array([0.2, 0.4, -0.3])
    expected = closed_form(sol.y)
    np.testing.assert_allclose(sol.vjp(w)[0], w @ expected, rtol=rtol, atol=rtol)
    if case != "vjp":  # a vjp alone leaves the pushforward to differences
        np.testing.assert_allclose(sol.jvp(v), expected @ v, rtol=rtol, atol=rtol)


def test_complex_step_refuses_a_residual_that_drops_the_imaginary_part() -> None:
    with pytest.raises(ArgumentError, match=r"derivatives.*np\.abs"):
        rootdiff.root(lambda y: np.abs(y) - 1.0, np.array([3.0]), derivatives="complex-step")


def test_complex_step_refuses_a_complex_unknown() -> None:
    with pytest.raises(ArgumentError, match="complex y0"):
        rootdiff.root(lambda y: y**2 + 1, np.array([1.0j]), derivatives="complex-step")


def test_unknown_source_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"derivatives.*'autograd'"):
        rootdiff.root(f, Y0, THETA, derivatives="autograd")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"jac": lambda y, theta: np.eye(3)}, r"jac.*\(3, 3\).*\(2, 2\)"),
        ({"vjp": lambda primals, w: w}, "vjp.*tuple of 2"),
        ({"jvp": lambda primals, tangents: np.zeros(3)}, r"jvp.*\(3,\).*\(2,\)"),
    ],
    ids=["jac", "vjp", "jvp"],
)
def test_given_derivative_of_another_form(options: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        rootdiff.root(f, Y0, THETA, **options).vjp(np.ones(2))


@given(family=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**32 - 1))
def test_jacobian_jvp_and_vjp_agree(family: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = FAMILIES[family](rng)
    sol = rootdiff.root(case.f, case.y0, case.theta)
    w, v = rng.standard_normal(UNKNOWNS), rng.standard_normal(PARAMETERS)
    (jacobian,) = sol.jacobian()
    assert jacobian.shape == (UNKNOWNS, PARAMETERS)
    np.testing.assert_allclose(jacobian, case.sensitivity(sol.y), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sol.jvp(v), jacobian @ v, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(sol.vjp(w)[0], w @ jacobian, rtol=1e-9, atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-14, 8))
def test_differences_suit_parameters_of_any_size(seed: int, exponent: int) -> None:
    """y = log(theta / scale), for parameters from 1e-14 to 1e8 in their units."""
    scale = 10.0**exponent
    theta = scale * np.exp(np.random.default_rng(seed).standard_normal(3))
    sol = rootdiff.root(lambda y, theta: scale * np.exp(y) - theta, np.zeros(3), theta)
    np.testing.assert_allclose(sol.jacobian()[0], np.diag(1 / theta), rtol=1e-7, atol=1e-9 / scale)


def test_differences_at_the_edge_of_the_domain() -> None:
    """One side of theta = 0 is not in the domain of theta^1.5: the derivative is one-sided."""
    sol = rootdiff.root(lambda y, theta: y - np.sqrt(theta) ** 3 - 2 * theta, np.zeros(1), np.zeros(1))
    np.testing.assert_allclose(sol.jacobian()[0], [[2.0]], atol=1e-2)  # first order: sqrt(step) remains


def test_pytrees_of_unknowns_and_args() -> None:
    def residual(y: Any, args: Any) -> Any:
        return {"u": y["u"] - args["gain"] * args["drive"], "v": y["v"] - args["power"] * y["u"][:1]}

    y0 = {"u": np.zeros(2), "v": np.zeros(1)}
    args = {"gain": 2.0, "drive": np.array([1.0, 3.0]), "power": 3, "label": "x", "flag": True, "none": None}
    sol = rootdiff.root(residual, y0, args)
    np.testing.assert_allclose(sol.y["u"], [2.0, 6.0])
    np.testing.assert_allclose(sol.y["v"], [6.0])
    (gradient,) = sol.vjp({"u": np.zeros(2), "v": np.ones(1)})  # v = 3 gain drive_0
    np.testing.assert_allclose(gradient["gain"], 3.0)
    np.testing.assert_allclose(gradient["drive"], [6.0, 0.0], atol=1e-9)
    assert gradient["power"] is None
    assert gradient["label"] is None
    assert gradient["flag"] is None
    (jacobian,) = sol.jacobian()
    assert jacobian["drive"]["u"].shape == (2, 2)
    tangent = sol.jvp({"gain": 1.0, "drive": None, "power": None, "label": None, "flag": None, "none": None})
    np.testing.assert_allclose(tangent["u"], [1.0, 3.0])


def test_complex_unknown_that_is_not_holomorphic() -> None:
    """conj(z) z + z = a has two real equations in two real unknowns."""
    sol = rootdiff.root(lambda z, a: np.conj(z) * z + z - a, np.array([0.2 + 0.1j]), np.array([0.5]))
    z = sol.y[0]
    assert abs(abs(z) ** 2 + z - 0.5) < 1e-14
    np.testing.assert_allclose(sol.jvp(np.array([1.0]))[0], 1 / (1 + 2 * z.real), rtol=1e-9)


def test_float32_stays_float32() -> None:
    sol = rootdiff.root(lambda y, a: y**3 - a, np.float32([1.0]), np.float32([2.0]))
    assert sol.y.dtype == np.float32
    (gradient,) = sol.vjp(np.float32([1.0]))
    assert gradient.dtype == np.float32
    np.testing.assert_allclose(gradient, 2 ** (-2 / 3) / 3, rtol=1e-4)  # eps^(2/3) = 2.4e-5


def test_solution_without_tape_says_what_to_do() -> None:
    bare = rootdiff.Solution(1.0, 0, 0, 0.0)
    with pytest.raises(ArgumentTypeError, match=r"torch\.autograd.*jax\.grad"):
        bare.vjp(1.0)


def test_wrong_cotangent_and_tangent_are_named() -> None:
    sol = rootdiff.root(f, Y0, THETA)
    with pytest.raises(ArgumentError, match=r"cotangent.*\(3,\).*\(2,\)"):
        sol.vjp(np.ones(3))
    with pytest.raises(ArgumentError, match=r"2 tangents.*1 args"):
        sol.jvp(THETA, THETA)
    with pytest.raises(ArgumentError, match=r"tangent 0 has shape \(2,\).*\(3,\)"):
        sol.jvp(np.ones(2))


def test_root_found_at_singular_jacobian_has_no_gradient() -> None:
    sol = rootdiff.root(lambda y, a: y**2 - a, np.zeros(1), np.zeros(1), derivatives="complex-step")
    with pytest.raises(rootdiff.AdjointError, match="SINGULAR"):
        sol.vjp(np.array([1.0]))


@pytest.mark.parametrize("derivatives", ["finite-difference", "complex-step"])
@pytest.mark.parametrize("small", [1e-5, 1e-12, 1e-40])
def test_parameters_of_different_orders_of_magnitude(small: float, derivatives: Any) -> None:
    # y = a log(s) + b: dy/ds = a / s, where a step that suits a and b leaves the domain of the logarithm
    theta = np.array([small, 3.0, 4.0])
    sol = rootdiff.root(lambda y, t: y - t[1:2] * np.log(t[:1]) - t[2:], np.zeros(1), theta, derivatives=derivatives)
    expected = np.array([3.0 / small, np.log(small), 1.0])
    np.testing.assert_allclose(sol.jacobian()[0][0], expected, rtol=1e-7)
    np.testing.assert_allclose(sol.vjp(np.ones(1))[0], expected, rtol=1e-7)
    for tangent in (np.array([small, 1.0, -2.0]), np.array([1.0, 1.0, -2.0])):
        np.testing.assert_allclose(sol.jvp(tangent)[0], expected @ tangent, rtol=1e-7)


@pytest.mark.parametrize(("given", "first"), [(True, "Newton"), (False, "Chord")])
def test_auto_is_sparing_with_jacobians_that_are_differences_only(given: bool, first: str) -> None:
    n = 80
    matrix = np.eye(n) + 0.1 * np.random.default_rng(0).standard_normal((n, n)) / n**0.5
    rules = {"jac": lambda y, b: matrix + np.diag(3 * y**2)} if given else {}
    sol = rootdiff.root(lambda y, b: matrix @ y + y**3 - b, np.zeros(n), np.ones(n), history=True, **rules)
    assert sol.history.method[0] == first
    np.testing.assert_allclose(matrix @ sol.y + sol.y**3, np.ones(n), rtol=0, atol=1e-9)
