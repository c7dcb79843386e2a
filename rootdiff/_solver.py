"""What finds a root: the protocol of solvers, and how one is run; the claims of those of others are judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from traceback import walk_tb
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._failure import RAISED
from rootdiff._residual import Residual
from rootdiff._settings import check_settings, is_ours, with_settings
from rootdiff._solution import Method, RawSolution, Status
from rootdiff._space import max_norm, per_system
from rootdiff._verdict import judged

_BELIEVES = ContextVar("believes", default=False)
_METHODS = {method.name.replace("_", ""): method for method in Method}


class Claim(NamedTuple):
    """What a solver ends with, before it is judged.

    Attributes
    ----------
    raw : RawSolution
    asked : boolean array, (*batch). The systems of which it must be judged whether they are at a root.
    first : array, (*batch, n). The residual at the start; anything in systems that are not `asked` for.
    """

    raw: RawSolution
    asked: Array
    first: Array


class Solver(ABC):
    """A way to find a root; a value, made of plain settings.

    If it is a dataclass, settings that are annotated as numbers, literals or solvers are checked when it is made.
    """

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        """Return the root of `residual` from `y0`, (*batch, n), with a status per system."""

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        """Return what `solve` does for the systems of a batch where `active`, (*batch), holds; else anything."""
        return self.solve(residual, y0)

    def claim(self, residual: Residual, y0: Array, active: Array, looks: bool = True) -> Claim:
        """Return what `solve_where` does, where the verdict is left to the caller; all claims, unless it `looks`."""
        raw = run(self, residual, y0, active)
        return Claim(raw, residual.xp.zeros_like(active), residual.xp.zeros_like(y0))

    def resolved(self, dtype: Any, xp: Any) -> Self:
        """Return this solver with the settings that derive from the dtype filled in: `rtol`, where it has one."""
        given = getattr(self, "rtol", 0) is not None
        return self if given else with_settings(self, rtol=float(xp.finfo(dtype).eps) ** 0.75)


@contextmanager
def unjudged() -> Iterator[None]:
    """Believe what solvers of others claim, for those who test them."""
    token = _BELIEVES.set(True)
    try:
        yield
    finally:
        _BELIEVES.reset(token)


def is_believed(value: Any) -> bool:
    """Return whether what a class or a function says of its success needs no look: one of this library, tested."""
    return is_ours(value) or _BELIEVES.get()


def named(raw: RawSolution, solver: Solver) -> RawSolution:
    """Return the solution with the solver as its method, unless it names another."""
    if raw.method is not None:
        return raw
    method = _METHODS.get(type(solver).__name__.upper()) if is_ours(type(solver)) else None
    return raw._replace(method=0 * raw.status + int(method or Method.OTHER))


def _is_a_failure(error: Exception) -> bool:
    """Return whether a solver of a user's raises to say that it has failed, not because of a mistake.

    Libraries raise a `RuntimeError`, `ArithmeticError`, `ValueError` or `LookupError`, or a ``NoConvergence`` of their
    own. What the residual raises is for its author to see, and an argument of ours for the user.
    """
    if isinstance(error, NotImplementedError | RecursionError | ArgumentError):
        return False
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds.isdisjoint({"ArithmeticError", "RuntimeError", "ValueError", "LookupError", "NoConvergence"}):
        return False
    return all(frame.f_globals.get("__name__") != Residual.__module__ for frame, _ in walk_tb(error.__traceback__))


def run(solver: Solver, residual: Residual, y0: Array, active: Array | None = None) -> RawSolution:
    """Return what a solver finds for the `active` systems; the claims of one that is not of this library are judged.

    Where it raises to say that it has failed, that is a status.
    """
    RAISED.set(None)
    xp, believed = residual.xp, is_believed(type(solver).solve)
    try:
        raw = solver.solve(residual, y0) if active is None else solver.solve_where(residual, y0, active)
    except Exception as error:
        if believed or not _is_a_failure(error):
            raise
        RAISED.set(error)
        zeros = per_system(xp, y0, 0, xp.int32)
        norm = max_norm(xp, residual(y0))
        status = xp.where(xp.isfinite(norm), zeros + int(Status.STALLED), int(Status.NONFINITE_START))
        return named(RawSolution(y0, xp.astype(status, xp.int32), zeros, norm), solver)
    if believed:
        return named(raw, solver)
    if not isinstance(raw, RawSolution) or tuple(raw.y.shape) != tuple(y0.shape):
        raise ArgumentTypeError(
            f"solver: {type(solver).__name__}.solve returned {type(raw).__name__}, but must return a RawSolution with "
            f"y of shape {tuple(y0.shape)}, that of the start."
        )
    size = max_norm(xp, residual(raw.y))
    status = xp.where(xp.isfinite(size), raw.status, int(Status.NONFINITE))
    raw = raw._replace(status=xp.astype(status, xp.int32), residual_norm=size, error=None)
    asked = status <= int(Status.AT_PRECISION)
    rtol, atol = getattr(solver, "rtol", None), getattr(solver, "atol", None)
    judge = SimpleNamespace(rtol=float(xp.finfo(y0.dtype).eps) ** 0.75 if rtol is None else rtol, atol=atol)
    raw = judged(judge, residual, y0, residual(y0), raw, asked if active is None else asked & active)
    return named(raw, solver)
