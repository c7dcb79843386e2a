"""How often NumPy calls the user's residual, which has no tape: exact counts."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, _host_factors, _numpy_lu


class Counted:
    """A residual that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, [0]

    def __call__(self, *args: Any) -> Any:
        self.calls[0] += 1
        return self.function(*args)

    def of(self, ask: Callable[[], Any]) -> tuple[Any, int]:
        """Return what `ask` does, and the calls that it takes."""
        before = self.calls[0]
        return ask(), self.calls[0] - before


#: Calls of a vjp beside those for arguments: the value and the rounding of f, its slope in y, and whether that changes
#: within the error of the root; whether systems are independent.
BESIDE = 18


def test_a_vjp_of_elements_moves_all_of_them_at_once() -> None:
    n = 300
    a, b, w = np.linspace(1, 2, n), np.linspace(2, 3, n), np.linspace(-1, 2, n)
    f = Counted(lambda y, a, b, c: y**3 + y * b - a * c)
    sol = rootdiff.root_scalar(f, (0.0, 3.0), a, b, np.array(1.0))
    (of_a, of_b, of_c), calls = f.of(lambda: sol.vjp(w))
    slope = 3 * sol.y**2 + b
    np.testing.assert_allclose(of_a, w / slope, rtol=1e-8)
    np.testing.assert_allclose(of_b, -w * sol.y / slope, rtol=1e-8)
    np.testing.assert_allclose(of_c, np.sum(w * a / slope), rtol=1e-8)
    assert calls <= BESIDE + 4 * 3


def pair(y: Any, p: Any, q: Any) -> Any:
    return np.stack(
        [y[:, 0] + 0.3 * y[:, 1] - p[:, 0, 0], y[:, 1] ** 3 + y[:, 1] + y[:, 0] * q[1] - p[:, 1, 0]], axis=1
    )


def test_a_batch_moves_all_systems_at_once() -> None:
    n, w = 50, np.array([1.0, -2.0])
    p, q = 1 + np.linspace(0, 1, 2 * n).reshape(n, 2, 1), np.array([5.0, 0.7])
    f = Counted(pair)
    sol = rootdiff.root(f, np.ones((n, 2)), p, q, batch_ndim=1)
    (of_p, of_q), calls = f.of(lambda: sol.vjp(np.tile(w, (n, 1))))
    matrix = np.tile([[1, 0.3], [0.7, 0]], (n, 1, 1))
    matrix[:, 1, 1] = 3 * sol.y[:, 1] ** 2 + 1
    u = np.linalg.solve(matrix.mT, np.tile(w, (n, 1))[..., None])[..., 0]
    np.testing.assert_allclose(of_p[..., 0], u, rtol=1e-8)
    np.testing.assert_allclose(of_q, [0, -np.sum(u[:, 1] * sol.y[:, 0])], rtol=1e-8, atol=1e-12)
    assert calls <= BESIDE + 2 * 4 + 4 * 4  # of y, and of two entries of each system and two that systems share
    (of_p, _), calls = f.of(sol.jacobian)
    assert calls <= BESIDE + 2 * 4 + 4 * 4
    expected = np.zeros((n, 2, n, 2))
    expected[np.arange(n), :, np.arange(n)] = np.linalg.inv(matrix)
    np.testing.assert_allclose(of_p[..., 0], expected, atol=1e-8)


#: Parameters with one row for each system, of which systems feel rows of others too.
SHARED: dict[str, Callable[[Any, Any], Any]] = {
    "a matrix for all": lambda y, p: 2 * y + 0.1 * np.tanh(y) @ p - 1,
    "in another order": lambda y, p: 2 * y + 0.1 * np.tanh(y) * p[::-1] - 1,
    "a mean": lambda y, p: 2 * y + 0.1 * np.tanh(y) * p - np.mean(p),
    "one row of another": lambda y, p: 2 * y + 0.1 * np.tanh(y) * p - 0.01 * p[3] * (np.arange(6)[:, None] == 1),
}


