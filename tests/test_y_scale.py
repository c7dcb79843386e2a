"""`y_scale`: the size of each unknown in its own units, where the start does not tell it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, RawSolution, Residual, Solver, Status
from rootdiff._compaction import with_scale
from rootdiff._numpy import NumpyBackend
from tests.harness import HARNESSES

BACKENDS = list(HARNESSES)
PACKAGES = ("rootdiff", "rootdiff_torch", "rootdiff_jax")
MICRON = 1e-6


def package(name: str) -> tuple[Any, Any]:
    """Return a package and what makes an array of float64 of it."""
    pytest.importorskip(name)
    make = {
        "rootdiff": lambda: np.array,
        "rootdiff_torch": lambda: importlib.import_module("torch").tensor,
        "rootdiff_jax": lambda: importlib.import_module("jax.numpy").array,
    }[name]()
    return importlib.import_module(name), lambda value: make(np.asarray(value, dtype=np.float64))


def in_short(name: str) -> dict[str, Any]:
    """Return the options that leave JAX a program shorter than that of the default solver."""
    return {"solver": "newton"} if "jax" in name else {}


def cubic(y: Any, a: Any) -> Any:
    """Is zero at 2e-12 for a = 10."""
    return (1e12 * y) ** 3 + 1e12 * y - a


def apart(y: Any) -> Any:
    return (1e13 * y) ** 2 + 1


def films(y: Any, a: Any) -> Any:
    """Return the residual of two thicknesses of some microns, in metres."""
    u = y / MICRON
    return u + 0.1 * u[..., [1, 0]] ** 2 - a


@pytest.mark.parametrize("name", BACKENDS)
def test_a_start_of_the_wrong_size_leads_to_all_digits(name: str) -> None:
    out = HARNESSES[name]().solve(cubic, [1.0], [10.0], y_scale=1e-12, **in_short(name))
    assert out.status <= Status.AT_PRECISION
    np.testing.assert_allclose(out.y, [2e-12], rtol=1e-11)


@pytest.mark.parametrize("solver", ["newton_krylov", "broyden", "levenberg_marquardt", "trust_region", "scipy:hybr"])
def test_a_start_of_the_wrong_size_leads_to_all_digits_by_every_solver(solver: str) -> None:
    sol = rootdiff.root(cubic, np.array([1.0]), np.array([10.0]), y_scale=1e-12, solver=solver)
    np.testing.assert_allclose(sol.y, [2e-12], rtol=1e-11)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("start", [1e-6, 1e-13])
def test_what_has_no_root_is_refused(name: str, start: float) -> None:
    out = HARNESSES[name]().solve(apart, [start], y_scale=1e-13, on_failure="ignore", **in_short(name))
    assert out.status > Status.AT_PRECISION


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("solver", ["newton", "newton_krylov"])
def test_microns_in_metres_in_float32_from_zeros(name: str, solver: str) -> None:
    a = np.array([3.0, 2.0], dtype=np.float32)
    out = HARNESSES[name]().solve(films, np.zeros(2, dtype=np.float32), a, y_scale=MICRON, solver=solver)
    assert out.status <= Status.AT_PRECISION
    exact = MICRON * rootdiff.root(lambda u, a: films(MICRON * u, a), np.ones(2), a.astype(float)).y
    np.testing.assert_allclose(out.y, exact, rtol=2e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_systems_of_a_batch_have_sizes_of_their_own(name: str) -> None:
    harness = HARNESSES[name]()
    sizes = 10.0 ** -np.arange(16.0)[:, None]
    y_scale = harness.array(sizes)

    def f(y: Any, a: Any, sizes: Any) -> Any:
        return (y / sizes) ** 3 + y / sizes - a

    a = np.full((16, 1), 10.0)
    harness.jit = False  # an array is no key of a compiled program
    options = {"batch_ndim": 1, "batched_args": (0, 0), "solver": "newton"}  # the last ones in smaller batches
    out = harness.solve(f, np.ones((16, 1)), a, sizes, y_scale=y_scale, **options)
    np.testing.assert_allclose(out.y, 2 * sizes, rtol=1e-10)


@dataclass(frozen=True)
class Claiming(Solver):
    """A solver of somebody else's that takes a point near the root for it."""

    y: float

    def solve(self, residual: Residual, y0: Any) -> RawSolution:
        y = np.full_like(y0, self.y)
        return RawSolution(y, np.int32(Status.CONVERGED), np.int32(1), np.max(np.abs(residual(y))))


