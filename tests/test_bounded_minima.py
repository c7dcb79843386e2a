"""Bounds of `minimize` and `least_squares`: they hold in each step, and the minimum has derivatives in them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from scipy import optimize

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, Status
from tests.harness import Harness

TWO = pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
ENTRIES = pytest.mark.parametrize("entry", ["minimize", "least_squares"])
#: The Hessian, and a factor F of it: half the sum of squares of F y - c is the energy where F^T c is F times the load.
FACTOR = np.array([[1.5, 0.4, -0.3], [0.0, 1.1, 0.7], [0.2, 0.0, 0.9]])
HESSIAN = FACTOR.T @ FACTOR
LOAD, ENDS = np.array([1.0, 3.0, -2.0]), np.array([1.6, 0.8])
W = np.array([0.7, -1.3, 0.4])
CASES: list[list[int]] = [[0, 1], [0], [1], []]
#: Of differences of differences, in NumPy.
ROUGH = 2e-6


def energy(y: Any, load: Any, ends: Any) -> Any:
    xp = array_namespace(y)
    return xp.sum((_times(y, FACTOR)) ** 2) / 2 - xp.sum(_times(load, FACTOR) * y) + 0 * xp.sum(ends)


def equations(y: Any, load: Any, ends: Any) -> Any:
    return _times(y, FACTOR) - _times(load, np.linalg.inv(FACTOR).T @ FACTOR)


def _times(y: Any, matrix: np.ndarray) -> Any:
    return array_namespace(y).asarray(matrix) @ y


def limits(load: Any, ends: Any) -> Any:
    """The first unknown is at least the first end, the second one at most the second."""
    xp = array_namespace(ends)
    inf = 0 * ends[..., 0] + float("inf")
    return xp.stack([ends[..., 0], -inf, -inf], axis=-1), xp.stack([inf, ends[..., 1], inf], axis=-1)


def closed(load: np.ndarray, ends: np.ndarray, held: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the minimum where the unknowns in `held` are at their ends, and its derivatives in the load and the ends.

    The gradient is H y - F load.
    """
    free = [k for k in range(3) if k not in held]
    of_load, of_ends = np.zeros((3, 3)), np.zeros((3, 2))
    inverse = np.linalg.inv(HESSIAN[np.ix_(free, free)])
    of_load[free] = inverse @ FACTOR[free]
    for k in held:
        of_ends[k, k] = 1
        of_ends[free, k] = -inverse @ HESSIAN[free, k]
    return of_load @ load + of_ends @ ends, of_load, of_ends


# --- the derivative


@ENTRIES
@pytest.mark.parametrize(("backend", "held"), [("numpy", [0, 1]), *(("torch", h) for h in CASES)], indirect=["backend"])
def test_derivatives_are_those_of_the_free_unknowns_and_of_the_bounds(
    backend: Harness, entry: str, held: list[int]
) -> None:
    load, ends = LOAD.copy(), ENDS.copy()
    for k, away in ((0, -9.0), (1, 9.0)):
        if k not in held:
            ends[k] = away
    function = energy if entry == "minimize" else equations
    found = backend.vjp(function, np.ones(3), load, ends, w=W, entry=entry, bounds=limits)
    pushed = backend.jvp(function, np.ones(3), load, ends, v=(0.3 * LOAD, W[:2]), entry=entry, bounds=limits)
    y, of_load, of_ends = closed(load, ends, held)
    np.testing.assert_allclose(found.y, y, rtol=1e-8)
    np.testing.assert_array_equal(found.y[held], ends[held])
    np.testing.assert_allclose(found.derivative[0], W @ of_load, rtol=ROUGH, atol=ROUGH)
    np.testing.assert_allclose(found.derivative[1], W @ of_ends, rtol=ROUGH, atol=ROUGH)
    np.testing.assert_allclose(pushed.derivative, of_load @ (0.3 * LOAD) + of_ends @ W[:2], rtol=ROUGH, atol=ROUGH)


