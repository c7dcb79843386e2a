"""Data of the IEEE power flow cases, and PYPOWER's own Newton solution of them.

PYPOWER prepares what is data (per-unit admittances with taps, phase shifters, line charging and shunts; elements out of
service removed; bus numbers made consecutive) and is the reference. The equations and their solution are elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pypower.api import case14, case118, case300, ext2int, makeYbus, ppoption, runpf
from pypower.bustypes import bustypes
from pypower.idx_bus import BUS_I, GS, PD, QD, VA, VM
from pypower.idx_gen import GEN_BUS, GEN_STATUS, PG, QG, VG
from pypower.newtonpf import newtonpf
from scipy.sparse import csr_matrix

CASES = {"14": case14, "118": case118, "300": case300}
OPTIONS = ppoption(PF_TOL=1e-12, VERBOSE=0, OUT_ALL=0)


@dataclass(frozen=True)
class Case:
    """One power system in per unit, its buses sorted: loads (PQ) first, then generators (PV), then the reference.

    Attributes
    ----------
    number : integer array, (buses). The numbers that the data use.
    n_pq, n_pv : int. Numbers of PQ and PV buses; one more bus is the reference.
    base : float. Power of one per unit, MVA.
    admittance : complex array, (buses, buses).
    shunt : array, (buses). Conductance of the bus shunts.
    generation : complex array, (buses). Sum over the generators at each bus.
    load_bus : integer array, (loads). Place of each load among the buses.
    load : complex array, (loads). Power drawn.
    setpoint : array, (n_pv + 1). Voltage magnitudes that PV and reference buses hold.
    reference_angle : float. In radians.
    reference : complex array, (buses). Voltages of PYPOWER's solution.
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
    reference: Any

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
    """Return the IEEE case with this many buses, "14", "118" or "300"."""
    solved, success = runpf(CASES[name](), OPTIONS)
    if not success:
        raise RuntimeError(f"PYPOWER found no power flow of case {name}")
    internal = ext2int(CASES[name]())
    base, bus, branch, gen = (internal[key] for key in ("baseMVA", "bus", "branch", "gen"))
    reference_bus, pv, pq = bustypes(bus, gen)
    order = np.concatenate([pq, pv, reference_bus]).astype(int)
    place = np.argsort(order)

    numbers = internal["order"]["bus"]["i2e"][order].astype(int)
    rows = {int(row[BUS_I]): row for row in solved["bus"]}
    found = np.array([rows[number][VM] * np.exp(1j * np.deg2rad(rows[number][VA])) for number in numbers])

    running = gen[gen[:, GEN_STATUS] > 0]
    at = place[running[:, GEN_BUS].astype(int)]
    generation = np.zeros(len(order), dtype=complex)
    np.add.at(generation, at, (running[:, PG] + 1j * running[:, QG]) / base)
    magnitude = np.ones(len(order))
    magnitude[at] = running[:, VG]

    bus = bus[order]
    demand = (bus[:, PD] + 1j * bus[:, QD]) / base
    (load_bus,) = np.nonzero(demand)
    admittance = makeYbus(base, internal["bus"], branch)[0].toarray()[np.ix_(order, order)]
    return Case(
        name=f"IEEE {name}",
        number=numbers,
        n_pq=len(pq),
        n_pv=len(pv),
        base=float(base),
        admittance=admittance,
        shunt=bus[:, GS] / base,
        generation=generation,
        load_bus=load_bus,
        load=demand[load_bus],
        setpoint=magnitude[len(pq) :],
        reference_angle=float(np.deg2rad(bus[-1, VA])),
        reference=found,
    )


def loss_differences(case: Case, step: float = 3e-4) -> tuple[Any, Any]:
    """Return d(losses)/d(load), active and reactive, (loads) each, by differences of PYPOWER's solutions.

    Central differences with two steps, extrapolated (Richardson), so that their error is of fourth order in `step`, in
    per unit. Its default balances that error and the tolerance of PYPOWER's solutions; both are of the order of 1e-9.
    """
    admittance = csr_matrix(case.admittance)
    pq = np.arange(case.n_pq)
    pv = np.arange(case.n_pq, case.n_pq + case.n_pv)
    reference_bus = np.array([case.n_pq + case.n_pv])

    def losses(bus: int, change: complex) -> float:
        injection = case.injection
        injection[bus] -= change
        voltage, success, _ = newtonpf(admittance, injection, case.reference, reference_bus, pv, pq, OPTIONS)
        if not success:
            raise RuntimeError(f"PYPOWER found no power flow of {case.name} with another load")
        return case.losses(voltage)

    def slope(bus: int, unit: complex) -> float:
        wide, narrow = ((losses(bus, h * unit) - losses(bus, -h * unit)) / (2 * h) for h in (2 * step, step))
        return (4 * narrow - wide) / 3

    return tuple(np.array([slope(bus, unit) for bus in case.load_bus]) for unit in (1, 1j))
