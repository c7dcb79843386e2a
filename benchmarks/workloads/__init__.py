"""The workloads, by name."""

from __future__ import annotations

from benchmarks.problem import Workload
from benchmarks.workloads.batch import BATCH
from benchmarks.workloads.bratu import BRATU, SPARSE_BRATU
from benchmarks.workloads.chemistry import CHEMISTRY
from benchmarks.workloads.condition import CONDITION
from benchmarks.workloads.dense import DENSE
from benchmarks.workloads.deq import DEQ
from benchmarks.workloads.elementwise import KEPLER, VOLATILITY
from benchmarks.workloads.memory import MEMORY
from benchmarks.workloads.minima import CURVES, LOGISTIC, RIDGE
from benchmarks.workloads.overhead import OVERHEAD
from benchmarks.workloads.scaling import SCALING
from benchmarks.workloads.slow import SLOW

WORKLOADS: dict[str, Workload] = {
    "batch": BATCH,
    "chemistry": CHEMISTRY,
    "dense": DENSE,
    "deq": DEQ,
    "bratu": BRATU,
    "kepler": KEPLER,
    "volatility": VOLATILITY,
    "slow": SLOW,
    "overhead": OVERHEAD,
    "condition": CONDITION,
    "memory": MEMORY,
    "scaling": SCALING,
    "sparse-bratu": SPARSE_BRATU,
    "curves": CURVES,
    "ridge": RIDGE,
    "logistic": LOGISTIC,
}
