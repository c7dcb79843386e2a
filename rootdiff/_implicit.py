"""The implicit function theorem, once: two derivatives, each by one linear solve.

f(y, args) = 0   gives   dy/dargs = - (df/dy)^-1 (df/dargs)
"""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array
from rootdiff._failure import report_adjoint
from rootdiff._residual import LinearOperator, Residual
from rootdiff._solution import Status
from rootdiff.linear import LinearInfo, LinearSolver


def vjp(
    residual: Residual,
    adjoint: LinearSolver,
    y: Array,
    cotangent: Array,
    factors: Any = None,
    on_failure: str = "raise",
) -> tuple[tuple[Array, ...], LinearInfo]:
    """Return ``w^T dy/dargs``, one cotangent per parameter: solve J^T u = w, then -u^T (df/dargs)."""
    u, info = solve(residual.operator(y, factors).T, adjoint, cotangent, on_failure)
    return residual.parameter_vjp(y, -u), info


def jvp(
    residual: Residual,
    adjoint: LinearSolver,
    y: Array,
    tangents: tuple[Array, ...],
    factors: Any = None,
    on_failure: str = "raise",
) -> tuple[Array, LinearInfo]:
    """Return ``(dy/dargs) v``: solve J t = (df/dargs) v, then -t."""
    rhs = residual.parameter_jvp(y, tangents)
    t, info = solve(residual.operator(y, factors), adjoint, rhs, on_failure)
    return -t, info


def solve(operator: LinearOperator, adjoint: LinearSolver, rhs: Array, on_failure: str) -> tuple[Array, LinearInfo]:
    """Solve a linear system of the rule; a failed one is reported and becomes NaN, unless failures are ignored."""
    xp = operator.backend.xp
    x, info = adjoint.solve(operator, rhs)
    if not operator.backend.traced:
        report_adjoint(operator.backend, info, on_failure, adjoint)
    if on_failure != "ignore":
        failed = info.status > int(Status.AT_PRECISION)
        x = xp.where(failed[..., None], xp.full_like(x, xp.nan), x)
    return x, info
