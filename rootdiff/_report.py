"""The certificate of a gradient: how large its relative error is, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rootdiff._backend import Array
from rootdiff._failure import adjoint_words
from rootdiff._iterate import signs
from rootdiff._norms import max_norm, norm2
from rootdiff._residual import LinearOperator, Residual
from rootdiff._solution import Status
from rootdiff.linear import AutoLinear, LinearSolver
from rootdiff.linear._condition import one_norm, row_sizes
from rootdiff.linear._contract import judge

#: Newton steps towards the root that the given point is compared with; from anywhere near it, three reach rounding.
_POLISHING_STEPS = 3
#: Patterns of signs, of which a rounding error could be any.
_PHASES = (1, 2, 3)
#: Root mean square of an error that is uniform up to half an eps, in eps.
_TYPICAL = 0.5 / math.sqrt(3)
#: From this relative error on the gradient has no digit to speak of.
_WORTHLESS = 0.1


@dataclass(frozen=True)
class GradientReport:
    """What is known of the error of a gradient ``w^T dy/dargs``; `print` shows it as a table.

    Attributes
    ----------
    residual_norm : float
        Largest absolute residual at y, in the units of the residual.
    y_error : float
        Estimated ``norm(y - root) / norm(root)``, by Newton's correction; the largest in a batch. Dimensionless.
    condition : float
        Estimated condition number of the Jacobian in the 1-norm, the largest in a batch; NaN if it is too large to
        be factored.
    adjoint_residual : float
        ``norm(J^T u - w) / norm(w)`` of the adjoint solve, the largest in a batch.
    root_error, adjoint_error, rounding_error : float
        Estimated relative errors of the gradient, in the Euclidean norm over all parameters: because y is not quite the
        root, because the adjoint system is not quite solved, and because y, f and its derivatives are rounded.
    status : integer array, (*batch). `Status` of the adjoint solve: the mask of what failed.
    rank_deficient : bool
        Whether the Jacobian is singular and the gradient is that of minimum norm.
    adjoint : str
        The adjoint solver.
    exact : bool
        Whether it is an exact one.
    verdict, remedy : str
        What this comes to, and what to do about it.
    """

    residual_norm: float
    y_error: float
    condition: float
    adjoint_residual: float
    root_error: float
    adjoint_error: float
    rounding_error: float
    status: Any
    rank_deficient: bool
    adjoint: str
    exact: bool
    verdict: str = ""
    remedy: str = ""

    @property
    def gradient_error(self) -> float:
        """The sum of the three estimated errors."""
        return self.root_error + self.adjoint_error + self.rounding_error

    def __str__(self) -> str:
        rows = [
            ("residual norm", self.residual_norm),
            ("relative error of y", self.y_error),
            ("condition of the Jacobian", self.condition),
            ("relative adjoint residual", self.adjoint_residual),
            ("gradient error from the root", self.root_error),
            ("gradient error from the adjoint", self.adjoint_error),
            ("gradient error from rounding", self.rounding_error),
            ("gradient error, estimated", self.gradient_error),
        ]
        kind = "" if self.exact else " (approximate)"
        lines = [f"{name:<33}{value:>10.1e}" for name, value in rows]
        lines += [f"{'adjoint':<33}{self.adjoint}{kind}", f"verdict: {self.verdict}."]
        return "\n".join(lines + ([f"to do: {self.remedy}."] if self.remedy else []))


def measure(residual: Residual, adjoint: LinearSolver, y: Array, w: Array) -> GradientReport:
    """Return the certificate of the gradient at `y`, (*batch, n), for the cotangent `w`; values must be concrete.

    Each source is estimated by what the gradient changes by: at a root polished by Newton's method; with the adjoint
    solution corrected by its residual; with the equations and the adjoint system changed by a rounding in each term.
    """
    backend, xp = residual.backend, residual.xp
    operator = residual.operator(y)
    u, info = adjoint.solve(operator.T, w)
    info = judge(operator.T, adjoint, u, w, info)
    solver = adjoint if info.rank is not None else AutoLinear()
    _, reference = solver.solve(operator, residual(y))
    operator = replace(operator, factors=reference.factors)
    correction, _ = solver.solve(operator.T, w - operator.T.matvec(u))
    gradient = residual.parameter_vjp(y, -(u + correction))
    size = _size(xp, gradient)

    def change(parts: tuple[Array, ...]) -> float:
        """Return the relative size of a change of the gradient."""
        return _ratio(_size(xp, parts), size)

    def moved(point: Array) -> float:
        """Return the relative change of the gradient where y moves."""
        other, _ = solver.solve(residual.operator(point, operator.factors).T, w)
        there = residual.parameter_vjp(point, -other)
        return change(tuple(a - b for a, b in zip(there, gradient, strict=True)))

    def spread(error: Callable[[Array], float]) -> float:
        """Return the root mean square of an error over changes of several sign patterns."""
        return math.sqrt(sum(error(signs(xp, y, phase)) ** 2 for phase in _PHASES) / len(_PHASES))

    root = _polished(residual, solver, y, operator.factors)
    slope = _TYPICAL * row_sizes(operator.T, u, w) * operator.precision
    noise = _noise(residual, operator, y)
    tilted = spread(lambda sign: change(residual.parameter_vjp(y, solver.solve(operator.T, slope * sign)[0])))
    shifted = spread(lambda sign: moved(y + solver.solve(operator, noise * sign)[0]))
    relative = info.relative_residual
    if not adjoint.exact:
        relative = norm2(xp, w - operator.T.matvec(u)) / norm2(xp, w)
    rank = None if info.rank is None else int(xp.min(info.rank))
    report = GradientReport(
        residual_norm=_largest(xp, max_norm(xp, residual(y))),
        y_error=_largest(xp, norm2(xp, y - root) / norm2(xp, root)),
        condition=_condition(operator),
        adjoint_residual=_largest(xp, relative),
        root_error=moved(root),
        adjoint_error=change(residual.parameter_vjp(y, correction)),
        rounding_error=tilted + shifted + operator.precision,
        status=backend.to_numpy(info.status),
        rank_deficient=rank is not None and rank < y.shape[-1],
        adjoint=repr(adjoint),
        exact=adjoint.exact,
    )
    verdict, remedy = _verdict(report)
    return replace(report, verdict=verdict, remedy=remedy)


def _polished(residual: Residual, solver: LinearSolver, y: Array, factors: Any) -> Array:
    """Return a better root: Newton's method from `y`, per system as long as its corrections shrink."""
    xp = residual.xp
    last = xp.full_like(y[..., 0], xp.inf)
    for _ in range(_POLISHING_STEPS):
        step, _ = solver.solve(residual.operator(y, factors), -residual(y))
        length = norm2(xp, step)
        shrinks = length < 0.5 * last
        y = xp.where(shrinks[..., None], y + step, y)
        last = xp.where(shrinks, length, xp.zeros_like(length))
    return y


