"""The implicit function theorem, once: two derivatives, each by one linear solve.

f(y, args) = 0   gives   dy/dargs = - (df/dy)^-1 (df/dargs)

Failures, unless they are ignored, stay with their system. A tangent of y is NaN there. In reverse mode the cotangent
of the residual, u, is NaN there, and `pullback` gives NaN to those entries of a parameter that only systems without a
root depend on; entries that others share are the sum over these. A system that has a root, but whose linear solve
failed, gives NaN to all that it depends on: the sum would lack it. A failed system whose cotangent is zero takes no
part: it was masked out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._failure import GOES_ON, report_adjoint
from rootdiff._inverse import Inverse
from rootdiff._operator import LinearOperator, by_entries
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import Status
from rootdiff._space import every, is_beyond_rounding, max_norm, norm2, numbers, per_system, signs, some, weights
from rootdiff._sparse import Sparse
from rootdiff.linear import LinearInfo, LinearSolver
from rootdiff.linear._contract import SINGULAR_AT, checked

#: Relative change of a derivative by the errors of differences, from which these are taken more finely.
_FINE = 1e-6


def vjps(
    residual: Residual,
    adjoint: LinearSolver,
    y: Array,
    cotangents: Sequence[Array],
    factors: Inverse | None = None,
    on_failure: str = "raise",
    failed: Array | None = None,
    error: Array | None = None,
) -> list[tuple[Array, ...]]:
    """Return ``w^T dy/dargs``, one array per parameter, of each cotangent w: solve J^T u = w, then -u^T (df/dargs).

    The rest is as for `solver`; what is measured is so once for all of them.
    """
    xp = residual.xp
    y = regular_point(xp, y, failed)
    solution = solver(lambda y: residual.operator(y).T, adjoint.starting_from(factors), y, on_failure, failed, error)
    found = [solution(w) for w in cotangents]
    if on_failure not in GOES_ON:
        idle = [every(xp, w == 0)[..., None] for w in cotangents]
        found = [xp.where(none, xp.zeros_like(u), u) for none, u in zip(idle, found, strict=True)]
        if any(bool(xp.any(xp.isnan(u))) for u in found):
            return [pullback(residual, y, u, failed) for u in found]
    return residual.parameter_vjps(y, *(-u for u in found))


def jvps(
    residual: Residual,
    adjoint: LinearSolver,
    y: Array,
    tangents: Sequence[tuple[Array, ...]],
    factors: Inverse | None = None,
    on_failure: str = "raise",
    failed: Array | None = None,
    error: Array | None = None,
) -> list[Array]:
    """Return ``(dy/dargs) v`` of each v, one tangent per parameter: solve J t = (df/dargs) v, then -t; as `vjps`."""
    y = regular_point(residual.xp, y, failed)
    solution = solver(residual.operator, adjoint.starting_from(factors), y, on_failure, failed, error)
    return [-solution(residual.parameter_jvp(y, each)) for each in tangents]


def solver(
    operator_at: Callable[[Array], LinearOperator],
    adjoint: LinearSolver,
    y: Array,
    on_failure: str,
    failed: Array | None = None,
    error: Array | None = None,
) -> Callable[[Array], Array]:
    """Return what solves with the operator at `y` for one right-hand side, (*batch, n), after the other.

    All of them share the operator and what a solve has learnt of its inverse.

    Parameters
    ----------
    adjoint : LinearSolver
        Starting from what the solver knows of the inverse of df/dy.
    failed : boolean array, (*batch), optional
        Systems whose `y` is no root.
    error : array, (*batch, n), optional
        Estimate of the error of `y`.
    """
    operator, once = operator_at(y), dict[None, LinearOperator]()

    def at_one_point(point: Array) -> LinearOperator:
        return once.get(None) or once.setdefault(None, operator_at(point))

    beside = None if error is None else Beside(y, error, at_one_point)

    def solution(rhs: Array) -> Array:
        nonlocal adjoint
        x, info = solve(operator, adjoint, rhs, on_failure, failed, beside)
        adjoint = adjoint.starting_from(info.factors)
        return x

    return solution


class Beside(NamedTuple):
    """The root, (*batch, n), an estimate of its error, and what returns the operator of the rule at another point."""

    y: Array
    error: Array
    operator: Callable[[Array], LinearOperator]

    def point(self, xp: Any) -> Array:
        """Return a point the error away, (*batch, n)."""
        error = xp.where(xp.isfinite(self.error), self.error, xp.zeros_like(self.y))
        # of several sizes and signs: moved as one, unknowns would leave a function of their differences as it is
        return self.y + error * weights(xp, self.y, per_system(xp, self.y, 0, xp.int32) + 1)

    def is_far(self, xp: Any) -> Array:
        """Return where that may have another matrix, (*batch).

        A step towards a double root is as long as its error, within the default tolerance eps^(3/4) at the end; towards
        a simple root it is far shorter, and no matrix changes.
        """
        return is_beyond_rounding(xp, self.error, self.y)


def solve(
    operator: LinearOperator,
    adjoint: LinearSolver,
    rhs: Array,
    on_failure: str,
    failed: Array | None = None,
    beside: Beside | None = None,
) -> tuple[Array, LinearInfo]:
    """Solve a linear system of the rule, checked; a failed one is reported and becomes NaN, unless it goes on.

    "approximate" makes it zero: one system must not end the training of what all share.
    Systems in `failed` have been reported before; they become NaN as well. With `beside` a system whose matrix changes
    within the error of the root is singular: so it is at a multiple root, which is known to half the digits.
    """
    xp = operator.backend.xp
    operator, x, info = resolved(operator, adjoint, rhs)
    if on_failure == "approximate":
        x = xp.where((info.status > int(Status.AT_PRECISION))[..., None], xp.zeros_like(x), x)
    if beside is not None and adjoint.exact:
        lost = (info.status <= int(Status.AT_PRECISION)) & _wavers(operator, beside, x, rhs, info.factors)
        info = info._replace(status=xp.astype(xp.where(lost, int(Status.SINGULAR), info.status), xp.int32))
    rough = operator.precision > float(xp.finfo(rhs.dtype).eps)
    some = operator.backend.traced or report_adjoint(operator.backend, info, on_failure, adjoint, failed, rough)
    if on_failure not in GOES_ON and (some or failed is not None):
        wrong = info.status > int(Status.AT_PRECISION)
        x = xp.where((wrong if failed is None else wrong | failed)[..., None], xp.full_like(x, xp.nan), x)
    return x, info


def resolved(operator: LinearOperator, adjoint: LinearSolver, rhs: Array) -> tuple[LinearOperator, Array, LinearInfo]:
    """Return the operator of which a system is solved, its solution and how it went, checked.

    Where derivatives are differences and the matrix magnifies their errors, they are taken more finely.
    """
    entries = adjoint.direct and has_few_unknowns(rhs.shape) and not isinstance(operator.original, Sparse)
    operator = by_entries(operator) if entries else operator
    x, info = checked(operator, adjoint, rhs)
    finer = operator.original.finer
    if finer is None or info.change is None or bool(operator.backend.xp.all(info.change <= _FINE)):
        return operator, x, info
    return resolved(finer().T if operator.transposed else finer(), adjoint.starting_from(info.factors), rhs)


def _wavers(operator: LinearOperator, beside: Beside, x: Array, rhs: Array, inverse: Inverse | None) -> Array:
    """Return whether, a root's error away from it, another `x` would solve the system, (*batch)."""
    xp = operator.backend.xp
    open_ = beside.is_far(xp)

    def look(x: Array) -> Array:
        changed = beside.operator(beside.point(xp)).matvec(x) - rhs
        if inverse is None:
            return open_ & ~(norm2(xp, changed) <= SINGULAR_AT * norm2(xp, rhs))
        other = operator.inverted_by(inverse)(changed)
        return open_ & ~(max_norm(xp, other) <= SINGULAR_AT * max_norm(xp, x))

    nowhere = per_system(xp, x, False, xp.bool)
    return operator.backend.when(xp.any(open_), look, (x,), nowhere)


