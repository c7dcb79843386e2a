"""The contract of every linear solve of a derivative: what counts as solved, checked by products.

A solution is accepted if ``norm(A x - b) <= tolerance * norm(b)``. Where x is so large that rounding in A x alone
exceeds that, it is also accepted (`Status.AT_PRECISION`) if its backward error is a few roundings: if it solves a
system whose entries differ from the given ones by no more than their own accuracy (Rigal & Gaches 1967). No solver
can do better then; how far the solution may be off is a matter of the condition, for which see `SINGULAR_AT`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdiff._backend import Array, status_where
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Inverse
from rootdiff._operator import Dense, LinearOperator
from rootdiff._settings import is_ours
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import Status
from rootdiff._space import every, is_finite, max_norm, norm2, per_system, some, weights
from rootdiff.linear._base import MARGIN, LinearFunction, LinearInfo, LinearSolver, relative_size
from rootdiff.linear._condition import FLIPS, flipped, row_sizes, skeel_condition

#: Relative error of the solution that changes of A within its accuracy bring about, from which A counts as singular.
SINGULAR_AT = 0.1
#: One solve with a random-like right-hand side underestimates that error a hundredfold only when very unlucky.
SCREEN_AT = SINGULAR_AT / 100
#: A step of refinement longer than this part of x is none: it would take many, of a matrix that is nearly singular.
_SHORT = 0.5


class _Solved(NamedTuple):
    """A solution with its residual ``b - A x`` and, where the inverse is at hand, the sizes of the terms of each row.

    Without a residual, the relative one that the solver has computed is taken. In `suspicious` systems, (*batch), the
    matrix may be singular, whatever the first look at its condition says.
    """

    x: Array
    residual: Array | None = None
    sizes: Array | None = None
    suspicious: Array | None = None


def checked(operator: LinearOperator, solver: LinearSolver, rhs: Array) -> tuple[Array, LinearInfo]:
    """Return the solution by `solver`, refined where its inverse is at hand, and how it went.

    The status is one that a product has checked, whatever the solver says. An approximate solver is only asked for a
    finite result; its relative residual is NaN: not computed.
    """
    x, info = answered(operator, solver, rhs, "adjoint")
    if not solver.exact:
        xp = operator.backend.xp
        status = xp.where(
            (info.status <= int(Status.AT_PRECISION)) & ~is_finite(xp, x), int(Status.NONFINITE), info.status
        )
        return x, info._replace(status=xp.astype(status, xp.int32), relative_residual=per_system(xp, x, xp.nan))
    if info.factors is None and info.relative_residual is not None and is_tested(solver):
        return x, _judged(operator, solver, _Solved(x), rhs, info)
    solved = _Solved(x, rhs - operator.matvec(x))
    if info.factors is not None:
        solved = _refined(operator, info.factors, solved, rhs, info.relative_residual is None)
    return solved.x, _judged(operator, solver, solved, rhs, info)


def answered(operator: LinearOperator, solver: LinearSolver, rhs: Array, role: str) -> tuple[Array, LinearInfo]:
    """Return what a solver, the argument `role`, returns, once its types and shapes are those of the protocol.

    Where it raises an error of numerics (a ``LinAlgError`` of any library, an ``ArithmeticError``), all its systems
    have failed: the solutions are NaN.
    """
    try:
        found = solver.solve(operator, rhs)
    except Exception as error:
        names = {kind.__name__ for kind in type(error).__mro__}  # the frameworks have a `LinAlgError` each
        if not isinstance(error, ArithmeticError) and names.isdisjoint({"LinAlgError", "_LinAlgError"}):
            raise
        xp = operator.backend.xp
        finite = every(xp, xp.isfinite(rhs) & xp.isfinite(operator.matvec(rhs)))
        found = xp.full_like(rhs, xp.nan), LinearInfo(status_where(xp, finite, Status.SINGULAR, Status.NONFINITE))
    if not isinstance(found, tuple) or len(found) != 2:
        raise ArgumentError(
            f"{role}: {solver} returned {type(found).__name__}. It must return a tuple of the solution, an array "
            "(*batch, n), and a LinearInfo."
        )
    x, info = found
    _check_shapes(operator, solver, x, rhs, info, role)
    return x, info


def is_tested(solver: LinearSolver) -> bool:
    """Return whether a solver is one of this library, not a user's, so that what it returns need not be checked."""
    return is_ours(type(solver)) and not isinstance(solver, LinearFunction)


def _check_shapes(operator: LinearOperator, solver: LinearSolver, x: Any, rhs: Array, info: Any, role: str) -> None:
    """Raise `ArgumentError` where a solver returns something else than a solution per right-hand side and its info."""
    is_array, shape = operator.backend.is_array, tuple(rhs.shape)
    if not is_array(x) or tuple(x.shape) != shape:
        found = f"shape {tuple(x.shape)}" if is_array(x) else type(x).__name__
        raise ArgumentError(
            f"{role}: {solver} returned {found} for right-hand sides of shape {shape}. It must return an array of "
            "that shape, (*batch, n): one solution for each of them."
        )
    if not isinstance(info, LinearInfo) or not is_array(info.status) or tuple(info.status.shape) != shape[:-1]:
        status = getattr(info, "status", info)
        found = f"a status of shape {tuple(status.shape)}" if is_array(status) else f"{status!r}"
        raise ArgumentError(
            f"{role}: {solver} returned {found}. With its solution it must return a LinearInfo whose status is an "
            f"integer array of shape {shape[:-1]}, (*batch)."
        )