def _noise(residual: Residual, operator: LinearOperator, y: Array) -> Array:
    """Return the size of rounding errors in each equation, (*batch, n): of y, of the terms, of the parameters."""
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    f = residual(y)
    largest = eps * row_sizes(operator, y, f)
    for phase in _PHASES:
        flat = [xp.reshape(p, (-1,)) for p in residual.parameters]
        moved = [
            xp.reshape(p * (1 + eps * signs(xp, p, phase)), q.shape)
            for p, q in zip(flat, residual.parameters, strict=True)
        ]
        change = residual.with_parameters(*moved)(y * (1 + eps * signs(xp, y, phase))) - f
        largest = xp.maximum(largest, xp.abs(change))
    return _TYPICAL * largest


def _condition(operator: LinearOperator) -> float:
    if operator.factors is None:
        return math.nan
    backend, xp = operator.backend, operator.backend.xp
    like = operator.factors[0][..., 0]
    norm = one_norm(backend, operator.matvec, operator.rmatvec, like)
    inverse = one_norm(backend, operator.approximate_inverse, operator.T.approximate_inverse, like)
    return _largest(xp, norm * inverse)


def _size(xp: Any, parts: tuple[Array, ...]) -> float:
    return math.sqrt(sum(float(xp.sum(xp.abs(part) ** 2)) for part in parts))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else (0.0 if above == 0 else math.inf)


def _largest(xp: Any, values: Array) -> float:
    return float(xp.max(values))


def _verdict(report: GradientReport) -> tuple[str, str]:
    """Return the conclusion and the remedy, in words."""
    failed = report.status > Status.AT_PRECISION
    if failed.any():
        cause, remedy = adjoint_words(Status(int(report.status[failed].max())))
        return f"no gradient: {cause}", remedy
    total = report.gradient_error
    sources = {
        "the root": (report.root_error, "solve to a tighter tolerance (rtol, atol)"),
        "the adjoint solve": (report.adjoint_error, "use adjoint='lu', or a smaller rtol of the iterative adjoint"),
        "rounding": (report.rounding_error, "use a higher precision, exact derivatives, or rescale the problem"),
    }
    source, (_, remedy) = max(sources.items(), key=lambda item: item[1][0])
    if not total < _WORTHLESS:
        return f"no digit of the gradient can be trusted, because of {source}", remedy
    digits = max(1, math.floor(-math.log10(total)))
    kept = f"about {digits} digit{'s' if digits > 1 else ''} of the gradient can be trusted"
    if report.rank_deficient:
        kept += ", which is that of minimum norm, the Jacobian being singular"
    good = report.rounding_error >= 0.5 * total
    return (kept, "") if good else (f"{kept}; the error comes from {source}", remedy)
