"""What is a parameter in NumPy; a derivative is that of the solve, whatever happens to its arguments afterwards."""

from __future__ import annotations

import copy
import ctypes
import math
import pickle
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.sparse

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError

ALL_OF_THEM = {
    "differences": {},
    "jac": {"jac": lambda y, a: np.diag(3 * y**2)},
    "jvp": {"jvp": lambda p, t: 3 * p[0] ** 2 * t[0] - t[1]},
    "vjp": {"vjp": lambda p, w: (3 * p[0] ** 2 * w, -w)},
}


def cube(y: Any, a: Any) -> Any:
    return y**3 - a


@pytest.mark.parametrize("rules", ALL_OF_THEM)
def test_arguments_changed_in_place_after_the_solve(rules: str) -> None:
    theta = np.array([8.0, 27.0])
    sol = rootdiff.root(cube, np.ones(2), theta, **ALL_OF_THEM[rules])
    theta *= 1000
    np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(sol.vjp(np.ones(2))[0], [1 / 12, 1 / 27], rtol=1e-8)
    np.testing.assert_allclose(sol.jvp(np.ones(2)), [1 / 12, 1 / 27], rtol=1e-8)


def test_integers_and_containers_changed_after_the_solve() -> None:
    power, options = np.array([3]), {"shift": np.array([1.0])}
    sol = rootdiff.root(lambda y, a, k, o: y**k - a + o["shift"], np.ones(1), np.array([9.0]), power, options)
    power[0] = 1
    options["shift"] = np.array([5.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_the_start_changed_after_a_solve_of_no_steps() -> None:
    y0 = np.array([2.0])
    sol = rootdiff.root(cube, y0, np.array([8.0]))
    y0[:] = 100.0
    np.testing.assert_allclose(sol.y, [2.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


class Holder:
    def __init__(self) -> None:
        self.c = np.zeros(1)


class Shared:
    c = 0.0


class Slotted:
    __slots__ = ("c",)


@dataclass(frozen=True)
class Frozen:
    c: float = 0.0


class Pair(NamedTuple):
    first: list[float]


_NUMBERS = [0.0]


def _number() -> float:
    return _NUMBERS[0]


def reader(kind: str) -> tuple[Any, Any]:
    """Return a function that reads a 0, and one that makes a 5 of it."""
    _NUMBERS[0] = 0.0
    array, numbers, options, holder, rebound = np.zeros(1), [0.0], {"c": 0.0}, Holder(), 0.0

    def rebind() -> None:
        nonlocal rebound
        rebound = 5.0

    def read_rebound() -> float:
        return rebound

    slotted, frozen, inner, queue, many = Slotted(), Frozen(), [0.0], deque([0.0, 1.0]), dict.fromkeys(range(5000), 0.0)
    Shared.c, shared, slotted.c = 0.0, Shared(), 0.0
    default, tags, long, pair = defaultdict(float, c=0.0), {0.0}, [0.0] * 5000, Pair(inner)
    masked = np.ma.masked_array([0.0, 0.0], [False, True])
    hidden, matrix = [read_rebound], scipy.sparse.csr_array((np.zeros(1), ([0], [0])), shape=(1, 1))
    pairs: dict[str, tuple[Any, Any]] = {
        "array": (lambda: array, lambda: array.fill(5.0)),
        "list": (lambda: numbers[0], lambda: numbers.__setitem__(0, 5.0)),
        "list of a helper": (lambda: _number(), lambda: _NUMBERS.__setitem__(0, 5.0)),
        "array in a list": (lambda arrays=[array]: arrays[0], lambda: array.fill(5.0)),
        "dict": (lambda: options["c"], lambda: options.update(c=5.0)),
        "masked array": (lambda: masked.data[:1], lambda: masked.data.fill(5.0)),
        "object": (lambda: holder.c, lambda: holder.c.fill(5.0)),
        "attribute": (lambda: holder.c, lambda: setattr(holder, "c", np.full(1, 5.0))),
        "variable": (read_rebound, rebind),
        "function in a list": (lambda: hidden[0](), rebind),
        "sparse matrix": (lambda: matrix @ np.ones(1), lambda: matrix.data.fill(5.0)),
        "class attribute": (lambda: Shared.c, lambda: setattr(Shared, "c", 5.0)),
        "class attribute, by an object": (lambda: shared.c, lambda: setattr(Shared, "c", 5.0)),
        "slot": (lambda: slotted.c, lambda: setattr(slotted, "c", 5.0)),
        "frozen dataclass": (lambda: frozen.c, lambda: object.__setattr__(frozen, "c", 5.0)),
        "deque": (lambda: queue[0], lambda: queue.__setitem__(0, 5.0)),
        "defaultdict": (lambda: default["c"], lambda: default.update(c=5.0)),
        "set": (lambda: max(tags), lambda: tags.add(5.0)),
        "named tuple": (lambda: pair.first[0], lambda: inner.__setitem__(0, 5.0)),
        "long list": (lambda: long[4000], lambda: long.__setitem__(4000, 5.0)),
        "large dict": (lambda: many[4000], lambda: many.update({4000: 5.0})),
        "new key": (lambda: options.get("d", 0.0), lambda: options.update(d=5.0)),
        "new attribute": (lambda: getattr(holder, "d", 0.0), lambda: setattr(holder, "d", 5.0)),
    }
    return pairs[kind]


CHANGES = [
    "array",
    "list",
    "list of a helper",
    "array in a list",
    "dict",
    "object",
    "attribute",
    "variable",
    "function in a list",
    "sparse matrix",
    "class attribute",
    "class attribute, by an object",
    "slot",
    "frozen dataclass",
    "deque",
    "defaultdict",
    "set",
    "named tuple",
    "long list",
    "large dict",
    "new key",
    "new attribute",
]
ENTRIES = ["root", "rules", "fixed_point", "root_scalar", "continuation", "argument"]


@pytest.mark.parametrize(
    ("entry", "kind"), [*(("root", kind) for kind in CHANGES), *((entry, "array") for entry in ENTRIES)]
)
def test_a_derivative_that_moves_where_the_residual_does_not(entry: str, kind: str) -> None:
    """At a = 2 the root of (y - 2) - (a - 2) (1 + c) is 2 whatever c, its slope is not."""
    read, change = reader(kind)

    def law(y: Any, a: Any, read: Any = read) -> Any:
        return (y - 2) - (a - 2) * (1 + read())

    a = np.array([2.0])
    if entry == "fixed_point":
        sol = rootdiff.fixed_point(lambda z, a: z - law(z, a) / 2, np.zeros(1), a)
    elif entry == "root_scalar":
        sol = rootdiff.root_scalar(law, (np.full(1, -9.0), np.full(1, 9.0)), a)
    elif entry == "continuation":
        sol = rootdiff.continuation(law, np.zeros(1), np.array([2.5]), a)
    elif entry == "argument":
        sol = rootdiff.root(law, np.zeros(1), a, read)
    elif entry == "rules":
        sol = rootdiff.root(law, np.zeros(1), a, vjp=lambda p, w: (w, -w * (1 + read())))
    else:
        sol = rootdiff.root(law, np.zeros(1), a)
    change()
    np.testing.assert_allclose(sol.jacobian()[0], [[1.0]], rtol=1e-8)
    np.testing.assert_allclose(sol.vjp(np.ones(1))[0], [1.0], rtol=1e-8)
    np.testing.assert_allclose(sol.jvp(np.ones(1), *[None] * (entry == "argument")), [1.0], rtol=1e-8)
    assert read() == 5.0  # the change has come to stay


def test_a_large_array_that_has_changed_is_named() -> None:
    large = np.zeros(200_000)
    sol = rootdiff.root(lambda y, a: (y - 2) - (a - 2) * (1 + large[7]), np.zeros(1), np.array([2.0]))
    np.testing.assert_allclose(sol.jacobian()[0], [[1.0]], rtol=1e-8)
    large += 5.0
    with pytest.raises(ArgumentError, match=r"inplace operation.*changed since: large"):
        sol.jacobian()


def test_what_the_residual_writes_itself_is_left_alone() -> None:
    calls, seen, last = np.zeros(1), list[float](), {"y": 0.0}

    def law(y: Any, a: Any) -> Any:
        calls[0] += 1
        seen.append(float(y[0]))
        last["y"] = float(y[0])
        return y - a

    sol = rootdiff.root(law, np.zeros(1), np.array([2.0]))
    before = calls[0]
    sol.jacobian()
    assert calls[0] > before
    assert len(seen) == calls[0]


def test_threads_put_back_each_its_own() -> None:
    gain, solutions = np.zeros(1), []
    for k in range(20):
        gain[0] = k
        solutions.append(rootdiff.root(lambda y, a: (y - 2) - (a - 2) * (1 + gain), np.zeros(1), np.array([2.0])))
    gain[0] = -1.0
    with ThreadPoolExecutor(4) as pool:
        slopes = [jacobian[0].item() for jacobian in pool.map(lambda sol: sol.jacobian(), solutions)]
    np.testing.assert_allclose(slopes, 1 + np.arange(20), rtol=1e-8)
    assert gain[0] == -1.0


def test_what_cannot_be_put_back_has_changed() -> None:
    thing = ctypes.c_double(2.0)
    sol = rootdiff.root(lambda y, a: thing.value * y - a, np.zeros(1), np.array([6.0]))
    thing.value = 3.0
    with pytest.raises(ArgumentError, match=r"residual: at the root.*reads besides y and args"):
        sol.jacobian()


@pytest.mark.parametrize("rules", ALL_OF_THEM)
def test_a_residual_that_returns_the_same_buffer_again(rules: str) -> None:
    buffer = np.empty(2)

    def residual(y: Any, a: Any) -> Any:
        return np.subtract(y**3, a, out=buffer)

    sol = rootdiff.root(residual, np.ones(2), np.array([8.0, 27.0]), **ALL_OF_THEM[rules])
    np.testing.assert_allclose(sol.y, [2, 3])
    np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)


def test_rules_that_return_the_same_buffers_again() -> None:
    matrix, tangent, cotangents = np.zeros((2, 2)), np.empty(2), (np.empty(2), np.empty(2))

    def jac(y: Any, a: Any) -> Any:
        np.fill_diagonal(matrix, 3 * y**2)
        return matrix

    def jvp(primals: Any, tangents: Any) -> Any:
        return np.subtract(3 * primals[0] ** 2 * tangents[0], tangents[1], out=tangent)

    def vjp(primals: Any, w: Any) -> Any:
        return np.multiply(3 * primals[0] ** 2, w, out=cotangents[0]), np.negative(w, out=cotangents[1])

    for rules in ({"jac": jac}, {"jvp": jvp}, {"vjp": vjp}, {"jac": jac, "jvp": jvp, "vjp": vjp}):
        sol = rootdiff.root(cube, np.ones(2), np.array([8.0, 27.0]), **rules)  # type: ignore[arg-type]
        np.testing.assert_allclose(sol.jacobian()[0], np.diag([1 / 12, 1 / 27]), rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(sol.vjp(np.array([1.0, 2.0]))[0], [1 / 12, 2 / 27], rtol=1e-8)


@dataclass
class Constants:
    a: Any


@pytest.mark.parametrize(
    ("constant", "name"),
    [(3, "int"), (np.array([3]), "ndarray of int64"), (np.array([3j]), "complex128"), (Constants(3.0), "Constants")],
)
def test_a_tangent_for_what_is_not_differentiated(constant: Any, name: str) -> None:
    def residual(y: Any, a: Any, c: Any) -> Any:
        return y - a * np.abs(c.a if isinstance(c, Constants) else c)

    sol = rootdiff.root(residual, np.zeros(1), np.array([2.0]), constant)
    with pytest.raises(ArgumentError, match=rf"jvp: tangent 1.*{name}.*not differentiated"):
        sol.jvp(np.ones(1), np.ones(1))
    np.testing.assert_allclose(sol.jvp(np.ones(1), None), [3.0])
    assert sol.vjp(np.ones(1))[1] is None


def test_a_complex_tangent_or_cotangent_of_what_is_real() -> None:
    sol = rootdiff.root(cube, np.ones(1), np.array([8.0]))
    with pytest.raises(ArgumentError, match="jvp: tangent 0 is complex"):
        sol.jvp(np.array([1j]))
    with pytest.raises(ArgumentError, match="vjp: the cotangent is complex"):
        sol.vjp(np.array([1j]))


def test_a_mask_of_what_is_passed_on_stays() -> None:
    weights = np.ma.masked_array([1, 7], [False, True])  # integers, so no parameter
    sol = rootdiff.root(lambda y, a, w: y**3 - a * w.sum(), np.ones(1), np.array([8.0]), weights)
    np.testing.assert_allclose(sol.y, [2.0])
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


@pytest.mark.parametrize("as_array", [np.array, np.rec.array])
def test_records_are_passed_on(as_array: Callable[..., Any]) -> None:
    data = as_array(np.array([(8.0, 2), (27.0, 3)], dtype=[("a", float), ("b", int)]))
    sol = rootdiff.root(lambda y, data: y**3 - data["a"], np.ones(2), data)
    np.testing.assert_allclose(sol.y, [2.0, 3.0])
    assert sol.vjp(np.ones(2)) == (None,)
    with pytest.raises(rootdiff.ConvergenceError, match="y0 holds NaN"):
        rootdiff.root(lambda y, data: y**3 - data["a"], np.full(2, np.nan), data)
    sol = rootdiff.root_scalar(lambda y, row: y**3 - row["a"], (0.0, 9.0), data[0])  # numbers take the dtype of args
    np.testing.assert_allclose(sol.y, 2.0)
    with pytest.raises(ArgumentTypeError, match="it returned dtype"):
        rootdiff.root(lambda y, data: data, np.ones(2), data)


def test_a_masked_residual_is_refused() -> None:
    data = np.ma.masked_array([8.0, 27.0], [False, True])
    with pytest.raises(ArgumentTypeError, match="residual: it returned a masked array"):
        rootdiff.root(lambda y: y**3 - data, np.ones(2))


def test_a_memory_map_is_an_array(tmp_path: Any) -> None:
    stored = np.memmap(tmp_path / "a", dtype=float, mode="w+", shape=(1,))
    stored[:] = 8.0
    sol = rootdiff.root(cube, np.ones(1), stored)
    np.testing.assert_allclose(sol.vjp(np.ones(1))[0], [1 / 12], rtol=1e-8)


@pytest.mark.parametrize("number", [8.0, np.float64(8.0), np.float32(8.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64])
def test_a_number_takes_the_precision_of_the_unknown(number: Any, dtype: Any) -> None:
    sol = rootdiff.root(cube, np.ones(1, dtype), number)
    assert sol.y.dtype == dtype
    np.testing.assert_allclose(sol.y, [2.0], rtol=1e-5)
    (gradient,) = sol.vjp(np.ones(1, dtype))
    assert gradient.dtype == np.ones(1, dtype).real.dtype
    np.testing.assert_allclose(gradient, 1 / 12, rtol=1e-3)


def test_a_number_among_the_parameters_of_a_continuation_in_float32() -> None:
    sol = rootdiff.continuation(lambda y, a: y**3 + y - a, np.zeros(1, np.float32), 0.0, 10.0)
    assert sol.y.dtype == np.float32
    np.testing.assert_allclose(sol.y, [2.0], rtol=1e-5)


def test_a_solution_is_pickled_with_its_derivatives() -> None:
    sol = rootdiff.root(cube, np.ones(2), np.array([8.0, 27.0]))
    again = pickle.loads(pickle.dumps(sol))
    np.testing.assert_array_equal(again.y, sol.y)
    np.testing.assert_array_equal(again.jacobian()[0], sol.jacobian()[0])
    np.testing.assert_array_equal(again.vjp(np.ones(2))[0], sol.vjp(np.ones(2))[0])


def test_an_ensemble_is_solved_by_processes() -> None:
    joblib, cases = pytest.importorskip("joblib"), [np.array([8.0, 27.0]) * scale for scale in (1.0, 2.0, 3.0)]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        by_pool = list(pool.map(partial(rootdiff.root, cube, np.ones(2)), cases))
    task = joblib.delayed(partial(rootdiff.root, cube, solver=rootdiff.Newton()))
    by_joblib = joblib.Parallel(n_jobs=2)(task(np.ones(2), a) for a in cases)
    for a, *solutions in zip(cases, by_pool, by_joblib, strict=True):
        for sol in solutions:
            np.testing.assert_allclose(sol.y, np.cbrt(a), rtol=2e-12)  # the default tolerance
            np.testing.assert_allclose(sol.jacobian()[0], np.diag(np.cbrt(a) ** -2 / 3), rtol=1e-7, atol=1e-10)


def root_in_its_domain(y: Any, a: Any) -> Any:
    return np.array([math.sqrt(y[0])]) - a  # raises where y is negative


def test_a_solution_is_pickled_with_its_bounds() -> None:
    sol = rootdiff.root(root_in_its_domain, np.array([1.0]), np.array([1e-6]), bounds=(0, None))
    np.testing.assert_allclose(pickle.loads(pickle.dumps(sol)).jacobian()[0], sol.jacobian()[0])
    np.testing.assert_allclose(sol.jacobian()[0], [[2e-6]], rtol=1e-5)


def test_a_solution_of_a_lambda_is_pickled_without_its_derivatives() -> None:
    sol = rootdiff.root(lambda y, a: y**3 - a, np.ones(1), np.array([8.0]), callback=lambda info: None, history=True)
    again = pickle.loads(pickle.dumps(sol))
    np.testing.assert_array_equal(again.y, sol.y)
    assert again.converged
    with pytest.raises(ArgumentTypeError, match=r"pickled without its derivatives.*lambda"):
        again.jacobian()


def test_a_deep_copy_of_a_solution_keeps_its_derivatives() -> None:
    sol = copy.deepcopy(rootdiff.root(lambda y, a: y**3 - a, np.ones(1), np.array([8.0])))
    np.testing.assert_allclose(sol.jacobian()[0], [[1 / 12]], rtol=1e-8)


def test_solutions_of_the_other_entry_points_are_pickled() -> None:
    for sol in (
        rootdiff.fixed_point(np.cos, np.ones(1)),
        rootdiff.root_scalar(cube, (0.0, 10.0), np.array([8.0, 27.0])),
        rootdiff.continuation(cube, np.ones(1), np.array([1.0]), np.array([8.0])),
        rootdiff.root(cube, np.ones(1), np.array([8.0]), solver="broyden", adjoint="reuse", bounds=(0.0, None)),
    ):
        again = pickle.loads(pickle.dumps(sol))
        for one, other in zip(again.jacobian(), sol.jacobian(), strict=True):
            np.testing.assert_array_equal(one, other)
