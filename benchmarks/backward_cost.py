"""What the backward of a dense Newton solve costs beside its forward, at n = 500 with a 500 x 500 parameter.

    python benchmarks/backward_cost.py

The residual is ``y + tanh(W y) / 2 - b`` in float64, differentiated in W and b. Forward and forward with backward are
timed interleaved, medians of the repeats; the last column counts the factorisations that the backward adds.
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
import torch

import rootdiff_jax
import rootdiff_torch
from rootdiff_torch._backend import TorchBackend


def torch_calls(weight: np.ndarray, shift: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    w, b = torch.tensor(weight, requires_grad=True), torch.tensor(shift, requires_grad=True)

    def forward() -> Any:
        return rootdiff_torch.root(
            lambda y, w, b: y + torch.tanh(w @ y) / 2 - b, torch.zeros_like(b), w, b, solver="newton", adjoint="lu"
        ).y

    return forward, lambda: torch.autograd.grad(forward().sum(), (w, b))


def jax_calls(weight: np.ndarray, shift: np.ndarray) -> tuple[Callable[[], Any], Callable[[], Any]]:
    jax.config.update("jax_enable_x64", True)
    w, b = jnp.asarray(weight), jnp.asarray(shift)

    def root(w: Any, b: Any) -> Any:
        return rootdiff_jax.root(
            lambda y, w, b: y + jnp.tanh(w @ y) / 2 - b, jnp.zeros_like(b), w, b, solver="newton", adjoint="lu"
        ).y

    forward, gradient = jax.jit(root), jax.jit(jax.grad(lambda w, b: root(w, b).sum(), argnums=(0, 1)))
    return (
        lambda: jax.block_until_ready(forward(w, b)),
        lambda: jax.block_until_ready(gradient(w, b)),
    )


def medians(calls: tuple[Callable[[], Any], ...], repeats: int) -> list[float]:
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(repeats):
        for record, call in zip(times, calls, strict=True):
            start = time.perf_counter()
            call()
            record.append(time.perf_counter() - start)
    return [statistics.median(record) for record in times]


def factorisations(call: Callable[[], Any]) -> int:
    """Return how often PyTorch's backend factors during a call."""
    plain, count = TorchBackend.lu_factor, [0]

    def counting(self: Any, matrix: Any) -> Any:
        count[0] += 1
        return plain(self, matrix)

    TorchBackend.lu_factor = counting  # type: ignore[method-assign]
    try:
        call()
    finally:
        TorchBackend.lu_factor = plain  # type: ignore[method-assign]
    return count[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((options.size, options.size)) / options.size**0.5
    shift = rng.standard_normal(options.size)
    print("| backend | forward, ms | forward + backward, ms | backward / forward | factorisations added |")
    print("|---|---:|---:|---:|---:|")
    for name, make in {"torch": torch_calls, "jax, jitted": jax_calls}.items():
        calls = make(weight, shift)
        forward, both = medians(calls, options.repeats)
        added = factorisations(calls[1]) - factorisations(calls[0]) if name == "torch" else "not counted"
        print(f"| {name} | {1e3 * forward:.1f} | {1e3 * both:.1f} | {both / forward - 1:.2f} | {added} |", flush=True)


if __name__ == "__main__":
    main()
