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


def whole(**options: Any) -> Any:
    return rd.root(residual, jnp.asarray(START), SCALE, WEIGHT, **{"batch_ndim": 1, "solver": "newton", **options})


def blocks(**options: Any) -> Any:
    return whole(batched_args=(0, None), **options)


@pytest.mark.parametrize(
    "solver",
    [
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("newton", "broyden")),
        rd.Chain([rd.Newton(max_steps=5), rd.Newton()]),
    ],
)
def test_roots_steps_and_statuses_are_those_of_the_whole_batch(taken: list[int], solver: Any) -> None:
    wanted = whole(solver=solver, on_failure="ignore")
    assert taken == []
    got = blocks(solver=solver, on_failure="ignore")
    assert taken == [167]
    assert len(set(wanted.steps.tolist())) > 1
    np.testing.assert_array_equal(got.status, wanted.status)
    np.testing.assert_array_equal(got.steps, wanted.steps)
    np.testing.assert_allclose(got.y, wanted.y, rtol=ROUNDING, atol=ROUNDING)
    # rounding of the terms of f, the largest of which are 1e6
    np.testing.assert_allclose(got.residual_norm, wanted.residual_norm, atol=1e6 * ROUNDING)


def gradients(solve: Callable[..., Any], **options: Any) -> Any:
    def loss(scale: Any, weight: Any) -> Any:
        extra = {"batched_args": (0, None)} if solve is blocks else {}
        sol = rd.root(residual, jnp.asarray(START), scale, weight, batch_ndim=1, solver="newton", **extra, **options)
        return jnp.sum(jnp.sin(sol.y))

    return jax.grad(loss, argnums=(0, 1))(SCALE, WEIGHT)


@pytest.mark.parametrize("adjoint", ["lu", pytest.param("gmres", marks=pytest.mark.exhaustive), "reuse"])
def test_gradients_are_those_of_the_whole_batch(taken: list[int], adjoint: str) -> None:
    for got, wanted in zip(gradients(blocks, adjoint=adjoint), gradients(whole, adjoint=adjoint), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)  # sums over 500 systems; GMRES stops at 10 eps
    assert set(taken) == {167}


def test_the_adjoint_solve_is_in_blocks_too(taken: list[int]) -> None:
    def solve(scale: Any) -> Any:
        return rd.root(
            residual, jnp.asarray(START), scale, WEIGHT, batch_ndim=1, solver="newton", batched_args=(0, None)
        ).y

    def loops(function: Callable[..., Any]) -> int:
        return str(jax.make_jaxpr(function)(jnp.asarray(SCALE))).count(" scan[")

    assert loops(jax.grad(lambda scale: jnp.sum(solve(scale)))) > loops(solve) > 0


def test_a_failed_system_spoils_no_other(taken: list[int]) -> None:
    scale = np.where(np.arange(COUNT) == 499, np.nan, SCALE)
    sol = rd.root(
        residual,
        jnp.asarray(START),
        scale,
        WEIGHT,
        batch_ndim=1,
        solver="newton",
        batched_args=(0, None),
        on_failure="nan",
    )
    np.testing.assert_array_equal(sol.converged, np.arange(COUNT) != 499)
    np.testing.assert_array_equal(jnp.isnan(sol.y).any(-1), np.arange(COUNT) == 499)
    assert taken[-1] == 167


def test_batches_of_two_axes_and_vmap_around_them(taken: list[int]) -> None:
    start, scale = START.reshape(20, 25, 2), SCALE.reshape(20, 25)

    def solve(weight: Any, **options: Any) -> Any:
        return rd.root(residual, jnp.asarray(start), scale, weight, batch_ndim=2, solver="newton", **options).y

    weights = np.stack([WEIGHT, 2 * WEIGHT, np.zeros_like(WEIGHT)])
    wanted = jax.vmap(solve)(weights)
    got = jax.vmap(lambda weight: solve(weight, batched_args=(0, None)))(weights)
    np.testing.assert_allclose(got, wanted, rtol=ROUNDING, atol=ROUNDING)
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