@pytest.mark.parametrize("n", [1, 2, 1100])
def test_a_claim_is_judged_in_units_of_the_size(n: int) -> None:
    options: dict[str, Any] = {"solver": Claiming(2.0001e-12), "on_failure": "ignore"}
    y0, a = np.ones(n), np.full(n, 10.0)
    assert rootdiff.root(cubic, y0, a, **options).converged  # 1e-16 is little of an unknown of size one
    assert rootdiff.root(cubic, y0, a, y_scale=1e-12, **options).status == Status.STALLED


@pytest.mark.parametrize("solver", ["newton", "broyden"])
def test_noise_is_looked_for_in_changes_of_the_size(solver: str) -> None:
    # the roots of u^2 - 2 u + 1 = 1e-12, u = y / 1e-12, are quantised: changes of u by 1e-8 do not change f
    def f(y: Any) -> Any:
        u = y / 1e-12
        return u * u - 2 * u + 1 - 1e-12

    sol = rootdiff.root(f, np.array([1.0]), y_scale=1e-12, solver=solver)
    assert sol.status == Status.AT_PRECISION
    error = abs(sol.y[0] / 1e-12 - 1 - 1e-6)
    assert error < 1e-9  # a quantum of f, 2e-16, over the slope 2e-6, with room for a few of them
    assert sol.error[0] / 1e-12 < 1e-8


def test_systems_taken_out_of_a_batch_keep_their_sizes() -> None:
    def some(pick: Any, count: int) -> Residual:
        return Residual(apart, (), NumpyBackend())

    scale = np.array([[1.0], [2.0], [3.0]])
    residual = with_scale(Residual(apart, (), NumpyBackend(), take=some), scale)
    assert residual.take is not None
    smaller = residual.take(lambda array: array[[2, 0]], 2)
    np.testing.assert_array_equal(smaller.scale, [[3.0], [1.0]])
    np.testing.assert_array_equal(smaller.backend.scale, [[3.0], [1.0]])  # type: ignore[attr-defined]


@pytest.mark.elsewhere_in_jax("tests/test_y_scale.py::test_jax_takes_the_size_as_a_value")
@pytest.mark.parametrize("name", PACKAGES)
def test_a_pytree_has_a_size_per_leaf(name: str) -> None:
    rd, array = package(name)

    def f(y: Any) -> Any:
        u, v = y["length"] / 1e-9, y["count"] / 1e12
        return {"length": u**3 + v - 3, "count": v**3 + u - 3}

    y0 = {"length": array([1.0, 1.0]), "count": array([1.0, 1.0])}
    sol = rd.root(f, y0, y_scale={"length": 1e-9, "count": array([1e12, 1e12])}, **in_short(name))
    root = 1.2134116627622296  # of u^3 + u = 3
    np.testing.assert_allclose(np.asarray(sol.y["length"]), [1e-9 * root] * 2, rtol=1e-11)
    np.testing.assert_allclose(np.asarray(sol.y["count"]), [1e12 * root] * 2, rtol=1e-11)


@pytest.mark.elsewhere_in_jax("tests/test_y_scale.py::test_jax_takes_the_size_as_a_value")
@pytest.mark.parametrize("name", PACKAGES)
def test_a_complex_unknown_has_one_size(name: str) -> None:
    rd, array = package(name)
    y0 = array(1.0) + 1j * array(0.5)
    sol = rd.root(lambda y: (y / 1e-9) ** 2 - (-8 + 6j), y0, y_scale=1e-9, **in_short(name))
    np.testing.assert_allclose(np.asarray(sol.y), 1e-9 * (1 + 3j), rtol=1e-11)


