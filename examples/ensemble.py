"""Monte Carlo of power flows with random loads: batches of NumPy on many processes, each with its sensitivities.

The residual is made of data, so that it pickles, as solvers and a `Solution` do, and any engine carries it: a Dask
cluster where `distributed` is installed, else the processes of `concurrent.futures`. The load of each bus is drawn
about that of the case. Each batch has a seed of its own and is written to a file of its own when it is done: a worker
that is killed, or a run that is broken off, loses nothing but the batches in work, and the next run goes on from there.

    python examples/ensemble.py --case 14 --draws 100000 --workers 2 --output output/ensemble
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ieee_cases import CASES, Case, load_case
from tqdm import tqdm

import rootdiff

#: Pools that may break, by workers that are killed, before the run gives up.
ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class Flow:
    """The power mismatch of a batch, per unit; the unknowns are angles (all buses but the reference), then magnitudes.

    It is made of data alone, so that it goes to other processes.
    """

    case: Case

    def voltage(self, y: Any) -> Any:
        """Return the real and imaginary parts of the voltages, each (draws, buses)."""
        case, lead = self.case, y.shape[:-1]
        angles = case.n_pq + case.n_pv
        angle = np.concat([y[..., :angles], np.full((*lead, 1), case.reference_angle)], axis=-1)
        held = np.broadcast_to(case.setpoint, (*lead, len(case.setpoint)))
        magnitude = np.concat([y[..., angles:], held], axis=-1)
        return magnitude * np.cos(angle), magnitude * np.sin(angle)

    def injection(self, y: Any) -> Any:
        """Return the active and reactive power from each bus into the network, (draws, buses)."""
        real, imag = self.voltage(y)
        g, b = self.case.admittance.real.T, self.case.admittance.imag.T
        current_real, current_imag = real @ g - imag @ b, imag @ g + real @ b
        return real * current_real + imag * current_imag, imag * current_real - real * current_imag

    def losses(self, y: Any) -> Any:
        """Return the active power lost in the branches, (draws)."""
        real, imag = self.voltage(y)
        return np.sum(self.injection(y)[0] - self.case.shunt * (real**2 + imag**2), axis=-1)

    def __call__(self, y: Any, load_p: Any, load_q: Any) -> Any:
        case = self.case
        at_bus = np.eye(len(case.number))[case.load_bus]
        p, q = self.injection(y)
        p, q = p - case.generation.real + load_p @ at_bus, q - case.generation.imag + load_q @ at_bus
        return np.concat([p[..., :-1], q[..., : case.n_pq]], axis=-1)

    def start(self, draws: int) -> Any:
        """Return the flat start, (draws, n)."""
        angles = np.full(self.case.n_pq + self.case.n_pv, self.case.reference_angle)
        return np.tile(np.concat([angles, np.ones(self.case.n_pq)]), (draws, 1))


def solve_batch(flow: Flow, spread: float, draws: int, seed: int, batch: int) -> dict[str, Any]:
    """Return losses, lowest voltage, what each load adds to the losses, and status of a batch; NaN without a flow."""
    case = flow.case
    factor = np.random.default_rng([seed, batch]).normal(1.0, spread, (draws, len(case.load)))
    sol = rootdiff.root(
        flow,
        flow.start(draws),
        factor * case.load.real,
        factor * case.load.imag,
        batch_ndim=1,
        batched_args=(0, 0),
        derivatives="complex-step",  # the residual is analytic: exact to rounding
        on_failure="nan",
    )
    moves = 1e-20j * np.eye(sol.y.shape[-1])
    slope = np.stack([flow.losses(sol.y + move).imag for move in moves], axis=-1) / 1e-20
    of_p, of_q = sol.vjp(slope)
    real, imag = flow.voltage(sol.y)
    return {
        "losses": flow.losses(sol.y) * case.base,
        "lowest": np.sqrt(np.min((real**2 + imag**2)[..., : case.n_pq], axis=-1)),  # others hold their voltage
        "of_load": 0.01 * case.base * (of_p * case.load.real + of_q * case.load.imag),  # MW for 1 % more of it
        "status": sol.status,
    }


def finish_batch(work: Callable[[int], dict[str, Any]], folder: Path, batch: int) -> int:
    """Write the results of a batch to its file, whole or not at all."""
    results, path = work(batch), _file(folder, batch)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(file, **results)
    part.replace(path)
    return batch


def _file(folder: Path, batch: int) -> Path:
    return folder / f"{batch:06d}.npz"


def by_processes(task: Callable[[int], int], batches: list[int], workers: int) -> Iterator[int]:
    """Yield the batches as they are finished, on processes; end early where one of these was killed."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        done = as_completed([pool.submit(task, batch) for batch in batches])
        try:
            for future in done:
                yield future.result()
        except BrokenProcessPool:
            return


