"""The one loop that runs every native solver: masks, termination, the best iterate, statuses."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from rootdiff._backend import Array, Backend
from rootdiff._compaction import in_rounds, limit, room, round_size
from rootdiff._norms import is_within, max_norm
from rootdiff._residual import Residual
from rootdiff._resolution import End, lost_and_idle
from rootdiff._select import keep, select, status_where
from rootdiff._settings import with_settings
from rootdiff._sizes import is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Claim, Solver, is_believed, named
from rootdiff._verdict import allowed_error, is_deep, judged, start_scale, underflow

#: Steps after which the default atol counts, though it is not small against the unknown: Newton's method next to a
#: simple root needs fewer to become exact.
_SETTLED = 8


class State(Protocol):
    """What the loop reads from a solver's state: a NamedTuple whose arrays all start with the batch axes.

    Attributes
    ----------
    y, f : array, (*batch, n). The iterate and its residual.
    error : array, (*batch, n)
        Estimate of the error of `y`; infinite where the solver has no estimate it trusts.
    status : integer array, (*batch). `Status.RUNNING`, or why the solver cannot go on.

    A state with `factors`, of its last Jacobian, or with `inverse`, an estimate of its inverse, hands these on to the
    adjoint solve. One with `f_norm`, the largest absolute entry of `f`, (*batch), saves the loop computing it.
    """

    @property
    def y(self) -> Array: ...
    @property
    def f(self) -> Array: ...
    @property
    def error(self) -> Array: ...
    @property
    def status(self) -> Array: ...


@dataclass(frozen=True, kw_only=True)
class IterativeSolver(Solver):
    """A solver made of `init` and `step`, run by the one loop.

    Parameters
    ----------
    rtol : float, optional
        A system has converged when the estimated error of each unknown is at most ``atol + rtol * abs(y)``.
        Default: eps^(3/4) of the dtype of y0, 1.8e-12 in float64 and 6.4e-6 in float32.
    atol : float, optional
        In the units of the unknown. Default: eps times the size of the unknown, `y_scale` or that in y0 (at most one,
        and that of the largest unknown where it is zero), so that unknowns far smaller than others are resolved; or
        eps^(3/4) times that size, once the residual has fallen by a factor 10 `rtol` and eight more steps have not led
        to more.
    max_steps : int
        Steps after which a system that has not converged has failed.
    """

    rtol: float | None = None
    atol: float | None = None
    max_steps: int = 100

    #: Fields that only scale numbers, so that a compiled solve takes them as inputs.
    runtime: ClassVar[tuple[str, ...]] = ("rtol", "atol", "max_steps")
    #: A residual that has not fallen by a hundredth in this many steps counts as stalled.
    patience: ClassVar[int] = 50
    #: So many such steps if they are within tolerance: one, where a step is as long as the error; 0 where its length
    #: tells nothing of the error, so that a solve goes on as long as f falls at all.
    futile: ClassVar[int] = 3
    #: Fields of the state that the loop need not keep for a finished system, where they are of no use or as good.
    loose: ClassVar[tuple[str, ...]] = ("status", "factors")

    def resolved(self, dtype: Any, xp: Any) -> Self:
        return self if self.rtol is not None else with_settings(self, rtol=float(xp.finfo(dtype).eps) ** 0.75)

    @property
    def descends(self) -> bool:
        """Whether each step reduces the Euclidean norm of f, so that the last iterate is the best one."""
        return False

    @abstractmethod
    def init(self, residual: Residual, y: Array) -> Any:
        """Return the state at the start."""

    @abstractmethod
    def step(self, residual: Residual, state: Any) -> Any:
        """Return the state after one step, for all systems; the loop discards it for those that finished."""

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        """Return what the loop ended with, `raw`, bettered where the method has a way to; before it is judged."""
        return raw

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        solver = self.resolved(y0.dtype, residual.xp)
        return _judged(solver, residual, y0, iterate(solver, residual, y0))

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        solver = self.resolved(y0.dtype, residual.xp)
        return _judged(solver, residual, y0, iterate(solver, residual, y0, active))

    def claim(self, residual: Residual, y0: Array, active: Array) -> Claim:
        if type(self).solve is not IterativeSolver.solve:  # it runs a loop of its own
            return super().claim(residual, y0, active)
        claim = iterate(self.resolved(y0.dtype, residual.xp), residual, y0, active)
        return claim._replace(raw=named(claim.raw, self))


def _judged(solver: IterativeSolver, residual: Residual, y0: Array, claim: Claim) -> RawSolution:
    return judged(solver, residual, y0, claim.first, claim.raw, claim.asked)


class StepInfo(NamedTuple):
    """What one step did, for a callback.

    Attributes
    ----------
    method : str. Name of the solver's class.
    steps : integer array, (*batch). Steps taken so far by this method.
    y : array, (*batch, n), for a user's callback a pytree like y0. The iterate after the step.
    residual_norm : array, (*batch). Largest absolute residual.
    step_norm : array, (*batch). Largest absolute change of an unknown; zero in a system that has finished.
    status : integer array, (*batch). `Status` values.
    """

    method: str
    steps: Array
    y: Any
    residual_norm: Array
    step_norm: Array
    status: Array

    @classmethod
    def between(cls, xp: Any, method: str, old: Any, new: Any) -> StepInfo:
        """Return the record of the step from one state of the loop to the next."""
        y, status = new.state.y, new.status
        return cls(method, new.steps, y, max_norm(xp, new.state.f), max_norm(xp, y - old.state.y), status)


class _Loop(NamedTuple):
    state: Any
    status: Array
    steps: Array
    first_norm: Array
    best_y: Array
    best_norm: Array
    idle: Array
    mark: Array
    scale: Array
    near: Array


def iterate(solver: IterativeSolver, residual: Residual, y0: Array, active: Array | None = None) -> Claim:
    """Run `solver` until each system has converged or failed; a finished system is frozen bit for bit.

    A system where `active`, (*batch), does not hold is not run; what is returned for it means nothing.
    """
    xp = residual.xp
    if residual.correct is not None:
        y0 = residual.correct(y0, y0)
    state = solver.init(residual, y0)
    first, norm = state.f, _size(xp, state)
    zeros = xp.zeros_like(norm, dtype=xp.int32)
    status = xp.where(
        xp.isfinite(norm),
        status_where(xp, norm == 0, Status.CONVERGED, Status.RUNNING),
        int(Status.NONFINITE_START),
    )
    if not _known(solver.max_steps) or solver.max_steps == 0:
        status = xp.where((status == int(Status.RUNNING)) & (zeros >= solver.max_steps), int(Status.MAX_STEPS), status)
    if active is not None:
        status = xp.where(active, status, int(Status.CONVERGED))
    scale = start_scale(xp, y0, residual.scale)
    loop = _Loop(state, xp.astype(status, xp.int32), zeros, norm, y0, norm, zeros, norm, scale, zeros)
    loop = _run(solver, residual, loop)
    success = loop.status <= int(Status.AT_PRECISION)
    y, norm, error = loop.state.y, _size(xp, loop.state), loop.state.error
    if not solver.descends:
        # a claim that f has not borne out is judged where it was made: rows in large units may hide the others
        claimed = success | ((loop.status == int(Status.STALLED)) & (loop.near > 0) & xp.isfinite(error[..., 0]))
        y = xp.where(claimed[..., None], y, loop.best_y)
        norm = xp.where(claimed, norm, loop.best_norm)
        error = xp.where(claimed[..., None], error, xp.full_like(error, xp.inf))
    known = getattr(loop.state, "inverse", None) or getattr(loop.state, "factors", None)
    raw = RawSolution(y, loop.status, loop.steps, norm, known, error=error)
    raw = solver.finish(residual, loop.first_norm, raw)
    y, norm, error = raw.y, raw.residual_norm, raw.error
    failed = (raw.status > int(Status.RUNNING)) & (raw.status != int(Status.NONFINITE_START))
    # a residual that underflows may be far from any root, and one that is zero by rounding says little of y
    tiny = (norm < underflow(xp, y)) & ((norm > 0) | (loop.mark < underflow(xp, y)))
    deep = is_deep(solver, norm, loop.first_norm)
    silent = (norm == 0) & ~is_within(xp, error, allowed_error(xp, solver, y, loop.scale, deep))
    asked = failed | tiny | silent
    if is_dense(tuple(y.shape)):
        allowed = allowed_error(xp, solver, loop.state.y, loop.scale, xp.ones_like(success))
        end = End(residual, y0, loop.state.y, loop.state.f, allowed, loop.scale, loop.steps)
        lost, idle = lost_and_idle(end, raw.factors, norm == 0, getattr(solver, "damping", None))
        claimed = (raw.status <= int(Status.AT_PRECISION)) & (loop.steps > 0)
        asked = asked | (claimed & lost)
        if idle is not None:
            idle = idle & claimed[..., None]
            status = xp.where(xp.any(idle, axis=-1), int(Status.AT_PRECISION), raw.status)
            raw = raw._replace(status=xp.astype(status, xp.int32), error=xp.where(idle, xp.inf, error))
    if not is_believed(type(solver)):
        asked = asked | (raw.status <= int(Status.AT_PRECISION))
    return Claim(raw, asked if active is None else asked & active, first)


def _run(solver: IterativeSolver, residual: Residual, loop: _Loop) -> _Loop:
    """Step until no system is running; where they can be taken out of the batch, the last ones by themselves."""
    xp, backend, batch = residual.xp, residual.backend, tuple(loop.status.shape)
    few = limit(backend, batch) if residual.divisible else 0

    def step(loop: _Loop) -> Any:
        active = loop.status == int(Status.RUNNING)
        return solver.step(replace(residual, active=active) if batch or backend.traced else residual, loop.state)

    def account(state: Any, loop: _Loop) -> _Loop:
        active = loop.status == int(Status.RUNNING)
        new = _advance(solver, backend, active if batch or backend.traced else None, state, loop)
        if batch:  # a single system is stepped only while it runs
            new = _frozen(solver, backend, active, new, loop)
        if residual.observe is not None:
            residual.observe(StepInfo.between(xp, type(solver).__name__, loop, new))
        return new

    def left(loop: _Loop) -> Array:
        return room(backend, loop.status == int(Status.RUNNING))

    def unfinished(loop: _Loop) -> Array:
        return left(loop) > few if few else xp.any(loop.status == int(Status.RUNNING))

    loop = backend.while_loop(unfinished, step, loop, account)
    count = round_size(backend, batch) if few and backend.traced else few and int(left(loop))
    if count == 0:
        return loop

    def the_rest(residual: Residual, loop: _Loop, _: Array) -> _Loop:
        return _run(solver, residual, loop)

    return in_rounds(residual, loop.status == int(Status.RUNNING), count, the_rest, loop)  # type: ignore[no-any-return]


def _frozen(solver: IterativeSolver, backend: Backend, active: Array, new: _Loop, old: _Loop) -> _Loop:
    """Return the `new` state of the `active` systems, and the old one of the others, but for what is loose.

    That of a finished system is of its last iterate or of a step that it did not take: it need not be copied.
    """
    if backend.surely_all(active):
        return new
    xp = backend.xp
    loose = {name: getattr(new.state, name) for name in solver.loose if hasattr(new.state, name)}
    kept = select(xp, active, *(loop.state._replace(**dict.fromkeys(loose)) for loop in (new, old)))
    return new._replace(
        state=kept._replace(**loose),
        status=xp.where(active, new.status, old.status),
        steps=old.steps + xp.astype(active, xp.int32),
    )


def _advance(solver: IterativeSolver, backend: Backend, active: Array | None, state: Any, loop: _Loop) -> _Loop:
    """Return the loop after the step of all systems to `state`; the best of those not `active` is kept."""
    xp, surely_all = backend.xp, backend.surely_all
    norm = _size(xp, state)
    steps = loop.steps + 1
    deep = cache(lambda: is_deep(solver, norm, loop.first_norm))
    allowed = cache(lambda: allowed_error(xp, solver, state.y, loop.scale, deep()))
    better = norm < loop.best_norm
    if active is not None:
        better = better & active
    # slow is not stalled
    improved = norm < (0.99 if solver.futile else 1 - 8 * float(xp.finfo(norm.dtype).eps)) * loop.mark
    running = state.status == int(Status.RUNNING)
    unknown = ~xp.isfinite(state.error[..., 0])
    near = loop.near
    if surely_all(unknown):
        converged = ~unknown
    else:
        converged = is_within(xp, state.error, allowed()) & (norm < xp.inf)
        near = xp.where(converged, near + 1, xp.zeros_like(near))
        if solver.atol is None:  # a root that is not zero is known to rtol by then
            exact = allowed_error(xp, solver, state.y, loop.scale, deep(), power=1.0)
            converged = converged & (is_within(xp, state.error, exact) | (near >= _SETTLED))
    if surely_all(lambda: better & improved & (norm > 0) & (steps < solver.max_steps) & running & ~converged):
        status = xp.astype(state.status, xp.int32)
        zeros = xp.zeros_like(loop.idle)
        return _Loop(state, status, steps, loop.first_norm, state.y, norm, zeros, norm, loop.scale, near)
    # steps within tolerance that do not help are those of rounding: a few of them tell
    if surely_all(improved):
        idle = xp.zeros_like(loop.idle)
    else:
        idle = loop.idle + 1
        if solver.futile:
            vain = xp.astype(is_within(xp, state.y - loop.state.y, allowed()), xp.int32)
            idle = idle + vain * (solver.patience // solver.futile)
        idle = xp.where(improved, 0, idle)
    status = xp.where((idle >= solver.patience) & running, int(Status.STALLED), state.status)
    status = xp.where(norm < xp.inf, status, int(Status.NONFINITE))
    status = xp.where((status == int(Status.RUNNING)) & (steps >= solver.max_steps), int(Status.MAX_STEPS), status)
    # of a y that ran away any residual is within tolerance: unless f has fallen too, `judged` is to tell
    fallen = norm <= solver.rtol**0.5 * loop.first_norm  # type: ignore[operator]
    status = xp.where(converged | (norm == 0), int(Status.CONVERGED), status)
    status = xp.where(converged & ~fallen, int(Status.STALLED), status)
    return _Loop(
        state,
        xp.astype(status, xp.int32),
        steps,
        loop.first_norm,
        loop.best_y if solver.descends else keep(backend, better, state.y, loop.best_y),
        loop.best_norm if solver.descends else xp.where(better, norm, loop.best_norm),
        xp.astype(idle, xp.int32),
        xp.where(improved & (norm > 0), norm, loop.mark),
        loop.scale,
        near,
    )


def _size(xp: Any, state: Any) -> Array:
    """Return the largest absolute entry of a state's residual, (*batch)."""
    return state.f_norm if hasattr(state, "f_norm") else max_norm(xp, state.f)


def running(xp: Any, y: Array) -> Array:
    """Return the status `Status.RUNNING` for every system of `y`, (*batch, n)."""
    return xp.full_like(y[..., 0], int(Status.RUNNING), dtype=xp.int32)


def _known(value: Any) -> bool:
    """Whether a setting is a plain number, neither None nor a value known only at run time."""
    return isinstance(value, int | float)