def _refined(operator: LinearOperator, inverse: Inverse, solved: _Solved, rhs: Array, wanted: bool) -> _Solved:
    """Return the solution after one step of refinement, in the systems in which the step is short.

    Not where it is not `wanted`, because the solver has refined it, or not needed, for one unknown. Without it partial
    pivoting leaves rows of other units with errors of the largest one (Skeel 1980). The right-hand side of the step
    consists of roundings: a long step makes a matrix suspicious, since a singular one amplifies them.
    """
    xp = operator.backend.xp
    x, residual, moved = solved.x, solved.residual, None
    if wanted and x.shape[-1] > 1:
        step = operator.inverted_by(inverse)(residual)
        moved = relative_size(xp, max_norm(xp, step), max_norm(xp, x))
        x = xp.where((moved <= _SHORT)[..., None], x + step, x)
        residual = rhs - operator.matvec(x)
    finite = is_finite(xp, x)[..., None]
    sizes = row_sizes(operator, xp.where(finite, x, xp.ones_like(x)), rhs)
    return _Solved(x, residual, sizes, None if moved is None else ~(moved <= SCREEN_AT))


def _judged(
    operator: LinearOperator, solver: LinearSolver, solved: _Solved, rhs: Array, info: LinearInfo
) -> LinearInfo:
    """Return what is known of a solve, with a status and a relative residual that are those of its residual."""
    xp, x, sizes = operator.backend.xp, solved.x, solved.sizes
    finite = is_finite(xp, x)
    size = norm2(xp, rhs)
    if solved.residual is None:
        norm = info.relative_residual * xp.where(size > 0, size, xp.ones_like(size))
    else:
        norm = norm2(xp, solved.residual)
    failure = xp.where(info.status <= int(Status.AT_PRECISION), int(Status.STALLED), info.status)
    within = norm <= solver.tolerance(operator) * size
    if sizes is None:
        # a solver made of others may know that one of them found a singular matrix, even if some x solves the system
        regular = info.status != int(Status.SINGULAR)
        stable, known = backward_stable(operator, x, rhs, norm, size, ~within), xp.isfinite(size)
    else:
        assert info.factors is not None
        screen = SCREEN_AT / operator.precision
        condition = skeel_condition(operator, info.factors, x, sizes, screen, solved.suspicious)
        regular = finite & (operator.precision * condition < SINGULAR_AT)
        errors = operator.original.error_sizes(x, operator.transposed)
        if errors is not None:
            change = _change(operator, info.factors, x, errors)
            regular, info = regular & (change < SINGULAR_AT), info._replace(change=change)
        # the sizes are root sums of squares: sums of absolute values are up to sqrt(n) larger
        largest = x.shape[-1] ** 0.5 * sizes
        stable = within | _small(operator, norm, largest, size)
        stable = _stable_by_row(operator, solved, rhs, largest, ~stable) | stable
        known = is_finite(xp, sizes) & xp.isfinite(size)
    if info.rank is not None:
        failure = xp.where(finite & (info.rank < x.shape[-1]), int(Status.SINGULAR), failure)
    status = xp.where(stable, int(Status.AT_PRECISION), failure)
    status = xp.where(within, int(Status.CONVERGED), status)
    status = xp.where(regular, status, int(Status.SINGULAR))
    status = xp.where(known, status, int(Status.NONFINITE))
    return info._replace(status=xp.astype(status, xp.int32), relative_residual=relative_size(xp, norm, size))


def _change(operator: LinearOperator, inverse: Inverse, x: Array, errors: Array) -> Array:
    """Return the relative change of the solution, (*batch), that errors of this size in its rows bring about."""
    xp, solve = operator.backend.xp, operator.inverted_by(inverse)
    # patterns of signs, of which errors of rows could be any
    changes = [solve(errors * weights(xp, x, per_system(xp, x, phase))) for phase in (1, 2, 3)]
    return relative_size(xp, max_norm(xp, sum(xp.abs(change) for change in changes) / len(changes)), max_norm(xp, x))


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


def _stable_by_row(operator: LinearOperator, solved: _Solved, rhs: Array, sizes: Array, asked: Array) -> Array:
    """Return whether the accuracy of each row explains its residual (Oettli & Prager 1964), (*batch).

    Where `sizes` of many rows are estimates, the systems that are `asked` for and fail by them are looked at again, in
    a loop, which a compiled program enters without a copy of what it may not need.
    """
    backend, xp, x, n = operator.backend, operator.backend.xp, solved.x, solved.x.shape[-1]
    assert solved.residual is not None
    residual = xp.abs(solved.residual)

    def unexplained(sizes: Array) -> Array:
        return ~(residual <= MARGIN * operator.precision * sizes)

    def look(state: tuple[Array, Array]) -> tuple[Array, Array]:
        count, left = state
        size = xp.abs(operator.matvec(flipped(xp, x, xp.astype(count, x.dtype)[..., None]))) + xp.abs(rhs)
        return count + 1, left & unexplained(n**0.5 * size)

    left = unexplained(sizes)
    costly = operator.several(x) and backend.traced  # a compiled program reserves three times the memory of `x` for it
    if not isinstance(operator.original, Dense) and not has_few_unknowns(x.shape) and not costly:
        needed = xp.any(asked & some(xp, left))
        start = xp.where(needed, xp.zeros_like(asked, dtype=xp.int32), FLIPS)
        left = backend.while_loop(lambda state: xp.all(state[0] < FLIPS), look, (start, left))[1]
    return ~some(xp, left)


def _small(operator: LinearOperator, norm: Array, sizes: Array, size: Array) -> Array:
    xp = operator.backend.xp
    # a residual nearly as large as b is that of x = 0: no solution, however large x may be
    bound = xp.minimum(MARGIN * operator.precision * norm2(xp, sizes), 0.1 * size)
    return norm <= bound
