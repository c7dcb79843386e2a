"""Prove a residual in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rootdiff._errors import ArgumentError
from rootdiff._registry import available_adjoints, available_solvers, get_adjoint, get_solver
from rootdiff.solvers import BracketSolver
from rootdiff.testing._drivers import Driver, get_driver
from rootdiff.testing._gradients import Session
from rootdiff.testing._properties import residual_checks
from rootdiff.testing._report import Check, CheckFailed, Report, conclude, merge
from rootdiff.testing._subject import Subject, own_backend

MODES = ("vjp", "jvp", "hessian")


def check_residual(
    f: Callable[..., Any],
    y0: Any,
    *args: Any,
    backends: Sequence[str] | None = None,
    solvers: Sequence[Any] | None = None,
    adjoints: Sequence[Any] | None = None,
    modes: Sequence[str] = MODES,
    strategy: Any = None,
    entry: str | Callable[..., Any] = "root",
    seed: int = 0,
    **options: Any,
) -> Report:
    """Check that a residual has the derivatives that the implicit function theorem promises, and return a report.

    Parameters
    ----------
    f : callable
        The residual ``f(y, *args)``, or the cell of a fixed point.
    y0, *args
        As for `rootdiff.root`; NumPy arrays are converted to each of `backends`.
    backends : sequence of {"numpy", "torch", "jax"}, optional
        Default: that of y0. With more than one, roots and gradients are compared between them.
    solvers, adjoints : sequence of names or objects, optional
        Default: everything registered; a solver that does not reach a root is skipped, and approximate adjoints are.
        Every solver is checked with the first adjoint, every adjoint with the first solver; in every mode if adjoints
        are given, else in reverse mode except for the first pair. An adjoint that is given must not fail; one that is
        not, and says that it failed, is skipped.
    modes : sequence of {"vjp", "jvp", "hessian"}
        Second derivatives are those of PyTorch and JAX; NumPy has none.
    strategy : hypothesis strategy, optional
        Draws ``(y0, *args)``; a failure is shrunk to the smallest input. `y0` and `args` are an explicit first case.
    entry : {"root", "fixed_point"} or callable
        Entry point to check; a callable ``entry(f, y0, *args)`` returns a root differentiable in args, or a Solution.
    seed : int
        Of the cotangents and tangents.
    **options
        Passed to the entry point: `batch_ndim`, `jac`, `derivatives` and so on.

    Returns
    -------
    Report

    Raises
    ------
    CheckFailed
        If a property does not hold; it names the property, the input, the likely cause and the line to reproduce it.
    ArgumentError
        If an argument cannot be used.

    Notes
    -----
    The reference are central differences of re-solves, by a Newton iteration of the kit's own from the root that the
    solver found. Steps are chosen where truncation and the error of the re-solve balance. What is allowed is the
    error estimate of the differences, plus rounding and the tolerance of the linear solve times the condition of the
    root, plus the change of the gradient over the reached root's error; the report gives the numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from rootdiff.testing import check_residual
    >>> print(check_residual(lambda y, a: y**3 - a, np.array([1.0]), np.array([2.0])).passed)
    True
    """
    unknown = set(modes) - set(MODES)
    if unknown:
        raise ArgumentError(f"modes: {sorted(unknown)} are not among {', '.join(map(repr, MODES))}.")
    plan = _Plan(f, tuple(backends or ()), solvers, adjoints, tuple(modes), entry, seed, options)
    first = conclude(plan.run(y0, args))
    if strategy is None:
        return first
    return merge([first, *_drawn(plan, strategy)])


def run_once(
    f: Callable[..., Any],
    y0: Any,
    *args: Any,
    backends: Sequence[str],
    solvers: Sequence[Any],
    adjoints: Sequence[Any],
    modes: Sequence[str] = MODES,
    **options: Any,
) -> Report:
    """Return the report of one input, whatever it says; as `check_residual`."""
    return _Plan(f, tuple(backends), solvers, adjoints, tuple(modes), "root", 0, options).run(y0, args)


class _Plan:
    """What to check, apart from the input."""

    def __init__(
        self, f: Any, backends: Any, solvers: Any, adjoints: Any, modes: Any, entry: Any, seed: int, options: Any
    ) -> None:
        self.f, self.backends, self.solvers, self.adjoints = f, backends, solvers, adjoints
        self.modes, self.entry, self.seed, self.options = modes, entry, seed, options

    def run(self, y0: Any, args: tuple[Any, ...]) -> Report:
        """Return the report of one input."""
        checks: list[Check] = []
        conditions: list[str] = []
        sessions: list[Session] = []
        backends = self.backends or (own_backend(y0, args),)
        for name in backends:
            driver = get_driver(name)
            with driver.context(_dtype(y0)), np.errstate(all="ignore"):
                subject = Subject(self.f, y0, args, driver, self.entry, self.options)
                found = list(residual_checks(subject, (y0, args)))
                checks += found
                if any(check.outcome == "failed" for check in found):
                    continue
                session = self._session(subject, driver)
                checks += session.checks()
                conditions += _conditions(session)
                sessions.append(session)
        checks += _agreement(sessions)
        inputs = f"y0 = {_literal(y0)}" + "".join(f", args[{i}] = {_literal(arg)}" for i, arg in enumerate(args))
        report = Report(f"check_residual of {_name(self.f)}", tuple(checks), tuple(conditions), inputs)
        return Report(
            report.subject, report.checks, report.conditions, inputs, self._reproduce(report, y0, args, backends)
        )

    def _session(self, subject: Subject, driver: Driver) -> Session:
        own = isinstance(self.entry, str)
        solvers = self.solvers or (system_solvers(driver.name) if own else (None,))
        adjoints = self.adjoints or (exact_adjoints(driver.name) if own else (None,))
        # "auto" first: the solver and adjoint with which all others are compared
        solvers, adjoints = (sorted(names, key=lambda name: name != "auto") for names in (solvers, adjoints))
        thorough = self.adjoints is not None
        return Session(subject, solvers, adjoints, self.modes, np.random.default_rng(self.seed), thorough)

    def _reproduce(self, report: Report, y0: Any, args: Any, backends: Sequence[str]) -> str:
        if not report.failures:
            return ""
        first = report.failures[0]
        parts = [_name(self.f), _literal(y0), *map(_literal, args)]
        parts.append(f"backends={[first.backend] if first.backend else list(backends)!r}")
        if first.solver:
            parts.append(f"solvers=[{_spec(self.solvers, first.solver)}]")
        if first.adjoint:
            parts.append(f"adjoints=[{_spec(self.adjoints, first.adjoint)}]")
        if not isinstance(self.entry, str) or self.entry != "root":
            parts.append(f"entry={self.entry!r}" if isinstance(self.entry, str) else f"entry={_name(self.entry)}")
        parts += [f"{key}={_name(value) if callable(value) else repr(value)}" for key, value in self.options.items()]
        return f"check_residual({', '.join([*parts, f'seed={self.seed}'])})"


def _drawn(plan: _Plan, strategy: Any) -> list[Report]:
    """Return the reports of drawn inputs; hypothesis shrinks one that fails."""
    from hypothesis import HealthCheck, Phase, given, settings

    reports: list[Report] = []
    phases = (Phase.generate, Phase.shrink)
    quiet = settings(
        deadline=None, database=None, report_multiple_bugs=False, phases=phases, print_blob=False,
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip

    @quiet
    @given(strategy)
    def check(drawn: Any) -> None:
        y0, *args = drawn
        report = plan.run(y0, tuple(args))
        failures = [check for check in report.failures if check.name != "a root is found"]
        if failures:
            raise CheckFailed(report)
        reports.append(report)

    try:
        check()
    except CheckFailed as error:
        raise CheckFailed(error.report) from None
    return reports


def system_solvers(backend: str) -> tuple[str, ...]:
    """Return the names of the solvers of systems: all but those that need a bracket, and that can be imported."""
    names = []
    for name in available_solvers(backend):
        try:
            solver = get_solver(name, backend)
        except ImportError:
            continue
        if not isinstance(solver, BracketSolver):
            names.append(name)
    return tuple(names)


def exact_adjoints(backend: str) -> tuple[str, ...]:
    """Return the names of the adjoints that are exact and can be imported."""
    names = []
    for name in available_adjoints(backend):
        try:
            adjoint = get_adjoint(name, backend)
        except ImportError:
            continue
        if adjoint.exact:
            names.append(name)
    return tuple(names)


def _conditions(session: Session) -> list[str]:
    subject = session.subject
    lines = []
    for group in session.groups:
        ref = group.ref
        accuracy = float(np.max(ref.accuracy, initial=0.0))
        uncertainty = float(np.max(ref.uncertainty, initial=0.0)) if ref.uncertainty.size else 0.0
        lines.append(
            f"{subject.driver.name}, {subject.dtype}: {subject.y.size} unknowns, {subject.theta.size} parameters, "
            f"condition {ref.condition:.2g}; root reached to {accuracy:.1g}, step of differences at most "
            f"{ref.step:.1g} (relative), their error {uncertainty:.1g}"
        )
        asymmetry = np.max(np.abs(ref.jacobian - ref.jacobian.T), initial=0.0)
        if subject.y.size > 1 and asymmetry <= 1e-6 * np.max(np.abs(ref.jacobian), initial=0.0):
            lines.append("the Jacobian is symmetric here, which hides a transposition: check a nonsymmetric case too")
    return lines


def _agreement(sessions: Sequence[Session]) -> list[Check]:
    """Compare roots and derivatives between backends, where two reached the same one."""
    rows = []
    for session in sessions[1:]:
        for group in session.groups:
            others = [
                other.ref
                for other in sessions[0].groups
                if np.allclose(other.ref.y, group.ref.y, rtol=1e-4, atol=1e-10)
            ]
            if not others or not group.regular:
                continue
            ref = others[0]
            allowed = 30 * (ref.accuracy + group.ref.accuracy)
            gap = np.abs(ref.y - group.ref.y)
            worst = int(np.argmax(gap / np.where(allowed > 0, allowed, 1e-300)))
            names = session.subject.driver.name, sessions[0].subject.driver.name
            note = "the residual has another root on {} than on {}".format(*names)
            rows.append(session.compared("same root on every backend", float(gap[worst]), float(allowed[worst]), note))
            break
    return rows


def _dtype(y0: Any) -> str:
    leaves = [y0]
    while leaves and not hasattr(leaves[0], "dtype"):
        head = leaves[0]
        leaves = list(head.values()) if isinstance(head, dict) else list(head) if isinstance(head, list | tuple) else []
    name = str(leaves[0].dtype).removeprefix("torch.") if leaves else "float64"
    return name if name in ("float32", "float64", "complex64", "complex128") else "float32"


def _literal(value: Any) -> str:
    """Return Python text that makes `value` again, or a description where it is long."""
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {_literal(part)}" for key, part in value.items()) + "}"
        if isinstance(value, list | tuple):
            inner = ", ".join(map(_literal, value))
            return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
        return repr(value)
    kind = str(value.dtype)
    detached = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    maker = {"torch": "torch.tensor", "jax": "jnp.array"}.get(own_backend(value, ()), "np.array")
    if detached.size > 64:
        return f"<{kind} array of shape {tuple(detached.shape)}>"
    suffix = "" if kind in ("float64", "complex128") else f", dtype={kind if '.' in kind else repr(kind)}"
    return f"{maker}({detached.tolist()!r}{suffix})"


def _name(function: Any) -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return "f" if name == "<lambda>" else str(name)


def _spec(given: Sequence[Any] | None, word: str) -> str:
    objects = [value for value in given or () if not isinstance(value, str) and type(value).__name__ == word]
    return repr(objects[0]) if objects else repr(word)
