"""A minimum: a root of the gradient at which no direction leads down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

from rootdiff._backend import Array, status_where
from rootdiff._bounds import are_crossed, sides
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._sizes import is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver
from rootdiff._space import dot, is_beyond_rounding, is_within, max_norm, numbers, per_system, some
from rootdiff._verdict import allowed_error, judged, start_scale
from rootdiff.solvers._curvature import MARGIN, curvature, falls_beside, judged_by_products
from rootdiff.solvers._given import Given

#: An error of this part of an unknown leaves it no digit.
_ILL = 0.1
#: What is unbounded falls by this part of all of its fall, or more, where y grows once again by its size.
_FALLING = 0.01


@dataclass(frozen=True, kw_only=True)
class Minimum(Solver):
    """What a solver finds, judged as a root of the gradient; one with negative curvature has the status SADDLE."""

    solver: Solver

    #: How messages call what is sought, and causes and remedies in its words.
    sought: ClassVar[tuple[str, str]] = "least_squares", "minimum"
    words: ClassVar[dict[Status, tuple[str, str]]] = {
        Status.STALLED: (
            "no step reduces the sum of squares any further, and its gradient is not zero{off}",
            "start elsewhere, give the unknowns similar sizes, and check that the residual is smooth",
        ),
        Status.SINGULAR: (
            "the Hessian is singular to working precision: the residual does not determine y, one minimum of many",
            "look for unknowns that it does not depend on, or on in one combination only; fix them as args, or add "
            "equations, such as small multiples of y less what it should be near to; on_failure='keep' returns this y",
        ),
    }

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        xp = residual.xp
        empty = per_system(xp, y0, False, xp.bool)
        if residual.box is not None:
            box = residual.box.at(y0)
            empty = some(xp, are_crossed(xp, *box.limits(y0)))
            residual = replace(residual, box=box, correct=lambda trial, _: box.projected(trial))
            y0 = box.projected(y0)
        first = residual(y0)
        inner: Any = self.solver.resolved(y0.dtype, xp)
        raw = inner.claim(residual, y0, per_system(xp, y0, True, xp.bool), looks=False).raw
        raw = raw._replace(status=xp.astype(xp.where(empty, int(Status.INFEASIBLE), raw.status), xp.int32))
        rtol = getattr(inner, "rtol", None)
        rtol = float(xp.finfo(y0.dtype).eps) ** 0.75 if rtol is None else rtol
        judge = with_settings(Given(), rtol=rtol, atol=getattr(inner, "atol", None))
        dense = is_dense(tuple(y0.shape))
        look, residual = partial(falls_beside, residual), _smoothed(residual, raw.y)
        gradient, hessian = residual.free.with_jacobian(raw.y) if dense else (None, None)
        asked = (raw.status != int(Status.NONFINITE_START)) & ~empty
        raw = judged(judge, _beyond(residual, raw.y, hessian), y0, first, raw, asked)
        if hessian is None:
            raw = raw if residual.box is None else raw._replace(factors=None)
            if residual.backend.measures or residual.constrained is not None:
                return raw
            return judged_by_products(residual, raw)
        error = raw.error
        equations = residual.equations
        off, multiplier = None, numbers(xp, raw.y) < 0
        if equations is not None:
            value = equations(raw.y)
            if residual.squares is None:  # an objective, and constraints as many as there are multipliers
                unknowns = raw.y.shape[-1] + 1 - value.shape[-1]
                value = xp.concat([xp.ones_like(value[..., :1]), raw.y[..., unknowns:]], axis=-1)
                multiplier = numbers(xp, raw.y) > unknowns
            off = equations.operator(raw.y).error_sizes(value, True)
            off = None if off is None else xp.where(multiplier, xp.zeros_like(off), off)  # constraints are no slopes
        scale = start_scale(xp, y0, residual.scale)
        f, held, slopes, weak = residual(raw.y), xp.zeros_like(raw.y) > 0, hessian, None
        if residual.box is not None:
            f, held, slopes, weak = _active(residual, judge, raw, scale, gradient, hessian, off)
            raw = raw._replace(factors=None)  # those of the judged residual lack what held unknowns do to the others
        if off is not None:
            off = xp.where(held, xp.zeros_like(off), off)
            raw = _with_error_of_slopes(residual, raw, f, slopes, off, rtol, scale)
        unbounded = _is_unbounded(residual, y0, raw.y, gradient, hessian)
        falls, flat, spectrum = curvature(residual, raw.y, hessian, off, held, multiplier)
        success, status = raw.status <= int(Status.AT_PRECISION), raw.status
        # beside zero an error may be far below what f feels
        errors = xp.maximum(error, allowed_error(xp, judge, xp.zeros_like(raw.y), scale, success | True))
        operands = raw.y, spectrum, errors, held, multiplier
        falls = falls | residual.backend.when(
            xp.any(success & ~flat & is_beyond_rounding(xp, error, raw.y)), look, operands, falls
        )
        stopped = success | (status == int(Status.STALLED)) | (status == int(Status.ILL_DETERMINED))
        status = xp.where(flat & stopped, int(Status.SINGULAR), status)
        if residual.constrained is not None:
            reach = float(xp.finfo(y0.dtype).eps) ** 0.5 * xp.maximum(xp.abs(raw.y), scale)
            unmet = xp.abs(f) > xp.sum(xp.abs(hessian) * reach[..., None, :], axis=-1)
            failed = (status > int(Status.RUNNING)) & asked
            status = xp.where(failed & some(xp, unmet & multiplier), int(Status.INFEASIBLE), status)
        status = xp.where(falls & success, int(Status.SADDLE), status)
        status = xp.where(unbounded & (status > int(Status.RUNNING)) & asked, int(Status.UNBOUNDED), status)
        if weak is not None:
            status = xp.where(weak & (status <= int(Status.AT_PRECISION)), int(Status.DEGENERATE), status)
        return raw._replace(status=xp.astype(status, xp.int32))


@dataclass(frozen=True, kw_only=True)
class MinimumOfObjective(Minimum):
    """The same, in the words of `minimize`."""

    sought: ClassVar[tuple[str, str]] = "minimize", "minimum"
    words: ClassVar[dict[Status, tuple[str, str]]] = {
        Status.STALLED: (
            "no step reduces the objective any further, and its gradient is not zero{off}",
            "start elsewhere, give the unknowns similar sizes, and check that the objective is smooth, with a minimum",
        ),
        Status.MAX_STEPS: (
            "the step limit was reached before the gradient was zero",
            "check that the objective is bounded below, or y runs away; start closer, or raise max_steps",
        ),
        Status.SINGULAR: (
            "the Hessian is singular to working precision: the objective does not determine y, one minimum of many",
            "look for unknowns that it does not depend on, or on in one combination only; fix them as args, or add a "
            "small multiple of the square of y less what it should be near to; on_failure='keep' returns this y",
        ),
    }


@dataclass(frozen=True, kw_only=True)
class ConstrainedMinimum(MinimumOfObjective):
    """The same under constraints: of the unknowns with their multipliers."""

    words: ClassVar[dict[Status, tuple[str, str]]] = {
        **MinimumOfObjective.words,
        Status.INFEASIBLE: (
            "y does not meet the constraints, and no way was found to meet them",
            "check that some y meets all of them, also the bounds, and that they are smooth and none follows from "
            "others; then start at such a y",
        ),
        Status.SINGULAR: (
            "at y the constraints that hold with equality depend on each other, or neither they nor the objective "
            "determine y",
            "look for a constraint that follows from others, or whose gradient is zero at y, and leave it away; look "
            "for unknowns that nothing depends on; on_failure='keep' returns this y",
        ),
        Status.SADDLE: (
            "the conditions of first order hold at y, but there is a direction within the constraints along which the "
            "objective falls",
            "start elsewhere, beside any symmetry that the start has",
        ),
        Status.DEGENERATE: (
            "y is a minimum where a constraint or a bound is only just reached: it holds with equality and its "
            "multiplier is zero, both to within tolerance, so that y has one-sided derivatives only",
            "on_failure='keep' returns this y, whose derivatives are NaN; to have derivatives, move the constraint, or "
            "leave it away, or make it an equality",
        ),
    }


@dataclass(frozen=True, kw_only=True)
class Nearest(ConstrainedMinimum):
    """The same of the distance to y0, in the words of `least_squares` with fewer equations than unknowns."""

    sought: ClassVar[tuple[str, str]] = "least_squares", "nearest solution"


class Horizon(NamedTuple):
    """How far an objective is followed: sizes of the unknowns, (*batch, n), and what it is at the start, (*batch)."""

    sizes: Array
    value: Array

    @classmethod
    def of(cls, residual: Residual, y0: Array, value: Array) -> Horizon:
        """Return sizes of which a rounding is more than an unknown was at `y0`, or than `y_scale` tells."""
        xp, size = residual.xp, residual.scale
        size = xp.clip(max_norm(xp, y0), 1.0)[..., None] if size is None else size
        return cls(xp.zeros_like(y0) + size / float(xp.finfo(y0.dtype).eps), value)

    def is_passed(self, xp: Any, y: Array, value: Array, slope: Array) -> Array:
        """Return where y is beyond it, or its objective next to overflow, and falls as it did on the way: (*batch).

        The `slope` is that of the objective along y: next to an infimum at infinity it is a small part of the fall.
        """
        limits = xp.finfo(y.dtype)
        far = some(xp, xp.abs(y) > self.sizes) | (value < -float(limits.max) * float(limits.eps))
        return far & (-slope > _FALLING * (self.value - value))


def is_straight(residual: Residual, way: Array, gradient: Array, hessian: Array) -> Array:
    """Return where an objective falls along a `way`, (*batch, n), no slower from its end on: without curvature."""
    xp, length = residual.xp, max_norm(residual.xp, way)
    unit = way / xp.where(length > 0, length, 1.0)[..., None]
    slope, bend = dot(xp, unit, gradient), dot(xp, unit, (hessian @ unit[..., None])[..., 0])
    noise = way.shape[-1] * residual.backend.precision(way.dtype)
    return (slope < 0) & (bend * length <= noise * xp.abs(slope))


def _is_unbounded(residual: Residual, y0: Array, y: Array, gradient: Array, hessian: Array) -> Array:
    """Return where an objective fell from `y0` to `y`, so far away, and goes on to fall, (*batch)."""
    xp, way = residual.xp, y - y0
    if residual.objective is None:
        return max_norm(xp, way) < 0
    value, start = residual.objective(y)[..., 0], residual.objective(y0)[..., 0]
    passed = Horizon.of(residual, y0, start).is_passed(xp, y, value, dot(xp, y, gradient))
    return (value == -xp.inf) | (passed & is_straight(residual, way, gradient, hessian))


def _smoothed(residual: Residual, y: Array) -> Residual:
    """Return the residual with what its gradient `at` a point is smoother as, where it is measured."""
    free, box = residual.free.at(y), residual.box
    if free is residual.free:
        return residual
    if box is not None:
        return replace(residual, box=box._replace(free=free))
    whole = {name: getattr(residual, name) for name in ("scale", "squares", "objective", "constrained")}
    return replace(free, **whole)


def _beyond(residual: Residual, at: Array, hessian: Array | None) -> Residual:
    """Return the residual with values beyond the bounds too, where each bound is active, or not, as it is `at` a point.

    So an unknown on a bound can be moved to both sides. The gradient is that of the nearest point within, and what the
    diagonal of the Hessian, if it is known, makes of the way there.
    """
    box, free = residual.box, residual.free
    if box is None:
        return residual
    xp, (lo, hi) = residual.xp, box.limits(at)
    lower, upper = sides(at, free(at), lo, hi)
    slope = xp.zeros_like(at) if hessian is None else xp.abs(xp.linalg.diagonal(hessian))

    def function(y: Array, *parameters: Array) -> Array:
        inside = box.projected(y)
        gradient = free.function(inside, *parameters) + slope * (y - inside)
        return xp.where(lower, y - lo, xp.where(upper, y - hi, gradient))

    return replace(residual, function=function, correct=None)


def _active(
    residual: Residual, judge: Any, raw: RawSolution, scale: Array, gradient: Array, hessian: Array, off: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Return the residual, the unknowns that bounds hold, (*batch, n), its Jacobian, and where one is just reached.

    Such a bound holds nothing here. It is one, (*batch), where an unknown is within its error, or tolerance, of it,
    and the gradient along it is what such errors of the unknowns, or the error of the gradient, make of zero.
    """
    assert residual.box is not None
    xp, y = residual.xp, raw.y
    lo, hi = residual.box.limits(y)
    lower, upper = sides(y, gradient, lo, hi)
    allowed = allowed_error(xp, judge, y, scale, xp.isfinite(raw.residual_norm) | True)
    if raw.error is not None:
        allowed = xp.where(xp.isfinite(raw.error), xp.maximum(raw.error, allowed), allowed)
    least = xp.sum(xp.abs(hessian) * allowed[..., None, :], axis=-1)
    least = least if off is None else least + MARGIN * off
    near = (xp.minimum(xp.abs(y - lo), xp.abs(hi - y)) <= allowed) & (lo < hi)
    weak = near & (xp.abs(gradient) <= least)
    held, place = (lower | upper) & ~weak, numbers(xp, y)
    jacobian = xp.where(held[..., None], xp.astype(place[:, None] == place, y.dtype), hessian)
    return xp.where(held, residual(y), gradient), held, jacobian, some(xp, weak)


