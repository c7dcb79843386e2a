"""A batch on two devices: forward and gradient, each device for its own part."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


#: What each case is about. They share one process, since starting one takes as long as a case.
CASES = {
    "jit-auto-gmres": "jit over a sharded batch, iterative adjoint: no all-gather",
    "jit-explicit-lu": "jit over a sharded batch with explicit sharding, direct adjoint: no all-gather",
    "jit-explicit-one-start": "jit over sharded args with explicit sharding, a start that is on all devices",
    "jit-auto-batched-args": "jit over a sharded batch whose finished systems are taken out: no all-gather",
    "jit-explicit-batched-args": "jit over such a batch with explicit sharding: no all-gather",
    "jit-explicit-one-system": "jit over one system spread over explicit axes, iterative adjoint: no all-gather",
    "jit-explicit-told": "a Jacobian that is formed of one system spread over explicit axes: a warning",
    "jit-auto-shifts": "jit over one sharded system that couples neighbours, in GMRES: no all-gather",
    "jit-explicit-many": "jit over a large sharded batch of single unknowns, with explicit sharding",
    "jit-explicit-vmap": "jit(vmap) over explicit axes: value, grad, jvp, from one start and from one each",
    "eager-explicit-vmap": "vmap over explicit axes, not compiled as a whole",
    "shard_map-gmres": "shard_map, iterative adjoint",
    "shard_map-many": "shard_map, a large batch of single unknowns",
    "shard_map-one-start": "shard_map, direct adjoint, of one start for all devices: grad, hessian, closures",
    "shard_map-sums": "grad of shard_map with sums over devices in the residual: a data-parallel layer",
    "shard_map-sums-twice": "second derivatives of shard_map with sums over devices in the residual",
    "shard_map-shared": "grad of shard_map, with respect to a replicated parameter",
}
#: One system over eight devices, by each matrix-free solver and adjoint: no all-gather.
WITHOUT_GATHERS = ["newton_krylov-gmres", "anderson-cg", "df_sane-lsmr", "broyden-bicgstab"]


#: What other cases hold as well: that of explicit sharding, and that of sums, whose parameter is replicated too.
RARE = ("jit-auto-batched-args", "shard_map-shared")


def _together(cases: list[str], *marks: pytest.MarkDecorator) -> Any:
    return pytest.param(cases, marks=[*marks, *(pytest.mark.transform(CASES[name]) for name in cases)])


@pytest.mark.parametrize(
    "cases", [_together([name for name in CASES if name not in RARE]), _together([*RARE], pytest.mark.exhaustive)]
)
def test_two_devices(cases: list[str]) -> None:
    _hold(2, cases)


@pytest.mark.transform("jit over one system spread over eight devices, matrix-free solvers and adjoints: no all-gather")
@pytest.mark.parametrize(
    "pair", [WITHOUT_GATHERS[0], *(pytest.param(p, marks=pytest.mark.exhaustive) for p in WITHOUT_GATHERS[1:])]
)
def test_eight_devices_gather_nothing(pair: str) -> None:
    _hold(8, [f"jit-auto-{pair}"])


@pytest.mark.exhaustive  # each operation is a program, whose parts may wait for threads that a busy machine lacks
@pytest.mark.transform("callback and history of one system spread over explicit axes")
def test_a_solve_of_one_system_is_watched() -> None:
    _hold(2, ["eager-explicit-watched"])


@pytest.mark.exhaustive
@pytest.mark.transform("shard_map over explicit axes, not compiled as a whole: grad, jvp, Hessian-vector product")
def test_derivatives_of_an_eager_shard_map() -> None:
    _hold(2, ["eager-explicit-shard_map"])


@pytest.mark.exhaustive
def test_memory_of_a_device_falls_with_their_number() -> None:
    """As does its work; and what it exchanges is no vector of unknowns."""
    command = [sys.executable, "-m", "benchmarks.scaling_devices", "--size", "128", "--solve"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    found = re.findall(r"^ +(\d) +(\d+) x 128 +(\S+) +\S+ +(\S+) +(\d+) +\d+ +\d+ +(\d+) ", done.stdout, re.MULTILINE)
    rows = [tuple(map(float, row)) for row in found]
    assert [row[0] for row in rows] == [1, 2, 4, 8, 1, 2, 4, 8], done.stderr[-4000:]
    assert all(gathers == 0 and largest <= 4 * 128 * 8 for *_, gathers, largest in rows)
    for first, last in ((rows[0][2:4], rows[3][2:4]), (rows[0][2:4], rows[4][2:4])):
        assert all(1 / 10 < one / whole < 1 / 6 for whole, one in zip(first, last, strict=True))
    apart = [float(number) for number in re.findall(r": (\S+) apart", done.stdout)]
    assert len(apart) == 2
    assert max(apart) < 1e-12


def _hold(devices: int, cases: list[str]) -> None:
    command = [sys.executable, "-m", "tests.jax.sharded", str(devices), *cases]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.split() == cases, done.stderr[-4000:]


@pytest.mark.transform("an eager solve of a batch that two processes share, or four")
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.exhaustive)])
def test_processes(count: int) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.jax.processes"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    started = [subprocess.Popen([*command, str(process), str(count), port], **pipes) for process in range(count)]
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    for output, error in ends:
        assert output.split()[-1:] == ["eager"], error[-4000:]
