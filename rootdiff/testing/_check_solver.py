"""The conformance suite of solvers: the one that rootdiff's own go through."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rootdiff._errors import ArgumentError
from rootdiff._registry import get_solver
from rootdiff._solution import Status
from rootdiff._solver import Solver, unjudged
from rootdiff.solvers import BracketSolver
from rootdiff.testing import _traps
from rootdiff.testing._check_residual import run_once
from rootdiff.testing._diagnosis import FLOAT32
from rootdiff.testing._drivers import Driver, get_driver
from rootdiff.testing._expected import strict
from rootdiff.testing._families import FAMILIES, Case, make_case
from rootdiff.testing._measure import Calls, measure
from rootdiff.testing._oracle import jacobian
from rootdiff.testing._report import Check, Report, conclude, guarded
from rootdiff.testing._subject import Outcome, Subject
from rootdiff.testing.problems import MINPACK, Problem


def check_solver(
    solver: str | Solver,
    problems: Sequence[Problem] | None = None,
    backends: Sequence[str] = ("numpy",),
    xfail: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check a solver on problems with known roots, on traps and in batches; return a report.

    Parameters
    ----------
    solver : str or Solver
        A registered name or a value.
    problems : sequence of Problem, optional
        Hard problems from their standard starts, on which it may fail but not lie; default those of MINPACK's driver.
    backends : sequence of {"numpy", "torch", "jax"}
    xfail : collection of str
        Names of checks (see the table of a report) that it is known not to pass; strict: a check that does pass on
        every backend must leave the list.
    seed : int

    Returns
    -------
    Report
        Counts of evaluations stand in its notes.

    Raises
    ------
    CheckFailed
        If a root is wrong, a status is not honest, systems of a batch touch, a setting is ignored, the gradient at the
        root it found is wrong, or the list of expected failures is not strict.

    Examples
    --------
    >>> from rootdiff.testing import check_solver
    >>> check_solver("newton").passed
    True
    """
    value = get_solver(solver)
    if isinstance(value, BracketSolver):
        raise ArgumentError(f"check_solver: {solver!r} needs a bracket; the suite is for solvers of systems.")
    checks: list[Check] = []
    for name in backends:
        driver = get_driver(name)
        with driver.context("float64"), np.errstate(all="ignore"), unjudged():
            suite = _Suite(value, driver, seed)
            for part in (
                suite.families(),
                suite.settings(),
                suite.precision(),
                _traps.trap_checks(value, driver),
                _traps.batch_checks(value, driver),
                suite.hard(MINPACK if problems is None else problems),
            ):
                checks += guarded(part, name)
        with unjudged():
            checks += guarded(suite.gradients(), name)
    checks = strict(checks, xfail)
    word = solver if isinstance(solver, str) else type(solver).__name__
    failed = [check.backend for check in checks if check.outcome == "failed"]
    reproduce = f"check_solver({solver!r}, backends={failed[:1]!r}, xfail={sorted(xfail)!r}, seed={seed})"
    return conclude(Report(f"check_solver of {word}", tuple(checks), reproduce=reproduce if failed else ""))