def pullback(residual: Residual, y: Array, u: Array, failed: Array | None) -> tuple[Array, ...]:
    """Return ``-u^T (df/dargs)``, where systems have no derivative whose `u` is NaN, and no root where they `failed`.

    Where values are traced, nothing can branch on them, and NaN reaches the shared entries too.
    """
    xp, backend = residual.xp, residual.backend
    if backend.traced or not bool(xp.any(xp.isnan(u))):
        return residual.parameter_vjp(y, -u)
    failed = per_system(xp, u, False, xp.bool) if failed is None else failed
    found, missing = pullback_of_good(residual, y, u, failed)
    return tuple(xp.where(no, xp.full_like(g, xp.nan), g) for g, no in zip(found, missing, strict=True))


def pullback_of_good(
    residual: Residual, y: Array, u: Array, failed: Array
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the sums over the good systems, and which entries of them `pullback` makes NaN.

    Nothing branches on values.
    """
    xp = residual.xp
    wrong, rootless = some(xp, xp.isnan(u))[..., None], failed[..., None]
    # which entries hang on which systems: the derivative along a direction of no special value is zero, or is not
    direction, zeros = signs(xp, u, 6) * xp.cos(numbers(xp, u)), xp.zeros_like(u)
    # at a multiple root it may be zero, but not beside it
    beside = y + float(xp.finfo(y.dtype).eps) ** 0.25 * direction * xp.where(y == 0, xp.ones_like(y), xp.abs(y))
    good, failing, found = residual.parameter_vjps(
        y, xp.where(wrong, zeros, direction), xp.where(wrong & rootless, direction, zeros), xp.where(wrong, zeros, -u)
    )
    lost = residual.parameter_vjp(beside, xp.where(wrong & ~rootless, direction, zeros))
    missing = tuple((c != 0) | ((b != 0) & (a == 0)) for a, b, c in zip(good, failing, lost, strict=True))
    return found, missing


def regular_point(xp: Any, y: Array, failed: Array | None) -> Array:
    """Return `y`, (*batch, n), with a good system's values where the system failed, so that derivatives are finite.

    A derivative at a point that is no root is not used; but zero times one that is not finite would be NaN.
    """
    if failed is None or failed.ndim == 0:
        return y
    flat, good = xp.reshape(y, (-1, y.shape[-1])), xp.reshape(~failed, (-1,))
    place = xp.argmax(xp.astype(good, xp.int32), axis=0)
    return xp.where(failed[..., None], xp.take(flat, xp.reshape(place, (1,)), axis=0)[0], y)
