"""The certificate of a gradient: how large its relative error is, and where it comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._failure import adjoint_words
from rootdiff._implicit import resolved
from rootdiff._inverse import Inverse
from rootdiff._norms import max_norm, norm2, numbers
from rootdiff._operator import LinearOperator, by_entries
from rootdiff._patterns import signs
from rootdiff._residual import Residual
from rootdiff._roughness import long_roughness, roughness, spacing
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import Status
from rootdiff.linear import AutoLinear, LinearSolver
from rootdiff.linear._condition import one_norm, row_sizes

#: Newton steps towards the root that the given point is compared with; from anywhere near it, three reach rounding.
_POLISHING_STEPS = 3
#: Patterns of signs, of which a rounding error could be any.
_PHASES = (1, 2, 3)
#: Changes of sign in turn, of a small system and of a large one.
_WALSH, _FEWER = 8, 4
#: Root mean square of an error that is uniform up to half an eps, in eps.
_TYPICAL = 0.5 / math.sqrt(3)
#: The wider spacings, as parts of unknowns and parameters: what is iterated to a tolerance is smooth over short ways.
_WIDE = 5e-3, 5e-2
#: An equation with so many times the error of its dtype computes in a lower precision than it returns, or iterates.
_NOISIER = 16.0
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
        Estimated ``norm(y - root) / norm(root)``, by Newton's correction and those of rounding in f; the largest in a
        batch. Dimensionless.
    condition : float
        Estimated condition number of the Jacobian in the 1-norm, the largest in a batch; NaN if it is too large to
        be factored.
    adjoint_residual : float
        ``norm(J^T u - w) / norm(w)`` of the adjoint solve, the largest in a batch.
    root_error, adjoint_error, derivative_error, rounding_error : float
        Estimated relative errors of the gradient, in the Euclidean norm over all parameters: because y is not quite the
        root, because the adjoint system is not quite solved, because the derivatives of f are differences (zero where
        they are not), and because y, f and its derivatives are rounded.
    gradient_error : float
        Estimated relative error of the gradient: its distance from the one without the first three errors, which may
        cancel, and the fourth.
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
    derivative_error: float
    rounding_error: float
    gradient_error: float
    status: Any
    rank_deficient: bool
    adjoint: str
    exact: bool
    verdict: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        rows = [
            ("residual norm", self.residual_norm),
            ("relative error of y", self.y_error),
            ("condition of the Jacobian", self.condition),
            ("relative adjoint residual", self.adjoint_residual),
            ("gradient error from the root", self.root_error),
            ("gradient error from the adjoint", self.adjoint_error),
            ("gradient error from differences", self.derivative_error),
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
    solution corrected by its residual; with differences of higher order, where derivatives are differences; with the
    equations and the adjoint system changed by a rounding in each term, as large as the residual shows it.
    """
    backend, xp = residual.backend, residual.xp
    residual.check_rules(y, xp.isfinite(max_norm(xp, y)))
    across, u, info = resolved(residual.operator(y).T, adjoint, w)
    given = across.T
    solver = adjoint if info.rank is not None else AutoLinear()
    inverse = solver.solve(given, w)[1].factors
    correction, _ = solver.starting_from(inverse).solve(given.T, w - given.T.matvec(u))
    fine, operator = _finest(residual, given)
    if operator is not given:
        inverse = solver.solve(operator, w)[1].factors
    exact, _ = solver.starting_from(inverse).solve(operator.T, w)
    gradient = fine.parameter_vjp(y, -exact)
    size = _size(xp, gradient)

    def change(parts: tuple[Array, ...]) -> float:
        """Return the relative size of a change of the gradient."""
        return _ratio(_size(xp, parts), size)

    def compared(other: tuple[Array, ...]) -> float:
        """Return the relative distance of another gradient."""
        return change(tuple(a - b for a, b in zip(other, gradient, strict=True)))

    def quick(operator: LinearOperator, rhs: Array) -> Array:
        """Return the solution of a system that is all but that of the factors."""
        if inverse is None:
            return solver.solve(operator, rhs)[0]
        inverted = operator.inverted_by(inverse)
        x = inverted(rhs)
        return x + inverted(rhs - operator.matvec(x))

    def moved(point: Array) -> float:
        """Return the relative change of the gradient where y moves by a rounding."""
        other = quick(fine.operator(point).T, w)
        return compared(fine.parameter_vjp(point, -other))

    def spread(error: Callable[[Array], float], changes: list[Array]) -> float:
        """Return the root mean square of an error over several changes."""
        return math.sqrt(sum(error(change) ** 2 for change in changes) / len(changes))

    root = _polished(fine, solver.starting_from(inverse), y)
    noise, of_slopes, of_feeds = _noise(fine, operator, y)
    slope = _slope_errors(operator, exact, w, of_slopes / row_sizes(operator, y, fine(y)))
    patterns = _patterns(xp, y)
    unseen = [quick(operator, noise * sign) for sign in patterns]  # errors of y that f does not tell from rounding
    tilted = spread(
        lambda sign: change(fine.parameter_vjp(y, quick(operator.T, slope * sign) + of_feeds * exact * sign)),
        patterns,
    )
    shifted = spread(lambda step: moved(y + step), unseen)

    def of_root(step: Array) -> float:
        """Return the size of a change of y, relative to the root."""
        return _largest(xp, norm2(xp, step) / norm2(xp, root))

    relative = info.relative_residual
    if not adjoint.exact:
        relative = norm2(xp, w - given.T.matvec(u)) / norm2(xp, w)
    rank = None if info.rank is None else int(xp.min(info.rank))
    user = residual.parameter_vjp(y, -u)
    best_u, _ = solver.solve(fine.operator(root).T, w)  # factors of another point leave its error
    best = fine.parameter_vjp(root, -best_u)
    distance = change(tuple(a - b for a, b in zip(user, best, strict=True)))
    rounding = tilted + shifted + operator.precision
    measured = change(fine.parameter_errors(y, exact))
    report = GradientReport(
        residual_norm=_largest(xp, max_norm(xp, residual(y))),
        y_error=math.hypot(of_root(y - root), spread(of_root, unseen)),
        condition=_condition(operator, inverse, y),
        adjoint_residual=_largest(xp, relative),
        root_error=compared(best),
        adjoint_error=change(residual.parameter_vjp(y, correction)),
        derivative_error=measured
        + (0.0 if fine is residual else compared(residual.parameter_vjp(y, -(u + correction)))),
        rounding_error=rounding,
        gradient_error=math.hypot(distance, rounding, measured),
        status=backend.to_numpy(info.status),
        rank_deficient=rank is not None and rank < y.shape[-1],
        adjoint=repr(adjoint),
        exact=adjoint.exact,
    )
    verdict, remedy = _verdict(report, given.precision > float(xp.finfo(y.dtype).eps))
    return replace(report, verdict=verdict, remedy=remedy)