@pytest.mark.parametrize("kind", SHARED)
@pytest.mark.parametrize("derivatives", ["finite-difference", "complex-step"])
def test_entries_that_other_systems_feel_move_one_by_one(kind: str, derivatives: Any) -> None:
    f, p = SHARED[kind], np.random.default_rng(3).uniform(1, 2, (6, 6))
    sol = rootdiff.root(f, np.ones((6, 6)), p, batch_ndim=1, derivatives=derivatives)
    w = np.linspace(-1, 2, 36).reshape(6, 6)
    step = 1e-5 * np.random.default_rng(4).standard_normal((6, 6))
    near = [rootdiff.root(f, sol.y, p + sign * step, batch_ndim=1).y for sign in (1, -1)]
    expected = np.sum(w * (near[0] - near[1])) / 2
    np.testing.assert_allclose(np.sum(sol.vjp(w)[0] * step), expected, rtol=1e-6)
    jacobian = sol.jacobian(argnums=0)
    np.testing.assert_allclose(np.sum(w[..., None, None] * jacobian * step), expected, rtol=1e-6)


def test_the_jacobian_of_a_batch_is_nan_where_a_system_failed() -> None:
    p = np.array([1.0, -1.0, 2.0])
    sol = rootdiff.root(lambda y, p: y**2 - p[:, None], np.ones((3, 1)), p, batch_ndim=1, on_failure="nan")
    (found,) = sol.jacobian()
    assert np.all(np.isnan(found[1]))
    np.testing.assert_allclose(found[[0, 2], 0], [[0.5, 0, 0], [0, 0, 0.5 / 2**0.5]], atol=1e-8)


def test_sixteen_columns_of_a_jacobian_are_checked_by_one_look() -> None:
    n, m, rng = 40, 300, np.random.default_rng(0)
    matrix, weights, p = rng.standard_normal((n, n)) / n**0.5, rng.standard_normal((n, m)), rng.uniform(0.1, 0.4, m)
    f = Counted(lambda y, p: 2 * y + 0.1 * matrix @ np.tanh(y) - 0.1 * weights @ np.tanh(p))
    sol, calls = f.of(lambda: rootdiff.root(f, np.zeros(n), p, solver="newton"))
    looks = 2 + 2 * math.ceil(n / 16)  # two more at the rounding of f
    assert calls <= sol.steps * (2 * n + looks + 1) + 2
    (found,), calls = f.of(sol.jacobian)
    expected = np.linalg.solve(2 * np.eye(n) + 0.1 * matrix / np.cosh(sol.y) ** 2, 0.1 * weights / np.cosh(p) ** 2)
    np.testing.assert_allclose(found, expected, atol=1e-10)
    assert calls <= 1.2 * 2 * (n + m)


@pytest.mark.parametrize("kind", ["kink", "own scale", "stairs", "domain"])
def test_a_difference_that_a_look_does_not_bear_out_is_taken_with_its_error(kind: str) -> None:
    g: Callable[[Any], Any] = {
        "kink": lambda x: np.maximum(x, 2 + 1e-7),
        "own scale": lambda x: np.tanh((x - 2) / 1e-5),
        "stairs": lambda x: np.float64(np.float32(x)),
        "domain": lambda x: math.sqrt(x - 2 + 1e-5),
    }[kind]
    weights = np.random.default_rng(1).standard_normal((2, 20))
    p = np.full(20, 2.0)
    sol = rootdiff.root(lambda y, p: 2 * y + np.tanh(y) - weights @ np.sin(p) - g(p[7]), np.ones(2), p)
    slope = weights * np.cos(2)
    slope[:, 7] += {"kink": 0, "own scale": 1e5, "stairs": 1, "domain": 0.5 / 1e-5**0.5}[kind]
    expected = slope / (2 + 1 / np.cosh(sol.y) ** 2)[:, None]
    np.testing.assert_allclose(sol.jacobian()[0], expected, rtol=1e-3 if kind == "stairs" else 1e-6)