def test_a_fit_with_two_active_bounds_against_a_scalar_root() -> None:
    """Its residual is not zero; the third unknown is the root of one equation, by another method."""
    import torch

    import rootdiff_torch

    t = np.linspace(0, 4, 20)
    data = 2 * np.exp(-1.3 * t) + 0.5 + 0.8 * np.sin(5 * t) * np.exp(-0.2 * t)

    def fit(xp: Any, t: Any, data: Any) -> Any:
        return lambda y, theta: (y[0] * xp.exp(-y[1] * t) + y[2] - theta[0] * data) * (1 + theta[1] * t)

    def reference(theta: np.ndarray) -> np.ndarray:
        def slope(rate: float) -> float:
            step = 1e-20j
            return np.imag(np.sum(fit(np, t, data)(np.array([1.6, rate + step, 0.6]), theta) ** 2)) / 1e-20

        return np.array([1.6, optimize.brentq(slope, 1, 2, xtol=1e-15, rtol=1e-15), 0.6])

    theta, bounds = np.array([1.0, 0.3]), ([-np.inf, -np.inf, 0.6], [1.6, np.inf, np.inf])
    differences = [(reference(theta + h) - reference(theta - h)) / 2e-5 for h in 1e-5 * np.eye(2)]
    residual = fit(torch, torch.tensor(t), torch.tensor(data))
    start = torch.tensor([5.0, 0.1, -1.0], dtype=torch.float64)

    def solve(theta: Any) -> Any:
        return rootdiff_torch.least_squares(residual, start, theta, bounds=bounds).y

    np.testing.assert_allclose(solve(torch.tensor(theta)), reference(theta), rtol=1e-12)
    found = torch.func.jacrev(solve)(torch.tensor(theta))
    np.testing.assert_allclose(found, np.stack(differences, axis=-1), rtol=1e-8, atol=1e-10)


def test_transforms_of_jax() -> None:
    """y0 = b, and y1 is the root of y1 + 0.4 y1^3 = a - b / 2."""
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)

    def solve(b: Any) -> Any:
        def objective(y: Any, a: Any) -> Any:
            return y[0] ** 2 + y[0] * y[1] / 2 + y[1] ** 2 / 2 - a * y[1] + 0.1 * y[1] ** 4

        bounds = (jnp.stack([b, -jnp.inf]), None)
        return rootdiff_jax.minimize(objective, jnp.array([3.0, 3.0]), 2.0, bounds=bounds).y[1]

    y, first = jax.jit(jax.vmap(jax.value_and_grad(solve)))(jnp.array([1.0, 0.5, -4.0]))
    np.testing.assert_allclose(y[:2] + 0.4 * y[:2] ** 3, [1.5, 1.75], rtol=1e-12)
    np.testing.assert_allclose(first, [*(-0.5 / (1 + 1.2 * y[:2] ** 2)), 0], rtol=1e-10, atol=1e-12)


def test_transforms_of_torch_and_bounds_that_are_closed_over() -> None:
    import torch

    import rootdiff_torch

    def solve(b: Any) -> Any:
        upper = torch.stack([b, b + torch.inf])
        return rootdiff_torch.minimize(
            lambda y: (y[0] - 1) ** 2 + (y[1] - 2) ** 2 + 0.3 * y[0] * y[1],
            torch.zeros(2).double(),
            bounds=(None, upper),
        ).y

    b = torch.tensor([0.3, 0.1, 5.0], dtype=torch.float64)
    found = torch.func.vmap(torch.func.jacrev(solve))(b)
    np.testing.assert_allclose(found, [[1, -0.15], [1, -0.15], [0, 0]], atol=1e-10)
    second = torch.func.hessian(lambda b: solve(b)[1] ** 3)(b[0])
    np.testing.assert_allclose(second, 6 * (2 - 0.15 * 0.3) * 0.15**2, rtol=1e-9)


@TWO
def test_a_batch_is_that_of_its_systems(backend: Harness) -> None:
    a = np.array([[1.0, 2.0], [3.0, -4.0], [0.11, 0.22]])

    def stacked(y: Any, a: Any) -> Any:
        xp = array_namespace(y)
        return xp.concat([y - a, 0.5 * y * y], axis=-1)

    w = np.ones((3, 2))
    options: dict[str, Any] = {"entry": "least_squares", "bounds": (0, 0.9)}
    found = backend.vjp(stacked, np.zeros((3, 2)), a, w=w, batch_ndim=1, **options)
    for k in range(3):
        one = backend.vjp(stacked, np.zeros(2), a[k], w=w[k], **options)
        np.testing.assert_allclose(found.y[k], one.y, rtol=1e-9)
        np.testing.assert_allclose(found.derivative[0][k], one.derivative[0], rtol=ROUGH, atol=ROUGH)


