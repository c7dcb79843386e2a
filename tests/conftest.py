"""Hypothesis profiles, and one way to solve and differentiate on every backend."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.harness import HARNESSES, Harness, JaxHarness, cover

# Set before JAX starts: programs that run once are not worth optimising; compiling takes half the time.
# In one piece for each program too: parts for several threads cost more than the second core wins.
# Nor are their loops worth work: these passes leave every number as it is, and take a third of the time.
_LOOPS = ("invariant-code-motion", "constant-sinking", "trip-count-annotator")
_UNWANTED = (*(f"while-loop-{name}" for name in _LOOPS), "simplify-while-loops", "small-while-loop-hoisting")
_FLAGS = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    f"--xla_disable_hlo_passes={','.join((*_UNWANTED, 'reshape-mover', 'dynamic-dimension-simplifier'))}",
]
with suppress(PackageNotFoundError):
    if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):  # a later one does not know it, and ends
        _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_FLAGS))

_tests_run = [0]
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]}
settings.register_profile("dev", max_examples=5, **_COMMON)
settings.register_profile("ci", max_examples=5, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=50, derandomize=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


def pytest_collection_finish() -> None:
    """Let the collector of cycles leave alone what stays: a trace of JAX makes many objects, few of them garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 10)


def _many_memory_maps() -> bool:
    """Return whether this process has many of the 65530 memory maps that Linux allows it, or nobody can tell."""
    maps = Path("/proc/self/maps")
    return not maps.exists() or maps.read_bytes().count(b"\n") > 20_000


@pytest.fixture(autouse=True)
def _few_compiled_programs() -> Iterator[None]:
    """Let go of JAX's compiled programs where memory maps run out: each holds some."""
    yield
    _tests_run[0] += 1
    if "jax" in sys.modules and _tests_run[0] % 25 == 0 and _many_memory_maps():
        JaxHarness.forget()
        sys.modules["jax"].clear_caches()


@pytest.hookimpl(tryfirst=True)  # before the cases are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to test-all what another case says already.

    Inputs of NumPy that are read-only promise more than those that are not. PyTorch takes each value of the parameters
    once, not their product, which NumPy takes. JAX compiles for each case: it takes one of each test, or each value
    once where that is marked `each_in_jax`, or none where another test is named that holds the same of its programs.
    Without jit, whose loops are those with jit, it takes one case of each test that tells the two apart; tests/jax has
    more of them.
    """
    cases: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        if hasattr(item, "callspec") and not item.get_closest_marker("exhaustive"):
            for value in item.callspec.params.values():
                name = getattr(value, "name", value)
                if isinstance(name, str) and name in HARNESSES:
                    cases.setdefault((item.nodeid.partition("[")[0], name), []).append(item)
    for (test, name), of_test in cases.items():
        values = [item.callspec.params.items() for item in of_test]
        some = cover([{(of, id(getattr(value, "name", value))) for of, value in each} for each in values])
        if name == "numpy-readonly" or (name == "numpy" and (test, "numpy-readonly") not in cases):
            continue
        if name == "numpy" or (name != "torch" and of_test[0].get_closest_marker("elsewhere_in_jax")):
            some = []
        elif name == "jax" and (test, "jax-jit") in cases:
            some = some[:1] if "jax-jit" in inspect.getsource(of_test[0].function) else []
        elif name != "torch" and not of_test[0].get_closest_marker("each_in_jax"):
            some = some[:1]
        for place, item in enumerate(of_test):
            if place not in some:
                item.add_marker(pytest.mark.exhaustive)


@pytest.fixture(params=list(HARNESSES))
def backend(request: pytest.FixtureRequest) -> Harness:
    """NumPy, NumPy with read-only inputs, PyTorch, JAX eagerly and JAX under jit."""
    return HARNESSES[request.param]()