def dense(y: Any, p: Any, q: Any) -> Any:
    return 3 * y + np.tanh(y) - q["of all"] * p - np.sum(q["many"])


def dense_pullback(primals: Any, w: Any) -> Any:
    y, p, q = primals
    sums = {"of all": -np.sum(w * p), "many": np.full_like(q["many"], -np.sum(w)), "name": None}
    return w * (4 - np.tanh(y) ** 2), -w * q["of all"], sums


@pytest.mark.parametrize("rules", [{}, {"vjp": dense_pullback}])
def test_argnums_tells_what_to_differentiate_in(rules: Any) -> None:
    p, q, w = np.array([1.0, 2.0]), {"of all": 0.7, "many": np.full(50, 0.01), "name": "of q"}, np.array([1.0, -3.0])
    f = Counted(dense)
    sol = rootdiff.root(f, np.zeros(2), p, q, **rules)
    of_p, of_q = sol.vjp(w)
    alone, calls = f.of(lambda: sol.vjp(w, argnums=0))
    np.testing.assert_array_equal(alone, of_p)
    assert calls <= BESIDE + 3 * 4
    np.testing.assert_allclose(sol.vjp(w, argnums=-1)["many"], of_q["many"], rtol=1e-8)
    assert sol.vjp(w, argnums=1)["name"] is None
    (only,) = sol.vjp(w, argnums=(0,))
    np.testing.assert_array_equal(only, of_p)
    assert [type(part) for part in sol.vjp(w, argnums=(1, 0))] == [dict, np.ndarray]
    assert sol.vjp(w, argnums=()) == ()
    jacobian, calls = f.of(lambda: sol.jacobian(argnums=0))
    np.testing.assert_allclose(w @ jacobian, of_p, rtol=1e-8)
    assert calls <= BESIDE + 3 * 4
    np.testing.assert_allclose(sol.jvp(p, argnums=0), jacobian @ p, rtol=1e-8)
    np.testing.assert_array_equal(sol.jvp(p, argnums=(0,)), sol.jvp(p, None))


@pytest.mark.parametrize("argnums", [2, -3, True, 0.0, "p", [0], (0, 2)])
def test_argnums_that_name_no_argument(argnums: Any) -> None:
    sol = rootdiff.root(lambda y, a, b: y - a * b, np.ones(2), np.ones(2), np.array(2.0))
    for ask in (
        lambda: sol.vjp(np.ones(2), argnums=argnums),
        lambda: sol.jvp(np.ones(2), argnums=argnums),
        lambda: sol.jacobian(argnums=argnums),
    ):
        with pytest.raises(ArgumentError, match=r"argnums=.*the solve had 2, so give an int from -2 to 1, or a tuple"):
            ask()


def test_argnums_name_each_argument_once() -> None:
    sol = rootdiff.root(lambda y, a, b: y - a * b, np.ones(2), np.full(2, 2.0), 3.0)
    with pytest.raises(ArgumentError, match=r"argnums=\(1, -1\) names an argument twice"):
        sol.jvp(1.0, 5.0, argnums=(1, -1))
    assert sol.vjp(np.ones(2), argnums=np.int64(1)) == pytest.approx(4.0)
    with pytest.raises(ArgumentError, match="the solve had none"):
        rootdiff.root(lambda y: y - 1, np.ones(2)).vjp(np.ones(2), argnums=0)


def test_tangents_are_as_many_as_argnums() -> None:
    sol = rootdiff.root(lambda y, a, b: y - a * b, np.ones(2), np.ones(2), np.array(2.0))
    with pytest.raises(ArgumentError, match="got 2 tangents; the solve had 2 args, so argnums=0 takes 1"):
        sol.jvp(np.ones(2), np.ones(2), argnums=0)


