"""Several right-hand sides of one matrix are one solve with one set of factors; and nothing waits for itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff
import rootdiff_jax as rd

#: Runs hundreds of derivatives on two threads: batched calls of LAPACK that wait in the pool that runs them would
#: stop it for ever.
PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
import rootdiff_jax as rd
jax.config.update("jax_enable_x64", True)
rng = np.random.default_rng(0)
def root(n):
    a = rng.standard_normal((n, n))
    a = jnp.asarray(a / np.linalg.norm(a, 2) / 2)
    return lambda t: rd.root(lambda y, t: y - jnp.tanh(a @ y) / 2 - t, 0 * t, t, solver="newton").y
wide, narrow = root(100), root(32)
loss = lambda t: jnp.sum(narrow(t) ** 2)
for derivative, t, calls in (
    (jax.jacrev(wide), rng.standard_normal(100), 40),
    (jax.jacfwd(wide), rng.standard_normal(100), 40),
    (jax.vmap(jax.grad(loss)), rng.standard_normal((100, 32)), 220),
):
    derivative, t = jax.jit(derivative), jnp.asarray(t)
    for _ in range(calls):
        jax.block_until_ready(derivative(t))
print("done")
"""


def test_each_system_is_a_call_of_lapack() -> None:
    """None takes a batch, so that none waits in the pool that runs it."""
    a = jnp.asarray(np.random.default_rng(0).standard_normal((32, 32)) / 20)

    def root(t: Any) -> Any:
        return rd.root(lambda y, t: y - jnp.tanh(a @ y) / 2 - t, 0 * t, t, solver="newton").y

    for derivative, shape in ((jax.jacrev(root), (32,)), (jax.vmap(jax.grad(lambda t: root(t).sum())), (100, 32))):
        program = jax.jit(derivative).lower(jnp.ones(shape)).as_text()
        calls = re.findall(r"custom_call @lapack_.* : \((.*?)\) ->", program)
        assert calls
        for matrices in calls:
            assert re.fullmatch(r"(tensor<\d+x\d+xf64>(, )?)+", matrices)


@pytest.mark.exhaustive
def test_two_threads_do_not_wait_for_each_other() -> None:
    env = {**os.environ, "NPROC": "2", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert run.stdout == "done\n", run.stderr


@pytest.mark.parametrize(
    ("solver", "mode", "n"),
    [
        ("newton", "jacfwd", 100),
        ("anderson", "jacrev", 100),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [("auto", "jacrev", 50), ("newton", "jacrev", 50), ("broyden", "jacfwd", 100)]
        ),
    ],
)
def test_a_jacobian_takes_the_memory_of_few_matrices(solver: str, mode: str, n: int) -> None:
    rng = np.random.default_rng(n)
    a = rng.standard_normal((n, n))
    a = a / np.linalg.norm(a, 2) / 2
    t = rng.standard_normal(n)

    def root(t: Any) -> Any:
        def cell(y: Any, t: Any) -> Any:
            return jnp.tanh(jnp.asarray(a) @ y) / 2 + t

        if solver == "anderson":  # by default its linear solves are those of GMRES
            return rd.fixed_point(cell, 0 * t, t, solver=rootdiff.Anderson(rtol=1e-14)).y
        return rd.root(lambda y, t: y - cell(y, t), 0 * t, t, solver=solver).y

    program = jax.jit(getattr(jax, mode)(root)).lower(jnp.asarray(t)).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 10 * n**2 * 8
    y = 0 * t
    for _ in range(60):  # of which each halves the error, and more
        y = np.tanh(a @ y) / 2 + t
    slope = (1 - np.tanh(a @ y) ** 2)[:, None] * a / 2
    np.testing.assert_allclose(program(jnp.asarray(t)), np.linalg.inv(np.eye(n) - slope), rtol=0, atol=1e-13)


def test_jacobians_of_a_batch_of_matrices() -> None:
    """One axis numbers right-hand sides, the other systems: in both orders."""
    rng = np.random.default_rng(0)
    b = rng.uniform(1, 2, (3, 4))

    def f(y: Any, b: Any) -> Any:
        return y**3 + 0.3 * jnp.roll(y, 1) - b

    def root(b: Any) -> Any:
        return rd.root(f, jnp.ones_like(b), b, solver="newton").y

    y, slopes = np.ones_like(b), np.zeros((3, 4, 4))
    for _ in range(8):  # Newton's method
        slopes = 3 * y[..., None] ** 2 * np.eye(4) + 0.3 * np.roll(np.eye(4), 1, axis=0)
        y = y - np.linalg.solve(slopes, (y**3 + 0.3 * np.roll(y, 1, axis=-1) - b)[..., None])[..., 0]
    rows = jax.jit(jax.vmap(jax.jacrev(root)))(jnp.asarray(b))
    np.testing.assert_allclose(rows, np.linalg.inv(slopes), rtol=1e-12)
    hessian = jax.jit(jax.jacfwd(jax.jacrev(root)))(jnp.asarray(b[0]))  # y'' = -J^-1 (6 y y' y')
    inverse = np.linalg.inv(slopes[0])
    expected = -np.einsum("ki,i,ia,ib->kab", inverse, 6 * y[0], inverse, inverse)
    np.testing.assert_allclose(hessian, expected, rtol=1e-10, atol=1e-13)


def test_the_entries_of_a_jacobian_take_the_memory_of_few_matrices() -> None:
    """Of the matrix and of its factors, however much the residual makes on the way to a column."""
    n = 1100
    a = jnp.linspace(1.0, 3.0, n)

    def f(y: Any, a: Any) -> Any:
        first = jnp.tanh(y + 0.1 * jnp.roll(y, 1))
        second = jnp.sin(first - 0.1 * jnp.flip(first))
        return 4 * y + second * jnp.roll(jnp.cumsum(second) / n, 3) - a

    def loss(a: Any) -> Any:
        y = rd.root(f, jnp.ones(n), a, solver="df_sane", adjoint="lu").y
        return jnp.sum(y**2), y

    program = jax.jit(jax.grad(loss, has_aux=True)).lower(a).compile()
    assert program.memory_analysis().temp_size_in_bytes <= 2.5 * n**2 * 8  # at least 3.1 if all are made at once
    gradient, y = program(a)
    product = jax.vjp(lambda y: f(y, a), y)[1](gradient)[0]
    np.testing.assert_allclose(product, 2 * y, rtol=0, atol=1e-11)
