"""Roots of one equation in one unknown, elementwise, between two points where the signs differ."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._iterate import IterativeSolver, StepInfo, select
from rootdiff._judge import tolerance
from rootdiff._norms import max_norm
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status

#: Doublings of the distance from the start in the search for a bracket: to 2^60 times the first one.
_MAX_DOUBLINGS = 60
#: This many widths beyond the bracket, f has at a root of any order (to the ninth root at least) changed by more than a
#: tenth of its change inside; next to a simple pole it has fallen to less than a thirtieth.
_BEYOND, _STEEPER = 16.0, 10.0


class Bracket(NamedTuple):
    """The newest point a, the point b with the other sign, the point c that a or b replaced; all (*batch, 1).

    `width` is that of the first bracket, `moved` the length of the last step, `count` the steps, (*batch).
    """

    a: Array
    f_a: Array
    b: Array
    f_b: Array
    c: Array
    f_c: Array
    width: Array
    moved: Array
    first_norm: Array
    count: Array
    status: Array


@dataclass(frozen=True, kw_only=True)
class BracketSolver(IterativeSolver):
    """A solver for one unknown that keeps the root between two points; elementwise over all batch axes.

    A subclass says where in the bracket to look next (`fraction`).
    """

    patience: ClassVar[int] = 0  # brackets always shrink

    @abstractmethod
    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        """Return the next point as a fraction, (*batch, 1), of the way from a to b."""

    def init(self, residual: Residual, y: Array) -> Any:
        raise NotImplementedError("BracketSolver: it runs its own loop.")

    def step(self, residual: Residual, state: Any) -> Any:
        raise NotImplementedError("BracketSolver: it runs its own loop.")

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        if y0.shape[-1] != 1:
            raise ArgumentError(
                f"solver: {type(self).__name__} keeps a bracket around one unknown, but a system has {y0.shape[-1]}. "
                "Use root_scalar for unknowns that do not depend on each other, or another solver."
            )
        return self.solve_bracket(residual, *search_bracket(residual, y0))

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        return self.solve(residual, y0)

    def solve_bracket(self, residual: Residual, lo: Array, hi: Array) -> RawSolution:
        """Return the root between `lo` and `hi`, (*batch, 1), with a status per system."""
        xp = residual.xp
        solver = self.resolved(lo.dtype, xp)
        at = _start(xp, residual, lo, hi)

        def body(at: Bracket) -> Bracket:
            new = select(xp, at.status == int(Status.RUNNING), solver._narrowed(residual, at), at)
            if residual.observe is not None:
                norm, moved = max_norm(xp, new.f_a), max_norm(xp, new.a - at.a)
                residual.observe(StepInfo(type(self).__name__, new.count, new.a, norm, moved, new.status))
            return new  # type: ignore[no-any-return]

        at = solver._stopped(xp, at)
        at = residual.backend.while_loop(lambda at: xp.any(at.status == int(Status.RUNNING)), body, at)
        nearer = xp.abs(at.f_a) <= xp.abs(at.f_b)
        y, f = xp.where(nearer, at.a, at.b), xp.where(nearer, at.f_a, at.f_b)
        norm = max_norm(xp, f)
        found = (at.status == int(Status.CONVERGED)) & (norm > 0)
        status = xp.where(found & ~_continuous(residual, at, solver.rtol), int(Status.STALLED), at.status)
        return RawSolution(y, xp.astype(status, xp.int32), at.count, norm, error=xp.abs(at.b - at.a))

    def _allowed(self, xp: Any, at: Bracket) -> Array:
        nearer = xp.abs(at.f_a) <= xp.abs(at.f_b)
        y, norm = xp.where(nearer, at.a, at.b), max_norm(xp, xp.where(nearer, at.f_a, at.f_b))
        allowed = tolerance(xp, self.rtol, self.atol, y, norm, at.first_norm)
        return xp.maximum(allowed, 4 * xp.finfo(y.dtype).eps * xp.abs(y))

    def _stopped(self, xp: Any, at: Bracket) -> Bracket:
        width, exact = xp.abs(at.b - at.a), (at.f_a == 0) | (at.f_b == 0)
        # next to zero the spacing of numbers ends at the smallest normal one
        done = (exact | (width <= self._allowed(xp, at)) | (width <= 4 * xp.finfo(width.dtype).tiny))[..., 0]
        status = xp.where(at.count >= self.max_steps, int(Status.MAX_STEPS), int(Status.RUNNING))
        status = xp.where(done, int(Status.CONVERGED), status)
        status = xp.where(at.status == int(Status.RUNNING), status, at.status)
        return at._replace(status=xp.astype(status, xp.int32))

    def _narrowed(self, residual: Residual, at: Bracket) -> Bracket:
        xp = residual.xp
        allowed = self._allowed(xp, at)
        width = xp.abs(at.b - at.a)
        least = xp.minimum(0.5 * allowed / xp.where(width > 0, width, 1.0), xp.full_like(width, 0.5))
        t = self.fraction(residual, at, allowed)
        t = xp.where(xp.isfinite(t), t, 0.5)
        t = xp.clip(t, least, 1 - least)  # so that a step from one side crosses a root that it has reached
        x = at.a + t * (at.b - at.a)
        f = residual(x)
        same = xp.sign(f) == xp.sign(at.f_a)
        new = at._replace(
            a=x,
            f_a=f,
            b=xp.where(same, at.b, at.a),
            f_b=xp.where(same, at.f_b, at.f_a),
            c=xp.where(same, at.a, at.b),
            f_c=xp.where(same, at.f_a, at.f_b),
            moved=xp.abs(x - at.a),
            count=at.count + 1,
        )
        finite = xp.isfinite(f)[..., 0]
        lost = at._replace(count=at.count + 1, status=xp.full_like(at.status, int(Status.NONFINITE)))
        return self._stopped(xp, select_all(xp, finite, new, lost))


def select_all(xp: Any, mask: Array, new: Bracket, old: Bracket) -> Bracket:
    """Return `new` where `mask`, (*batch), holds, else `old`; for a single system too."""
    pairs = zip(new, old, strict=True)
    return Bracket(*[xp.where(mask[..., None] if a.ndim > mask.ndim else mask, a, b) for a, b in pairs])


def _start(xp: Any, residual: Residual, lo: Array, hi: Array) -> Bracket:
    f_lo, f_hi = residual(lo), residual(hi)
    valid = (xp.sign(f_lo) * xp.sign(f_hi) <= 0)[..., 0]  # NaN: invalid; infinite ends have a sign and will do
    status = xp.where(valid, int(Status.RUNNING), int(Status.INVALID_BRACKET))
    first = xp.maximum(max_norm(xp, f_lo), max_norm(xp, f_hi))
    count = xp.zeros_like(first, dtype=xp.int32)
    width = xp.abs(hi - lo)
    return Bracket(lo, f_lo, hi, f_hi, hi, f_hi, width, width, first, count, xp.astype(status, xp.int32))


def _continuous(residual: Residual, at: Bracket, rtol: Any) -> Array:
    """Return whether f behaves across the final bracket as next to it, unlike at a pole or a jump.

    At a jump f hardly changes beyond the bracket, at a pole it is small there.
    """
    xp = residual.xp
    step = _BEYOND * (at.b - at.a)
    largest = xp.where(xp.isfinite(at.first_norm), at.first_norm, 0.0)[..., None]
    beside, known = xp.zeros_like(at.a), xp.zeros_like(at.a) > 0
    for point, inside in ((at.a - step, at.f_a), (at.b + step, at.f_b)):
        f = residual(point)
        usable = xp.isfinite(f)
        beside = beside + xp.where(usable, xp.minimum(xp.abs(f - inside), xp.abs(f)), 0.0)
        known = known | usable
    return (~known | (xp.abs(at.f_b - at.f_a) <= _STEEPER * beside + rtol * largest))[..., 0]


def search_bracket(residual: Residual, y0: Array) -> tuple[Array, Array]:
    """Return two points around (or beside) `y0`, (*batch, 1), where the signs of f differ, if there are."""
    xp = residual.xp
    f0 = residual(y0)
    reach = 0.1 * xp.where(y0 == 0, xp.ones_like(y0), xp.abs(y0))

    def look(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        inner, outer, f_inner, f_outer, reach, found, count = carry
        # one step further on both sides: the lower end (index 0 of the last axis) and the upper one
        ends = xp.concat([outer[..., :1] - reach[..., :1], outer[..., 1:] + reach[..., 1:]], axis=-1)
        f = xp.concat([residual(ends[..., :1]), residual(ends[..., 1:])], axis=-1)
        finite = xp.isfinite(f)
        crossed = finite & (xp.sign(f) * xp.sign(f_outer) <= 0)
        # where f has no value the edge of its domain is near: shorter steps
        new = (xp.where(finite, outer, inner), xp.where(finite, ends, outer))
        new_f = (xp.where(finite, f_outer, f_inner), xp.where(finite, f, f_outer))
        frozen = found[..., None]
        return (
            xp.where(frozen, inner, new[0]),
            xp.where(frozen, outer, new[1]),
            xp.where(frozen, f_inner, new_f[0]),
            xp.where(frozen, f_outer, new_f[1]),
            xp.where(frozen, reach, xp.where(finite, 2 * reach, 0.25 * reach)),
            found | xp.any(crossed, axis=-1),
            count + 1,
        )

    both, f_both = xp.concat([y0, y0], axis=-1), xp.concat([f0, f0], axis=-1)
    hopeless = ~xp.isfinite(f0)[..., 0] | (f0 == 0)[..., 0]
    start = (
        both,
        both,
        f_both,
        f_both,
        xp.concat([reach, reach], axis=-1),
        hopeless,
        xp.zeros_like(f0[..., 0], dtype=xp.int32),
    )
    inner, outer, f_inner, f_outer, *_ = residual.backend.while_loop(
        lambda carry: xp.any(~carry[5]) & xp.all(carry[6] < _MAX_DOUBLINGS), look, start
    )
    lower = (xp.sign(f_inner) * xp.sign(f_outer) <= 0)[..., :1]
    lo = xp.where(lower, outer[..., :1], inner[..., 1:])
    return lo, xp.where(lower, inner[..., :1], outer[..., 1:])


@dataclass(frozen=True, kw_only=True)
class InBracket(BracketSolver):
    """A bracket solver together with the bracket of a solve; `root_scalar` makes it.

    Parameters
    ----------
    solver : BracketSolver
    lo, hi : array, (*batch). The bracket, of any order.
    """

    solver: BracketSolver
    lo: Any
    hi: Any

    runtime = ("lo", "hi")

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        return self.solver.fraction(residual, at, allowed)

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        xp = residual.xp
        lo, hi = (xp.zeros_like(y0) + end[..., None] for end in (self.lo, self.hi))
        return self.solver.solve_bracket(residual, lo, hi)