def test_looks_at_a_jacobian_stay_within_the_bounds() -> None:
    seen: list[Any] = []

    def residual(y: Any, a: Any) -> Any:
        seen.append(np.array(y))
        return np.sqrt(y) + 0.1 * np.sum(y) - a

    bounds, start = (np.zeros(6), np.full(6, 4.0)), np.array([0.0, 4.0, 1.0, 2.0, 3.0, 1.5])
    wanted = np.sqrt(np.linspace(0.5, 3.5, 6)) + 0.1 * np.sum(np.linspace(0.5, 3.5, 6))
    sol = rootdiff.root(residual, start, wanted, bounds=bounds, solver="newton")
    np.testing.assert_allclose(sol.y, np.linspace(0.5, 3.5, 6), rtol=1e-9)
    sol.vjp(np.ones(6))
    assert all(np.all((y >= bounds[0]) & (y <= bounds[1])) for y in seen)


def two(y: Any, a: Any) -> Any:
    return np.stack([y[..., 0] ** 2 - a[..., 0], y[..., 1] ** 3 + y[..., 0] - a[..., 1]], axis=-1)


A, MANY = np.array([4.0, 10.0]), np.array([[4.0, 10.0], [9.0, 4.0], [1.0, 9.0], [2.0, 2.0], [3.0, 3.0]])
SOLVES: dict[str, tuple[Callable[..., Any], Callable[[Any], Any]]] = {
    "auto": (two, lambda f: rootdiff.root(f, np.ones(2), A)),
    "check": (two, lambda f: rootdiff.root(f, np.ones((5, 2)), MANY, batch_ndim=1, check=True)),
    "smaller batches": (two, lambda f: rootdiff.root(f, np.ones((5, 2)), MANY, batch_ndim=1, batched_args=(0,))),
    "no root": (lambda y: y**2 + 1, lambda f: rootdiff.root(f, np.ones(3), on_failure="ignore")),
    "scipy": (two, lambda f: rootdiff.root(f, np.ones(2), A, solver="scipy:hybr")),
    "aux": (lambda y: (y - 1, y), lambda f: rootdiff.root(f, np.zeros(2), has_aux=True)),
    "pattern": (lambda y: y**3 - 8, lambda f: rootdiff.root(f, np.ones(9), jac_sparsity="detect")),
    "rules": (lambda y: y**3 - 8, lambda f: rootdiff.root(f, np.ones(2), jac=lambda y: np.diag(3 * y**2))),
    "cell": (np.cos, lambda f: rootdiff.fixed_point(f, np.ones(2))),
    "bracket": (lambda y, a: y**2 - a, lambda f: rootdiff.root_scalar(f, (0.0, 9.0), np.array([2.0, 3.0]))),
    "squares": (
        lambda y: np.stack([y[0] - 1, y[0] * y[1] - 2, y[1] - 3]),
        lambda f: rootdiff.least_squares(f, np.ones(2)),
    ),
    "implicit": (two, lambda f: rootdiff.implicit(f, np.array([2.0, 2.0]), A)),
    "path": (lambda y, a: y**3 + y - a, lambda f: rootdiff.continuation(f, np.zeros(1), np.zeros(1), np.ones(1))),
}


@pytest.mark.parametrize("name", SOLVES)
def test_a_solution_tells_the_calls_of_its_solve(name: str) -> None:
    function, solve = SOLVES[name]
    f = Counted(function)
    sol, calls = f.of(lambda: solve(f))
    assert sol.evaluations == calls > 0
    if sol.converged.all():
        sol.vjp(np.ones_like(sol.y))
        assert sol.evaluations == calls
    assert pickle.loads(pickle.dumps(sol._replace(sensitivities=None))).evaluations == calls


N = 3
#: A step, with a Jacobian by differences of which each is done again with its error, and the trials along it.
STEP = 8 * N + 20


