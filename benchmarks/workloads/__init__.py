"""The workloads, by name."""

from __future__ import annotations

from benchmarks.problem import Workload
from benchmarks.workloads.batch import BATCH
from benchmarks.workloads.bratu import BRATU
from benchmarks.workloads.dense import DENSE
from benchmarks.workloads.deq import DEQ
from benchmarks.workloads.overhead import OVERHEAD

WORKLOADS: dict[str, Workload] = {
    "batch": BATCH,
    "dense": DENSE,
    "deq": DEQ,
    "bratu": BRATU,
    "overhead": OVERHEAD,
}
