"""What happens when a solve fails: the policies and their messages."""

from __future__ import annotations

import sys
import warnings
from contextvars import ContextVar
from typing import Any, Literal, get_args

from rootdiff._backend import Backend
from rootdiff._errors import AdjointError, ArgumentError, ConvergenceError, ConvergenceWarning
from rootdiff._numbers import is_of
from rootdiff._sizes import is_dense
from rootdiff._solution import Solution, Status

OnFailure = Literal["raise", "warn", "keep", "nan", "ignore", "approximate"]
#: Packages whose frames lie between a user's call and a warning.
_BETWEEN = ("rootdiff", "rootdiff_torch", "rootdiff_jax", "torch", "jax", "functools", "contextlib")
_POLICIES: tuple[str, ...] = get_args(OnFailure)


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


def check_policy(on_failure: str) -> None:
    """Raise unless `on_failure` is one of the policies."""
    if on_failure not in _POLICIES:
        raise ArgumentError(f"on_failure: got {on_failure!r}; allowed are {', '.join(map(repr, _POLICIES))}.")


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
    dtype, raised = solution.residual_norm.dtype, RAISED.get()
    limits, rough = backend.xp.finfo(dtype), backend.precision(dtype) > backend.xp.finfo(dtype).eps
    entry, sought = getattr(solver, "sought", ("root", "root"))
    lines = [
        f"{entry}: {_count(statuses, *(f'{verb} no {sought} that can be vouched for' for verb in ('has', 'have')))}."
    ]
    for status in (s for s in Status if s > Status.RUNNING):
        where = statuses == status
        if not where.any():
            continue
        worst = abs(norms[where].max())  # no minus zero
        own = getattr(solver, "words", {})
        cause, remedy = own.get(status, (status.cause, status.remedy))
        if status in own:
            cause = cause.format(off=_off(backend, solution, where))
        if status is Status.MAX_STEPS and worst < limits.smallest_normal / limits.eps:
            cause, remedy = f"{cause}, where the residual underflows", f"start elsewhere; {_UNDERFLOW}"
        elif status is Status.MAX_STEPS and status not in own and _knows_no_error(backend, solution, where):
            cause, remedy = _ASTRAY
        elif status is Status.ILL_DETERMINED and _knows_no_error(backend, solution, where):
            cause, remedy = _OF_MANY
        elif status in _OF_DERIVATIVES and status not in own and rough:
            remedy = f"{remedy}; differences know ten digits of a Jacobian: give jac if its condition asks for more"
        if status is Status.STALLED and raised is not None:
            cause, remedy = f"the solver raised {raised!r}", "see to that error, start elsewhere, or try another solver"
        origin = _nonfinite_origin(backend, context) if status is Status.NONFINITE_START else ""
        part = _undetermined(backend, solution, where) if status is Status.ILL_DETERMINED else ""
        lines.append(
            f"  {status.name}: {cause}{origin}{part}{_systems(where)}; after {steps[where].max()} steps the residual "
            f"norm is {worst:.3g}.\n    To do: {remedy}."
        )
    rtol, atol = getattr(solver, "rtol", None), getattr(solver, "atol", None)
    rtol = float(limits.eps) ** 0.75 if rtol is None else rtol
    known = "by the size of y" if atol is None else format(atol, ".2g")
    lines.append(f"  Solver: {solver}; tolerance on y: rtol={rtol:.2g}, atol={known}.")
    lines.append(
        "  on_failure='warn', 'keep', 'nan', 'ignore' or 'approximate' returns the Solution; the error carries it as "
        ".solution."
    )
    _emit(on_failure, ConvergenceError("\n".join(lines), solution))
    return on_failure not in GOES_ON


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
    for status in (s for s in Status if s > Status.RUNNING):
        where = statuses == status
        if where.any():
            cause, remedy = adjoint_words(status, rough)
            lines.append(
                f"  {status.name}: {cause}{_systems(where)}; the relative residual of the linear solve is "
                f"{relative[where].max():.3g}.\n    To do: {remedy}."
            )
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


def _count(statuses: Any, one: str, many: str) -> str:
    failed = int((statuses > Status.AT_PRECISION).sum())
    return (
        f"the system {one}"
        if statuses.ndim == 0
        else f"{failed} of {statuses.size} systems {one if failed == 1 else many}"
    )


def _systems(where: Any) -> str:
    if where.ndim == 0:
        return ""
    indices = [tuple(int(i) for i in index) for index in zip(*where.nonzero(), strict=True)]
    shown = ", ".join(str(index[0] if len(index) == 1 else index) for index in indices[:5])
    return f" (systems {shown}{', ...' if len(indices) > 5 else ''})"


def _knows_no_error(backend: Backend, solution: Solution, where: Any) -> bool:
    """Return whether the Jacobian was asked for the error of one of these systems, and told none: it is infinite."""
    errors = () if solution.error is None else [backend.to_numpy(leaf) for leaf in backend.flatten(solution.error)[0]]
    looked = is_dense((where.size, sum(error.size for error in errors) // where.size))
    return looked and any((error[where] == float("inf")).any() for error in errors)


def _off(backend: Backend, solution: Solution, where: Any) -> str:
    """Return how far off these systems are, by the unknown of which that is the largest part, in words."""
    worst: tuple[float, float, float] = (0.0, 0.0, 0.0)
    for pair in zip(*(backend.flatten(tree)[0] for tree in (solution.y, solution.error)), strict=True):
        y, error = (abs(backend.to_numpy(leaf)[where].reshape(-1)) for leaf in pair)
        parts = error / (y + (y == 0))
        worst = max(worst, *zip(parts.tolist(), error.tolist(), y.tolist(), strict=True))
    part, error, y = worst
    if part == float("inf"):
        return ", and how far off it is cannot be told: its Jacobian is singular, infinite, or too large to be formed"
    return f": a Newton step changes an unknown of size {y:.3g} by {error:.2g}"


def _undetermined(backend: Backend, solution: Solution, where: Any) -> str:
    """Return how many unknowns have no digit in the system that has most of them, where that is known."""
    found: Any = 0
    total = 0
    if solution.error is None:
        return ""
    for pair in zip(*(backend.flatten(tree)[0] for tree in (solution.y, solution.error)), strict=True):
        y, error = (backend.to_numpy(leaf)[where].reshape(where.sum(), -1) for leaf in pair)
        if not (abs(error) < float("inf")).all():
            return ""
        found, total = found + (error > _NO_DIGIT * abs(y)).sum(axis=-1), total + y.shape[-1]
    return f" ({max(found)} of {total} unknowns)" if total > 1 and max(found) else ""


def _nonfinite_origin(backend: Backend, context: tuple[Any, ...]) -> str:
    names = ["y0", *(f"args[{index}]" for index in range(len(context) - 1))]
    holders = []
    for name, tree in zip(names, context, strict=True):
        for leaf in backend.flatten(tree)[0]:
            xp = backend.xp
            floating = backend.is_array(leaf) and is_of(xp, leaf.dtype, ("real floating", "complex floating"))
            if floating and not bool(xp.all(xp.isfinite(leaf))):
                holders.append(name)
                break
    return (
        f" because {' and '.join(holders)} {'holds' if len(holders) == 1 else 'hold'} NaN or infinity"
        if holders
        else ""
    )