def _patterns(xp: Any, y: Array) -> list[Array]:
    """Return patterns of signs, shaped like `y`: for up to eight unknowns orthogonal ones, which miss no direction."""
    index = numbers(xp, y) - 1
    count = _WALSH if has_few_unknowns(y.shape) else _FEWER
    found = []
    for pattern in range(count):
        sign = signs(xp, y, 1)
        for bit in range(pattern.bit_length()):
            if pattern >> bit & 1:
                sign = sign * (1 - 2 * (xp.floor(index / 2**bit) % 2))
        found.append(sign)
    return found


def _finest(residual: Residual, operator: LinearOperator) -> tuple[Residual, LinearOperator]:
    """Return the residual with the most accurate derivatives there are, and its operator.

    Where derivatives are exact to rounding it is the residual itself.
    """
    finer = residual.backend.refined
    fine = residual if finer is None else replace(residual, backend=finer)
    return fine, operator if operator.finer is None else by_entries(operator.finer())


def _slope_errors(operator: LinearOperator, u: Array, w: Array, relative: Array) -> Array:
    """Return the size of the errors in each row of the adjoint system, (*batch, n): of the entries times `u`.

    Those of an equation are no more accurate than the equation itself, whose `relative` error is measured.
    """
    xp = operator.backend.xp
    eps = xp.finfo(w.dtype).eps
    excess = xp.where(relative > _NOISIER * eps, relative, xp.zeros_like(relative))
    rough = row_sizes(operator.T, excess * u, xp.zeros_like(w))
    if operator.errors is not None:
        return rough + norm2(xp, xp.matrix_transpose(operator.errors()) * u[..., None, :])
    return rough + _TYPICAL * operator.precision * row_sizes(operator.T, u, w)


def _polished(residual: Residual, solver: LinearSolver, y: Array) -> Array:
    """Return a better root: Newton's method from `y`, per system as long as its corrections shrink."""
    xp = residual.xp
    last = xp.full_like(y[..., 0], xp.inf)
    for _ in range(_POLISHING_STEPS):
        step, _ = solver.solve(residual.operator(y), -residual(y))
        length = norm2(xp, step)
        shrinks = length < 0.5 * last
        y = xp.where(shrinks[..., None], y + step, y)
        last = xp.where(shrinks, length, xp.zeros_like(length))
    return y


