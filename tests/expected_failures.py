"""Starts from which a native solver does not find its root on NumPy, in data/expected_failures.json.

An iteration far from a root doubles rounding errors in each step, so that some starts succeed with one of OpenBLAS'
kernels and fail with another: these stand apart, under "edge". NumPy's own vector instructions make no difference.
``python -m tests.expected_failures`` writes the table anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rootdiff.testing import Attempt, measure
from rootdiff.testing._check_residual import system_solvers

DATA = Path(__file__).parent / "data" / "expected_failures.json"
KERNELS = ("Prescott", "Sandybridge", "Haswell", "Zen", "SkylakeX")


def natives() -> list[str]:
    """Return the names of rootdiff's own solvers of systems."""
    return [name for name in system_solvers("numpy") if ":" not in name]


def unsolved(attempts: Iterable[Attempt]) -> set[str]:
    """Return the problems, each with the factor of its start, that were not solved."""
    return {f"{attempt.problem} {10**attempt.start}x" for attempt in attempts if not attempt.solved}


def stored() -> dict[str, dict[str, list[str]]]:
    """Return the table: by solver the starts that always fail, and those on the edge."""
    return json.loads(DATA.read_text(encoding="utf-8"))


def main() -> None:
    """Write the table, from a run with each kernel; with an argument, print the failures with the kernel at hand."""
    if len(sys.argv) > 1:
        with np.errstate(all="ignore"):
            print(json.dumps({name: sorted(unsolved(measure(name))) for name in natives()}))
        return
    runs = []
    for kernel in KERNELS:
        command = [sys.executable, "-m", "tests.expected_failures", kernel]
        environment = os.environ | {"OPENBLAS_CORETYPE": kernel}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        runs.append(json.loads(done.stdout))
    table = {}
    for name in natives():
        failed = [set(run[name]) for run in runs]
        always = set.intersection(*failed)
        table[name] = {"always": sorted(always), "edge": sorted(set.union(*failed) - always)}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in table.items())
    DATA.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
