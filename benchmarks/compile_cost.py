"""What an eager call costs in JAX at n = 10: with a fresh closure each time, and with the same function again.

Prints one row of a Markdown table per case: rootdiff_jax, Optimistix, and their ratio, medians of interleaved calls.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix

import rootdiff_jax as rd

N = 10
ROOTDIFF, OPTIMISTIX = "rootdiff_jax", "Optimistix"


def residual(weight: jax.Array) -> Callable[..., jax.Array]:
    """Return a new function object, closing over an array, as a model under construction does."""
    return lambda y, theta: jnp.tanh(weight @ y + theta) - y


def by_rootdiff(f: Callable[..., Any], y0: jax.Array, theta: jax.Array) -> jax.Array:
    return rd.root(f, y0, theta, solver="newton", adjoint="lu").y


def by_optimistix(f: Callable[..., Any], y0: jax.Array, theta: jax.Array) -> jax.Array:
    solver = optimistix.Newton(rtol=1e-8, atol=1e-8)
    return optimistix.root_find(f, solver, y0, theta).value


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def gradient(solve: Callable[..., Any], f: Callable[..., Any], y0: jax.Array, theta: jax.Array) -> jax.Array:
    return jax.grad(lambda theta: jnp.sum(solve(f, y0, theta)))(theta)


def measure(fresh: bool, with_gradient: bool, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    y0, theta = jnp.zeros(N), jnp.ones(N)
    weights = [jnp.asarray(0.1 * rng.standard_normal((N, N))) for _ in range(rounds + 1)]
    fixed = residual(weights[0])
    times: dict[str, list[float]] = {ROOTDIFF: [], OPTIMISTIX: []}
    for weight in weights:
        f = residual(weight) if fresh else fixed
        for name, solve in ((ROOTDIFF, by_rootdiff), (OPTIMISTIX, by_optimistix)):
            call = gradient if with_gradient else lambda solve, *inputs: solve(*inputs)
            times[name].append(seconds(lambda call=call, solve=solve, f=f: call(solve, f, y0, theta)))
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # the first call compiles for both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="calls that are timed per case, after a first one")
    rounds = parser.parse_args().rounds
    jax.config.update("jax_enable_x64", True)
    print(f"| eager call, n = {N}, milliseconds | {ROOTDIFF} | {OPTIMISTIX} | ratio |")
    print("|---|---|---|---|")
    for fresh in (True, False):
        for with_gradient in (False, True):
            medians = measure(fresh, with_gradient, rounds)
            words = (
                f"{'fresh closure' if fresh else 'same function'}, {'solve and gradient' if with_gradient else 'solve'}"
            )
            ours, theirs = medians[ROOTDIFF], medians[OPTIMISTIX]
            print(f"| {words} | {1e3 * ours:.2f} | {1e3 * theirs:.2f} | {ours / theirs:.3f} |")


if __name__ == "__main__":
    main()