@dataclass(frozen=True)
class _Suite:
    solver: Solver
    driver: Driver
    seed: int

    def case(self, family: str, dtype: Any = np.float64) -> Case:
        """Return the member of a family that every solver gets."""
        return make_case(family, np.random.default_rng(self.seed), dtype=dtype)

    def row(
        self, name: str, note: str, error: float | None = None, allowed: float | None = None, said: str = ""
    ) -> Check:
        """Return a row that failed if there is a `note`; `said` stands in the table otherwise."""
        return Check(name, "failed" if note else "passed", error, allowed, self.driver.name, note=note or said)

    def families(self) -> Iterator[Check]:
        """Yield, per family, whether the root is found, and what is said about it."""
        for family in FAMILIES:
            case = self.case(family)
            subject, out, counts = self._counted(case)
            yield self._solved(f"solves {family}", subject, out, counts, self.solver)
            yield from self._said(family, subject, out)

    def settings(self) -> Iterator[Check]:
        """Yield whether tolerance and step limit mean something."""
        subject = _subject(self.case("contraction"), self.driver)
        if hasattr(self.solver, "rtol"):
            changes = {name: 0.0 for name in ("atol",) if hasattr(self.solver, name)}
            for rtol in (1e-4, 1e-8, 1e-11):
                solver = replace(self.solver, rtol=rtol, **changes)  # type: ignore[type-var]
                out = subject.solve(solver, "auto")
                yield self._solved(f"keeps rtol={rtol:.0e}", subject, out, "", solver, rtol)
        if hasattr(self.solver, "max_steps"):
            solver = replace(self.solver, max_steps=2)  # type: ignore[type-var]
            far = _subject(replace(self.case("triangular"), y0=np.full(4, 50.0)), self.driver)
            out = far.solve(solver, "auto")
            wrong = bool(np.all(out.status <= Status.AT_PRECISION)) and _error(far, out)[0] > 1e-6
            note = "two steps were allowed, and success is claimed far from the root" if wrong else ""
            yield self.row("keeps max_steps=2", note, said=Status(int(out.status)).name)
            yield from self._said("two steps", far, out)

    def precision(self) -> Iterator[Check]:
        """Yield whether float32 stays float32, and the same solve gives the same root."""
        subject = _subject(self.case("contraction", np.float32), self.driver)
        out = subject.solve(self.solver, "auto")
        dtype = str(out.leaves[0].dtype).removeprefix("torch.")
        note = "" if dtype == "float32" else f"float32 went in, {dtype} came out"
        yield self.row("float32 stays float32", note)
        wide = _subject(self.case("contraction"), self.driver)
        first, again = wide.solve(self.solver, "auto"), wide.solve(self.solver, "auto")
        note = "" if np.array_equal(first.y, again.y) else "the same solve gave another root the second time"
        yield self.row("same solve, same root", note)
        y0 = self.driver.native(self.case("contraction").y0)
        before = self.driver.numpy(y0)
        case = self.case("contraction")
        root = self.driver.entry("root")
        root(case.f, y0, self.driver.native(case.theta), solver=self.solver, on_failure="ignore")
        note = "" if np.array_equal(before, self.driver.numpy(y0)) else "the solver changes y0 in place"
        yield self.row("y0 not changed", note)

    def hard(self, problems: Sequence[Problem]) -> Iterator[Check]:
        """Yield whether the solver is honest on hard problems."""
        attempts = measure(self.solver, problems, tries=1, root=self.driver.entry("root"), asarray=self.driver.native)
        for attempt in attempts:
            note = ""
            if attempt.false_success:
                note = f"success is claimed at a point that is no root: |f| = {attempt.residual_norm:.2g}"
            said = f"{'solved' if attempt.solved else 'not solved'}, {attempt.status}, {attempt.steps} steps"
            if attempt.residual_calls is not None:
                said += f", {attempt.residual_calls} residuals, {attempt.jacobian_calls} Jacobians"
            yield self.row(f"honest on {attempt.problem}", note, said=said)

    def gradients(self) -> Iterator[Check]:
        """Yield the gradient checks at roots that the solver found, with the factors that it left."""
        for family in ("contraction", "quadratic"):
            case = self.case(family)
            report = run_once(
                case.f, case.y0, case.theta, backends=[self.driver.name], solvers=[self.solver], adjoints=["auto"],
                modes=("vjp",),
            )  # fmt: skip
            for check in report.checks:
                if check.adjoint:
                    yield replace(check, name=f"{family}: {check.name}", solver="", adjoint="")

    def _counted(self, case: Case) -> tuple[Subject, Outcome, str]:
        subject = _subject(case, self.driver)
        if self.driver.name != "numpy":
            return subject, subject.solve(self.solver, "auto"), ""
        calls = Calls(Problem("", case.f, case.y0, case.theta, ""))
        counted = Subject(calls.residual, case.y0, (case.theta,), self.driver, "root", {"jac": calls.jacobian})
        out = counted.solve(self.solver, "auto")
        return subject, out, f"{int(out.steps)} steps, {calls.residuals} residuals, {calls.jacobians} Jacobians"

    def _solved(
        self, name: str, subject: Subject, out: Outcome, counts: str, solver: Any, rtol: float | None = None
    ) -> Check:
        rtol = subject.eps**0.75 if rtol is None else rtol
        error, size = _error(subject, out)
        allowed = 100 * max(rtol, getattr(solver, "rtol", None) or 0.0) * size
        if not np.all(out.status <= Status.AT_PRECISION):
            word = Status(int(out.status)).name
            if error <= allowed:
                return self.row(name, f"the root is found but reported as {word}", error, allowed)
            return self.row(name, f"it is not solved: {word}", error, allowed)
        if error <= allowed:
            return self.row(name, "", error, allowed, counts)
        return self.row(name, _loose(subject, out, error / size), error, allowed)

    def _said(self, family: str, subject: Subject, out: Outcome) -> Iterator[Check]:
        """Yield whether residual norm and steps are what they should be."""
        norm = float(np.max(np.abs(subject.residual(out.y, subject.theta))))
        said = float(out.residual_norm)
        # evaluations compiled apart may differ in rounding
        allowed = 1e-6 * norm + 1e3 * subject.eps * float(np.max(np.abs(jacobian(subject, out.y, subject.theta))))
        note = "" if abs(said - norm) <= allowed else f"residual_norm says {said:.2g}, but |f| at y is {norm:.2g}"
        yield self.row(f"residual_norm on {family}", note, abs(said - norm), allowed)
        if int(out.steps) < 0 or (int(out.steps) == 0 and not np.array_equal(out.y, subject.y0)):
            yield self.row(f"steps on {family}", f"{int(out.steps)} steps are counted, but y is not y0")


def _subject(case: Case, driver: Driver) -> Subject:
    return Subject(case.f, case.y0, (case.theta,), driver)


def _error(subject: Subject, out: Outcome) -> tuple[float, float]:
    """Return the error of the root by its Newton correction, beyond rounding, and the size of the unknowns."""
    matrix = jacobian(subject, out.y, subject.theta)
    size = max(float(np.max(np.abs(out.y))), 1e-300) if np.all(np.isfinite(out.y)) else 1.0
    if not np.all(np.isfinite(matrix)) or np.linalg.matrix_rank(matrix) < len(matrix):
        return float("inf"), size
    f = subject.residual(out.y, subject.theta)
    noise = 8 * subject.eps * (np.abs(matrix) @ np.abs(out.y))
    excess = np.sign(f) * np.maximum(np.abs(f) - noise, 0)
    return float(np.max(np.abs(np.linalg.solve(matrix, excess)))), size


def _loose(subject: Subject, out: Outcome, relative: float) -> str:
    cast = out.y.astype(np.float32).astype(np.float64)
    if subject.eps < 1e-10 and np.array_equal(cast, out.y):
        return FLOAT32
    return (
        f"success is claimed with a relative error of {relative:.1g}, far above the tolerance: claimed a step too "
        "early, or the tolerance is ignored"
    )
