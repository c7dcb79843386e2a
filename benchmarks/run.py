"""The benchmarks: rootdiff on its three backends, other libraries, and the floor, in one run.

    python -m benchmarks.run --workload batch dense --library rootdiff_torch TorchDEQ floor

Every contender solves the same residual on one thread, in a process of its own; their calls are interleaved, and each
number is a median. Writes JSON, and prints the tables as Markdown. The reduced run leaves out the largest cases.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Set before any library starts its threads: one thread for all; on a GPU XLA needs more of them, to compile.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
#: Tuning products of float32 in full precision takes XLA a minute, more where several programs do it at once.
_NO_TUNING = {"XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"}
_ONE_THREAD_OF_XLA = {"NPROC": "1", "PJRT_NPROC": "1", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
_PACKAGES = (
    *("rootdiff", "numpy", "scipy", "torch", "jax", "optimistix", "lineax", "jaxopt", "torchdeq", "torchopt"),
    *("xitorch", "casadi"),
)


def environment(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(options.device),
        "device": options.device,
        "threads": 1,
        "repeats": options.repeats,
        "jobs": options.jobs,
        "versions": versions,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure, and return what the JSON holds; it is written after each table."""
    from benchmarks.measure import table
    from benchmarks.workloads import WORKLOADS

    results: dict[str, Any] = {"environment": environment(options), "tables": []}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    for name in options.workload:
        workload = WORKLOADS[name]
        rows = [(place, row) for place, row in enumerate(workload.rows) if options.full or not row.full]
        rows = [(place, row) for place, row in rows if row.device in ("", options.device)]
        if options.library:
            rows = [(place, row) for place, row in rows if row.library in options.library]
        for case, settings in workload.cases.items():
            if case in workload.full and not options.full:
                continue
            print(f"{name}: {case}", file=sys.stderr, flush=True)
            start = time.perf_counter()
            problem = workload.build(**settings)
            measured = {"repeats": options.repeats, "limit": options.limit, "device": options.device}
            measured["jobs"] = options.jobs
            entry = {
                "workload": name,
                "case": case,
                "title": workload.title,
                "note": workload.note,
                "dtype": str(problem.y0.dtype),
                "shape": list(problem.y0.shape),
                "accuracy": problem.accuracy,
                "rows": table(name, settings, problem, rows, **measured),
            }
            entry["load"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            entry["seconds"] = round(time.perf_counter() - start, 1)
            results["tables"].append(entry)
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main(arguments: list[str] | None = None) -> int:
    os.environ.update(_ONE_THREAD)
    on_gpu = "cuda" in (sys.argv if arguments is None else arguments)
    os.environ.update(_NO_TUNING if on_gpu else _ONE_THREAD_OF_XLA)
    from benchmarks.contenders import LIBRARIES
    from benchmarks.report import markdown
    from benchmarks.workloads import WORKLOADS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="NAME")
    parser.add_argument("--library", nargs="+", choices=list(LIBRARIES), metavar="NAME")
    parser.add_argument("--full", action="store_true", help="also the largest cases")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls per contender; default 5")
    parser.add_argument("--limit", type=float, default=30, help="seconds that the first calls may take")
    parser.add_argument(
        "--jobs", type=int, default=1, help="first calls, compilation mostly, made at a time; default 1"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmarks.json"))
    parser.add_argument("--list", action="store_true", help="print the workloads and libraries, and end")
    options = parser.parse_args(arguments)
    if options.list:
        print("workloads:", *(f"  {name}: {w.title}" for name, w in WORKLOADS.items()), sep="\n")
        print("libraries:", *(f"  {name}" for name in LIBRARIES), sep="\n")
        return 0
    if options.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the contenders share the device's memory
    results = run(options)
    print(markdown(results))
    return 0


def _processor(device: str) -> str:
    if device != "cpu":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    sys.exit(main())
