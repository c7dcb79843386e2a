"""Derivatives that a user gives for NumPy: taken in the forms that they come in, and not believed without a look."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from scipy.sparse.linalg import LinearOperator

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError

B = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 1.0]])
THETA = np.array([0.3, -0.2, 0.9])


def f(y: Any, theta: Any) -> Any:
    """Two unknowns that meet in one coupling, 0.8 y_1 in the first equation."""
    return np.stack([2 * y[0] + 0.8 * y[1] + y[0] ** 3, 3 * y[1] - 0.5 * y[0]]) - B @ theta


def jac(y: Any, theta: Any) -> Any:
    return np.array([[2 + 3 * y[0] ** 2, 0.8], [-0.5, 3.0]])


def without_a_coupling(y: Any, theta: Any) -> Any:
    return np.array([[2 + 3 * y[0] ** 2, 0.0], [-0.5, 3.0]])


def jvp(primals: Any, tangents: Any) -> Any:
    return jac(*primals) @ tangents[0] - B @ tangents[1]


def vjp(primals: Any, w: Any) -> Any:
    return jac(*primals).T @ w, -B.T @ w


WRONG = {
    "jac: a coupling": ({"jac": without_a_coupling}, "jac: it is not the derivative.*respect to y"),
    "jac: a factor": ({"jac": lambda y, t: 1.01 * jac(y, t)}, "jac: it is not the derivative.*respect to y"),
    "jac: transposed": ({"jac": lambda y, t: jac(y, t).T}, "jac: it is not the derivative.*respect to y"),
    "jvp: forgets args": ({"jvp": lambda p, t: jac(*p) @ t[0]}, "jvp: it is not the derivative.*respect to args"),
    "jvp: forgets y": ({"jac": jac, "jvp": lambda p, t: -B @ t[1]}, "jvp: it is not the derivative.*respect to y"),
    "vjp: not transposed": (
        {"vjp": lambda p, w: (jac(*p) @ w, -B.T @ w)},
        "vjp: it is not the derivative.*respect to y",
    ),
    "vjp: sign of args": ({"vjp": lambda p, w: (vjp(p, w)[0], B.T @ w)}, "vjp: it is not the deriv.*respect to args"),
    "vjp: no args": ({"vjp": lambda p, w: (vjp(p, w)[0], None)}, "vjp: it is not the derivative.*respect to args"),
    "vjp: shape of args": ({"vjp": lambda p, w: (vjp(p, w)[0], np.zeros(2))}, r"vjp.*args\[0\] has shape \(2,\)"),
    "vjp: a list": ({"vjp": lambda p, w: (vjp(p, w)[0], [w, w])}, r"vjp.*args\[0\] has shape \(2, 2\)"),
    "vjp: shape of y": ({"vjp": lambda p, w: (np.zeros(3), -B.T @ w)}, r"vjp: it returned shape \(3,\)"),
}


@pytest.mark.parametrize("ask", ["vjp", "jvp", "jacobian"])
@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_rule_is_an_error_that_names_it(case: str, ask: str) -> None:
    rules, words = WRONG[case]

    def derivative() -> None:
        sol = rootdiff.root(f, np.zeros(2), THETA, **rules)  # type: ignore[arg-type]
        {"vjp": lambda: sol.vjp(np.ones(2)), "jvp": lambda: sol.jvp(THETA), "jacobian": sol.jacobian}[ask]()

    with pytest.raises(ArgumentError, match=words):
        derivative()


def test_a_singular_jac_of_a_regular_residual_is_a_wrong_rule() -> None:
    with pytest.raises(ArgumentError, match="jac: it is not the derivative"):
        rootdiff.root(f, np.zeros(2), THETA, jac=lambda y, t: np.array([[1.0, 1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_a_wrong_rule_is_found_in_any_units_and_a_right_one_is_not(scale: float) -> None:
    units = np.array([scale, 1.0])

    def residual(y: Any, theta: Any) -> Any:
        return f(y / units, theta) / units[::-1]

    def scaled(given: Any) -> Any:
        return lambda y, theta: given(y / units, theta) / units / units[::-1, None]

    sol = rootdiff.root(residual, units, THETA, jac=scaled(jac), on_failure="ignore")
    y = sol.y / units
    expected = np.linalg.solve(jac(y, THETA), B) * units[:, None]
    np.testing.assert_allclose(sol.jacobian()[0], expected, rtol=1e-7)
    with pytest.raises(ArgumentError, match="jac: it is not the derivative"):
        rootdiff.root(residual, units, THETA, jac=scaled(without_a_coupling), on_failure="ignore").jacobian()


def test_a_right_rule_at_a_kink_is_believed() -> None:
    sol = rootdiff.root(lambda y, a: y + np.abs(y) / 2 - a, np.ones(1), np.zeros(1), jac=lambda y, a: np.array([[1.5]]))
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 1.5]])


def test_a_look_at_the_rules_costs_few_evaluations() -> None:
    calls = 0

    def counted(y: Any, theta: Any) -> Any:
        nonlocal calls
        calls += 1
        return f(y, theta)

    sol = rootdiff.root(counted, np.zeros(2), THETA, jac=jac, jvp=jvp, vjp=vjp)
    calls = 0
    sol.vjp(np.ones(2))
    assert calls <= 16
    calls = 0
    sol.vjp(np.ones(2))
    assert calls == 0


@pytest.mark.parametrize("form", ["csr_matrix", "csc_array", "coo_array", "dia_matrix"])
def test_a_sparse_jac(form: str) -> None:
    make = getattr(scipy.sparse, form)
    sol = rootdiff.root(f, np.zeros(2), THETA, jac=lambda y, theta: make(jac(y, theta)))
    np.testing.assert_allclose(sol.jacobian()[0], np.linalg.solve(jac(sol.y, THETA), B), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_jac_of_complex_unknowns(batch: tuple[int, ...]) -> None:
    # holomorphic: z^2 + c z = a, dz/da = 1 / (2 z + c)
    c = np.array([1.0 + 2.0j, 0.5 - 1.0j])
    a = np.array([0.7])
    start = np.broadcast_to(np.array([0.5 + 0.5j, 0.5 + 0.2j]), (*batch, 2)).copy()
    sol = rootdiff.root(
        lambda z, a: z**2 + c * z - a,
        start,
        a,
        jac=lambda z, a: (2 * z + c)[..., None] * np.eye(2),
        batch_ndim=len(batch),
    )
    np.testing.assert_allclose(sol.y**2 + c * sol.y, np.full((*batch, 2), 0.7 + 0j), atol=1e-12)
    np.testing.assert_allclose(sol.jvp(np.ones(1)), 1 / (2 * sol.y + c), rtol=1e-8)


def test_a_complex_jac_of_a_real_unknown() -> None:
    with pytest.raises(ArgumentError, match="jac: it returned complex numbers, but y0 is real"):
        rootdiff.root(f, np.zeros(2), THETA, jac=lambda y, theta: jac(y, theta) + 0j)


@pytest.mark.parametrize("rule", ["jac", "jvp", "vjp"])
@pytest.mark.parametrize("value", ["2-point", True, "cs"])
def test_a_rule_that_is_no_function(rule: str, value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"{rule}: got {value!r}.*function.*derivatives='finite-difference'"):
        rootdiff.root(f, np.zeros(2), THETA, **{rule: value})  # type: ignore[arg-type]


def test_other_arguments_that_are_no_functions() -> None:
    with pytest.raises(ArgumentTypeError, match="residual: got 3"):
        rootdiff.root(3, np.zeros(2), THETA)  # type: ignore[arg-type]
    for name in ("correct", "callback"):
        with pytest.raises(ArgumentTypeError, match=f"{name}: got 1"):
            rootdiff.root(f, np.zeros(2), THETA, **{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0.0, 1e-9, 0.3])
def test_differences_stay_within_the_bounds(start: float) -> None:
    # math.sqrt raises outside of its domain; the root of sqrt(y) + y = a is ((1 + 4 a)^(1/2) - 1)^2 / 4
    def residual(y: Any, a: Any) -> Any:
        return np.array([math.sqrt(y[0]) + y[0] - a[0], math.sqrt(1 - y[1]) - a[0] * y[0]])

    sol = rootdiff.root(residual, np.array([start, 1.0]), np.array([0.75]), bounds=(0.0, np.array([np.inf, 1.0])))
    np.testing.assert_allclose(sol.y, [0.25, 1 - 0.1875**2], rtol=1e-9)
    slope = 1 / (1 + 0.5 / 0.5)
    np.testing.assert_allclose(sol.jacobian()[0][0], [slope], rtol=1e-7)


def test_differences_at_a_root_on_the_border() -> None:
    def residual(y: Any, a: Any) -> Any:
        return np.array([math.pow(y[0], 1.5) + 2 * y[0] - a[0]])

    sol = rootdiff.root(residual, np.array([0.5]), np.array([0.0]), bounds=(0.0, None))
    np.testing.assert_allclose(sol.y, [0.0], atol=1e-12)
    np.testing.assert_allclose(sol.jacobian()[0], [[0.5]], rtol=1e-2)  # f'' is infinite there


@pytest.mark.parametrize("size", [1e-11, 1e-20])
@pytest.mark.parametrize("seed", [10, 15, 39])
def test_a_right_rule_is_believed_where_parameters_are_near_zero(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    matrix, weights, right = rng.standard_normal((4, 4)), rng.standard_normal((4, 3)), rng.standard_normal(4)

    def residual(y: Any, p: Any) -> Any:
        return 2 * y + 0.2 * matrix @ np.tanh(y) + np.sin(weights @ p) - right

    def pushforward(primals: Any, tangents: Any) -> Any:
        (y, p), (v, t) = primals, tangents
        return 2 * v + 0.2 * matrix @ (v / np.cosh(y) ** 2) + np.cos(weights @ p) * (weights @ t)

    sol = rootdiff.root(residual, np.ones(4), size * rng.uniform(-2, 2, 3), jvp=pushforward)
    expected = -np.linalg.solve(2 * np.eye(4) + 0.2 * matrix / np.cosh(sol.y) ** 2, weights)
    np.testing.assert_allclose(sol.jacobian()[0], expected, rtol=1e-8)


@pytest.mark.parametrize("factor", [0.0, -1.0, 2.0, 1.001, 1.0])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_equation_without_the_parameter_hides_no_wrong_vjp(shape: tuple[int, ...], factor: float) -> None:
    # a is in the first equation alone: dy/da = J^-1 (1, 0) = (3 y1^2, 1) / (6 y0 y1^2 + 1)
    def residual(y: Any, a: Any) -> Any:
        return np.stack([y[0] ** 2 + y[1] - np.sum(a), y[0] - y[1] ** 3])

    def pullback(primals: Any, w: Any) -> Any:
        y = primals[0]
        return np.array([[2 * y[0], 1], [1, -3 * y[1] ** 2]]).T @ w, np.full(shape, -factor * w[0])

    sol = rootdiff.root(residual, np.ones(2), np.full(shape, 2.5), vjp=pullback)
    if factor != 1:
        with pytest.raises(ArgumentError, match=r"vjp: it is not the derivative.*respect to args"):
            sol.vjp(np.array([0.0, 1.0]))
    else:
        expected = np.full(shape, 1 / (6 * sol.y[0] * sol.y[1] ** 2 + 1))
        np.testing.assert_allclose(sol.vjp(np.array([0.0, 1.0]))[0], expected, rtol=1e-9)


@pytest.mark.parametrize("case", WRONG)
def test_a_report_of_a_wrong_rule_is_the_error_of_root(case: str) -> None:
    rules, words = WRONG[case]
    y = rootdiff.root(f, np.zeros(2), THETA).y
    with pytest.raises(ArgumentError, match=words):
        rootdiff.gradient_report(f, y, THETA, **rules)  # type: ignore[arg-type]


def test_a_report_of_right_rules() -> None:
    y = rootdiff.root(f, np.zeros(2), THETA).y
    report = rootdiff.gradient_report(f, y, THETA, jac=jac, jvp=jvp, vjp=vjp)
    assert report.gradient_error < 1e-12


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_small_coupling_that_jac_misses_is_found_beside_large_entries(batch: tuple[int, ...]) -> None:
    # y0 = a up to 1e-10, y1 = 2 + 1e-6 y0
    def residual(y: Any, a: Any) -> Any:
        return np.stack([1e8 * y[..., 0] + 1e-3 * y[..., 1] ** 3 - 1e8 * a, y[..., 1] - 1e-6 * y[..., 0] - 2], axis=-1)

    def given(coupling: float) -> Any:
        def jacobian(y: Any, a: Any) -> Any:
            matrix = np.broadcast_to(np.array([[1e8, 0.0], [coupling, 1.0]]), (*batch, 2, 2)).copy()
            matrix[..., 0, 1] = 3e-3 * y[..., 1] ** 2
            return matrix

        return jacobian

    start, a, w = np.ones((*batch, 2)), np.asarray(1.0), np.broadcast_to([0.0, 1.0], (*batch, 2))
    (gradient,) = rootdiff.root(residual, start, a, jac=given(-1e-6), batch_ndim=len(batch)).vjp(w)
    np.testing.assert_allclose(gradient, 1e-6 * math.prod(batch), rtol=1e-8)
    sol = rootdiff.root(residual, start, a, jac=given(0.0), batch_ndim=len(batch))
    with pytest.raises(ArgumentError, match=r"jac: it is not the derivative.*the entry 0, at index \((0, )?1, 0\)"):
        sol.vjp(w)


@pytest.mark.parametrize("seed", range(20))
def test_right_rules_are_believed_in_units_of_any_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(1, 6)), int(rng.integers(1, 4))
    of_y, of_p, of_f = (10.0 ** rng.uniform(-9, 9, k) for k in (n, m, n))
    dense = 3 * np.eye(n) + rng.standard_normal((n, n)) * 10.0 ** rng.uniform(-6, 0, (n, n))
    bent = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.4)
    by_p = rng.standard_normal((n, m)) * (rng.random((n, m)) < 0.5)

    def residual(y: Any, p: Any) -> Any:
        return of_f * (dense @ (y / of_y) + bent @ np.tanh(y / of_y) + by_p @ np.sin(p / of_p) - 0.5)

    def jacobian(y: Any, p: Any) -> Any:
        return of_f[:, None] * (dense + bent / np.cosh(y / of_y) ** 2) / of_y

    def along(primals: Any, tangents: Any) -> Any:
        by_args = of_f[:, None] * by_p * np.cos(primals[1] / of_p) / of_p
        return jacobian(*primals) @ tangents[0] + by_args @ tangents[1]

    def back(primals: Any, w: Any) -> Any:
        by_args = of_f[:, None] * by_p * np.cos(primals[1] / of_p) / of_p
        return jacobian(*primals).T @ w, by_args.T @ w

    p = of_p * rng.uniform(0.1, 2, m)
    for rule in ({"jac": jacobian}, {"jvp": along}, {"vjp": back}):
        sol = rootdiff.root(residual, of_y, p, on_failure="ignore", **rule)  # type: ignore[arg-type]
        expected = -np.linalg.solve(dense + bent / np.cosh(sol.y / of_y) ** 2, by_p * np.cos(p / of_p))
        np.testing.assert_allclose(sol.jacobian()[0] / of_y[:, None] * of_p, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rule", ["jac", "jvp", "vjp"])
def test_a_right_rule_is_believed_at_a_zero_of_which_y_scale_tells_the_size(rule: str) -> None:
    size = 1e-9

    def residual(y: Any, p: Any) -> Any:
        return np.stack([np.sin(y[0] / size) + y[1] - 1 - p, y[1] ** 3 + y[1] - 2 + np.tanh(y[0] / size)])

    def jacobian(y: Any, p: Any) -> Any:
        return np.array([[np.cos(y[0] / size) / size, 1], [1 / np.cosh(y[0] / size) ** 2 / size, 3 * y[1] ** 2 + 1]])

    rules = {
        "jac": jacobian,
        "jvp": lambda primals, t: jacobian(*primals) @ t[0] - np.array([1.0, 0.0]) * t[1],
        "vjp": lambda primals, w: (jacobian(*primals).T @ w, -w[0]),
    }
    sol = rootdiff.root(residual, np.array([0.0, 1.0]), 0.0, y_scale=np.array([size, 1.0]), **{rule: rules[rule]})  # type: ignore[arg-type]
    np.testing.assert_allclose(sol.jacobian()[0], [4 / 3 * size, -1 / 3], rtol=1e-8)


def _rule(name: str, of_y: Any, of_t: Any) -> dict[str, Any]:
    """Return one rule, made of the two Jacobians as functions of y and t."""
    return {
        "jac": {"jac": of_y},
        "jvp": {"jvp": lambda p, v: of_y(*p) @ v[0] + of_t @ v[1]},
        "vjp": {"vjp": lambda p, u: (of_y(*p).T @ u, of_t.T @ u)},
    }[name]


@pytest.mark.parametrize("name", ["jac", "jvp", "vjp"])
@pytest.mark.parametrize("seed", [5, 7, 16, 43, 54, 76, 111])
def test_a_right_rule_of_a_residual_with_float32_inside(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 5))
    matrix = (np.eye(n) + 0.5 * rng.standard_normal((n, n))).astype(np.float32)
    feed, t = rng.standard_normal((n, 2)), rng.standard_normal(2) * 10 ** rng.uniform(-2, 1)

    def f(y: Any, t: Any) -> Any:
        return np.astype(matrix @ np.astype(np.tanh(y), np.float32), float) + y - feed @ t

    def jac(y: Any, t: Any) -> Any:
        return np.astype(matrix, float) * (1 - np.tanh(y) ** 2) + np.eye(n)

    sol = rootdiff.root(f, np.zeros(n), t, on_failure="ignore", **_rule(name, jac, -feed))
    expected = np.linalg.solve(jac(sol.y, t).T, np.ones(n)) @ feed
    np.testing.assert_allclose(sol.vjp(np.ones(n))[0], expected, rtol=1e-2)
    wrong = _rule(name, lambda y, t: -jac(y, t), -feed)
    with pytest.raises(ArgumentError, match=f"^{name}: it is not the derivative"):
        rootdiff.gradient_report(f, sol.y, t, **wrong)


@pytest.mark.parametrize("name", ["jac", "jvp", "vjp"])
@pytest.mark.parametrize("unit", [1e-3, 1e-6, 1e-9, 1e-12])
def test_a_right_rule_at_a_zero_of_which_nothing_tells_the_size(name: str, unit: float) -> None:
    matrix = np.array([[1.0, 0.4], [-0.3, 0.8]])

    def f(y: Any, t: Any) -> Any:
        return np.tanh(matrix @ y / unit) - t

    def jac(y: Any, t: Any) -> Any:
        return (1 - np.tanh(matrix @ y / unit) ** 2)[:, None] * matrix / unit

    for y in (np.zeros(2), np.array([0.0, unit / 3])):
        known = f(y, np.zeros(2))
        rootdiff.gradient_report(f, y, known, **_rule(name, jac, -np.eye(2)))
        with pytest.raises(ArgumentError, match=f"^{name}: it is not the derivative"):
            rootdiff.gradient_report(f, y, known, **_rule(name, lambda y, t: 1.01 * jac(y, t), -np.eye(2)))


def ring(y: Any, t: Any) -> Any:
    return 3 * y + y**3 - t * np.roll(y, 1) - 1


def of_ring(y: Any, t: Any) -> Any:
    n = len(y)
    return scipy.sparse.diags_array(3 + 3 * y**2) - t * scipy.sparse.eye_array(n).tocsr()[np.arange(n) - 1]


def products(y: Any, t: Any, transposed: bool = True) -> Any:
    """The Jacobian of the ring by products with vectors, (n,)."""
    n, diagonal = len(y), 3 + 3 * y**2
    back = {"rmatvec": lambda u: np.conj(diagonal) * u - t * np.roll(u, -1)} if transposed else {}
    return LinearOperator((n, n), dtype=y.dtype, matvec=lambda v: diagonal * v - t * np.roll(v, 1), **back)


@pytest.mark.parametrize(
    ("n", "options"), [(5, {}), (2000, {}), (2000, {"jac_sparsity": "detect"}), (90, {"solver": "newton_krylov"})]
)
def test_a_jac_of_products_serves_as_the_matrix_does(n: int, options: Any) -> None:
    w = np.cos(np.arange(n))
    by_matrix = rootdiff.root(ring, np.zeros(n), 0.7, jac=of_ring)
    sol = rootdiff.root(ring, np.zeros(n), 0.7, jac=products, **options)
    np.testing.assert_allclose(sol.y, by_matrix.y, rtol=1e-12)
    np.testing.assert_allclose(sol.vjp(w)[0], by_matrix.vjp(w)[0], rtol=1e-8)
    np.testing.assert_allclose(sol.jvp(1.0), by_matrix.jvp(1.0), rtol=1e-8)


def test_a_jac_of_complex_products() -> None:
    y0 = np.full(4, 0.2 + 0.1j)
    found = [rootdiff.root(ring, y0, 0.7, jac=jac, adjoint="gmres") for jac in (of_ring, products)]
    np.testing.assert_allclose(*(sol.y for sol in found), rtol=1e-12)
    np.testing.assert_allclose(*(sol.vjp(1j * y0)[0] for sol in found), rtol=1e-8)


def test_a_jac_without_products_of_the_transpose() -> None:
    for n in (5, 2000):
        sol = rootdiff.root(ring, np.zeros(n), 0.7, jac=lambda y, t: products(y, t, transposed=False))
        np.testing.assert_allclose(sol.jvp(1.0), rootdiff.root(ring, np.zeros(n), 0.7, jac=of_ring).jvp(1.0), rtol=1e-8)
        if n == 5:
            np.testing.assert_allclose(sol.vjp(np.ones(n))[0], np.sum(sol.jvp(1.0)), rtol=1e-8)
    with pytest.raises(ArgumentError, match=r"jac: the LinearOperator.* has no rmatvec.* vjp of 2000 unknowns"):
        sol.vjp(np.ones(2000))


def test_wrong_products_of_the_transpose_are_found() -> None:
    def forgetful(y: Any, t: Any) -> Any:
        right = products(y, t)
        return LinearOperator(right.shape, dtype=float, matvec=right.matvec, rmatvec=right.matvec)

    sol = rootdiff.root(ring, np.zeros(2000), np.linspace(0.1, 1, 2000), jac=forgetful)
    with pytest.raises(ArgumentError, match="jac: it is not the derivative of the residual"):
        sol.vjp(np.ones(2000))


def test_a_jac_of_another_kind_is_refused_by_name() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(ArgumentTypeError, match=r"jac: it returned Tensor, .* one of scipy.sparse"):
        rootdiff.root(ring, np.zeros(3), 0.7, jac=lambda y, t: torch.eye(3).to_sparse())
    with pytest.raises(ArgumentError, match=r"returned shape \(3,\).* For a diagonal return scipy.sparse.diags_array"):
        rootdiff.root(lambda y, t: y**3 - t, np.ones(3), 0.7, jac=lambda y, t: 3 * y**2)
    with pytest.raises(ArgumentTypeError, match="jac: it returned csr_array"):
        rootdiff.least_squares(ring, np.zeros(3), 0.7, jac=of_ring)
