"""Memory of value and gradient of a fixed point, against the number of solver steps.

The implicit rule keeps the root and forgets the iterates; back-propagation through the solver keeps them all. Both run
the same number of steps of the same cell, z = tanh(W z + x), and differentiate in W and x.

PyTorch: growth of the peak resident memory of a fresh process. JAX: temporary memory of the compiled program, as XLA
reports it.

    python benchmarks/memory.py --steps 10 100 1000
"""

from __future__ import annotations

import argparse
import platform
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from typing import Any

import numpy as np

import rootdiff

BATCH, WIDTH = 128, 512
RATE = 0.99  # spectral norm of W: so slow a contraction still moves after a thousand steps
METHODS = ("implicit", "unrolled")


def problem() -> tuple[Any, Any]:
    """Return W, (width, width), and x, (batch, width), float32."""
    rng = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    return (RATE * orthogonal).astype(np.float32), 0.1 * rng.standard_normal((BATCH, WIDTH)).astype(np.float32)


def exactly(steps: int) -> rootdiff.FixedPoint:
    """Return a solver that takes this many steps: no tolerance, so that it never ends early."""
    return rootdiff.FixedPoint(max_steps=steps, rtol=0.0, atol=0.0)


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def torch_memory(method: str, steps: int) -> float:
    """Return bytes; to be called in a process of its own."""
    import torch

    import rootdiff_torch

    torch.set_num_threads(1)
    weight, x = (torch.asarray(array).requires_grad_() for array in problem())

    def cell(z: Any, weight: Any, x: Any) -> Any:
        return torch.tanh(z @ weight.T + x)

    def gradient(steps: int) -> None:
        z = torch.zeros(BATCH, WIDTH)
        if method == "implicit":
            options = {"solver": exactly(steps), "adjoint": "gmres", "batch_ndim": 1, "on_failure": "ignore"}
            z = rootdiff_torch.fixed_point(cell, z, weight, x, **options).y
        else:
            for _ in range(steps):
                z = cell(z, weight, x)
        torch.sum(z**2).backward()

    torch.sum(cell(x, weight, x)).backward()  # what the first products and the first backward pass load
    before = peak_memory()
    gradient(steps)
    return peak_memory() - before


def jax_memory(method: str, steps: int) -> float:
    """Return bytes."""
    import jax

    import rootdiff_jax

    def cell(z: Any, weight: Any, x: Any) -> Any:
        return jax.numpy.tanh(z @ weight.T + x)

    def objective(weight: Any, x: Any) -> Any:
        z = jax.numpy.zeros((BATCH, WIDTH))
        if method == "implicit":
            options = {"solver": exactly(steps), "adjoint": "gmres", "batch_ndim": 1, "on_failure": "ignore"}
            z = rootdiff_jax.fixed_point(cell, z, weight, x, **options).y
        else:
            z = jax.lax.fori_loop(0, steps, lambda _, z: cell(z, weight, x), z)
        return jax.numpy.sum(z**2)

    program = jax.jit(jax.grad(objective, argnums=(0, 1))).lower(*problem()).compile()
    return float(program.memory_analysis().temp_size_in_bytes)


MEASURES = {"torch": torch_memory, "jax": jax_memory}


def measure(backend: str, method: str, steps: int) -> float:
    """Return the memory in MiB, measured in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(MEASURES[backend], method, steps).result() / 2**20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=[*MEASURES, "all"], default="all")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 30, 100, 300])
    options = parser.parse_args(arguments)
    backends = list(MEASURES) if options.backend == "all" else [options.backend]
    releases = ", ".join(f"{name} {version(name)}" for name in backends)
    print(f"MiB of value and gradient: batch {BATCH}, width {WIDTH}, float32 (one state: {BATCH * WIDTH / 2**18} MiB).")
    print(f"rootdiff {rootdiff.__version__}, {releases}, Python {platform.python_version()}, CPU.\n")
    print("| backend | solver steps | rootdiff, implicit | through the unrolled solver |")
    print("|---|---:|---:|---:|")
    for backend in backends:
        for steps in options.steps:
            implicit, unrolled = (measure(backend, method, steps) for method in METHODS)
            print(f"| {backend} | {steps} | {implicit:.1f} | {unrolled:.1f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
