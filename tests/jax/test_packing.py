"""Loops whose small arrays travel as one."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import rootdiff_jax as rd
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax.xla._packing import while_loop


def test_the_loop_is_that_of_jax():
    small, large, flag = jnp.arange(3.0), jnp.ones((9, 9)), jnp.array([True, False])
    start = ({"a": small, "b": small + 1, "large": large}, flag, ~flag, jnp.int32(0), jnp.int32(7), None, 0)

    def cond(state: Any) -> Any:
        return state[3] < 5

    def body(state: Any) -> Any:
        found, flag, other, count, last, _, plain = state
        found = {"a": found["b"] * 2, "b": found["a"] - 1, "large": found["large"] + found["a"][0]}
        return found, other, flag & other, count + 1, last - count, None, plain + 1.5  # which makes a float of it

    expected = lax.while_loop(cond, body, start)
    for run in (while_loop, jax.jit(while_loop, static_argnums=(0, 1))):
        found = run(cond, body, start)
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            assert jnp.array_equal(a, b)


def test_a_step_that_changes_types_is_refused():
    start = {"count": jnp.int32(0), "last": jnp.int32(0), "more": None}
    for wrong, words in (
        ({**start, "last": jnp.float32(0)}, r"\['last'\] as float32, shape \(\), but it was int32"),
        ({**start, "last": jnp.zeros(2, jnp.int32)}, r"\['last'\] as int32, shape \(2,\)"),
        ({**start, "more": jnp.int32(0)}, "structure"),
    ):
        with pytest.raises(TypeError, match=words):
            while_loop(lambda state: state["count"] < 1, lambda state, wrong=wrong: wrong, start)


def test_under_vmap_each_has_its_own_end():
    def halvings(x: Any) -> Any:
        return while_loop(lambda s: s[0] > 1.0, lambda s: (s[0] / 2, s[1] + 1, s[2]), (x, 0 * x, x))[1]

    assert jax.vmap(halvings)(jnp.array([1.0, 2.0, 5.0, 64.0])).tolist() == [0.0, 1.0, 3.0, 6.0]


@pytest.mark.parametrize(("solver", "arrays"), [("newton", 9), ("auto", 10)])
def test_a_loop_of_a_small_system_carries_few_arrays(solver, arrays):
    """Each array costs a copy at the start of a step, and eight of them another thread."""
    matrix = jnp.eye(50) + 0.1

    def solve(b: Any) -> Any:
        return rd.root(lambda y, b: matrix @ y + y**3 - b, jnp.zeros(50), b, solver=solver).y

    # y, f, the error, the best y; factors and their order; norms; numbers of two types: without packing 14;
    # those of a trust region are of a matrix whose rows are divided by numbers, one more array; the loop of the
    # verdict, in a branch that an easy solve does not take, carries the Jacobian and its factors
    *_, of_steps, of_verdict = sorted(set(_carried(jax.make_jaxpr(solve)(jnp.ones(50)).jaxpr)))
    assert of_steps <= arrays
    assert of_verdict <= 11


def _carried(jaxpr: Any) -> list[int]:
    """Return of each loop in a jaxpr how many arrays change in it."""
    found = [0]
    for equation in jaxpr.eqns:
        if equation.primitive.name == "while":
            body = equation.params["body_jaxpr"].jaxpr
            carry = body.invars[equation.params["body_nconsts"] :]
            found.append(sum(a is not b for a, b in zip(carry, body.outvars, strict=True)))
        for inner in jaxprs_in_params(equation.params):
            found += _carried(inner)
    return found


def test_a_branch_takes_what_it_may_replace_from_its_loop() -> None:
    """An array that is carried and closed over too would be copied twice, whether the branch is taken or not."""
    backend, large, other = JaxBackend(), jnp.ones(9), jnp.arange(9.0)

    def run(needed: Any, large: Any, other: Any) -> Any:
        return backend.when(needed, lambda a, b, c: (a + c, b + 1), (large, 2, other), (large, 5))

    assert jax.jit(run)(True, large, other)[0].tolist() == (large + other).tolist()
    assert jax.jit(run)(False, large, other)[0].tolist() == large.tolist()
    (loop,) = (e for e in jax.make_jaxpr(run)(True, large, other).eqns if e.primitive is lax.while_p)
    assert loop.params["body_nconsts"] == 1