@pytest.mark.elsewhere_in_jax("tests/test_y_scale.py::test_jax_takes_the_size_as_a_value")
@pytest.mark.parametrize("name", PACKAGES)
def test_a_fixed_point_has_a_size_too(name: str) -> None:
    rd, array = package(name)
    for solver in ("newton", "anderson", "fixed_point"):
        sol = rd.fixed_point(lambda z: 1e-12 * (z / 1e-12 + 4) ** 0.5, array([1.0]), y_scale=1e-12, solver=solver)
        np.testing.assert_allclose(np.asarray(sol.y), [1e-12 * (1 + 17**0.5) / 2], rtol=1e-10)


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("entry", ["root", "fixed_point"])
@pytest.mark.parametrize(
    ("y_scale", "kind", "text"),
    [
        (0.0, ArgumentError, r"got 0\.0; it must be positive and finite"),
        (-1e-6, ArgumentError, "it must be positive and finite"),
        (np.inf, ArgumentError, "it must be positive and finite"),
        ([1.0, np.nan], ArgumentError, "it must be positive and finite"),
        ([1.0, 1.0, 1.0], ArgumentError, r"shape \(3,\) does not broadcast to \(2,\)"),
        ({"a": 1.0}, ArgumentError, "it must be a number, or a pytree of the structure of [yz]0"),
        (1.0j, ArgumentTypeError, "it must hold real numbers"),
        ([1.0, 1j], ArgumentTypeError, "it must hold real numbers"),
    ],
)
def test_what_is_no_size_is_named(name: str, entry: str, y_scale: Any, kind: Any, text: str) -> None:
    rd, array = package(name)
    with pytest.raises(kind, match=f"^y_scale: .*{text}"):
        getattr(rd, entry)(lambda y: y / 2 + 1, array([1.0, 1.0]), y_scale=y_scale)


def test_a_difference_is_no_longer_than_the_size_allows() -> None:
    y, size = np.array([0.0, 3e-20]), np.array([1e-9, 1e-9])

    def f(y: Any) -> Any:
        return np.sin(y / 1e-9)  # of many periods in a step that is made for an unknown of size one

    backend = NumpyBackend(scale=size)
    np.testing.assert_allclose(backend.linearize(f, y)[2](), np.eye(2) / 1e-9, rtol=1e-9)
    sol = rootdiff.root(lambda y, a: f(y) - a, np.zeros(2), np.array([0.5, -0.5]), y_scale=size, solver="newton")
    np.testing.assert_allclose(sol.y, np.arcsin([0.5, -0.5]) * 1e-9, rtol=1e-11)


def test_the_size_is_pickled_with_a_solution() -> None:
    import pickle

    sol = rootdiff.root(cubic, np.array([1.0]), np.array([10.0]), y_scale=1e-12)
    again = pickle.loads(pickle.dumps(sol))
    assert again.vjp(np.ones(1)) == sol.vjp(np.ones(1))


def test_jax_takes_the_size_as_a_value() -> None:
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    rd, array = package("rootdiff_jax")
    traces = []

    @jax.jit
    def solve(a: Any, y_scale: Any) -> Any:
        traces.append(0)
        return rd.root(cubic, array([1.0]), a, y_scale=y_scale, on_failure="nan", solver="newton").y

    ten = array([10.0])
    for size in (1e-12, 2e-12):
        np.testing.assert_allclose(solve(ten, size), [2e-12], rtol=1e-11)
    assert len(traces) == 1
    options: dict[str, Any] = {"on_failure": "nan", "solver": "newton"}
    no_root = jax.jit(lambda y_scale: rd.root(apart, array([1e-6]), y_scale=y_scale, **options).y)
    assert np.isnan(no_root(jnp.inf)).all()  # an infinite size, which cannot be refused by name here, excuses nothing
    gradients = jax.grad(lambda *inputs: solve(*inputs).sum(), argnums=(0, 1))(ten, 1e-12)
    np.testing.assert_allclose(gradients[0], [1e-12 / 13], rtol=1e-9)
    assert gradients[1] == 0
    found = jax.vmap(lambda size: rd.root(cubic, array([1.0]), ten, y_scale=size, **options).y)(array([1e-12, 4e-12]))
    np.testing.assert_allclose(found, [[2e-12]] * 2, rtol=1e-11)


def test_torch_maps_and_does_not_differentiate_the_size() -> None:
    torch = pytest.importorskip("torch")
    rd, array = package("rootdiff_torch")
    sizes = array([1e-12, 4e-12])
    found = torch.func.vmap(lambda size: rd.root(cubic, array([1.0]), array([10.0]), y_scale=size).y)(sizes)
    np.testing.assert_allclose(found, [[2e-12]] * 2, rtol=1e-11)
    a, size = array([10.0]).requires_grad_(), array(1e-12).requires_grad_()
    rd.root(cubic, array([1.0]), a, y_scale=size).y.sum().backward()
    np.testing.assert_allclose(a.grad, [1e-12 / 13], rtol=1e-9)
    assert size.grad is None