# --- the minimum


@ENTRIES
def test_linear_least_squares_are_those_of_scipy(entry: str) -> None:
    """Units from 1e-2 to 1e2, m = n .. 4 n, a fifth of the bounds infinite; some unknowns are fixed: lo is hi."""
    import torch

    import rootdiff_torch

    generator = np.random.default_rng(0)
    for k in range(12):
        n = 1 + k % 6
        m = n * (1 + k % 4)
        matrix = generator.normal(size=(m, n)) * 10.0 ** generator.uniform(-2, 2, n)
        data, size = 3 * generator.normal(size=m), 1 / np.abs(matrix).max(axis=0)
        lo = -0.5 * size * generator.random(n)
        hi = lo + size * generator.random(n)
        lo[generator.random(n) < 0.2], hi[generator.random(n) < 0.2] = -np.inf, np.inf
        exact = optimize.lsq_linear(matrix, data, (lo, hi), method="bvls", tol=1e-15).x
        if k % 3 == 0:
            lo[0] = hi[0] = exact[0]
        a, d = torch.tensor(matrix), torch.tensor(data)
        f: Any = (
            (lambda y, a=a, d=d: a @ y - d)
            if entry == "least_squares"
            else (lambda y, a=a, d=d: ((a @ y - d) ** 2).sum() / 2)
        )
        start = torch.tensor(size * generator.normal(size=n))
        found = getattr(rootdiff_torch, entry)(f, start, bounds=(torch.tensor(lo), torch.tensor(hi)), on_failure="nan")
        np.testing.assert_allclose(found.y.numpy() / size, exact / size, rtol=1e-9, atol=1e-9)
        assert bool((found.y >= torch.tensor(lo)).all())
        assert bool((found.y <= torch.tensor(hi)).all())
        assert found.steps <= 20


@ENTRIES
def test_a_curved_valley_cut_by_bounds(entry: str) -> None:
    import torch

    import rootdiff_torch

    def valley(y: Any) -> Any:
        return torch.stack([10 * (y[1] - y[0] ** 2), 1 - y[0]])

    f = valley if entry == "least_squares" else (lambda y: (valley(y) ** 2).sum() / 2)
    for hi in ((0.5, 9.0), (9.0, 0.25), (-1.0, 0.5)):
        found = getattr(rootdiff_torch, entry)(f, torch.tensor([-1.2, 1.0]).double(), bounds=(None, hi))
        y = found.y
        slope = torch.stack([-200 * y[0] * (y[1] - y[0] ** 2) * 1.0 - (1 - y[0]), 100 * (y[1] - y[0] ** 2)])
        free = y < torch.tensor(hi).double()
        assert bool((slope[free].abs() < 1e-9).all())
        assert bool((slope[~free] < 0).all())


def test_nothing_is_evaluated_beyond_the_bounds() -> None:
    """In NumPy, where derivatives are differences: y log y has no value below zero, and an infinite slope at zero."""
    seen = []

    def objective(y: Any, a: Any) -> Any:
        seen.append(np.min(y))
        return np.sum(y * np.log(y) - a * y) + y[0] * y[1]

    found = rootdiff.minimize(objective, np.array([0.5, -2.0]), np.array([-4.0, 3.0]), bounds=(0.05, None))
    assert min(seen) == 0.05
    assert found.y[0] == 0.05
    np.testing.assert_allclose(found.y[1], np.exp(2 - 0.05), rtol=1e-7)
    np.testing.assert_allclose(found.jacobian()[0], [[0, 0], [0, found.y[1]]], rtol=1e-5, atol=1e-9)


