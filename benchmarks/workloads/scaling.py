"""Cost against the batch and against the number of unknowns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.problem import Problem, Row, Workload
from benchmarks.workloads import _tanh

_NEWTON = {"solver": "newton", "adjoint": "lu"}


def _told(problem: Problem) -> Mapping[str, Any]:
    return {**_NEWTON, "batched_args": (0, 0) if problem.batch_ndim else None}


ROWS = (
    *_tanh.FLOORS,
    Row("rootdiff", "newton, lu, derivatives given", {**_NEWTON, "given": True}),
    Row("rootdiff_torch", "newton, lu", _NEWTON),
    Row("rootdiff_jax", "newton, lu, batched_args", _told),
    Row("Optimistix", "Newton, vmap"),
    Row("PyTorch by hand", "Newton, LU, vmap"),
)

BATCHES, SIZES = (1, 8, 64, 512, 4096, 32768), (4, 16, 64, 256, 1024)
_CASES = {
    **{f"batch {batch}, n = 8": {"n": 8, "batch": batch} for batch in BATCHES},
    **{f"n = {n}": {"n": n} for n in SIZES},
}
SCALING = Workload("Cost against batch and size", _tanh.build, _CASES, ROWS, full=tuple(_CASES))
