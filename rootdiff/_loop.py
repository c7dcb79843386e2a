"""The one loop that runs every native solver: masks, termination, the best iterate, statuses."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple

from rootdiff._backend import Array, Backend, keep, status_where
from rootdiff._compaction import in_rounds, limit, room, round_size
from rootdiff._iterate import Iterate, State, first_state, next_state
from rootdiff._residual import Residual
from rootdiff._resolution import End, is_lost
from rootdiff._settings import runtime
from rootdiff._sizes import is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Claim, Solver, is_believed, named
from rootdiff._space import first_of, is_within, max_norm
from rootdiff._verdict import allowed_error, is_deep, judged, start_scale, underflow

#: Steps after which the default atol counts, though it is not small against the unknown: Newton's method next to a
#: simple root needs fewer to become exact.
_SETTLED = 8


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

    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int = runtime(100)

    #: A residual that has not fallen by a hundredth in this many steps counts as stalled.
    patience: ClassVar[int] = 50
    #: So many such steps if they are within tolerance: one, where a step is as long as the error; 0 where its length
    #: tells nothing of the error, so that a solve goes on as long as f falls at all.
    short_steps: ClassVar[int] = 3

    @property
    def haste(self) -> int:
        """So many steps without a fall of f a step within tolerance counts for besides."""
        return self.patience // self.short_steps if self.short_steps else 0

    @property
    def descends(self) -> bool:
        """Whether each step reduces the Euclidean norm of f, so that the last iterate is the best one."""
        return False

    @abstractmethod
    def init(self, residual: Residual, y: Array) -> State:
        """Return the state at the start."""

    @abstractmethod
    def step(self, residual: Residual, state: State) -> State:
        """Return the state after one step, for all systems; the loop discards the iterate of those that finished."""

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        """Return what the loop ended with, `raw`, bettered where the method has a way to; before it is judged."""
        return raw

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        solver = self.resolved(y0.dtype, residual.xp)
        return _judged(solver, residual, y0, iterate(solver, residual, y0))

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        solver = self.resolved(y0.dtype, residual.xp)
        return _judged(solver, residual, y0, iterate(solver, residual, y0, active))

    def claim(self, residual: Residual, y0: Array, active: Array, looks: bool = True) -> Claim:
        if type(self).solve is not IterativeSolver.solve:  # it runs a loop of its own
            return super().claim(residual, y0, active)
        claim = iterate(self.resolved(y0.dtype, residual.xp), residual, y0, active, looks)
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
    def between(cls, xp: Any, solver: Solver, steps: Array, old: Iterate, new: Iterate) -> StepInfo:
        """Return the record of the step from one iterate to the next."""
        norm, moved = max_norm(xp, new.f), max_norm(xp, new.y - old.y)
        return cls(type(solver).__name__, steps, new.y, norm, moved, new.status)


class _Loop(NamedTuple):
    """State and steps; the norm of f at the start; the best iterate and its norm; what tells that a system stalls.

    `idle` counts the steps since f has fallen below `mark`, `near` those in a row whose error was within tolerance.
    """

    state: State
    steps: Array
    first_norm: Array
    best_y: Array
    best_norm: Array
    idle: Array
    mark: Array
    scale: Array
    near: Array

    @property
    def running(self) -> Array:
        """Boolean array, (*batch): the systems that have not finished."""
        return self.state.iterate.status == int(Status.RUNNING)


def iterate(
    solver: IterativeSolver, residual: Residual, y0: Array, active: Array | None = None, looks: bool = True
) -> Claim:
    """Run `solver` until each system has converged or failed; a finished system is frozen bit for bit.

    A system where `active`, (*batch), does not hold is not run; what is returned for it means nothing. Whether f
    resolves a root that is claimed is looked at, or asked of the verdict.
    """
    xp = residual.xp
    if residual.correct is not None:
        y0 = residual.correct(y0, y0)
    state = first_state(solver, residual, y0)
    first, norm = state.iterate.f, _size(xp, state.iterate)
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
    loop = _Loop(_with_status(xp, state, status), zeros, norm, y0, norm, zeros, norm, scale, zeros)
    loop = _run(solver, residual, loop)
    at = loop.state.iterate
    y, norm, error = at.y, _size(xp, at), at.error
    if not solver.descends:
        # a claim that f has not borne out is judged where it was made: rows in large units may hide the others
        unproven = (at.status == int(Status.STALLED)) & (loop.near > 0) & xp.isfinite(first_of(xp, error))
        here = (at.status <= int(Status.AT_PRECISION)) | unproven
        y = xp.where(here[..., None], y, loop.best_y)
        norm = xp.where(here, norm, loop.best_norm)
        error = xp.where(here[..., None], error, xp.full_like(error, xp.inf))
    raw = RawSolution(y, at.status, loop.steps, norm, loop.state.inverse, error=error)
    raw = solver.finish(residual, loop.first_norm, raw)
    y, norm, error = raw.y, raw.residual_norm, raw.error
    failed = (raw.status > int(Status.RUNNING)) & (raw.status != int(Status.NONFINITE_START))
    if residual.may_end:  # then the evaluations of a verdict are not wanted either
        failed = failed & (raw.status < int(Status.STOPPED))
    # a residual that underflows may be far from any root, and one that is zero by rounding says little of y
    tiny = (norm < underflow(xp, y)) & ((norm > 0) | (loop.mark < underflow(xp, y)))
    deep = is_deep(solver, norm, loop.first_norm)
    silent = (norm == 0) & ~is_within(xp, error, allowed_error(xp, solver, y, loop.scale, deep))
    asked = failed | tiny | silent
    claimed = (raw.status <= int(Status.AT_PRECISION)) & (loop.steps > 0)
    if not is_believed(type(solver)):
        asked = asked | (raw.status <= int(Status.AT_PRECISION))
    elif is_dense(tuple(y.shape)) and not looks:
        asked = asked | claimed
    eps = float(xp.finfo(y.dtype).eps)
    noise = eps * xp.abs(y)
    if is_dense(tuple(y.shape)) and looks:
        allowed = allowed_error(xp, solver, at.y, loop.scale, xp.isfinite(norm) | True)
        # by no more than the default, since along a longer way f bends
        allowed = xp.minimum(allowed, eps**0.75 * (xp.abs(at.y) + loop.scale))
        end = End(replace(residual, active=claimed), at.y, at.f, allowed, loop.scale, loop.steps)
        lost, lasting = is_lost(end, solver, raw.factors, norm == 0)
        noise = xp.maximum(noise, lasting)
        asked = asked | (claimed & lost)
    raw = raw._replace(error=xp.where(claimed[..., None], xp.maximum(error, noise), error))
    return Claim(raw, asked if active is None else asked & active, first)


def _run(solver: IterativeSolver, residual: Residual, loop: _Loop) -> _Loop:
    """Step until no system is running; where they can be taken out of the batch, the last ones by themselves."""
    xp, backend, batch = residual.xp, residual.backend, tuple(loop.steps.shape)
    few = limit(backend, batch) if residual.divisible else 0

    def step(loop: _Loop) -> Any:
        active = loop.running
        masked = replace(residual, active=active) if batch or backend.traced else residual
        return next_state(solver, masked, loop.state)

    def assessed(state: Any, loop: _Loop) -> _Loop:
        active, search = loop.running, state.search
        if search is not None:
            active = active & ~search.trying
        new = _advance(solver, backend, active if batch or backend.traced else None, state, loop)
        if batch or search is not None:  # a trial is no step; else a single system is stepped only while it runs
            # no step is taken from what a finished system remembers, which may be large
            old = loop.state.iterate
            if not batch:  # another trial leaves it as it is
                old = new.state.iterate._replace(status=old.status)
            new = keep(backend, active, new, loop._replace(state=new.state._replace(iterate=old)))
        if residual.observe is not None:
            info = StepInfo.between(xp, solver, new.steps, loop.state.iterate, new.state.iterate)
            new = new._replace(state=_with_status(xp, new.state, residual.seen(info)))
        if residual.spent is not None and residual.spent():
            status = xp.where(new.running, int(Status.MAX_EVALUATIONS), new.state.iterate.status)
            new = new._replace(state=_with_status(xp, new.state, status))
        return new

    def left(loop: _Loop) -> Array:
        return room(backend, loop.running)

    def unfinished(loop: _Loop) -> Array:
        return left(loop) > few if few else xp.any(loop.running)

    loop = backend.while_loop(unfinished, step, loop, assessed)
    count = round_size(backend, batch) if few and backend.traced else few and int(left(loop))
    if count == 0:
        return loop

    def the_rest(residual: Residual, loop: _Loop, _: Array) -> _Loop:
        return _run(solver, residual, loop)

    return in_rounds(residual, loop.running, count, the_rest, loop)  # type: ignore[no-any-return]


def _advance(solver: IterativeSolver, backend: Backend, active: Array | None, state: State, loop: _Loop) -> _Loop:
    """Return the loop after the step of all systems to `state`; the best of those not `active` is kept."""
    xp, surely_all = backend.xp, backend.surely_all
    at, norm = state.iterate, _size(xp, state.iterate)
    steps = loop.steps + 1
    deep = cache(lambda: is_deep(solver, norm, loop.first_norm))
    allowed = cache(lambda: allowed_error(xp, solver, at.y, loop.scale, deep()))
    better = norm < loop.best_norm
    if active is not None:
        better = better & active
    # slow is not stalled
    haste, slow = solver.haste, 1 - 8 * float(xp.finfo(norm.dtype).eps)
    falling = (0.99 if haste else slow) if _known(haste) else xp.where(haste > 0, 0.99, xp.full_like(norm, slow))
    improved = norm < falling * loop.mark
    running = at.status == int(Status.RUNNING)
    unknown = ~xp.isfinite(first_of(xp, at.error))
    near = loop.near
    if surely_all(unknown):
        converged = ~unknown
    else:
        converged = is_within(xp, at.error, allowed()) & (norm < xp.inf)
        near = xp.where(converged, near + 1, xp.zeros_like(near))
        if solver.atol is None:  # a root that is not zero is known to rtol by then
            exact = allowed_error(xp, solver, at.y, loop.scale, deep(), power=1.0)
            converged = converged & (is_within(xp, at.error, exact) | (near >= _SETTLED))
    if surely_all(lambda: better & improved & (norm > 0) & (steps < solver.max_steps) & running & ~converged):
        zeros, state = xp.zeros_like(loop.idle), _with_status(xp, state, at.status)
        return _Loop(state, steps, loop.first_norm, at.y, norm, zeros, norm, loop.scale, near)
    # steps within tolerance that do not help are those of rounding: a few of them tell
    if surely_all(improved):
        idle = xp.zeros_like(loop.idle)
    else:
        idle = loop.idle + 1
        if not _known(haste) or haste:
            idle = idle + haste * xp.astype(is_within(xp, at.y - loop.state.iterate.y, allowed()), xp.int32)
        idle = xp.where(improved, 0, idle)
    status = xp.where((idle >= solver.patience) & running, int(Status.STALLED), at.status)
    status = xp.where(norm < xp.inf, status, int(Status.NONFINITE))
    status = xp.where((status == int(Status.RUNNING)) & (steps >= solver.max_steps), int(Status.MAX_STEPS), status)
    # of a y that ran away any residual is within tolerance: unless f has fallen too, `judged` is to tell
    fallen = norm <= solver.rtol**0.5 * loop.first_norm  # type: ignore[operator]
    status = xp.where(converged | (norm == 0), int(Status.CONVERGED), status)
    status = xp.where(converged & ~fallen, int(Status.STALLED), status)
    return _Loop(
        _with_status(xp, state, status),
        steps,
        loop.first_norm,
        loop.best_y if solver.descends else keep(backend, better, at.y, loop.best_y),
        loop.best_norm if solver.descends else xp.where(better, norm, loop.best_norm),
        xp.astype(idle, xp.int32),
        xp.where(improved & (norm > 0), norm, loop.mark),
        loop.scale,
        near,
    )


def _size(xp: Any, at: Iterate) -> Array:
    """Return the largest absolute entry of the residual at an iterate, (*batch)."""
    return max_norm(xp, at.f) if at.norm is None else at.norm


def _with_status(xp: Any, state: State, status: Array) -> State:
    """Return the state with the status that the loop gives its iterate."""
    return state._replace(iterate=state.iterate._replace(status=xp.astype(status, xp.int32)))


def _known(value: Any) -> bool:
    """Whether a setting is a plain number, neither None nor a value known only at run time."""
    return isinstance(value, int | float)
