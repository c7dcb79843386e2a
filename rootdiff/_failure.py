"""What happens when a solve fails: the policies and their messages."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, get_args

import numpy as np

from rootdiff._backend import Backend
from rootdiff._errors import AdjointError, ConvergenceError, ConvergenceWarning
from rootdiff._numbers import is_of
from rootdiff._sizes import is_dense
from rootdiff._solution import Solution, Status
from rootdiff._verdict import start_scale

OnFailure = Literal["raise", "warn", "keep", "nan", "ignore", "approximate"]
#: Packages whose frames lie between a user's call and a warning.
_BETWEEN = ("rootdiff", "rootdiff_torch", "rootdiff_jax", "torch", "jax", "functools", "contextlib")
POLICIES: tuple[str, ...] = get_args(OnFailure)


#: What a solver of the user's raised in the solve at hand, for the message; see `rootdiff._solver.run`.
RAISED: ContextVar[Exception | None] = ContextVar("raised", default=None)
#: An error of this part of an unknown leaves it no digit, see `rootdiff._verdict`.
_NO_DIGIT = 0.1
_ASTRAY = (
    "the step limit was reached, and no root is in sight: from y a Newton step hardly reduces the residual, as next to "
    "a minimum of it, or where it tends to zero without a root, as exp(-y) does",
    "give a better start, or a bracket (root_scalar); raise max_steps only if there is a root further on",
)
_UNDERFLOW = "scale the residual so that it does not underflow, and check that it has a root: exp(-y) has none"
_OF_MANY = (
    "the residual is zero where nothing near it is anything else: y is one root of many (a plateau), or the residual "
    "underflows",
    "if any root will do, take this one with on_failure='keep'; else add the equation that is missing, and check that "
    "the residual does not underflow: exp(-y) has no root",
)

#: The failures that inaccurate derivatives lead to.
_OF_DERIVATIVES = (Status.SINGULAR, Status.STALLED)
#: The policies under which the root of a failed system is its best iterate.
KEEP = ("keep", "approximate", "ignore")
#: Those under which its derivatives are what comes out at that.
GOES_ON = ("approximate", "ignore")


def report(backend: Backend, solution: Solution, on_failure: str, solver: Any, context: tuple[Any, ...]) -> bool:
    """Raise or warn, as `on_failure` says, if a system of a concrete `solution` failed; return whether one has.

    Where a solve goes on as if none had, this is False; failures to be ignored are not looked for.

    Parameters
    ----------
    solver : Solver
        Named in the message, with its settings; one with `words` has causes and remedies of its own.
    context : tuple
        ``(y0, *args)``, searched for the NaN behind a residual that is not finite at the start.
    """
    if on_failure == "ignore":
        return False
    statuses = backend.to_numpy(solution.status)
    if not (statuses > Status.AT_PRECISION).any():
        return False
    if on_failure == "nan":
        return True
    norms, steps = backend.to_numpy(solution.residual_norm), backend.to_numpy(solution.steps)
    limits = backend.xp.finfo(solution.residual_norm.dtype)
    rtol, atol = getattr(solver, "rtol", None), getattr(solver, "atol", None)
    rtol = float(limits.eps) ** 0.75 if rtol is None else rtol
    entry, sought = getattr(solver, "sought", ("root", "root"))
    lines = [
        f"{entry}: {_count(statuses, *(f'{verb} no {sought} that can be vouched for' for verb in ('has', 'have')))}."
    ]
    for status, where in _failures(statuses):
        worst = abs(norms[where].max())  # no minus zero
        cause, remedy = _words(backend, solution, status, where, worst, getattr(solver, "words", {}), rtol, atol)
        if status is Status.NONFINITE_START:
            cause += _nonfinite_origin(backend, context)
        end = f"after {steps[where].max()} steps the residual norm is {worst:.3g}"
        lines.append(f"  {status.name}: {cause}{_systems(where)}; {end}.\n    To do: {remedy}.")
    known = "by the size of y" if atol is None else format(atol, ".2g")
    lines.append(f"  Solver: {solver}; tolerance on y: rtol={rtol:.2g}, atol={known}.")
    lines.append(
        "  on_failure='warn', 'keep', 'nan', 'ignore' or 'approximate' returns the Solution; the error carries it as "
        ".solution."
    )
    _emit(on_failure, ConvergenceError("\n".join(lines), solution))
    return on_failure not in GOES_ON


def _words(
    backend: Backend,
    solution: Solution,
    status: Status,
    where: Any,
    worst: Any,
    own: dict[Status, tuple[str, str]],
    rtol: float,
    atol: float | None,
) -> tuple[str, str]:
    """Return the cause and the remedy of the systems `where`, whose largest residual is the `worst`."""
    dtype, raised = solution.residual_norm.dtype, RAISED.get()
    limits = backend.xp.finfo(dtype)
    cause, remedy = own.get(status, (status.cause, status.remedy))
    y, error = _sizes(backend, solution, where)
    # the Jacobian was asked for the error of one of these systems, and told none
    rootless = is_dense((where.size, y.shape[-1])) and np.isinf(error).any()
    if status is Status.STALLED and raised is not None:
        return f"the solver raised {raised!r}", "see to that error, start elsewhere, or try another solver"
    if status is Status.MAX_STEPS and worst < limits.smallest_normal / limits.eps:
        return f"{cause}, where the residual underflows", f"start elsewhere; {_UNDERFLOW}"
    if status in own:
        return cause.format(off=_off(y, error, rtol, atol)), remedy
    if status is Status.MAX_STEPS and rootless:
        return _ASTRAY
    if status is Status.ILL_DETERMINED:
        count = (error > _NO_DIGIT * y).sum(axis=-1).max(initial=0) if np.isfinite(error).all() else 0
        part = f" ({count} of {y.shape[-1]} unknowns)" if y.shape[-1] > 1 and count else ""
        return _OF_MANY if rootless else (cause + part, remedy)
    if status in _OF_DERIVATIVES and backend.precision(dtype) > limits.eps:
        remedy = f"{remedy}; differences know ten digits of a Jacobian: give jac if its condition asks for more"
    return cause, remedy


def report_adjoint(
    backend: Backend, info: Any, on_failure: str, adjoint: Any, reported: Any = None, rough: bool = False
) -> bool:
    """Raise or warn, as `on_failure` says, if the linear solve of a derivative failed in a system; return whether.

    As for `report`.

    Parameters
    ----------
    reported : boolean array, (*batch), optional
        Systems whose forward solve failed, of which nothing more is said.
    rough : bool
        Whether the Jacobian is known less accurately than its dtype allows.
    """
    if on_failure == "ignore":
        return False
    statuses = backend.to_numpy(info.status)
    if not (statuses > Status.AT_PRECISION).any():
        return False
    if reported is not None:
        statuses = statuses * ~backend.to_numpy(reported)
    if on_failure == "nan" or not (statuses > Status.AT_PRECISION).any():
        return True
    lines = [f"adjoint: {_count(statuses, 'has no derivative', 'have no derivative')} that can be vouched for."]
    relative = backend.to_numpy(info.relative_residual)
    for status, where in _failures(statuses):
        cause, remedy = adjoint_words(status, rough)
        end = f"the relative residual of the linear solve is {relative[where].max():.3g}"
        lines.append(f"  {status.name}: {cause}{_systems(where)}; {end}.\n    To do: {remedy}.")
    lines.append(f"  Adjoint solver: {adjoint}.")
    lines.append(
        "  on_failure='warn', 'keep' or 'nan' makes NaN of these systems' derivatives and leaves the others alone; the "
        "error carries the statuses as .solution."
    )
    _emit(on_failure, AdjointError("\n".join(lines), info))
    return on_failure not in GOES_ON


def adjoint_words(status: Status, rough: bool = False) -> tuple[str, str]:
    """Return the cause and the remedy of a failed linear solve, with a Jacobian that is exact or `rough`."""
    if rough and status == Status.SINGULAR:
        return _SINGULAR_TO_DIFFERENCES
    return _ADJOINT_WORDS.get(status, (status.cause, status.remedy))


_SINGULAR_TO_DIFFERENCES = (
    "the Jacobian is singular to the accuracy of differences",
    "give jac, jvp or vjp, or use derivatives='complex-step'; if the Jacobian is singular then too, look for a "
    "redundant equation, a fold or a double root",
)
_ADJOINT_WORDS = {
    Status.MAX_STEPS: (
        "the iteration limit of the linear solve was reached",
        "raise its limit, give it a preconditioner, or use adjoint='lu' if the system is small enough",
    ),
    Status.STALLED: (
        "the linear solve stopped making progress before it reached its tolerance",
        "use adjoint='lu' if the system is small enough, or give the iteration a preconditioner",
    ),
    Status.SINGULAR: (
        "the Jacobian is singular to working precision, so that the root is not a function of the parameters",
        "look for a redundant equation, a fold or a double root; if the equations are consistent, adjoint='lstsq' "
        "gives the derivative of least norm",
    ),
    Status.NONFINITE: (
        "the Jacobian or the cotangent has NaN or infinite entries",
        "check that the residual is differentiable at the root (sqrt or abs at 0, a kink)",
    ),
}


def _emit(on_failure: str, error: ConvergenceError) -> None:
    if on_failure == "raise":
        raise error
    warnings.warn("\n".join((str(error), *error.__notes__)), ConvergenceWarning, stacklevel=_level_of_user())


def _level_of_user() -> int:
    """Return how many frames the code that called rootdiff lies above the caller of this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    return level


