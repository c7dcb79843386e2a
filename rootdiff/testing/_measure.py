"""The measure of a solver: every problem from every start, judged by the residual and never by what the solver says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rootdiff._numpy import NumpyBackend
from rootdiff._numpy_adapter import root as numpy_root
from rootdiff._solution import Status
from rootdiff._solver import Solver
from rootdiff.testing.problems import LIBRARY, MINPACK, Problem

#: A point with a residual below this is a root, whatever the solver says (Moré, Garbow & Hillstrom's scaling).
SOLVED = 1e-9
#: Roundings of the unknowns that may explain the residual of a point that no other float64 point betters.
_ROUNDINGS = 16


@dataclass(frozen=True)
class Attempt:
    """One solve of one problem.

    Attributes
    ----------
    problem : str
    start : int
        Power of ten by which the standard start is multiplied.
    y : array, (n). What the solver returned.
    residual_norm : float
        Largest absolute residual at `y`, evaluated in NumPy; infinite where it is not a number.
    is_root : bool
        Whether that is a root: below 1e-9, or mere rounding of `y`.
    claimed : bool
        Whether the solver reported success.
    status : str
        What it reported, in its own words.
    steps, residual_calls, jacobian_calls : int or None
        What it took; None where it cannot be counted.
    """

    problem: str
    start: int
    y: Any
    residual_norm: float
    is_root: bool
    claimed: bool
    status: str
    steps: int | None = None
    residual_calls: int | None = None
    jacobian_calls: int | None = None

    @property
    def solved(self) -> bool:
        """Whether the residual is below 1e-9."""
        return self.residual_norm < SOLVED

    @property
    def false_success(self) -> bool:
        """Whether success was claimed at a point that is no root."""
        return self.claimed and not self.is_root

    @property
    def missed(self) -> bool:
        """Whether a root was found but reported as a failure."""
        return self.is_root and not self.claimed


def judge(problem: Problem, start: int, y: Any, claimed: bool, status: str, **counts: int | None) -> Attempt:
    """Return the attempt that ended at `y`, (n), with the residual evaluated here."""
    y = np.asarray(y, dtype=np.float64)
    with np.errstate(all="ignore"):
        f = np.abs(problem.residual(y, problem.theta))
        norm = float(np.max(f))
        norm = norm if np.isfinite(norm) else float("inf")
        is_root = norm < SOLVED
        if not is_root and np.isfinite(norm):
            jacobian = NumpyBackend().linearize(lambda y: problem.residual(y, problem.theta), y)[2]()
            is_root = bool(np.all(f <= _ROUNDINGS * np.finfo(float).eps * np.abs(jacobian) @ np.abs(y)))
    return Attempt(problem.name, start, y, norm, is_root, claimed, status, **counts)


def measure(
    solver: str | Solver,
    problems: Iterable[Problem] | None = None,
    tries: int | None = None,
    root: Callable[..., Any] = numpy_root,
    asarray: Callable[[Any], Any] = np.asarray,
) -> list[Attempt]:
    """Return one attempt per problem and start.

    Parameters
    ----------
    solver : str or Solver
    problems : iterable of Problem, optional
        Default: those of MINPACK and of the library, 80 starts, of which 79 have a root.
    tries : int, optional
        Starts of each problem; default those of its source.
    root : callable
        The entry point of a backend. On NumPy residuals and Jacobians are counted, elsewhere they are not.
    asarray : callable
        From a NumPy array to one of that backend.

    Examples
    --------
    >>> from rootdiff.testing import measure
    >>> from rootdiff.testing.problems import get_problem
    >>> [attempt.solved for attempt in measure("newton", [get_problem("rosenbrock-2")])]
    [True, True, True]
    """
    chosen = (*MINPACK, *LIBRARY) if problems is None else problems
    return [
        attempt(solver, problem, power, y0, root, asarray)
        for problem in chosen
        for power, y0 in enumerate(problem.starts(tries))
    ]


def attempt(
    solver: str | Solver, problem: Problem, start: int, y0: Any, root: Callable[..., Any], asarray: Callable[[Any], Any]
) -> Attempt:
    """Return one attempt, from `y0`, (n)."""
    calls = Calls(problem)
    counted: dict[str, Any] = {"jac": calls.jacobian} if root is numpy_root else {}
    theta = asarray(np.array(problem.theta))
    sol = root(calls.residual, asarray(y0), theta, solver=solver, on_failure="ignore", **counted)
    status = Status(int(sol.status))
    counts = {"steps": int(sol.steps)}
    if counted:
        counts |= {"residual_calls": calls.residuals, "jacobian_calls": calls.jacobians}
    return judge(problem, start, np.asarray(sol.y), status.success, status.name, **counts)


class Calls:
    """The residual of a problem and its Jacobian, counted apart."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.residuals = self.jacobians = 0

    def residual(self, y: Any, theta: Any) -> Any:
        """Return the residual."""
        self.residuals += 1
        return self._problem.residual(y, theta)

    def jacobian(self, y: Any, theta: Any) -> Any:
        """Return the Jacobian, by NumPy's differences."""
        self.jacobians += 1
        return NumpyBackend().linearize(lambda y: self._problem.residual(y, theta), y)[2]()


def summary(attempts: Sequence[Attempt]) -> dict[str, int]:
    """Return how many attempts were made, solved, claimed falsely, and found but reported failed."""
    return {
        "attempts": len(attempts),
        "solved": sum(attempt.solved for attempt in attempts),
        "false_success": sum(attempt.false_success for attempt in attempts),
        "missed": sum(attempt.missed for attempt in attempts),
    }
