"""Each contender in a process of its own; the parent asks them in turn for one timed call."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import on_host, prepare, reason_against
from benchmarks.problem import Problem, Row, relative_error

#: Imported once by the server that the processes are forked from: a first call is then a call, and no import.
PRELOAD = (
    *("numpy", "scipy.optimize", "torch", "jax", "optimistix", "jaxopt", "torchdeq", "torchopt", "xitorch.optimize"),
    *("casadi", "rootdiff_torch", "rootdiff_jax", "benchmarks.workloads"),
)
#: Calls shorter than this are repeated within one measurement. Seconds.
_SHORTEST = 5e-3
#: A contender whose forward and gradient together take longer than this is timed once. Seconds.
_SLOW = 1.0


class Worker:
    """A contender in a fresh process."""

    def __init__(self, workload: str, settings: Mapping[str, Any], row: int, device: str) -> None:
        context = get_context("forkserver")
        context.set_forkserver_preload(list(PRELOAD))
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, workload, dict(settings), row, device), daemon=True)
        self._process.start()
        self._started = time.perf_counter()
        other.close()

    def ask(self, question: str, limit: float) -> Any:
        """Return the answer, or raise TimeoutError after `limit` seconds, or RuntimeError with what went wrong."""
        self._connection.send(question)
        return self.answer(limit)

    def first_answer(self, limit: float) -> Any:
        """Return what the first calls gave, or raise as `ask` does `limit` seconds after the start of the process."""
        return self.answer(max(0.0, self._started + limit - time.perf_counter()))

    def answer(self, limit: float) -> Any:
        if not self._connection.poll(limit):
            self.stop()
            raise TimeoutError
        try:
            value = self._connection.recv()
        except EOFError:
            raise RuntimeError("the process died") from None
        if isinstance(value, Exception):
            raise RuntimeError(_reason(value))
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.join()


def table(
    workload: str,
    settings: Mapping[str, Any],
    problem: Problem,
    rows: list[tuple[int, Row]],
    *,
    repeats: int,
    limit: float,
    device: str,
    jobs: int = 1,
) -> list[dict[str, Any]]:
    """Return a record per row, of which each has its place in the workload: what it reached, what it cost.

    First calls, mostly compilation, are made `jobs` at a time; the timed ones after them one by one.
    """
    records: list[dict[str, Any]] = []
    workers: list[tuple[dict[str, Any], Worker]] = []
    started: list[tuple[dict[str, Any], Worker]] = []
    for index, row in rows:
        record: dict[str, Any] = {"library": row.library, "configuration": row.configuration}
        records.append(record)
        reason = reason_against(row, device)
        if reason:
            record["reason"] = reason
            continue
        started.append((record, Worker(workload, settings, index, device)))
        if len(started) == jobs:
            workers += [each for each in started if _answered(problem, *each, limit)]
            started = []
    workers += [each for each in started if _answered(problem, *each, limit)]
    _interleave(workers, repeats, limit)
    return records


def _answered(problem: Problem, record: dict[str, Any], worker: Worker, limit: float) -> bool:
    """Fill in what the first calls of a worker gave, or why they gave nothing."""
    try:
        record |= _judged(problem, worker.first_answer(limit))
    except (TimeoutError, RuntimeError) as error:
        record["reason"] = f"over {limit:g} s" if isinstance(error, TimeoutError) else str(error)
    print(f"  {record['library']}, {record['configuration']}: {_progress(record)}", file=sys.stderr, flush=True)
    return "reason" not in record


def _interleave(workers: list[tuple[dict[str, Any], Worker]], repeats: int, limit: float) -> None:
    """Fill in the medians; slow contenders are timed once."""
    times: list[dict[str, list[float]]] = [{"forward": [], "gradient": []} for _ in workers]
    for repeat in range(repeats):
        for seen, (record, worker) in zip(times, workers, strict=True):
            if repeat and record["warm_s"] > _SLOW:
                continue
            for name in ("forward", "gradient") if record["has_gradient"] else ("forward",):
                with suppress(TimeoutError, RuntimeError):
                    seen[name].append(worker.ask(name, limit))
    for seen, (record, worker) in zip(times, workers, strict=True):
        record["calls"] = len(seen["forward"])
        for name, key in (("forward", "forward_s"), ("gradient", "both_s")):
            record[key] = statistics.median(seen[name]) if seen[name] else None
        worker.stop()


def _judged(problem: Problem, found: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the errors of a root and its gradients."""
    y, gradients = found.pop("y").astype(float), found.pop("gradients")
    exact = problem.solved
    found["residual"] = float(np.max(np.abs(problem.residual(np, y, *(a.astype(float) for a in problem.args)))))
    found["root_error"] = relative_error(y, exact.root)
    found["has_gradient"] = gradients is not None
    if gradients is not None:
        errors = [relative_error(g, e) for g, e in zip(gradients, exact.gradients, strict=True)]
        found["gradient_error"] = float(np.max(errors))
    return found