def _failures(statuses: Any) -> Iterator[tuple[Status, Any]]:
    """Yield each failure that there is, with the mask of the systems that have it."""
    for status in Status:
        if status > Status.RUNNING and (where := statuses == status).any():
            yield status, where


def _count(statuses: Any, one: str, many: str) -> str:
    failed = int((statuses > Status.AT_PRECISION).sum())
    if statuses.ndim == 0:
        return f"the system {one}"
    return f"{failed} of {statuses.size} systems {one if failed == 1 else many}"


def _systems(where: Any) -> str:
    if where.ndim == 0:
        return ""
    indices = [tuple(int(i) for i in index) for index in zip(*where.nonzero(), strict=True)]
    shown = ", ".join(str(index[0] if len(index) == 1 else index) for index in indices[:5])
    return f" (systems {shown}{', ...' if len(indices) > 5 else ''})"


def _sizes(backend: Backend, solution: Solution, where: Any) -> tuple[Any, Any]:
    """Return the sizes of y and of its error in these systems, (systems, n); n is zero where no error is known."""
    trees = ((), ()) if solution.error is None else (solution.y, solution.error)
    leaves = [[abs(backend.to_numpy(leaf)[where]) for leaf in backend.flatten(tree)[0]] for tree in trees]
    none, count = np.zeros((int(where.sum()), 0)), int(where.sum())
    y, error = (np.concatenate([none, *(part.reshape(count, -1) for part in parts)], axis=-1) for parts in leaves)
    return y, error


