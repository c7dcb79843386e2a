"""How large the error of a gradient is: each source by what the gradient changes by."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rootdiff._backend import Array
from rootdiff._implicit import resolved
from rootdiff._inverse import Inverse
from rootdiff._operator import LinearOperator, by_entries
from rootdiff._report import GradientReport, concluded
from rootdiff._residual import Residual
from rootdiff._rounding import NOISIER, TYPICAL, noise_of
from rootdiff._sizes import has_few_unknowns
from rootdiff._space import max_norm, norm2, numbers, per_system, signs
from rootdiff.linear import AutoLinear, LinearSolver
from rootdiff.linear._condition import one_norm, row_sizes

#: Newton steps towards the root that the given point is compared with; from anywhere near it, three reach rounding.
_POLISHING_STEPS = 3
#: Changes of sign in turn, of a small system and of a large one.
_WALSH, _FEWER = 8, 4


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
    # the most accurate derivatives there are
    finer = backend.refined
    fine = residual if finer is None else residual.with_backend(finer)
    operator = given if given.finer is None else by_entries(given.finer())
    if operator is not given:
        inverse = solver.solve(operator, w)[1].factors
    exact, _ = solver.starting_from(inverse).solve(operator.T, w)
    gradient = fine.parameter_vjp(y, -exact)
    size = _size(xp, gradient)

    def change(parts: tuple[Array, ...]) -> float:
        """Return the relative size of a change of the gradient."""
        found = _size(xp, parts)
        return found / size if size > 0 else (0.0 if found == 0 else math.inf)

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
    noise, of_slopes, of_feeds = noise_of(fine, operator, y)
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
    verdict, remedy = concluded(report, given.precision > float(xp.finfo(y.dtype).eps))
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


def _slope_errors(operator: LinearOperator, u: Array, w: Array, relative: Array) -> Array:
    """Return the size of the errors in each row of the adjoint system, (*batch, n): of the entries times `u`.

    Those of an equation are no more accurate than the equation itself, whose `relative` error is measured.
    """
    xp = operator.backend.xp
    eps = xp.finfo(w.dtype).eps
    excess = xp.where(relative > NOISIER * eps, relative, xp.zeros_like(relative))
    rough = row_sizes(operator.T, excess * u, xp.zeros_like(w))
    if operator.errors is not None:
        return rough + norm2(xp, xp.matrix_transpose(operator.errors()) * u[..., None, :])
    return rough + TYPICAL * operator.precision * row_sizes(operator.T, u, w)


def _polished(residual: Residual, solver: LinearSolver, y: Array) -> Array:
    """Return a better root: Newton's method from `y`, per system as long as its corrections shrink."""
    xp = residual.xp
    last = per_system(xp, y, xp.inf)
    for _ in range(_POLISHING_STEPS):
        step, _ = solver.solve(residual.operator(y), -residual(y))
        length = norm2(xp, step)
        shrinks = length < 0.5 * last
        y = xp.where(shrinks[..., None], y + step, y)
        last = xp.where(shrinks, length, xp.zeros_like(length))
    return y


def _condition(operator: LinearOperator, inverse: Inverse | None, like: Array) -> float:
    if inverse is None:
        return math.nan
    backend, xp = operator.backend, operator.backend.xp
    norm = one_norm(backend, operator.matvec, operator.rmatvec, like)
    of_inverse = one_norm(backend, operator.inverted_by(inverse), operator.T.inverted_by(inverse), like)
    return _largest(xp, norm * of_inverse)


def _size(xp: Any, parts: tuple[Array, ...]) -> float:
    return math.sqrt(sum(float(xp.sum(xp.abs(part) ** 2)) for part in parts))


def _largest(xp: Any, values: Array) -> float:
    return float(xp.max(values))
