"""Properties of a root and of its derivatives, against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rootdiff._errors import ArgumentError, ArgumentTypeError, RootdiffError
from rootdiff._registry import get_adjoint
from rootdiff._solution import Status
from rootdiff.testing._diagnosis import diagnose
from rootdiff.testing._oracle import (
    Reference,
    jacobian,
    reference,
    scale_of,
    second_difference,
    slopes_at,
    theta_unit,
)
from rootdiff.testing._report import Check
from rootdiff.testing._subject import Outcome, Subject, Vector

#: Safety in every tolerance: the constants that error bounds leave out.
_SAFETY = 30.0


@dataclass
class Group:
    """The solvers that reached one root."""

    ref: Reference
    outcomes: dict[Any, Outcome] = field(default_factory=dict)

    @property
    def regular(self) -> bool:
        """Whether the Jacobian is, and a root of slightly other parameters was found beside this one."""
        return bool(np.isfinite(self.ref.condition) and np.all(np.isfinite(self.ref.uncertainty)))


@dataclass
class Session:
    """The checks of one subject, in the order in which they are made.

    All modes are checked for the first solver with the first adjoint, and where `thorough` for every pair; else the
    other pairs are checked by vjp alone: they differ in the root and the linear solve only.
    """

    subject: Subject
    solvers: Sequence[Any]
    adjoints: Sequence[Any]
    modes: Sequence[str]
    rng: np.random.Generator
    thorough: bool = False
    groups: list[Group] = field(default_factory=list)

    def _why(self) -> str:
        """Return why there may be no root, in words: from the given rules, and the Jacobian at the start."""
        if {"jvp", "vjp"} & set(self.subject.options):
            try:  # a failure that is not ignored makes rootdiff look at the rules
                self.subject.with_options(on_failure="nan").solve(self.solvers[0], self.adjoints[0])
            except ArgumentError as error:
                return f"; {_first_line(error)}"
        matrix = jacobian(self.subject, self.subject.y0, self.subject.theta)
        if not np.all(np.isfinite(matrix)):
            return ", where its Jacobian is not finite"
        values = np.linalg.svd(matrix, compute_uv=False)
        if values[-1] > self.subject.eps**0.5 * values[0]:
            return ", so nothing to check"
        return ", where its Jacobian is singular: look for a redundant equation, or an unknown that nothing depends on"

    def checks(self) -> Iterator[Check]:
        """Yield every check that needs a root."""
        for solver in self.solvers:
            yield from self._solve(solver)
        if not self.groups:
            yield self.row("a root is found", "failed", note=f"no solver found a root from this y0{self._why()}")
        for group in self.groups:
            yield from self._regular(group)
            if group.regular and self.subject.theta.size:
                yield from self._derivatives(group)

    def row(self, name: str, outcome: Any, solver: Any = None, adjoint: Any = None, **details: Any) -> Check:
        """Return a row of the table."""
        return Check(
            name, outcome, backend=self.subject.driver.name, solver=_word(solver), adjoint=_word(adjoint), **details
        )

    def compared(self, name: str, error: float, allowed: float, note: str, *where: Any, **details: Any) -> Check:
        """Return a row that passed if `error` is at most `allowed`; one that could not tell is skipped."""
        if error <= allowed:
            return self.row(name, "passed", *where, error=error, tolerance=allowed)
        return self.row(name, "failed", *where, error=error, tolerance=allowed, note=note, **details)

    def _solve(self, solver: Any) -> Iterator[Check]:
        subject = self.subject
        try:
            out = subject.solve(solver, self.adjoints[0])
            again = subject.solve(solver, self.adjoints[0])
        except (ImportError, ArgumentError, ArgumentTypeError) as error:
            if len(self.solvers) > 1:
                yield self.row("a root is found", "skipped", solver, note=_first_line(error))
            else:
                yield self.row("a root is found", "failed", solver, note=_first_line(error))
            return
        if out.status is not None and not np.all(out.status <= Status.AT_PRECISION):
            worst = Status(int(np.max(out.status)))
            yield self.row("a root is found", "skipped", solver, note=f"{worst.name}: {worst.cause}")
            return
        if not np.array_equal(out.y, again.y):
            note = "the same solve gave another root the second time"
            yield self.row("same solve, same root", "failed", solver, note=note)
        group = self._group(out.y)
        yield self._is_root(group.ref, out, solver)
        yield from self._kept(out, solver)
        if not any(group is known for known in self.groups):
            self.groups.append(group)
        group.outcomes[solver] = out

    def _group(self, y: Vector) -> Group:
        for group in self.groups:
            near = self.subject.eps**0.5 * scale_of(self.subject, group.ref.y) + 1e3 * group.ref.accuracy
            if np.all(np.abs(y - group.ref.y) <= near):
                return group
        return Group(reference(self.subject, y, self.rng))

    def _is_root(self, ref: Reference, out: Outcome, solver: Any) -> Check:
        """Compare the root with the refined one: success must not be claimed far from a root."""
        eps = self.subject.eps
        size = scale_of(self.subject, ref.y)
        rtol = max(eps**0.75, getattr(solver, "rtol", None) or 0.0)
        allowed = 100 * rtol * size + _SAFETY * ref.accuracy + _SAFETY * eps
        if not np.all(np.isfinite(ref.accuracy)):  # a singular Jacobian: `_regular` tells
            return self.row("success only at a root", "skipped", solver, note="the root is not regular")
        worst = int(np.argmax(np.abs(out.y - ref.y) / np.where(allowed > 0, allowed, 1)))
        error = float(np.abs(out.y - ref.y)[worst])
        note = "success is claimed at a point that is no root to the tolerance asked for"
        return self.compared("success only at a root", error, float(allowed[worst]), note, solver)

    def _kept(self, out: Outcome, solver: Any) -> Iterator[Check]:
        driver, like = self.subject.driver, self.subject.y.like
        dtypes = [(str(a.dtype), str(b.dtype)) for a, b in zip(out.leaves, like, strict=True)]
        devices = [(driver.device(a), driver.device(b)) for a, b in zip(out.leaves, like, strict=True)]
        for word, pairs in (("dtype", dtypes), ("device", devices)):
            if any(got != wanted for got, wanted in pairs):
                got, wanted = pairs[0]
                note = f"the root has {word} {got}, but y0 has {wanted}"
                yield self.row("dtype and device kept", "failed", solver, note=note)
                return
        yield self.row("dtype and device kept", "passed", solver)

    def _regular(self, group: Group) -> Iterator[Check]:
        ref = group.ref
        solver = next(iter(group.outcomes))
        if not group.regular:
            note = (
                "the Jacobian is singular at the root (a double root, a fold, a redundant equation): the theorem does "
                "not apply, and the root has no derivative"
            )
            yield self.row("the root is regular", "failed", solver, note=note)
        elif ref.kink:
            note = "the residual has a kink at the root: the two one-sided differences of re-solves disagree"
            yield self.row("the root is regular", "failed", solver, note=note)
        else:
            yield self.row("the root is regular", "passed", solver, error=ref.condition, tolerance=1 / self.subject.eps)

    def _derivatives(self, group: Group) -> Iterator[Check]:
        w, other = self.rng.standard_normal((2, group.ref.y.size))
        units = [theta_unit(self.subject, direction) for direction in group.ref.directions.T]
        v = group.ref.directions @ (units * self.rng.standard_normal(len(units)))
        gradients: list[tuple[Any, Vector]] = []
        first = next(iter(group.outcomes))
        pairs = [(solver, self.adjoints[0]) for solver in group.outcomes]
        pairs += [(first, adjoint) for adjoint in self.adjoints[1:]]
        for solver, adjoint in pairs:
            try:
                rows = list(self._pair(group, solver, adjoint, w, other, v, gradients))
                wrong = any(row.outcome == "failed" for row in rows)
                if wrong and self._refused(solver, adjoint, w):
                    gradients[:] = [pair for pair in gradients if pair[0] != (solver, adjoint)]
                    note = "the adjoint solver says that it failed, and gives no gradient unless failures are ignored"
                    cause = next(row.note for row in rows if row.outcome == "failed")
                    outcome = "failed" if self.thorough else "skipped"
                    rows = [self.row("gradient", outcome, solver, adjoint, note=f"{note} (what it is then: {cause})")]
                yield from rows
            except (ArgumentError, ArgumentTypeError, ImportError) as error:
                yield self.row("gradient", "skipped", solver, adjoint, note=_first_line(error))
            except (RuntimeError, NotImplementedError, ValueError, TypeError, RootdiffError) as error:
                note = f"it raised {type(error).__name__}: {_first_line(error)}"
                yield self.row("gradient", "failed", solver, adjoint, note=note)
        if len(gradients) > 1:
            spread = max(float(np.max(np.abs(g - gradients[0][1]))) for _, g in gradients)
            allowed = 2 * float(np.max(self._allowed(group, w, *pairs[0])))
            yield self.compared("same gradient from every solver", spread, allowed, "solvers at one root disagree")
        yield from self._start(group, first, w, gradients)

    def _pair(
        self, group: Group, solver: Any, adjoint: Any, w: Vector, other: Vector, v: Vector, gradients: list[Any]
    ) -> Iterator[Check]:
        subject, ref = self.subject, group.ref
        where = (solver, adjoint)
        allowed = self._allowed(group, w, solver, adjoint)
        vjp = jvp = None
        if "vjp" in self.modes:
            vjp, leaves = subject.vjp(*where, w)
            expected, got = w @ ref.sensitivity, vjp @ ref.directions
            yield self._gradient("gradient (vjp)", group, where, got, expected, allowed, w=w)
            yield self._leaf_dtypes(leaves, where)
            a, b = 0.7, -1.3
            combined = subject.vjp(*where, a * w + b * other)[0]
            separate = a * vjp + b * subject.vjp(*where, other)[0]
            slack = 4 * allowed + 4 * self._allowed(group, other, solver, adjoint)
            gap = np.abs((combined - separate) @ ref.directions)
            note = "the vjp is not linear in the cotangent: state is kept, or an iterative adjoint stops early"
            yield self._worst("linear in the cotangent", gap, slack, note, where)
            gradients.append((where, vjp))
        every = self.thorough or where == (next(iter(group.outcomes)), self.adjoints[0])
        if "jvp" in self.modes and (every or vjp is None):
            jvp = subject.jvp(*where, v)
            weights = np.linalg.lstsq(ref.directions, v, rcond=None)[0]
            expected = ref.sensitivity @ weights
            bound = self._allowed_jvp(group, weights, *where)
            yield self._gradient("gradient (jvp)", group, where, jvp, expected, bound, v=weights)
            if vjp is not None:
                gap = abs(float(w @ jvp - vjp @ v))
                slack = float(allowed @ np.abs(weights) + np.abs(w) @ bound)
                note = "the dot-product test <w, J v> = <J^T w, v> fails: jvp and vjp are not transposes"
                yield self.compared("jvp and vjp transposed", gap, slack, note, *where)
        if "hessian" in self.modes and every and subject.driver.second_order:
            yield self._hessian(group, where, w, v)

    def _refused(self, solver: Any, adjoint: Any, w: Vector) -> bool:
        """Return whether the default policy gives no gradient here."""
        if not isinstance(self.subject.entry, str):
            return False
        return not np.all(np.isfinite(self.subject.with_options(on_failure="nan").vjp(solver, adjoint, w)[0]))

    def _gradient(
        self,
        name: str,
        group: Group,
        where: Any,
        got: Vector,
        expected: Vector,
        allowed: Vector,
        w: Any = None,
        v: Any = None,
    ) -> Check:
        error = np.abs(got - expected)
        failed = not np.all(error <= allowed)
        if not failed and np.max(allowed) > 0.1 * np.max(np.abs(expected)) > 0:
            note = "inconclusive: the condition leaves no digits to compare"
            return self.row(
                name, "skipped", *where, error=float(np.max(error)), tolerance=float(np.max(allowed)), note=note
            )
        note = diagnose(self.subject, group.ref, got, expected, w, v) if failed else ""
        return self._worst(name, error, allowed, note, where, expected=_short(expected), got=_short(got))

    def _worst(self, name: str, error: Vector, allowed: Vector, note: str, where: Any, **details: Any) -> Check:
        error = np.where(np.isfinite(error), error, np.inf)
        worst = int(np.argmax(error / np.where(allowed > 0, allowed, 1e-300)))
        return self.compared(name, float(error[worst]), float(allowed[worst]), note, *where, **details)

    def _leaf_dtypes(self, leaves: list[Any], where: Any) -> Check:
        wrong = [
            f"the gradient of {name} has dtype {leaf.dtype}, but it has {like.dtype}"
            for name, leaf, like in zip(self.subject.names, leaves, self.subject.parameters.like, strict=True)
            if hasattr(leaf, "dtype") and hasattr(like, "dtype") and leaf.dtype != like.dtype
        ]
        return self.row("gradient keeps the dtype", "failed" if wrong else "passed", *where, note="; ".join(wrong))

    def _hessian(self, group: Group, where: Any, w: Vector, v: Vector) -> Check:
        subject, ref = self.subject, group.ref
        direction = v / np.max(np.abs(v))
        solver, adjoint = where
        got = float(subject.second(solver, adjoint, w, direction) @ direction)
        found = second_difference(subject, ref, direction)
        expected = float(w @ found.value)
        size = np.abs(w) @ np.abs(ref.sensitivity) @ np.abs(ref.directions.T @ direction)
        allowed = float(4 * np.abs(w) @ found.error + _SAFETY * subject.eps * ref.condition * (abs(expected) + size))
        if not abs(got - expected) <= allowed:
            note = (
                "the second derivative is wrong although the first is right: a part of the rule (df/dy, or the "
                "root itself) is held constant when it is differentiated again"
            )
            return self.row(
                "second derivative", "failed", *where, error=abs(got - expected), tolerance=allowed, note=note,
                expected=f"{expected:.10g}", got=f"{got:.10g}",
            )  # fmt: skip
        if allowed > 0.1 * (abs(expected) + size):
            return self.row("second derivative", "skipped", *where, note="inconclusive: re-solves are too inexact")
        return self.row("second derivative", "passed", *where, error=abs(got - expected), tolerance=allowed)

    def _start(self, group: Group, solver: Any, w: Vector, gradients: list[Any]) -> Iterator[Check]:
        subject, ref = self.subject, group.ref
        where = (solver, self.adjoints[0])
        try:
            of_start = subject.start_vjp(*where, w)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            yield self.row("no gradient to y0", "failed", *where, note=f"it raised {_first_line(error)}")
            return
        if of_start is not None:
            size = float(np.max(np.abs(of_start)))
            note = "a gradient flows to y0, on which a root does not depend: a solver step is differentiated"
            yield self.compared("no gradient to y0", size, 0.0, note, *where)
        if not gradients:
            return
        other = ref.y + 0.5 * (subject.y0 - ref.y) if np.any(subject.y0 != ref.y) else ref.y * 1.001 + 1e-3
        out = subject.solve(*where, other)
        succeeded = out.status is None or np.all(out.status <= Status.AT_PRECISION)
        if not succeeded or np.max(np.abs(out.y - ref.y)) > 1e-3 * max(float(np.max(np.abs(ref.y))), 1e-300):
            yield self.row("independent of y0", "skipped", *where, note="another start reached another root, or none")
            return
        gap = np.abs((subject.vjp(*where, w, other)[0] - gradients[0][1]) @ ref.directions)
        allowed = 2 * self._allowed(group, w, *where)
        yield self._worst("independent of y0", gap, allowed, "the gradient depends on y0", where)

    def _precision(self) -> float:
        """Return the relative accuracy of the package's derivatives of f."""
        subject = self.subject
        if subject.driver.name != "numpy" or subject.options.get("derivatives") == "complex-step":
            return subject.eps
        return float(subject.eps ** (2 / 3))

    def _bound(self, ref: Reference, adjoint: Any) -> Any:
        """Return the error, (N, k), that rounding and an exact linear solve leave in dy/dtheta."""
        errors = np.abs(ref.slopes) + np.abs(ref.jacobian) @ np.abs(ref.sensitivity)
        if self._precision() > self.subject.eps:  # differences: rounding of f is that of terms which cancel in it
            units = np.array([theta_unit(self.subject, direction) for direction in ref.directions.T])
            size = scale_of(self.subject, ref.y)
            relative = 1 / units + np.max(np.abs(ref.sensitivity) / size[:, None], axis=0)
            errors = errors + (np.abs(ref.jacobian) @ size)[:, None] * relative
        direct = np.abs(ref.inverse) @ errors
        if hasattr(_adjoint_object(adjoint), "rtol"):  # an iteration, whose tolerance is one on the norm
            norm = np.linalg.norm(ref.inverse, 2) * np.linalg.norm(ref.slopes, axis=0)
            direct = direct + 10 * norm[None, :]
        return _SAFETY * self._precision() * direct

    def _root_error(self, group: Group, solver: Any) -> Any:
        """Return the change of dy/dtheta, (N, k), over the error of the root that the solver reached."""
        ref = group.ref
        gap = np.abs(group.outcomes[solver].y - ref.y)
        if not np.any(gap > 4 * ref.accuracy):
            return np.zeros_like(ref.sensitivity)
        y = group.outcomes[solver].y
        # amplified a thousandfold, so that differences resolve the change
        far = ref.y + 1e3 * (y - ref.y)
        there = -np.linalg.solve(jacobian(self.subject, far, self.subject.theta), slopes_at(self.subject, far, ref))
        return 3e-3 * np.abs(there - ref.implicit()) if np.all(np.isfinite(there)) else np.zeros_like(ref.sensitivity)

    def _error(self, group: Group, solver: Any, adjoint: Any) -> Any:
        ref = group.ref
        return 2 * ref.uncertainty + self._bound(ref, adjoint) + self._root_error(group, solver)

    def _allowed(self, group: Group, w: Vector, solver: Any, adjoint: Any) -> Vector:
        bound = np.abs(w) @ self._error(group, solver, adjoint)
        if hasattr(_adjoint_object(adjoint), "rtol"):
            ref = group.ref
            norm = np.linalg.norm(ref.inverse, 2) * np.linalg.norm(w) * np.linalg.norm(ref.slopes, axis=0)
            bound = bound + 10 * _SAFETY * self._precision() * norm
        return bound

    def _allowed_jvp(self, group: Group, weights: Vector, solver: Any, adjoint: Any) -> Vector:
        return self._error(group, solver, adjoint) @ np.abs(weights)


def _adjoint_object(adjoint: Any) -> Any:
    return get_adjoint(adjoint) if isinstance(adjoint, str) else adjoint


def _word(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else type(value).__name__


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _short(vector: Vector) -> str:
    return np.array2string(np.asarray(vector), precision=6, threshold=8, max_line_width=120)
