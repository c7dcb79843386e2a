"""The contract of every linear solve of a derivative: what counts as solved, checked by products.

A solution is accepted if ``norm(A x - b) <= tolerance * norm(b)``. Where x is so large that rounding in A x alone
exceeds that, it is also accepted (`Status.AT_PRECISION`) if its backward error is a few roundings: if it solves a
system whose entries differ from the given ones by no more than their own accuracy (Rigal & Gaches 1967). No solver
can do better then; how far the solution may be off is a matter of the condition, for which see `SINGULAR_AT`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rootdiff._backend import Array
from rootdiff._norms import max_norm, norm2
from rootdiff._residual import LinearOperator
from rootdiff._solution import Status
from rootdiff.linear._base import MARGIN, LinearInfo, LinearSolver, relative_size
from rootdiff.linear._condition import row_sizes, skeel_condition

#: Relative error of the solution that changes of A within its accuracy bring about, from which A counts as singular.
SINGULAR_AT = 0.1
#: One solve with a random-like right-hand side underestimates that error a hundredfold only when very unlucky.
SCREEN_AT = SINGULAR_AT / 100


def checked(operator: LinearOperator, solver: LinearSolver, rhs: Array) -> tuple[Array, LinearInfo]:
    """Return the solution by `solver`, refined where its inverse is at hand, and how it went, judged by `judge`.

    References
    ----------
    Skeel (1980), "Iterative refinement implies numerical stability for Gaussian elimination": partial pivoting alone
    leaves rows of other units with errors of the largest one.
    """
    x, info = solver.solve(operator, rhs)
    if info.factors is None or info.relative_residual is not None or x.shape[-1] == 1:
        return x, judge(operator, solver, x, rhs, info)
    x, moved = _refined(replace(operator, factors=info.factors), x, rhs)
    return x, judge(operator, solver, x, rhs, info, ~(moved <= SCREEN_AT))


def _refined(operator: LinearOperator, x: Array, rhs: Array) -> tuple[Array, Array]:
    """Return x after one step of refinement, in the systems in which that solves every row as well or better.

    And the relative size of the step, (*batch): its right-hand side is of roundings, which a singular matrix amplifies.
    """
    xp = operator.backend.xp
    residual = rhs - operator.matvec(x)
    step = operator.approximate_inverse(residual)
    new = x + step
    sizes = row_sizes(operator, new, rhs)
    before, after = (_by_row(xp, rows, sizes) for rows in (residual, rhs - operator.matvec(new)))
    return xp.where((after <= before)[..., None], new, x), relative_size(xp, max_norm(xp, step), max_norm(xp, x))


def judge(
    operator: LinearOperator,
    solver: LinearSolver,
    x: Array,
    rhs: Array,
    info: LinearInfo,
    suspicious: Array | None = None,
) -> LinearInfo:
    """Return what is known of a solve, with a status that one product has checked and a relative residual.

    In `suspicious` systems, (*batch), the matrix may be singular, whatever the first look at its condition says.
    An approximate solver is only asked for a finite result; its relative residual is NaN: not computed.
    """
    xp = operator.backend.xp
    finite = xp.all(xp.isfinite(x), axis=-1)
    if not solver.exact:
        status = xp.where((info.status <= int(Status.AT_PRECISION)) & ~finite, int(Status.NONFINITE), info.status)
        unknown = xp.full_like(x[..., 0], xp.nan)
        return info._replace(status=xp.astype(status, xp.int32), relative_residual=unknown)
    residual = rhs - operator.matvec(x)
    size, norm = norm2(xp, rhs), norm2(xp, residual)
    relative = relative_size(xp, norm, size)
    failure = xp.where(info.status <= int(Status.AT_PRECISION), int(Status.STALLED), info.status)
    if info.factors is not None:
        sizes = row_sizes(operator, xp.where(finite[..., None], x, xp.ones_like(x)), rhs)
        inverse = replace(operator, factors=info.factors)
        known = xp.all(xp.isfinite(sizes), axis=-1)
        condition = skeel_condition(inverse, x, sizes, SCREEN_AT / operator.precision, suspicious)
        singular = ~finite | ~(operator.precision * condition < SINGULAR_AT)
        # the sizes are root sums of squares: sums of absolute values are up to sqrt(n) larger
        largest = x.shape[-1] ** 0.5 * sizes
        by_row = _by_row(xp, residual, largest) <= MARGIN * operator.precision
        stable = _small(operator, norm, largest, size) | by_row
        failure = xp.where(known, xp.where(singular, int(Status.SINGULAR), failure), int(Status.NONFINITE))
        solved, stable = (norm <= solver.tolerance(operator) * size) & ~singular, stable & ~singular
    else:
        # a solver made of others may know that one of them found a singular matrix, even if some x solves the system
        regular = info.status != int(Status.SINGULAR)
        solved = (norm <= solver.tolerance(operator) * size) & regular
        stable = backward_stable(operator, x, rhs, norm, size, ~solved) & regular
    if info.rank is not None:
        failure = xp.where(finite & (info.rank < x.shape[-1]), int(Status.SINGULAR), failure)
    status = xp.where(stable, int(Status.AT_PRECISION), failure)
    status = xp.where(solved, int(Status.CONVERGED), status)
    status = xp.where(xp.isfinite(size), status, int(Status.NONFINITE))
    return info._replace(status=xp.astype(status, xp.int32), relative_residual=relative)


def backward_stable(
    operator: LinearOperator, x: Array, rhs: Array, norm: Array, size: Array, asked: Array | bool = True
) -> Array:
    """Return whether a residual of this norm, (*batch), is one that the accuracy of A and b, of norm `size`, explains.

    The product that this takes is made only if, in a system that is `asked` for, the residual is not small against b.
    """
    xp = operator.backend.xp
    open_ = ~(norm <= MARGIN * operator.precision * size)

    def weigh(x: Array) -> Array:
        return ~open_ | _small(operator, norm, row_sizes(operator, x, rhs), size)

    return operator.backend.when(xp.any(open_ & asked), weigh, (x,), ~open_)


def _by_row(xp: Any, residual: Array, sizes: Array) -> Array:
    """Return the largest part, (*batch), that the residual is of the size of its row (Oettli & Prager 1964)."""
    return max_norm(xp, residual / xp.where(sizes > 0, sizes, xp.ones_like(sizes)))


def _small(operator: LinearOperator, norm: Array, sizes: Array, size: Array) -> Array:
    xp = operator.backend.xp
    # a residual nearly as large as b is that of x = 0: no solution, however large x may be
    bound = xp.minimum(MARGIN * operator.precision * norm2(xp, sizes), 0.1 * size)
    return norm <= bound
