"""Batches by vmap: over args, the initial guess or both, nested, and mixed with derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.harness import covering
from tests.jax.closed_form import EXACT, HYBR, NEWTON, SOLVER, SOLVERS, START, THETA, exact, f, loss

THETAS = np.stack([THETA, THETA + 0.3, [-0.2, 1.1]])
STARTS = np.stack([START, START + 3.0, START - 1.0])


def solve(y0: Any, theta: Any, **options: Any) -> Any:
    return rd.root(f, y0, theta, **{"solver": SOLVER, **options}).y


@pytest.mark.transform("vmap over args, over the initial guess, over both")
@pytest.mark.parametrize(
    ("solver", "over"), covering(SOLVERS, [(True, True), (True, False), (False, True)], together=1)
)
def test_vmap(solver: str, over: tuple[bool, bool]) -> None:
    over_start, over_args = over
    y0, theta = STARTS if over_start else START, THETAS if over_args else THETA
    axes = (0 if over_start else None, 0 if over_args else None)
    y = jax.vmap(lambda y0, theta: solve(y0, theta, solver=solver), in_axes=axes)(jnp.asarray(y0), jnp.asarray(theta))
    np.testing.assert_allclose(y, np.broadcast_to(exact(theta).y, (3, 3)), **EXACT)


@pytest.mark.transform("vmap, nested and over another axis than the first")
def test_nested_vmap() -> None:
    inner = jax.vmap(solve, in_axes=(None, 1))
    y = jax.vmap(inner, in_axes=(0, None))(jnp.asarray(STARTS), jnp.asarray(THETAS.T))
    np.testing.assert_allclose(y, np.broadcast_to(exact(THETAS).y, (3, 3, 3)), **EXACT)


@pytest.mark.transform("vmap of grad")
@pytest.mark.parametrize(
    ("solver", "adjoint", "jit"),
    [
        (NEWTON, "gmres", False),  # LU in a program: of the hessian below
        pytest.param(NEWTON, "lu", False, marks=pytest.mark.exhaustive),
        pytest.param(NEWTON, "gmres", True, marks=pytest.mark.exhaustive),
        pytest.param(HYBR, "lu", True, marks=pytest.mark.exhaustive),
        pytest.param(NEWTON, "lu", True, marks=pytest.mark.exhaustive),
        pytest.param(HYBR, "lu", False, marks=pytest.mark.exhaustive),
    ],
)
def test_vmap_of_grad(solver: str, adjoint: str, jit: bool) -> None:
    def objective(theta: Any) -> Any:
        return loss(solve(jnp.asarray(START), theta, solver=solver, adjoint=adjoint))

    function = jax.vmap(jax.grad(objective))
    np.testing.assert_allclose((jax.jit(function) if jit else function)(THETAS), exact(THETAS).gradient, **EXACT)


@pytest.mark.transform("grad of vmap")
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (NEWTON, "lu"),
        *(
            pytest.param(solver, adjoint, marks=pytest.mark.exhaustive)
            for solver, adjoint in [(NEWTON, "gmres"), (HYBR, "lu")]
        ),
    ],
)
def test_grad_of_vmap(solver: str, adjoint: str) -> None:
    def objective(thetas: Any) -> Any:
        y = jax.vmap(lambda theta: solve(jnp.asarray(START), theta, solver=solver, adjoint=adjoint))(thetas)
        return loss(y)

    np.testing.assert_allclose(jax.grad(objective)(THETAS), exact(THETAS).gradient, **EXACT)


@pytest.mark.transform("vmap of hessian")
@pytest.mark.parametrize("adjoint", ["lu", pytest.param("gmres", marks=pytest.mark.exhaustive)])
def test_vmap_of_hessian(adjoint: str) -> None:
    hessian = jax.hessian(lambda theta: loss(solve(jnp.asarray(START), theta, adjoint=adjoint)))
    np.testing.assert_allclose(jax.jit(jax.vmap(hessian))(THETAS), exact(THETAS).hessian, **EXACT)


@pytest.mark.transform("vmap of jvp and of vjp")
def test_vmap_of_jvp_and_vjp() -> None:
    v, w = np.array([0.3, -1.1]), np.array([1.0, 0.5, -2.0])

    def both(theta: Any) -> Any:
        _, pullback = jax.vjp(lambda theta: solve(jnp.asarray(START), theta), theta)
        _, tangent = jax.jvp(lambda theta: solve(jnp.asarray(START), theta), (theta,), (jnp.asarray(v),))
        return tangent, pullback(jnp.asarray(w))[0]

    tangents, cotangents = jax.jit(jax.vmap(both))(THETAS)
    jacobians = exact(THETAS).jacobian
    np.testing.assert_allclose(tangents, jacobians @ v, **EXACT)
    np.testing.assert_allclose(cotangents, w @ jacobians, **EXACT)


def test_systems_of_a_batch_stop_each_on_its_own() -> None:
    starts = jnp.stack([STARTS[0], exact(THETAS[1]).y, STARTS[2]])  # the second is a root already
    sol = jax.jit(jax.vmap(lambda y0, theta: rd.root(f, y0, theta, solver=SOLVER)))(starts, jnp.asarray(THETAS))
    alone = [rd.root(f, y0, jnp.asarray(theta), solver=SOLVER) for y0, theta in zip(starts, THETAS, strict=True)]
    assert sol.steps.tolist() == [int(one.steps) for one in alone]
    assert len(set(sol.steps.tolist())) > 1


def test_finished_systems_of_vmap_are_not_evaluated() -> None:
    rows: list[int] = []

    def on_host(z: Any, rate: Any) -> Any:
        rows.append(len(z))
        return np.asarray(rate)[:, None] * np.cos(np.asarray(z))

    def cell(z: Any, rate: Any) -> Any:
        return jax.pure_callback(on_host, jax.typeof(z), z, rate, vmap_method="broadcast_all")

    rate = jnp.full(1024, 0.1, dtype=jnp.float32).at[5].set(0.95)  # a callback makes float32 of float64
    sol = jax.vmap(lambda rate: rd.fixed_point(cell, 0 * rate[None], rate, solver="fixed_point"))(rate)
    easy = int(np.delete(sol.steps, 5).max())
    assert sol.steps[5] > 2 * easy
    # a step is one evaluation, and so is the start; at the end eleven lead back to the root from beside it
    assert rows.count(1024) <= easy + 12
    assert rows.count(64) >= sol.steps[5] - easy  # fewer at a time would save nothing
    assert set(rows) <= {1024, 64}


@pytest.mark.transform("vmap over no systems at all")
def test_vmap_over_nothing_returns_nothing() -> None:
    def solve(a: Any) -> Any:
        return rd.root(lambda y, a: y**3 + y - a, jnp.ones(()), a, solver="newton").y

    for function in (solve, jax.grad(solve), jax.jit(jax.grad(solve))):
        assert jax.vmap(function)(jnp.zeros(0)).shape == (0,)


@pytest.mark.transform("vmap with an axis name whose index the residual takes")
def test_the_index_along_an_axis_of_vmap() -> None:
    def solve(a: Any) -> Any:
        return rd.root(lambda y, a: y**3 + y - a * jax.lax.axis_index("k"), jnp.ones(()), a, solver="newton").y

    y, slope = jax.vmap(jax.value_and_grad(solve), axis_name="k")(jnp.ones(3))
    np.testing.assert_allclose(y**3 + y, jnp.arange(3.0), **EXACT)
    np.testing.assert_allclose(slope, jnp.arange(3.0) / (3 * y**2 + 1), **EXACT)


@pytest.mark.transform("vmap with an axis name whose index a function within takes", refused="ArgumentError")
def test_an_index_that_a_function_within_takes_is_refused() -> None:
    inner = jax.jit(lambda y, a: y**3 + y - a * jax.lax.axis_index("k"))
    with pytest.raises(rd.ArgumentError, match=r"axis_index of the axis k of vmap.* pass it through args"):
        jax.vmap(lambda a: rd.root(inner, jnp.ones(()), a, solver="newton").y, axis_name="k")(jnp.ones(3))


@pytest.mark.transform("vmap with an axis name over which the residual communicates", refused="ArgumentError")
def test_a_residual_that_couples_what_vmap_maps_over_is_refused() -> None:
    def mapped(residual: Any) -> Any:
        return jax.vmap(lambda a: rd.root(residual, jnp.zeros(2), a, solver="newton").y, axis_name="k")(STARTS[:, :2])

    with pytest.raises(rd.ArgumentError, match=r"residual: it communicates .* along the axis k"):
        mapped(lambda y, a: y - a * jnp.cos(jax.lax.pmean(y, "k")))
    shared = mapped(lambda y, a: 2 * y - a - jax.lax.pmean(a, "k"))  # a sum of args alone
    np.testing.assert_allclose(shared, (STARTS[:, :2] + STARTS[:, :2].mean(axis=0)) / 2, **EXACT)
