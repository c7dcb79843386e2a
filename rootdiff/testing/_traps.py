"""Problems on which a solver may fail but not lie, alone and beside others in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from rootdiff._solution import Status
from rootdiff.testing._drivers import Driver
from rootdiff.testing._report import Check
from rootdiff.testing._subject import Outcome, Subject


@dataclass(frozen=True)
class Trap:
    """f(y, a) of one unknown, where its roots are, and how near to one success may be claimed."""

    name: str
    f: Callable[[Any, Any], Any]
    y0: float
    a: float
    roots: tuple[float, ...] = ()
    near: float = 1e-9
    must_solve: bool = False
    status: Status | None = None


def _exp(y: Any) -> Any:
    return array_namespace(y).exp(y)


def _log(y: Any) -> Any:
    return array_namespace(y).log(y)


TRAPS = (
    Trap("start at the root", lambda y, a: a - y, 2.0, 2.0, (2.0,), must_solve=True),
    Trap("no root", lambda y, a: y * y + a, 3.0, 1.0),
    Trap("a minimum near zero", lambda y, a: (y - 1) ** 2 + a, 3.0, 1e-8),
    Trap("falls for ever", lambda y, a: a * _exp(-y), 0.0, 1.0, (), 0.0),
    Trap("a pole", lambda y, a: 1 / (y - a), 1 + 1e-6, 1.0),
    Trap("a double root", lambda y, a: y * y - 2 * y + a, 3.0, 1.0, (1.0,), 1e-6),
    Trap("a singular start", lambda y, a: y * y - a, 0.0, 1.0, (1.0, -1.0)),
    Trap("the edge of a domain", lambda y, a: a - _log(y), 30.0, 0.5, (float(np.exp(0.5)),)),
    Trap("a NaN start", lambda y, a: y - a, float("nan"), 1.0, status=Status.NONFINITE_START),
    Trap("a NaN parameter", lambda y, a: y - a, 0.0, float("nan"), status=Status.NONFINITE_START),
    Trap("a NaN beyond the start", lambda y, a: _log(y) * a - 10 * y, 1.0, 1.0),
    Trap("a residual of size 1e-12", lambda y, a: 1e-12 * (a - y - y**3), 5.0, 2.0, (1.0,)),
    Trap("a residual of size 1e12", lambda y, a: 1e12 * (a - y - y**3), 5.0, 2.0, (1.0,)),
)


def trap_checks(solver: Any, driver: Driver) -> Iterator[Check]:
    """Yield whether success is claimed only at roots."""
    for trap in TRAPS:
        subject = Subject(trap.f, np.array([trap.y0]), (np.array([trap.a]),), driver)
        out = subject.solve(solver, "auto")
        status = Status(int(out.status))
        note = _lie(trap, float(out.y[0]), status, getattr(solver, "rtol", None) or 0.0)
        if not note and trap.must_solve and not status.success:
            note = f"it starts at the root, but reports {status.name}"
        if not note and trap.status is not None and status is not trap.status:
            note = f"the status must be {trap.status.name}, but is {status.name}"
        yield Check(
            f"honest at {trap.name}", "failed" if note else "passed", backend=driver.name, note=note or status.name
        )


def batch_checks(solver: Any, driver: Driver) -> Iterator[Check]:
    """Yield whether systems of a batch are as they are alone: roots, statuses, in any order."""
    # y + y^3 / 3 = a: one easy, one at its root, one without a finite start, one far, one that NaN stops
    starts = np.array([[0.5], [1.0], [np.nan], [4.0], [0.3]])
    a = np.array([[1.0], [4 / 3], [1.0], [2.0], [np.nan]])
    alone = [_batch(solver, driver, starts[[k]], a[[k]]) for k in range(len(starts))]
    together = _batch(solver, driver, starts, a)
    yield _same_systems("a system alone is as in a batch", driver, together, alone)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = _batch(solver, driver, starts[order], a[order])
    yield _same_systems("permuted batch, permuted roots", driver, shuffled, [alone[k] for k in order])
    wide = _batch(solver, driver, np.repeat(starts[[0, 3]], 2, axis=-1), np.repeat(a[[0, 3]], 2, axis=-1))
    narrow = _batch(solver, driver, np.repeat(starts[[3]], 2, axis=-1), np.repeat(a[[3]], 2, axis=-1))
    gap = float(np.max(np.abs(wide.y[2:] - narrow.y)))
    note = "" if gap <= 1e-10 else "an easy system beside it changes the root of a hard one"
    yield Check("an easy system beside a hard one", "failed" if note else "passed", gap, 1e-10, driver.name, note=note)


def _cubic(y: Any, a: Any) -> Any:
    return a - y - y**3 / 3


def _batch(solver: Any, driver: Driver, y0: Any, a: Any) -> Outcome:
    return Subject(_cubic, y0, (a,), driver, "root", {"batch_ndim": 1}).solve(solver, "auto")


def _same_systems(name: str, driver: Driver, together: Outcome, alone: list[Outcome]) -> Check:
    if np.shape(together.status) != (len(alone),):
        note = f"the status has shape {np.shape(together.status)}; it must be one per system, ({len(alone)},)"
        return Check(name, "failed", backend=driver.name, note=note)
    for k, single in enumerate(alone):
        got, wanted = Status(int(together.status[k])), Status(int(single.status[0]))
        if got.success != wanted.success or (wanted is Status.NONFINITE_START and got is not wanted):
            note = f"system {k} is {got.name} in the batch, but {wanted.name} alone: a status strays under the mask"
            return Check(name, "failed", backend=driver.name, note=note)
    good = np.array([Status(int(single.status[0])).success for single in alone])
    roots = np.array([float(single.y[0]) for single in alone])
    gap = float(np.max(np.abs(together.y - roots)[good], initial=0.0))
    # sums in another order, and a root known to the solver's tolerance
    note = "" if gap <= 1e-10 else "another system changes the root: systems of the batch touch"
    return Check(name, "failed" if note else "passed", gap, 1e-10, driver.name, note=note)


def _lie(trap: Trap, y: float, status: Status, rtol: float) -> str:
    if not status.success:
        return ""
    if not np.isfinite(y):
        return f"success is claimed, but y is {y}: NaN is swallowed"
    if trap.roots and min(abs(y - root) for root in trap.roots) <= max(trap.near, 2 * rtol):  # all are of size 1
        return ""
    if trap.name == "falls for ever" and trap.a * np.exp(-y) < 1e-300:
        return ""  # it is zero there, in floating point
    return f"success is claimed at y = {y:.6g}, which is no root"
