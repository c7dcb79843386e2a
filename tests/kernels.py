"""Solves that end where f is rounding, under each of OpenBLAS' kernels, which round differently.

``python -m tests.kernels`` prints, as JSON, how those of the kernel at hand end: by problem the status, the steps and
the error in units of what the condition number allows. The environment variable OPENBLAS_CORETYPE chooses the kernel.
It is read when NumPy is imported, so that each kernel needs a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status

#: Those of x86-64. OpenBLAS replaces one that the processor lacks by the next best one, or dies of it.
KERNELS = ("Prescott", "Sandybridge", "Haswell", "SkylakeX")
#: A linear system takes one step, and further ones as long as f shrinks by chance, where it is rounding. How long that
#: is depends on how a kernel rounds: up to 6 steps with Haswell's, 7 with the others. Over 50 follow each rounding.
MOST_STEPS = 8
#: Digits of float32 that are lost to the condition number; of float64 twice as many.
DIGITS = (2, 4, 5)


def ill_conditioned(dtype: Any, digits: int) -> tuple[Any, Any, Any, float]:
    """Return a matrix, (20, 20), a right-hand side, the root and the condition number of a linear system."""
    rng = np.random.default_rng(digits)
    left, right = (np.linalg.qr(rng.standard_normal((20, 20)))[0] for _ in range(2))
    condition = 10.0 ** (digits if dtype is np.float32 else 2 * digits)
    a = ((left * np.logspace(0, -np.log10(condition), 20)) @ right.T).astype(dtype)
    root = rng.standard_normal(20)
    return a, (a @ root).astype(dtype), root, condition


def outcomes() -> dict[str, tuple[str, int, float]]:
    """Return, by problem, the status, the steps and the error over eps times the condition number."""
    found = {}
    for solver, dtype, digits, near in product(("newton", "auto"), (np.float32, np.float64), DIGITS, (False, True)):
        a, b, root, condition = ill_conditioned(dtype, digits)
        y0 = (root if near else np.zeros(20)).astype(dtype)
        sol = rootdiff.root(lambda y, a, b: a @ y - b, y0, a, b, solver=solver, on_failure="ignore")
        size = np.finfo(dtype).eps * condition * np.linalg.norm(root)
        name = f"{solver} {np.dtype(dtype).name} {digits} {'near' if near else 'far'}"
        found[name] = (Status(int(sol.status)).name, int(sol.steps), float(np.linalg.norm(sol.y - root) / size))
    return found


def under(kernel: str) -> dict[str, tuple[str, int, float]]:
    """Return the outcomes with one of the kernels, from a process of its own; skip one that this CPU cannot run."""
    environment = os.environ | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kernels"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode == -signal.SIGILL:
        pytest.skip(f"this CPU lacks instructions of the kernel {kernel}")
    done.check_returncode()
    return {name: tuple(entry) for name, entry in json.loads(done.stdout).items()}


if __name__ == "__main__":
    print(json.dumps(outcomes()))
