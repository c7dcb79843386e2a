"""Unknowns and arguments that are pytrees, with leaves that have no derivative."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, SOLVER


def residual(y: Any, args: Any, label: str) -> Any:
    """The root is u = p[index] ** power, v = (scale + 1) * u where the mask holds, else -u."""
    assert label == "passed on as it is"
    assert args["nothing"] is None
    assert args["power"] == 2
    u = args["p"][args["index"]] ** args["power"]
    v = jnp.where(args["mask"], (args["scale"] + 1) * y["u"], -y["u"])
    return {"u": (y["u"] - u) * (2 + jnp.cos(y["v"])), "v": y["v"] - v, "none": None}


Y0 = {"u": np.ones(2), "v": np.zeros(2), "none": None}
ARGS = {
    "p": np.array([1.0, 2.0, 3.0]),
    "index": np.array([2, 0]),
    "mask": np.array([True, False]),
    "scale": np.array(0.5),
    "nothing": None,
    "power": 2,
}


def solve(p: Any, scale: Any, solver: str = SOLVER) -> Any:
    args = {**ARGS, "p": p, "scale": scale, "index": jnp.asarray(ARGS["index"]), "mask": jnp.asarray(ARGS["mask"])}
    return rd.root(residual, jax.tree.map(jnp.asarray, Y0), args, "passed on as it is", solver=solver)


@pytest.mark.transform("pytree y and args with integer, boolean, None, int and str leaves: grad, jvp, jit")
def test_pytree() -> None:
    p, scale = ARGS["p"], ARGS["scale"]

    def total(p: Any, scale: Any) -> Any:
        sol = solve(p, scale)
        return sol.y["v"].sum(), sol

    (by_p, by_scale), sol = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(p, scale)
    assert sol.y["none"] is None
    np.testing.assert_allclose(sol.y["u"], [9.0, 1.0], **EXACT)
    np.testing.assert_allclose(sol.y["v"], [13.5, -1.0], **EXACT)
    np.testing.assert_allclose(by_p, [-2.0, 0.0, 9.0], **EXACT)
    np.testing.assert_allclose(by_scale, 9.0, **EXACT)
    tangent = jax.jit(lambda p, v: jax.jvp(lambda p: solve(p, scale).y["v"], (p,), (v,))[1])(p, np.array([1.0, 0, 1]))
    np.testing.assert_allclose(tangent, [9.0, -2.0], **EXACT)


@pytest.mark.transform("grad with respect to a pytree with integer leaves (allow_int)")
def test_integer_leaf_has_a_float0_gradient() -> None:
    def objective(args: Any) -> Any:
        return rd.root(lambda y, args: y - args["p"] * args["k"], jnp.ones(2), args, solver=SOLVER).y.sum()

    args = {"p": jnp.array([1.0, 2.0]), "k": jnp.array([3, 4])}
    gradient = jax.grad(objective, allow_int=True)(args)
    np.testing.assert_allclose(gradient["p"], [3.0, 4.0], **EXACT)
    assert gradient["k"].dtype == jax.dtypes.float0


@pytest.mark.transform("a Solution as output of jit, vmap and grad(has_aux=True)")
def test_solution_is_a_pytree() -> None:
    def objective(p: Any) -> Any:
        sol = solve(p, ARGS["scale"])
        return sol.y["u"].sum(), sol

    gradient, sol = jax.grad(objective, has_aux=True)(ARGS["p"])
    np.testing.assert_allclose(gradient, [2.0, 0.0, 6.0], **EXACT)
    assert bool(sol.converged)
    batch = jax.vmap(lambda s: solve(jnp.asarray(ARGS["p"]), s))(jnp.array([0.5, 1.0]))
    np.testing.assert_allclose(batch.y["v"], [[13.5, -1.0], [18.0, -1.0]], **EXACT)
    assert batch.converged.shape == (2,)


@pytest.mark.transform("complex y: real and imaginary parts are the unknowns")
def test_complex_unknown() -> None:
    def root(a: Any) -> Any:
        return rd.root(lambda z, a: z**2 + a, jnp.array([0.2 + 1.0j]), a, solver=SOLVER).y

    forward, backward = jax.jacfwd(root), jax.value_and_grad(lambda a: root(a).imag.sum())
    tangent, (value, gradient) = jax.jit(lambda a: (forward(a), backward(a)))(4.0)
    np.testing.assert_allclose(tangent, [0.25j], **EXACT)  # z = i sqrt(a)
    np.testing.assert_allclose((value, gradient), (2.0, 0.25), **EXACT)


def test_integer_unknown_is_refused() -> None:
    with pytest.raises(rd.ArgumentTypeError, match=r"y0.*int32|y0.*int64"):
        rd.root(lambda y: y, {"u": jnp.ones(2), "k": jnp.array([1])})


def cubic(y: Any, a: Any) -> Any:
    return y**3 + y - a


@pytest.mark.parametrize(
    ("y0", "a", "wanted"),
    [
        (0.5, 2.0, 1.0),
        (np.float64(0.5), np.float32(2.0), 1.0),
        (np.array([0.5, 0.5]), np.array([2.0, 10.0]), [1.0, 2.0]),
    ],
)
def test_unknowns_that_are_numbers_or_arrays_of_numpy(y0: Any, a: Any, wanted: Any) -> None:
    y = rd.root(cubic, y0, a, solver=SOLVER).y
    assert y.dtype == jnp.float64
    np.testing.assert_allclose(y, wanted, **EXACT)
    found = jax.vmap(lambda a: rd.fixed_point(lambda z, a: 0.5 * z + a, y0, a, solver=SOLVER).y)(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(found, np.multiply.outer([2.0, 4.0], np.ones(np.shape(y0))), **EXACT)


def test_a_random_key_as_unknown_is_refused() -> None:
    with pytest.raises(rd.ArgumentTypeError, match="y0: it has dtype key"):
        rd.root(cubic, jax.random.key(0), 2.0)


def test_random_key_as_argument() -> None:
    def noisy(y: Any, key: Any, a: Any) -> Any:
        return y - a * jax.random.normal(key, (2,))

    gradient = jax.grad(lambda a: rd.root(noisy, jnp.zeros(2), jax.random.key(0), a, solver=SOLVER).y.sum())(2.0)
    np.testing.assert_allclose(gradient, jax.random.normal(jax.random.key(0), (2,)).sum(), **EXACT)