def test_a_curvature_that_bounds_hold_is_no_saddle() -> None:
    import torch

    import rootdiff_torch

    start, zero = torch.tensor([0.1, 1.0]).double(), torch.zeros(2).double()
    found = rootdiff_torch.minimize(lambda y: -(y[0] ** 2) + (y[1] - 3) ** 2, start, bounds=(-1, 2))
    np.testing.assert_allclose(found.y, [2, 2])
    free = rootdiff_torch.minimize(
        lambda y: y[0] ** 2 - y[1] ** 2, zero, bounds=(-1, 1), solver="newton", on_failure="ignore"
    )
    assert free.status == Status.SADDLE
    top = rootdiff_torch.minimize(lambda y: -(y**2).sum(), zero, bounds=(0, 1), solver="newton", on_failure="ignore")
    assert top.status == Status.SADDLE


# --- bounds that are only just reached


@ENTRIES
@pytest.mark.parametrize(
    ("backend", "aside"), [("numpy", 0), ("torch", 0), ("torch", 1e-13), ("torch", -1e-13)], indirect=["backend"]
)
def test_a_bound_that_is_only_just_reached_has_no_derivative(backend: Harness, entry: str, aside: float) -> None:
    """The gradient along the first unknown is zero there: its derivative in the load has two sides."""
    load = np.linalg.solve(FACTOR, HESSIAN @ np.array([ENDS[0] + aside, 0.3, 0.7]))
    function = energy if entry == "minimize" else equations
    options: dict[str, Any] = {"entry": entry, "bounds": limits}
    found = backend.vjp(function, np.ones(3), load, ENDS, w=W, on_failure="ignore", **options)
    assert found.status == Status.DEGENERATE
    np.testing.assert_allclose(found.y, [ENDS[0], 0.3, 0.7], rtol=1e-8)
    with pytest.raises(ConvergenceError, match=r"DEGENERATE: y is a minimum where a bound is only just reached"):
        backend.solve(function, np.ones(3), load, ENDS, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = backend.vjp(function, np.ones(3), load, ENDS, w=W, on_failure="keep", **options)
    assert np.isnan(kept.derivative[0]).all()
    np.testing.assert_allclose(kept.y, found.y)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize(("aside", "held"), [(1e-3, []), (-1e-3, [0])])
def test_beside_it_the_derivative_is_that_of_its_side(backend: Harness, aside: float, held: list[int]) -> None:
    load = np.linalg.solve(FACTOR, HESSIAN @ np.array([ENDS[0] + aside, 0.3, 0.7]))
    found = backend.vjp(equations, np.ones(3), load, ENDS, w=W, entry="least_squares", bounds=limits)
    np.testing.assert_allclose(found.derivative[0], W @ closed(load, ENDS, held)[1], rtol=ROUGH, atol=ROUGH)


# --- inputs


def test_errors_name_what_came() -> None:
    import jax
    import jax.numpy as jnp
    import torch

    import rootdiff_jax
    import rootdiff_torch

    cases = [
        ((1.0, 0.0), ArgumentError, "lo is above hi"),
        ((np.nan, None), ArgumentError, "lo is above hi, or NaN"),
        ((np.inf, None), ArgumentError, "nothing is within them"),
        (lambda: (1.0, 0.0), ArgumentError, "lo is above hi"),
        (3.0, ArgumentTypeError, r"got 3\.0; it must be a tuple"),
        ((np.zeros(3), None), ArgumentError, r"shape \(3,\) does not broadcast"),
        (("lo", None), ArgumentTypeError, "it must hold|dtype"),
        ((1j, None), ArgumentTypeError, "real numbers"),
    ]
    for module, y0 in ((rootdiff, np.ones(2)), (rootdiff_torch, torch.ones(2)), (rootdiff_jax, jnp.ones(2))):
        for bounds, kind, match in cases:
            with pytest.raises(kind, match=f"^bounds: .*{match}"):
                module.minimize(lambda y: (y**2).sum(), y0, bounds=bounds)  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match="complex unknowns have no order"):
        rootdiff.minimize(lambda y: np.sum(np.abs(y) ** 2), np.ones(2) + 1j, bounds=(0, 1))

    def status(lo: Any) -> Any:
        return rootdiff_jax.minimize(lambda y: (y**2).sum(), jnp.ones(2), bounds=(lo, 0.0), on_failure="ignore").status

    assert jax.jit(status)(1.0) == Status.INFEASIBLE