def _noise(residual: Residual, operator: LinearOperator, y: Array) -> tuple[Array, Array, Array]:
    """Return the size of rounding errors in each equation, (*batch, n), and of what they make of its slopes.

    The errors are those of y, of the terms, of the parameters. Of slopes in y they are in the units of the equation,
    of those in the parameters relative.

    A residual that computes in a lower precision, or iterates to a tolerance, does not show it where y or the
    parameters change by a rounding: so high differences over longer steps of each are looked at too.
    """
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps
    f = residual(y)
    largest = eps * row_sizes(operator, y, f)
    for phase in _PHASES:
        change = _fed(residual, eps, phase)(y * (1 + eps * signs(xp, y, phase))) - f
        largest = xp.maximum(largest, xp.abs(change))
    sign, rounding = signs(xp, y, 1), _TYPICAL * largest
    of_y = _roughness(residual, lambda part: residual(y * (1 + part * sign)), rounding)
    of_feeds = _roughness(residual, lambda part: _fed(residual, part, 1)(y), rounding)
    feeds = xp.maximum(of_feeds.short, of_feeds.waves)
    relative = xp.where(feeds > 0, feeds / of_feeds.slope, feeds)
    return (
        xp.maximum(xp.maximum(rounding, of_y.long), of_feeds.long),
        xp.maximum(xp.maximum(rounding, of_y.short), of_y.waves),
        xp.where(relative > _NOISIER * eps, relative, xp.zeros_like(relative)),
    )


class _Rough(NamedTuple):
    """What is rough in each equation, (*batch, n), over a short and over long ways.

    Its `slope` is the change by a way of one, the `waves` are the errors of that.
    """

    short: Array
    long: Array
    waves: Array
    slope: Array


def _roughness(residual: Residual, along: Callable[[Any], Array], rounding: Array) -> _Rough:
    """Return the roughness of each equation where the unknowns or the parameters change by a part of each.

    Its `rounding` is what is known of it.
    """
    xp, zeros = residual.xp, residual.xp.zeros_like(rounding)

    def look(measured: Callable[..., tuple[Array, Array]], part: Any) -> tuple[Array, Array]:
        try:
            return measured(xp, lambda k: along(k * part))
        except (ArithmeticError, ValueError):  # so far from the root the residual may have no value
            return zeros, zeros

    part = spacing(xp.finfo(rounding.dtype).eps)
    short, change = look(roughness, part)
    found = _Rough(short, short, zeros, change / part)
    for part in _WIDE:
        long, change = look(long_roughness, part)
        # what is smooth over short ways and rough over long ones has slopes that are off by this roughness over the way
        waves = xp.where(long > _NOISIER * xp.maximum(short, rounding), long / part, zeros)
        slope = xp.where(xp.isfinite(change) & (change > 0), change / part, found.slope)
        found = _Rough(short, xp.maximum(found.long, long), xp.maximum(found.waves, waves), slope)
    return found


def _fed(residual: Residual, part: Any, phase: int) -> Residual:
    """Return the residual with each parameter changed by a part of it, in a pattern of signs."""
    xp = residual.xp
    changed = []
    for parameter in residual.parameters:
        flat = xp.reshape(parameter, (-1,))
        changed.append(xp.reshape(flat * (1 + part * signs(xp, flat, phase)), parameter.shape))
    return residual.with_parameters(*changed)


def _condition(operator: LinearOperator, inverse: Inverse | None, like: Array) -> float:
    if inverse is None:
        return math.nan
    backend, xp = operator.backend, operator.backend.xp
    norm = one_norm(backend, operator.matvec, operator.rmatvec, like)
    of_inverse = one_norm(backend, operator.inverted_by(inverse), operator.T.inverted_by(inverse), like)
    return _largest(xp, norm * of_inverse)


def _size(xp: Any, parts: tuple[Array, ...]) -> float:
    return math.sqrt(sum(float(xp.sum(xp.abs(part) ** 2)) for part in parts))


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else (0.0 if above == 0 else math.inf)


def _largest(xp: Any, values: Array) -> float:
    return float(xp.max(values))


def _verdict(report: GradientReport, rough: bool) -> tuple[str, str]:
    """Return the conclusion and the remedy, in words; `rough` says whether the Jacobian is made of differences."""
    failed = report.status > Status.AT_PRECISION
    if failed.any():
        cause, remedy = adjoint_words(Status(int(report.status[failed].max())), rough)
        return f"no gradient: {cause}", remedy
    total = report.gradient_error
    sources = {
        "the root": (report.root_error, "solve to a tighter tolerance (rtol, atol)"),
        "the adjoint solve": (report.adjoint_error, "use adjoint='lu', or a smaller rtol of the iterative adjoint"),
        "differences": (report.derivative_error, "give jac, jvp or vjp, or use derivatives='complex-step'"),
        "rounding": (report.rounding_error, "use a higher precision, exact derivatives, or rescale the problem"),
    }
    source, (_, remedy) = max(sources.items(), key=lambda item: item[1][0])
    if not total < _WORTHLESS:
        return f"no digit of the gradient can be trusted, because of {source}", remedy
    digits = max(1, math.floor(-math.log10(total)))
    kept = f"about {digits} digit{'s' if digits > 1 else ''} of the gradient can be trusted"
    if report.rank_deficient:
        kept += ", which is that of minimum norm, the Jacobian being singular"
    good = report.rounding_error + report.derivative_error >= 0.5 * total
    return (kept, "") if good else (f"{kept}; the error comes from {source}", remedy)