def rootless(y: Any) -> Any:
    return y**2 + np.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "solver", ["auto", "trust_region", rootdiff.Chain([rootdiff.Newton(), rootdiff.TrustRegion()])]
)
@pytest.mark.parametrize("most", [1, 60, 250])
def test_a_limit_on_the_calls_of_the_residual(solver: Any, most: int) -> None:
    f = Counted(rootless)
    sol = rootdiff.root(f, np.ones(N), solver=solver, max_evaluations=most, on_failure="ignore")
    assert sol.status == rootdiff.Status.MAX_EVALUATIONS
    assert most <= sol.evaluations == f.calls[0] <= most + STEP
    with pytest.raises(rootdiff.ConvergenceError, match=r"MAX_EVALUATIONS: (.|\n)* raise max_evaluations") as caught:
        rootdiff.root(f, np.ones(N), solver=solver, max_evaluations=most)
    assert caught.value.solution.evaluations == sol.evaluations


def test_a_limit_holds_in_batches_and_leaves_what_has_converged() -> None:
    starts, shifts = np.full((40, 1), 2.0), np.full((40, 1), 4.0)
    shifts[7] = -1  # no root
    options: Any = {"batch_ndim": 1, "batched_args": (0,), "on_failure": "ignore"}
    sol = rootdiff.root(lambda y, a: y**2 - a, starts, shifts, max_evaluations=200, **options)
    assert sol.status[7] == rootdiff.Status.MAX_EVALUATIONS
    assert np.sum(sol.converged) == 39
    assert sol.evaluations <= 200 + 2 * STEP  # and the verdict on the others


def test_auto_has_a_limit_for_one_system(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rootdiff.root(rootless, np.ones(N), on_failure="ignore").evaluations <= 12_000 + STEP
    monkeypatch.setattr("rootdiff._numpy_adapter._AT_LEAST", 0)
    sol = rootdiff.root(rootless, np.ones(N), on_failure="ignore")
    assert sol.status == rootdiff.Status.MAX_EVALUATIONS
    assert sol.evaluations <= 200 * (N + 1) + STEP
    unlimited = rootdiff.root(rootless, np.ones((1, N)), batch_ndim=1, on_failure="ignore")
    assert unlimited.evaluations > sol.evaluations


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_evaluations": 0}, "positive integer"),
        ({"max_evaluations": 1e3}, "positive integer"),
        ({"max_evaluations": 100, "solver": "scipy:hybr"}, "SciPy does not stop"),
        ({"max_evaluations": 100, "solver": "bisection"}, "Bisection does not stop"),
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(options: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=f"max_evaluations: .*{words}"):
        rootdiff.root(lambda y: y - 1, np.zeros(1), **options)


def ring(y: Any, p: Any, q: Any) -> Any:
    return 3 * y["u"] + y["u"] ** 3 - p[0] * np.roll(y["u"], 1) - p[1] - q * np.cos(np.arange(len(y["u"])))


@pytest.mark.parametrize("options", [{}, {"jac_sparsity": "detect"}, {"adjoint": "gmres"}], ids=str)
def test_several_cotangents_and_tangents_cost_the_differences_of_one(options: Any, monkeypatch: Any) -> None:
    n, q = 90, np.array(0.4)
    f, w = Counted(lambda y, p, q: {"u": ring(y, p, q)}), np.random.default_rng(0).standard_normal((40, n))
    made: list[int] = []

    def count(module: Any, name: str) -> None:
        own = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given: (made.append(given[-1].shape[-1]), own(*given))[1])

    count(_numpy_lu, "factor")
    count(_host_factors, "_factored")
    sol = rootdiff.root(f, {"u": np.zeros(n)}, np.array([0.7, 1.0]), q, **options)
    sol.vjp({"u": w[0]})
    made.clear()
    ones, calls = f.of(lambda: [sol.vjp({"u": row}) for row in w[:3]])
    factored, found = len(made), f.of(lambda: sol.vjp({"u": w}, several=True))
    assert found[1] <= calls / 3 + 4
    assert len(made) - factored <= 1 or options == {"adjoint": "gmres"}  # its triangles are solved by LU too
    for k, one in enumerate(ones):
        np.testing.assert_allclose(found[0][0][k], one[0], rtol=1e-7)
        np.testing.assert_allclose(found[0][1][k], one[1], rtol=1e-7)
    assert [part.shape for part in found[0]] == [(40, 2), (40,)]
    np.testing.assert_array_equal(sol.vjp({"u": w}, argnums=1, several=True), found[0][1])
    v, made[:] = np.array([[1.0, 0.0], [0.3, 2.0], [0.0, -1.0]]), []
    along = sol.jvp(v, None, several=True)["u"]
    assert len(made) <= 1 or options == {"adjoint": "gmres"}
    np.testing.assert_allclose(along @ w.T, v @ found[0][0].T, rtol=1e-6, atol=1e-8)
    assert sol.vjp({"u": w[:0]}, several=True)[0].shape == (0, 2)