def _progress(record: dict[str, Any]) -> str:
    return str(record.get("reason") or f"gradient error {record.get('gradient_error', float('nan')):.1e}")


def _reason(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).replace("|", "/").strip()
    first = re.split(r"(?<=[.;])\s", text)[0]
    return f"{type(error).__name__}: {first[:110]}" if text else type(error).__name__


def _serve(connection: Connection, workload: str, settings: Mapping[str, Any], row: int, device: str) -> None:
    """Prepare a contender, send what its first calls give, then time calls as asked."""
    warnings.simplefilter("ignore")
    gc.freeze()  # what the server has imported is not garbage
    try:
        calls, record = _first_calls(workload, settings, row, device)
        warm = {name: timed(call) for name, call in calls._asdict().items() if call is not None}
        connection.send(record | {"warm_s": sum(warm.values())})
        numbers = {name: _number(getattr(calls, name), seconds) for name, seconds in warm.items()}
        while True:
            name = connection.recv()
            connection.send(timed(getattr(calls, name), numbers[name]))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:  # a peer may fail in any way; the cell says how
        connection.send(RuntimeError(_reason(error)) if not _plain(error) else error)


def _plain(error: Exception) -> bool:
    return type(error).__module__ == "builtins"


def _first_calls(workload: str, settings: Mapping[str, Any], row: int, device: str) -> tuple[Any, dict[str, Any]]:
    from benchmarks.workloads import WORKLOADS

    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    chosen = WORKLOADS[workload]
    problem = chosen.build(**settings)
    if "jax" in sys.modules:
        config = sys.modules["jax"].config
        config.update("jax_enable_x64", problem.y0.dtype == np.float64)  # as its users have it: only where they need it
        config.update("jax_cpu_enable_async_dispatch", False)  # one thread
    calls = prepare(chosen.rows[row], problem, device)
    first = calls.gradient or calls.forward
    start = time.perf_counter()
    result = first()
    record: dict[str, Any] = {"first_s": time.perf_counter() - start}
    y, gradients = (result[0], result[1]) if calls.gradient else (result[0], None)
    record["y"] = on_host(y)
    record["gradients"] = None if gradients is None else tuple(map(on_host, gradients))
    record["dtype"] = str(record["y"].dtype)
    _, steps = calls.forward()
    record["steps"] = None if steps is None else int(np.max(on_host(steps)))
    del result, y, gradients
    record["memory_bytes"] = peak_memory(first, device)
    return calls, record


def _number(call: Callable[[], Any], seconds: float) -> int:
    """Return how many calls make one measurement, by a call that took so long when it was called once."""
    few = max(1, round(_SHORTEST / seconds))
    return few if few == 1 else max(few, round(_SHORTEST / timed(call, few)))


def timed(call: Callable[[], Any], number: int = 1) -> float:
    """Return the seconds that one of a number of calls takes; of a short one not the first after a pause."""
    gc.collect()
    if number > 1:
        call()
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def peak_memory(call: Callable[[], Any], device: str = "cpu") -> int:
    """Return by how many bytes a warm call raises the memory of this process, or of the device, at its peak."""
    gc.collect()
    if device != "cpu":
        return _device_memory(call)
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark starts again from here
    except OSError:
        before = _high_water()
        call()
        return _high_water() - before
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _device_memory(call: Callable[[], Any]) -> int:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.memory_allocated():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    stats = sys.modules["jax"].local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0) - stats.get("bytes_in_use", 0))


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def _high_water() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