def by_dask(task: Callable[[int], int], batches: list[int], workers: int) -> Iterator[int]:
    """Yield the batches as they are finished, on a local Dask cluster, which starts killed workers again itself."""
    import distributed

    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield from (future.result() for future in distributed.as_completed(client.map(task, batches)))


ENGINES = {"processes": by_processes, "dask": by_dask}


def has_dask() -> bool:
    """Return whether a Dask cluster can be started here."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        return False
    return True


def run(work: Callable[[int], dict[str, Any]], count: int, folder: Path, engine: str, workers: int) -> dict[str, Any]:
    """Return the results of all batches, those that an earlier run has left in the folder included."""
    folder.mkdir(parents=True, exist_ok=True)
    task = partial(finish_batch, work, folder)
    for _ in range(ATTEMPTS):
        missing = [batch for batch in range(count) if not _file(folder, batch).exists()]
        if not missing:
            break
        progress = tqdm(total=count, initial=count - len(missing), unit="batch", file=sys.stderr)
        for _ in ENGINES[engine](task, missing, workers):
            progress.update()
        progress.close()
    else:
        raise RuntimeError(f"workers were killed in each of {ATTEMPTS} attempts; what is done is in {folder}")
    parts = [np.load(_file(folder, batch)) for batch in range(count)]
    return {name: np.concat([part[name] for part in parts]) for name in parts[0]}


def report(case: Case, results: dict[str, Any]) -> None:
    """Print what the draws have in common, and the loads that cost most."""
    solved = results["status"] <= rootdiff.Status.AT_PRECISION
    print(f"{case.name}: {solved.size} draws, {np.sum(~solved)} without a power flow")
    for name, unit in (("losses", "MW"), ("lowest", "p.u.")):
        low, middle, high = np.quantile(results[name][solved], [0.05, 0.5, 0.95])
        print(f"{name:<8} {middle:10.4f} {unit:<5} (5 % below {low:.4f}, 5 % above {high:.4f})")
    mean = results["of_load"][solved].mean(axis=0)
    for place in np.argsort(-mean)[:3]:
        deviation = results["of_load"][solved, place].std()
        bus = case.number[case.load_bus[place]]
        print(f"bus {bus:<4} {mean[place]:10.5f} MW    of losses for 1 % more load (+- {deviation:.5f})")


def histogram(case: Case, results: dict[str, Any], path: Path) -> None:
    """Save a histogram of losses and lowest voltages."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, name, label in zip(axes, ("losses", "lowest"), ("losses (MW)", "lowest voltage (p.u.)"), strict=True):
        axis.hist(results[name][np.isfinite(results[name])], bins=60)
        axis.set(xlabel=label, ylabel="draws")
    figure.suptitle(f"{case.name}: power flows of random loads")
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None, solve: Callable[..., dict[str, Any]] = solve_batch) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="14")
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=1000, help="draws that are solved for at once")
    parser.add_argument("--spread", type=float, default=0.1, help="standard deviation of the loads, relative")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=ENGINES, default="dask" if has_dask() else "processes")
    parser.add_argument("--output", type=Path, default=Path("output/ensemble"))
    options = parser.parse_args(arguments)
    case, count = load_case(options.case), -(-options.draws // options.batch)
    setting = f"{options.case}-{options.batch}-{options.spread:g}-{options.seed}"
    work = partial(solve, Flow(case), options.spread, options.batch, options.seed)
    results = run(work, count, options.output / setting, options.engine, options.workers)
    results = {name: values[: options.draws] for name, values in results.items()}
    report(case, results)
    histogram(case, results, options.output / f"{setting}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