def test_several_cotangents_of_a_batch_in_which_a_system_has_no_root() -> None:
    a = np.array([4.0, -1.0, 9.0])
    sol = rootdiff.root(lambda y, a: y**2 - a, np.ones((3, 1)), a[:, None], batch_ndim=1, on_failure="nan")
    w = np.array([[[1.0], [0.0], [1.0]], [[0.0], [1.0], [2.0]]])
    wanted = [[[1 / 4], [0], [1 / 6]], [[0], [np.nan], [1 / 3]]]
    np.testing.assert_allclose(sol.vjp(w, several=True)[0], wanted, rtol=1e-8)


def test_several_need_an_axis_of_one_length() -> None:
    sol = rootdiff.root(lambda y, a, b: y**2 - a - b, np.ones(2), np.array([1.0, 2.0]), np.array(2.0))
    with pytest.raises(ArgumentError, match=r"vjp: with several=True each leaf has one axis more.*\[\(\)\]"):
        sol.vjp(1.0, several=True)
    with pytest.raises(ArgumentError, match=r"jvp: with several=True .*\(3, 2\), \(2,\)"):
        sol.jvp(np.ones((3, 2)), np.ones(2), several=True)
    with pytest.raises(ArgumentError, match=r"vjp: the cotangent has leaves of shape \[\(3,\)\]"):
        sol.vjp(np.ones((4, 3)), several=True)


def test_krylov_above_1024_unknowns_takes_products_and_no_matrix() -> None:
    # the boundary value problem of the documentation of SciPy's root(method="krylov"): 540,076 calls by a matrix
    n, h = 35, 1 / 34

    def curvature(p: Any, last: Any) -> Any:
        inner = np.concatenate([np.zeros_like(p[:1]), p, np.full_like(p[:1], last)])
        return (inner[2:] - 2 * p + inner[:-2]) / h**2

    f = Counted(lambda p, b: curvature(p, 0.0) + curvature(p.T, b).T - 10 * np.mean(np.cosh(p)) ** 2)
    sol, calls = f.of(lambda: rootdiff.root(f, np.zeros((n, n)), np.array(1.0), solver="newton_krylov"))
    assert calls <= 2 * n**2  # a matrix takes that at each step
    assert np.max(np.abs(f(sol.y, 1.0))) <= 1e-11  # of terms of 1e3


def test_products_with_a_large_jacobian_stay_within_bounds() -> None:
    n = 1200
    lo, hi = np.zeros(n), np.full(n, 3.0)

    def residual(y: Any, a: Any) -> Any:
        assert np.all((y >= lo) & (y <= hi))
        return y**3 + y + 0.2 * np.sin(np.roll(y, 1)) - a

    start = np.where(np.arange(n) % 3 == 0, lo, np.where(np.arange(n) % 3 == 1, hi, 0.5))
    root = np.geomspace(1e-6, 1, n)
    sol = rootdiff.root(residual, start, residual(root, 0), bounds=(0.0, 3.0), solver="newton_krylov")
    np.testing.assert_allclose(sol.y, root, rtol=1e-6)