def _off(y: Any, error: Any, rtol: float, atol: float | None) -> str:
    """Return how far off systems are, by the unknown whose error is the most times its tolerance, in words."""
    allowed = rtol * y + (rtol * start_scale(np, y) if atol is None else atol)
    parts = np.nan_to_num(error / (allowed + (allowed == 0)), nan=0, posinf=np.inf)
    place = np.unravel_index(parts.argmax(), parts.shape)
    if np.isinf(parts[place]):
        return ", and how far off it is cannot be told: its Jacobian is singular, infinite, or too large to be formed"
    return f": a Newton step changes an unknown of size {y[place]:.3g} by {error[place]:.2g}"


def _nonfinite_origin(backend: Backend, context: tuple[Any, ...]) -> str:
    xp = backend.xp

    def is_bad(leaf: Any) -> bool:
        floating = backend.is_array(leaf) and is_of(xp, leaf.dtype, ("real floating", "complex floating"))
        return floating and not bool(xp.all(xp.isfinite(leaf)))

    names = ["y0", *(f"args[{index}]" for index in range(len(context) - 1))]
    holders = [n for n, tree in zip(names, context, strict=True) if any(map(is_bad, backend.flatten(tree)[0]))]
    verb = "holds" if len(holders) == 1 else "hold"
    return f" because {' and '.join(holders)} {verb} NaN or infinity" if holders else ""
