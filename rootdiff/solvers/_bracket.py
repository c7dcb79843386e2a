"""Roots of one equation in one unknown, elementwise, between two points where the signs differ."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rootdiff._backend import Array, select, status_where
from rootdiff._errors import ArgumentError
from rootdiff._loop import StepInfo
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver, named
from rootdiff._space import max_norm
from rootdiff._verdict import allowed_error, is_deep, unless_random
from rootdiff.solvers._bracket_ends import around, search_bracket, settled_ends, widened

#: Ends further apart than this factor are halved in their exponents: the factor's root is left, after one step.
_APART = 2.0**10
#: Zero, as far as exponents go: a bracket around it is halved so beyond this size, and once it is narrower than this
#: part of the first one. Halving as it is would take a thousand steps.
_FAR, _NEAR_ZERO = 1e20, 2.0**-50


class Bracket(NamedTuple):
    """The newest point a, the point b with the other sign, the point c that a or b replaced; all (*batch, 1).

    `width` is half that of the first bracket, which may be larger than the largest number, `pace` what bisection would
    have left of it. `first_norm` is the largest finite residual at its ends, `moved` the length of the last step,
    `count` the steps, (*batch).
    """

    a: Array
    f_a: Array
    b: Array
    f_b: Array
    c: Array
    f_c: Array
    width: Array
    pace: Array
    moved: Array
    first_norm: Array
    count: Array
    status: Array


@dataclass(frozen=True, kw_only=True)
class BracketSolver(Solver):
    """A solver for one unknown that keeps the root between two points; elementwise over all batch axes.

    A subclass says where in the bracket to look next (`fraction`).
    """

    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int = runtime(500)

    @abstractmethod
    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        """Return the next point as a fraction, (*batch, 1), of the way from a to b."""

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        if y0.shape[-1] != 1:
            raise ArgumentError(
                f"solver: {type(self).__name__} keeps a bracket around one unknown, but a system has {y0.shape[-1]}. "
                "Use root_scalar for unknowns that do not depend on each other, or another solver."
            )
        return self.solve_bracket(residual, *search_bracket(residual, y0))

    def solve_bracket(self, residual: Residual, lo: Array, hi: Array) -> RawSolution:
        """Return the root between `lo` and `hi`, (*batch, 1), with a status per system."""
        xp = residual.xp
        solver = self.resolved(lo.dtype, xp)
        at = _start(xp, residual, lo, hi)

        def body(at: Bracket) -> Bracket:
            new = select(xp, at.status == int(Status.RUNNING), solver._narrowed(residual, at), at)
            if residual.observe is not None:
                norm, moved = max_norm(xp, new.f_a), max_norm(xp, new.a - at.a)
                info = StepInfo(type(self).__name__, new.count, new.a, norm, moved, new.status)
                new = new._replace(status=residual.seen(info))
            return new  # type: ignore[no-any-return]

        first = at
        at = solver._stopped(xp, at)
        at = residual.backend.while_loop(lambda at: xp.any(at.status == int(Status.RUNNING)), body, at)
        y, f = _best(xp, at)
        norm = max_norm(xp, f)
        success = at.status <= int(Status.AT_PRECISION)
        limits, allowed = xp.finfo(y.dtype), solver._allowed(xp, at)
        # a root at zero has no size of its own
        size = xp.where(y == 0, xp.minimum(at.width, xp.ones_like(y)), xp.abs(y))
        least = xp.maximum(limits.eps * size, xp.full_like(y, float(limits.smallest_normal)))
        width = xp.where(f == 0, 0.0, 2 * half_width(xp, at.a, at.b))
        continuous, error = around(residual, first, at, y, f, xp.maximum(least, width), solver.rtol)
        status = xp.where(success & (norm > 0) & ~continuous, int(Status.STALLED), at.status)
        unsettled = (status == int(Status.CONVERGED)) & (error > xp.maximum(allowed, least))[..., 0]
        status = xp.where(unsettled, int(Status.AT_PRECISION), status)
        status = unless_random(residual, y, f, at.first_norm, status)
        return RawSolution(y, status, at.count, norm, error=error)

    def _allowed(self, xp: Any, at: Bracket) -> Array:
        y, f = _best(xp, at)
        deep = is_deep(self, max_norm(xp, f), at.first_norm)
        return allowed_error(xp, self, y, xp.minimum(at.width, xp.ones_like(y)), deep, power=1.0)

    def _stopped(self, xp: Any, at: Bracket) -> Bracket:
        half, exact = half_width(xp, at.a, at.b), (at.f_a == 0) | (at.f_b == 0)
        done = (exact | (half <= 0.5 * self._allowed(xp, at)))[..., 0]
        middle, _ = _middle(xp, at)
        # next to zero the spacing of numbers ends at the smallest normal one
        adjacent = ((middle == at.a) | (middle == at.b) | (half <= 2 * xp.finfo(half.dtype).smallest_normal))[..., 0]
        status = status_where(xp, at.count >= self.max_steps, Status.MAX_STEPS, Status.RUNNING)
        status = xp.where(adjacent, int(Status.AT_PRECISION), status)
        status = xp.where(done, int(Status.CONVERGED), status)
        status = xp.where(at.status == int(Status.RUNNING), status, at.status)
        return at._replace(status=status)

    def _narrowed(self, residual: Residual, at: Bracket) -> Bracket:
        xp = residual.xp
        allowed = self._allowed(xp, at)
        half = half_width(xp, at.a, at.b)
        spacing = xp.finfo(half.dtype).eps * xp.maximum(xp.abs(at.a), xp.abs(at.b))
        shortest = xp.maximum(0.25 * allowed, 0.5 * spacing)
        least = xp.minimum(shortest / xp.where(half > 0, half, 1.0), xp.full_like(half, 0.5))
        t = self.fraction(residual, at, allowed)
        t = xp.where(xp.isfinite(t), t, 0.5)
        t = xp.clip(t, least, 1 - least)  # so that a step from one side crosses a root that it has reached
        middle, apart = _middle(xp, at)
        x = xp.where(apart, middle, _between(xp, at.a, at.b, t))
        f = residual(x)
        same = xp.sign(f) == xp.sign(at.f_a)
        new = at._replace(
            a=x,
            f_a=f,
            b=xp.where(same, at.b, at.a),
            f_b=xp.where(same, at.f_b, at.f_a),
            c=xp.where(same, at.a, at.b),
            f_c=xp.where(same, at.f_a, at.f_b),
            pace=xp.where(apart, half_width(xp, x, xp.where(same, at.b, at.a)), 0.5 * at.pace),
            moved=xp.abs(x - at.a),
            count=at.count + 1,
        )
        lost = at._replace(count=at.count + 1, status=xp.full_like(at.status, int(Status.NONFINITE)))
        return self._stopped(xp, select(xp, ~xp.isnan(f)[..., 0], new, lost))


def half_width(xp: Any, a: Array, b: Array) -> Array:
    """Return half the distance of two points: the whole may be larger than the largest number."""
    return xp.abs(0.5 * b - 0.5 * a)


def _between(xp: Any, a: Array, b: Array, t: Array) -> Array:
    """Return the point at the fraction `t` of the way from a to b."""
    step = t * (0.5 * b - 0.5 * a)
    return xp.where(xp.isfinite(b - a), a + t * (b - a), (a + step) + step)


def _middle(xp: Any, at: Bracket) -> tuple[Array, Array]:
    """Return the middle of a bracket, and whether it is one of exponents, because the ends are so far apart.

    Of ends of one sign this is the geometric mean. Zero counts as the smallest number; a bracket around it is divided
    there first.
    """
    a, b = at.a, at.b
    tiny = xp.finfo(a.dtype).smallest_normal
    one, other = xp.abs(a), xp.abs(b)
    larger, smaller = xp.maximum(one, other), xp.minimum(one, other)
    across = xp.sign(a) * xp.sign(b) <= 0
    small = xp.where(across, tiny, smaller)
    apart = larger * (1 / _APART) > small
    apart = apart & (~across | (larger > _FAR) | (larger < _NEAR_ZERO * at.width))
    mean = xp.sign(xp.where(one > other, a, b)) * (xp.sqrt(small) * xp.sqrt(larger))
    mean = xp.where(across & (smaller > 0), 0.0, mean)
    return xp.where(apart, mean, _between(xp, a, b, xp.full_like(a, 0.5))), apart


def _best(xp: Any, at: Bracket) -> tuple[Array, Array]:
    """Return the end with the smaller residual, and that; a NaN is larger than any number."""
    nearer = (xp.abs(at.f_a) <= xp.abs(at.f_b)) | xp.isnan(at.f_b) & ~xp.isnan(at.a)
    return xp.where(nearer, at.a, at.b), xp.where(nearer, at.f_a, at.f_b)


def _start(xp: Any, residual: Residual, lo: Array, hi: Array) -> Bracket:
    (lo, f_lo, hi, f_hi), valid = settled_ends(residual, lo, hi)
    unknown = xp.isnan(lo) | xp.isnan(hi) | xp.isnan(f_lo) | xp.isnan(f_hi)
    status = status_where(xp, unknown[..., 0], Status.NONFINITE_START, Status.INVALID_BRACKET)
    status = xp.where(valid, int(Status.RUNNING), status)
    first = max_norm(xp, xp.concat([xp.where(xp.isfinite(f), f, 0.0) for f in (f_lo, f_hi)], axis=-1))
    count = xp.zeros_like(first, dtype=xp.int32)
    width = half_width(xp, lo, hi)
    return Bracket(lo, f_lo, hi, f_hi, hi, f_hi, width, width, 2 * width, first, count, status)


@dataclass(frozen=True, kw_only=True)
class InBracket(BracketSolver):
    """A bracket solver together with the bracket of a solve; `root_scalar` makes it.

    Parameters
    ----------
    solver : BracketSolver
    lo, hi : array, (*batch). The bracket, of any order; an infinite end is searched for.
    """

    solver: BracketSolver
    lo: Any = field(metadata={"runtime": True})
    hi: Any = field(metadata={"runtime": True})

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        return self.solver.fraction(residual, at, allowed)

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        xp = residual.xp
        lo, hi = (xp.zeros_like(y0) + end[..., None] for end in (self.lo, self.hi))
        return named(self.solver.solve_bracket(residual, *widened(residual, lo, hi)), self.solver)
