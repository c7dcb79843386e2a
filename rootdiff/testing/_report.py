"""What a check returns: rows of a table, and the error that reads like a diagnosis."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from rootdiff._errors import RootdiffError

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Check:
    """One property, checked in one configuration.

    Attributes
    ----------
    name : str. The property.
    outcome : {"passed", "failed", "skipped"}
    error, tolerance : float or None
        Largest deviation and what is allowed, in the units of the quantity that is compared.
    backend, solver, adjoint : str
        Empty where the property does not involve one.
    note : str
        Of a failure the likely cause; of a skipped check the reason.
    expected, got : str
        The two sides of a failed comparison.
    """

    name: str
    outcome: Outcome
    error: float | None = None
    tolerance: float | None = None
    backend: str = ""
    solver: str = ""
    adjoint: str = ""
    note: str = ""
    expected: str = ""
    got: str = ""

    @property
    def where(self) -> str:
        """The configuration in words."""
        parts = (("backend", self.backend), ("solver", self.solver), ("adjoint", self.adjoint))
        return ", ".join(f"{kind} {name}" for kind, name in parts if name)


@dataclass(frozen=True)
class Report:
    """What was checked, and how far off each comparison was; prints as a table.

    Attributes
    ----------
    subject : str
        What was checked.
    checks : tuple of Check
    conditions : tuple of str
        Per backend: precision, sizes, condition of the root, step and accuracy of the differences.
    inputs : str
        The input, the smallest one that fails if a strategy drew it.
    reproduce : str
        The line to type to see the first failure again, alone.

    Examples
    --------
    >>> import numpy as np
    >>> from rootdiff.testing import check_residual
    >>> report = check_residual(lambda y, a: y**3 - a, np.array([1.0]), np.array([2.0]), solvers=["newton"])
    >>> report.passed
    True
    """

    subject: str
    checks: tuple[Check, ...]
    conditions: tuple[str, ...] = ()
    inputs: str = ""
    reproduce: str = ""

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.outcome == "failed")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    def __str__(self) -> str:
        head = ("property", "backend", "solver", "adjoint", "outcome", "error", "allowed", "note")
        rows = [
            (c.name, c.backend, c.solver, c.adjoint, c.outcome, _number(c.error), _number(c.tolerance), c.note)
            for c in self.checks
        ]
        widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head) - 1)]
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
            for row in (head, *rows)
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([self.subject, *(f"  {line}" for line in self.conditions), "", *lines])


class CheckFailed(RootdiffError, AssertionError):  # noqa: N818 - reads as the outcome of a test
    """A property does not hold; the message is a diagnosis.

    Attributes
    ----------
    report : Report
        Every check that was made.

    Examples
    --------
    >>> import numpy as np
    >>> from rootdiff.testing import CheckFailed, check_residual
    >>> try:
    ...     check_residual(lambda y, a: y**3 - a + np.random.rand(1), np.array([1.0]), np.array([2.0]))
    ... except CheckFailed as error:
    ...     print(error.report.failures[0].name)
    same input, same output
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(_message(report))

    def __reduce__(self) -> tuple[type[CheckFailed], tuple[Report]]:
        return type(self), (self.report,)


def conclude(report: Report) -> Report:
    """Return `report`, or raise `CheckFailed` if a check failed."""
    if not report.passed:
        raise CheckFailed(report)
    return report


def guarded(checks: Iterator[Check], backend: str) -> Iterator[Check]:
    """Yield the checks of an iterator; an exception, after which it cannot go on, becomes a failed one."""
    try:
        yield from checks
    except Exception as error:  # whatever the code under check raises is its failure, not ours
        first = str(error).strip().partition("\n")[0]
        place = traceback.extract_tb(error.__traceback__)[-1]
        note = f"it raised {type(error).__name__} in {place.name}: {first}"
        yield Check("runs to its end", "failed", backend=backend, note=note)


def merge(reports: Iterable[Report]) -> Report:
    """Return one report of several runs, with the worst of each property and configuration."""
    runs = list(reports)
    worst: dict[tuple[str, ...], Check] = {}
    for run in runs:
        for check in run.checks:
            key = (check.name, check.backend, check.solver, check.adjoint)
            if key not in worst or _badness(check) > _badness(worst[key]):
                worst[key] = check
    conditions = (f"the worst of {len(runs)} draws", *(runs[-1].conditions if runs else ()))
    return Report(runs[-1].subject, tuple(worst.values()), conditions, runs[-1].inputs, runs[-1].reproduce)


def _badness(check: Check) -> tuple[int, float]:
    rank = {"skipped": 0, "passed": 1, "failed": 2}[check.outcome]
    return rank, (check.error or 0.0) / (check.tolerance or 1.0)


def _message(report: Report) -> str:
    failures = report.failures
    lines = [f"{report.subject}: {len(failures)} of {len(report.checks)} checks failed."]
    causes: dict[tuple[str, str], list[Check]] = {}
    for check in failures:
        causes.setdefault((check.name, check.note), []).append(check)
    for (name, note), checks in causes.items():
        first = checks[0]
        more = f" (and {len(checks) - 1} more)" if len(checks) > 1 else ""
        lines.append(f"  {name}{f' [{first.where}{more}]' if first.where else more}: {note or 'it does not hold'}")
        if first.expected or first.got:
            lines += [f"    expected {first.expected}", f"    got      {first.got}"]
        if first.error is not None and first.tolerance is not None:
            lines.append(f"    off by {_number(first.error)}, allowed are {_number(first.tolerance)}")
    lines += [f"  {line}" for line in report.conditions]
    lines += [f"  Input: {report.inputs}"] if report.inputs else []
    lines += [f"  To reproduce: {report.reproduce}"] if report.reproduce else []
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