def _with_error_of_slopes(
    residual: Residual, raw: RawSolution, f: Array, hessian: Array, off: Array, rtol: float, scale: Array
) -> RawSolution:
    """Return the solution with the error that y has where the gradient is `off` by measured slopes.

    A gradient is zero where a Newton step is within it; an error that leaves an unknown no digit is no success.
    """
    xp, error = residual.xp, raw.error
    if error is None:
        return raw
    factors = residual.backend.lu_factor(hessian)
    place = numbers(xp, off)
    by_row = [xp.where(place == float(k + 1), off, xp.zeros_like(off)) for k in range(off.shape[-1])]
    each = residual.backend.lu_solve(factors, xp.stack(by_row))
    more = xp.sqrt(xp.sum(each * each, axis=0))
    beyond = (raw.status == int(Status.CONVERGED)) & ~is_within(xp, more, rtol * xp.abs(raw.y))
    step, size = residual.backend.lu_solve(factors, f), xp.maximum(xp.abs(raw.y), scale)
    explained = (raw.status == int(Status.STALLED)) & is_within(
        xp, step, MARGIN * (more + float(xp.finfo(raw.y.dtype).eps) * size)
    )
    error, allowed = error + xp.where(xp.isfinite(more), more, xp.inf), _ILL * size
    found = status_where(xp, is_within(xp, error, allowed), Status.AT_PRECISION, Status.ILL_DETERMINED)
    lost = (raw.status <= int(Status.AT_PRECISION)) & ~is_within(xp, more, allowed)
    status = xp.where(beyond | explained, found, xp.where(lost, int(Status.ILL_DETERMINED), raw.status))
    return raw._replace(status=xp.astype(status, xp.int32), error=error)
