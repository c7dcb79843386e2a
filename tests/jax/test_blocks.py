"""A large batch with `batched_args` is solved in blocks on a CPU: the same roots, steps and statuses, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from rootdiff_jax.xla import _blocks

RNG = np.random.default_rng(0)
#: Two unknowns, 128 of them to a block: 500 systems are three blocks, the last of which overlaps the one before it.
COUNT = 500
SCALE = RNG.uniform(1.0, 4.0, COUNT)
SCALE[3] = 1e6  # takes several times the steps of the others
START = np.full((COUNT, 2), 1.5)
#: Sums may be in another order: eps, times the dozen terms of f and a condition below 2.
ROUNDING = 1e-14


def residual(y: Any, scale: Any, weight: Any) -> Any:
    return y**3 + y + jnp.tanh(y @ weight.T) - scale[..., None]


WEIGHT = 0.1 * RNG.standard_normal((2, 2))


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """Make blocks small: in this module alone, since compiled programs do not know of it."""
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_blocks, "_ENTRIES", 512)
        patch.setenv("NPROC", "1")
        yield
    jax.clear_caches()


@pytest.fixture
def taken(small: None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that takes the size of the blocks that a program is traced for."""
    sizes: list[int] = []
    found = _blocks.block_size

    def noted(y0: Any) -> int:
        sizes.append(found(y0))
        return sizes[-1]

    monkeypatch.setattr(_blocks, "block_size", noted)
    return sizes


def solved(start: Any, scale: Any, weight: Any, **options: Any) -> Any:
    options = {"batch_ndim": 1, "solver": "newton", "batched_args": (0, None), **options}
    return rd.root(residual, jnp.asarray(start), jnp.asarray(scale), jnp.asarray(weight), **options)


def exact(scale: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the roots, (count, 2), by Newton's method, and the Jacobians there, (count, 2, 2)."""
    y = np.cbrt(scale)[:, None] * np.ones(2)
    for _ in range(20):
        slope = 1 - np.tanh(y @ weight.T) ** 2
        jacobian = (3 * y**2 + 1)[..., None] * np.eye(2) + slope[..., None] * weight
        y = y - np.linalg.solve(jacobian, (y**3 + y + np.tanh(y @ weight.T) - scale[:, None])[..., None])[..., 0]
    return y, jacobian


@pytest.mark.parametrize(
    "solver",
    [
        "newton",
        *(
            pytest.param(solver, marks=pytest.mark.exhaustive)
            for solver in ("broyden", rd.Chain([rd.Newton(max_steps=5), rd.Newton()]))
        ),
    ],
)
def test_roots_steps_and_statuses_are_those_of_the_whole_batch(taken: list[int], solver: Any) -> None:
    scale = np.where(np.arange(COUNT) == 499, np.nan, SCALE)
    wanted = solved(START, scale, WEIGHT, solver=solver, on_failure="ignore", batched_args=None)
    assert taken == []
    got = solved(START, scale, WEIGHT, solver=solver, on_failure="ignore")
    assert taken == [167]
    assert len(set(wanted.steps.tolist())) > 1
    assert not wanted.converged[499]
    np.testing.assert_array_equal(got.status, wanted.status)
    np.testing.assert_array_equal(got.steps, wanted.steps)
    np.testing.assert_allclose(got.y, wanted.y, rtol=ROUNDING, atol=ROUNDING)
    # rounding of the terms of f, the largest of which are 1e6
    np.testing.assert_allclose(got.residual_norm, wanted.residual_norm, atol=1e6 * ROUNDING)


@pytest.mark.parametrize(
    "adjoint", ["reuse", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("lu", "gmres"))]
)
def test_gradients_are_those_of_the_systems(taken: list[int], adjoint: str) -> None:
    def loss(scale: Any, weight: Any) -> Any:
        return jnp.sum(jnp.sin(solved(START, scale, weight, adjoint=adjoint).y))

    of_scale, of_weight = jax.jit(jax.grad(loss, argnums=(0, 1)))(SCALE, WEIGHT)
    assert set(taken) == {167}
    y, jacobian = exact(SCALE, WEIGHT)
    u = np.linalg.solve(np.matrix_transpose(jacobian), np.cos(y)[..., None])[..., 0]
    np.testing.assert_allclose(of_scale, u.sum(axis=-1), rtol=1e-10, atol=1e-12)
    slope = 1 - np.tanh(y @ WEIGHT.T) ** 2
    np.testing.assert_allclose(of_weight, -(u * slope).T @ y, rtol=1e-10)  # sums over 500 systems


def test_the_adjoint_solve_is_in_blocks_too(taken: list[int]) -> None:
    def loops(function: Callable[..., Any]) -> int:
        return str(jax.make_jaxpr(function)(jnp.asarray(SCALE))).count(" scan[")

    def total(scale: Any) -> Any:
        return jnp.sum(solved(START, scale, WEIGHT).y)

    assert loops(jax.grad(total)) > loops(total) > 0


def test_batches_of_two_axes_and_vmap_around_them(taken: list[int]) -> None:
    start, scale = START.reshape(20, 25, 2), SCALE.reshape(20, 25)
    weights = np.stack([WEIGHT, 2 * WEIGHT, np.zeros_like(WEIGHT)])
    got = jax.vmap(lambda weight: solved(start, scale, weight, batch_ndim=2).y)(weights)
    wanted = [exact(SCALE, weight)[0].reshape(20, 25, 2) for weight in weights]
    np.testing.assert_allclose(got, wanted, rtol=1e-11)  # the default tolerance is 1.8e-12
    assert taken[-1] == 167


@pytest.mark.parametrize(("count", "n", "size"), [(500, 2, 167), (255, 2, 0), (256, 2, 128), (10_000, 3, 0), (0, 2, 0)])
def test_sizes_of_blocks(taken: list[int], count: int, n: int, size: int) -> None:
    assert _blocks.block_size(jnp.zeros((count, n))) == size


def test_blocks_have_a_share_for_each_thread(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_blocks, "_threads", lambda: 2)
    assert _blocks.block_size(jnp.zeros((512, 2))) == 256


@pytest.mark.parametrize(("setting", "threads"), [("3", 3), ("0", 1)])
def test_threads_are_those_that_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, setting: str, threads: int
) -> None:
    monkeypatch.setenv("NPROC", setting)
    assert _blocks._threads() == threads


def test_sines_beside_their_derivatives_keep_their_digits() -> None:
    """Above 4096 numbers a residual with a sine and its slope are evaluated as one complex number."""

    def kepler(y: Any, mean: Any, e: Any) -> Any:
        return y - e * jnp.sin(y) - mean

    angle, e = np.linspace(0.1, 3.0, 5000), np.linspace(0.0, 0.9, 5000)
    mean = angle - e * np.sin(angle)
    # the default tolerance, 1.8e-12 (1 + |y|) in float64, in terms of the smallest y, 0.1; likewise 6.4e-6 in float32
    for dtype, rtol in ((np.float64, 2e-11), (np.float32, 7e-5)):
        args = [jnp.asarray(part, dtype) for part in (mean, e)]
        sol = rd.root(kepler, args[0] + args[1] / 2, *args, batch_ndim=1, solver="newton")
        assert sol.y.dtype == dtype
        np.testing.assert_allclose(sol.y, angle, rtol=rtol)
