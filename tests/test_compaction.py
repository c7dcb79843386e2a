"""With `batched_args` the systems that still run go on alone: the same roots, at no cost for the finished ones."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
import rootdiff_jax
from rootdiff import ArgumentError
from tests.harness import HARNESSES, Harness

NATIVE = ("newton", "auto", "trust_region", "levenberg_marquardt", "chord", "broyden", "newton_krylov", "df_sane")
RNG = np.random.default_rng(0)
WEIGHT = 0.1 * RNG.standard_normal((2, 2))
SCALE = np.linspace(1.0, 4.0, 12).reshape(3, 4)
SCALE[1, 2] = 1e3  # takes several times the steps of the others
START = np.full((3, 4, 2), 1.5)
#: Sums over fewer rows may be in another order: eps, times the dozen terms of f and a condition below 2.
ROUNDING = 1e-14


def residual(y: Any, scale: Any, weight: Any) -> Any:
    xp = array_namespace(y)
    return y**3 + y + xp.tanh(y @ weight.mT if hasattr(weight, "mT") else y @ weight.T) - scale[..., None]


#: JAX compiles two programs for each: it takes one whose memory is large. Each solver is tested with NumPy and PyTorch,
#: a chain of those that factor in JAX by a test below.
RARE = {("jax", solver) for solver in NATIVE} | {("jax-jit", solver) for solver in NATIVE} - {("jax-jit", "broyden")}
CASES = [
    pytest.param(name, solver, marks=[pytest.mark.exhaustive] if (name, solver) in RARE else [])
    for name in HARNESSES
    for solver in NATIVE
]


@pytest.mark.parametrize(("name", "solver"), CASES)
def test_roots_steps_and_statuses_are_those_of_the_whole_batch(name: str, solver: str) -> None:
    backend = HARNESSES[name]()
    options = {"solver": solver, "batch_ndim": 2, "on_failure": "ignore"}
    whole = backend.solve(residual, START, SCALE, WEIGHT, **options)
    some = backend.solve(residual, START, SCALE, WEIGHT, **options, batched_args=(0, None))
    assert len(set(whole.steps.ravel().tolist())) > 1
    np.testing.assert_array_equal(some.status, whole.status)
    np.testing.assert_array_equal(some.steps, whole.steps)
    np.testing.assert_allclose(some.y, whole.y, rtol=ROUNDING, atol=ROUNDING)


def test_later_solvers_of_a_chain_take_a_few_systems_at_a_time_in_jax() -> None:
    """Here one by one: the second for those that need more than four steps, the third for the slow one."""
    solvers = [rootdiff.Newton(max_steps=4), rootdiff.Newton(max_steps=6), rootdiff.TrustRegion()]

    def solve(**batched: Any) -> Any:
        options: dict[str, Any] = {"solver": rootdiff.Chain(solvers), "batch_ndim": 2, "on_failure": "ignore"}
        start, *args = map(jnp.asarray, (START, SCALE, WEIGHT))
        return jax.jit(lambda *args: rootdiff_jax.root(residual, start, *args, **options, **batched))(*args)

    with jax.enable_x64(True):
        whole, some = solve(), solve(batched_args=(0, None))
    assert np.sum(np.asarray(whole.method) == rootdiff.Method.TRUST_REGION) == 1
    assert np.sum(np.asarray(whole.steps) <= 4) == 4
    for name in ("method", "status"):
        np.testing.assert_array_equal(getattr(some, name), getattr(whole, name), err_msg=name)
    # trust regions end where f is rounding, which each program may round in its way: it may see that a few steps later
    rounding = np.asarray(whole.method) == rootdiff.Method.TRUST_REGION
    np.testing.assert_array_equal(some.steps[~rounding], whole.steps[~rounding])
    assert np.max(np.abs(some.steps - whole.steps)) <= rootdiff.TrustRegion.short_steps
    np.testing.assert_allclose(some.y, whole.y, rtol=ROUNDING, atol=ROUNDING)


def test_gradients_are_those_of_the_whole_batch(backend: Harness) -> None:
    w = RNG.standard_normal(START.shape)
    options = {"w": w, "solver": "newton", "batch_ndim": 2}
    whole = backend.vjp(residual, START, SCALE, WEIGHT, **options)
    some = backend.vjp(residual, START, SCALE, WEIGHT, **options, batched_args=(0, None))
    for got, wanted in zip(some.derivative, whole.derivative, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8)  # NumPy's differences: eps^(2/3), at points 1e-16 apart


@pytest.mark.elsewhere_in_jax("tests/test_compaction.py::test_roots_steps_and_statuses_are_those_of_the_whole_batch")
def test_a_fixed_point_is_compacted_too(backend: Harness) -> None:
    def cell(z: Any, rate: Any) -> Any:
        return array_namespace(z).cos(z) * rate[..., None]

    rate = np.array([0.1, 0.1, 0.1, 0.95, 0.1])
    options = {"entry": "fixed_point", "solver": "fixed_point", "batch_ndim": 1}
    whole = backend.solve(cell, np.zeros((5, 2)), rate, **options)
    some = backend.solve(cell, np.zeros((5, 2)), rate, **options, batched_args=(0,))
    np.testing.assert_array_equal(some.steps, whole.steps)
    np.testing.assert_allclose(some.y, whole.y, rtol=ROUNDING)


def test_finished_systems_are_not_evaluated() -> None:
    rows: list[int] = []

    def cell(z: np.ndarray, rate: np.ndarray) -> np.ndarray:
        rows.append(len(z))
        return rate[:, None] * np.cos(z)

    rate = np.full(64, 0.1)
    rate[5] = 0.95
    options: dict[str, Any] = {"solver": "fixed_point", "batch_ndim": 1, "batched_args": (0,)}
    sol = rootdiff.fixed_point(cell, np.zeros((64, 1)), rate, **options)
    easy = np.delete(sol.steps, 5).max()
    assert sol.steps[5] > 2 * easy
    # a step is one evaluation, and so is the start; at the end eleven lead back to the root from beside it
    assert rows.count(64) <= easy + 12
    assert rows.count(1) == sol.steps[5] - easy


@pytest.mark.elsewhere_in_jax("tests/test_compaction.py::test_roots_steps_and_statuses_are_those_of_the_whole_batch")
def test_containers_are_marked_as_a_whole_or_leaf_by_leaf(backend: Harness) -> None:
    def nested(y: Any, args: Any) -> Any:
        return residual(y, args["scale"] * args["both"][0], args["both"][1])

    args = {"scale": SCALE, "both": [np.ones((3, 4)), WEIGHT]}

    def flat(y: Any, scale: Any, one: Any, weight: Any) -> Any:
        return nested(y, {"scale": scale, "both": [one, weight]})

    wanted = rootdiff.root(residual, START, SCALE, WEIGHT, solver="newton", batch_ndim=2).y
    for marks in ({"scale": 0, "both": [0, None]}, {"both": (0, None), "scale": 0}):
        sol = rootdiff.root(nested, START, args, solver="newton", batch_ndim=2, batched_args=(marks,))
        np.testing.assert_allclose(sol.y, wanted, rtol=1e-12)
    out = backend.solve(
        flat, START, SCALE, SCALE * 0 + 1, WEIGHT, solver="newton", batch_ndim=2, batched_args=(0, 0, None)
    )
    np.testing.assert_allclose(out.y, wanted, rtol=1e-11)  # twice rtol, 1.8e-12, of the roots, rounded up


@pytest.mark.each_in_jax
@pytest.mark.parametrize(
    ("marks", "message"),
    [
        ((0,), "one entry for each of the 2 args"),
        (0, "one entry for each of the 2 args"),
        ((0, 1), r"entry 1 is or holds 1; it must be 0, None"),
        ((True, None), "entry 0 is or holds True"),
        (((0, 0), None), "entry 0 is or holds"),
        ((0, 0), r"args\[1\] carries the batch axes \(3, 4\) of y0, but it is or holds an array of shape \(2, 2\)"),
    ],
)
def test_wrong_marks_are_named(backend: Harness, marks: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=f"batched_args: .*{message}"):
        backend.solve(residual, START, SCALE, WEIGHT, batch_ndim=2, batched_args=marks)


def test_what_differs_between_systems_but_is_not_marked_is_an_error() -> None:
    with pytest.raises((ArgumentError, ValueError), match=r"shape|broadcast"):
        rootdiff.root(residual, START, SCALE, WEIGHT, batch_ndim=2, batched_args=(None, None), solver="newton")


def test_watched_and_corrected_steps_are_those_of_the_whole_batch() -> None:
    seen: list[int] = []
    options: dict[str, Any] = {"batch_ndim": 2, "solver": "newton", "batched_args": (0, None)}
    rootdiff.root(residual, START, SCALE, WEIGHT, callback=lambda info: seen.append(info.y.shape), **options)
    assert set(seen) == {START.shape}
    sol = rootdiff.root(residual, START, SCALE, WEIGHT, bounds=(np.zeros(START.shape), None), **options)
    assert sol.converged.all()
