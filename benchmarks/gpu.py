"""What a GPU is to show, as one command of ten minutes: tests, workloads, waits for the host, cells, many unknowns.

    python -m benchmarks.gpu                         # all, each part in a process and within its time
    python -m benchmarks.gpu --part cells --device cpu --scale 0.001

The workloads go to output/benchmarks-gpu.json, of which ``python -m benchmarks.report`` makes docs/benchmarks-gpu.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

#: Seconds that each part may take.
PARTS = {"unknowns": 60, "cells": 60, "waits": 30, "tests": 200, "workloads": 250}
_JSON = "output/benchmarks-gpu.json"


def timed(device: str, work: Callable[[], Any], repeats: int = 3) -> tuple[float, Any]:
    """Return the least seconds of some calls after the first, and what the last one returned."""
    import torch

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    found, best = work(), float("inf")
    for _ in range(repeats):
        finish()
        start = time.perf_counter()
        found = work()
        finish()
        best = min(best, time.perf_counter() - start)
    return best, found


def ring(roll: Callable[..., Any]) -> Callable[..., Any]:
    """Return a residual that couples neighbours in a ring, from the `roll` of a framework."""
    return lambda y, a: 3 * y + y**3 - roll(y, 1) - 0.5 * roll(y, -1) - a


def unknowns(device: str, scale: float) -> None:
    """Print value and gradient of one system of 1e7 unknowns, matrix-free, by both frameworks."""
    import torch

    import rootdiff_torch

    n, options = int(1e7 * scale), {"solver": "newton_krylov", "adjoint": "gmres"}
    a = torch.linspace(0, 1, n, device=device, dtype=torch.float64, requires_grad=True)

    def by_torch() -> Any:
        y = rootdiff_torch.root(ring(torch.roll), torch.zeros_like(a), a, **options).y
        return y, torch.autograd.grad((y**2).sum(), a)[0]

    seconds, (y, gradient) = timed(device, by_torch)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else float("nan")
    left = float(ring(torch.roll)(y, a).detach().abs().max())
    print(f"{n} unknowns, torch: {seconds:.3f} s, {peak:.2f} GiB, residual {left:.1e}")
    import jax

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)

    @jax.jit
    def by_jax(a: Any) -> Any:
        def total(a: Any) -> Any:
            y = rootdiff_jax.root(ring(jax.numpy.roll), 0 * a, a, **options).y
            return (y**2).sum(), y

        return jax.grad(total, has_aux=True)(a)

    b = jax.numpy.linspace(0, 1, n)
    seconds, (slope, _) = timed("cpu", lambda: jax.block_until_ready(by_jax(b)))
    apart = abs(torch.from_dlpack(slope).cpu() - gradient.cpu()).max() / gradient.abs().max().cpu()
    print(f"{n} unknowns, jax: {seconds:.3f} s; gradients {float(apart):.1e} apart")


def cells(device: str, scale: float) -> None:
    """Print forward and backward of a deep equilibrium cell in float32, TF32, bfloat16 and float16."""
    import torch

    import rootdiff_torch

    width, batch = max(16, int(1024 * scale**0.5)), max(4, int(512 * scale**0.5))
    torch.manual_seed(0)

    def cell(z: Any, w: Any, x: Any) -> Any:
        return torch.tanh(z @ w + x)

    weight, drive = 0.5 * torch.randn(width, width) / width**0.5, torch.randn(batch, width)
    for name, dtype in (("float32", "float32"), ("TF32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16")):
        torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
        w, x = (t.to(device, getattr(torch, dtype)).requires_grad_() for t in (weight, drive))

        def both(w: Any = w, x: Any = x) -> Any:
            sol = rootdiff_torch.fixed_point(cell, torch.zeros_like(x), w, x, batch_ndim=1, solver="anderson")
            return sol.steps.max(), torch.autograd.grad(sol.y.float().pow(2).sum(), w)

        seconds, (steps, _) = timed(device, both)
        print(f"cell of {batch} x {width}, {name}: {1e3 * seconds:.2f} ms, {int(steps)} steps")


def waits(device: str, scale: float) -> None:
    """Print how often the host waits in a solve, and in its gradient: at most once per trial point."""
    import torch

    import rootdiff_torch

    a = torch.linspace(1, 2, max(8, int(1e4 * scale)), device=device)[:, None].requires_grad_()

    def cubic(y: Any, a: Any) -> Any:
        return y + 0.3 * y**3 - a

    def counted(work: Callable[[], Any]) -> tuple[int, Any]:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            found = work()
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(w.message) for w in told), found

    for solver in ("newton", "anderson", "newton_krylov", "broyden"):

        def solve(solver: str = solver) -> Any:
            return rootdiff_torch.root(cubic, torch.ones_like(a), a, batch_ndim=1, solver=solver)

        solve()
        forward, sol = counted(solve)
        backward, _ = counted(lambda sol=sol: torch.autograd.grad(sol.y.sum(), a))
        print(f"waits, {solver}: {forward} in {int(sol.steps.max())} steps, {backward} in the gradient")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--scale", type=float, default=1.0, help="of the sizes; below 1 to try the parts on a CPU")
    options = parser.parse_args(arguments)
    if options.part in ("unknowns", "cells", "waits"):
        globals()[options.part](options.device, options.scale)
        return 0
    own = [sys.executable, "-m", "benchmarks.gpu", "--device", options.device, "--scale", str(options.scale), "--part"]
    commands = {part: [*own, part] for part in PARTS}
    commands["tests"] = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    commands["workloads"] = [sys.executable, "-m", "benchmarks.run", "--device", options.device, "--output", _JSON]
    commands["workloads"] += ["--jobs", str(os.cpu_count()), "--repeats", "3"]
    failed = []
    for part in [options.part] if options.part else PARTS:
        print(f"== {part}", flush=True)
        environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        try:
            code = subprocess.run(commands[part], env=environment, timeout=PARTS[part], check=False).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {PARTS[part]} s"  # type: ignore[assignment]
        failed += [f"{part}: {code}"] if code else []
    print("failed:", *failed or ["nothing"])
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
