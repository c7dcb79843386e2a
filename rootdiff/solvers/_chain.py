"""Several solvers, one after the other, until each system has its root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, Self

from rootdiff._backend import Array, select
from rootdiff._compaction import in_rounds, round_size
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._inverse import Factors, Inverse
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._sizes import is_cheaper_than_a_branch
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Claim, Solver
from rootdiff._space import every, is_finite, per_system
from rootdiff._verdict import judged, start_scale
from rootdiff.solvers._in_turn import in_turns, is_together

#: Part of the size of an unknown by which a start moves away from where a square root or a norm has no derivative; in
#: the k-th turn its k-th root.
_NUDGE = 1e-3


@dataclass(frozen=True)
class Chain(Solver):
    """Solvers that take turns: each one tries, from `y0` or from beside it, the systems that those before it failed.

    Parameters
    ----------
    solvers : sequence of Solver
        In the order of the attempts: cheap ones first, robust ones after. Where all of them fail, the best
        iterate of all is returned, with the status of the solver that found it.

    Notes
    -----
    `Solution.method` tells per system which solver its result is from, `Solution.steps` counts the steps of
    all that tried. A later solver runs only while some system of the batch still fails, under ``jax.jit`` too.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.Chain([rootdiff.Chord(max_steps=3), rootdiff.Newton()])
    >>> sol = rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]), solver=solver)
    >>> rootdiff.Method(int(sol.method)).name
    'NEWTON'
    """

    solvers: Sequence[Solver]

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "solvers", tuple(self.solvers))
        if not self.solvers:
            raise ArgumentError("Chain: it has no solvers; give at least one.")
        for solver in self.solvers:
            if not isinstance(solver, Solver):
                raise ArgumentTypeError(f"Chain: got {solver!r}; each entry must be a Solver, such as Newton().")

    def resolved(self, dtype: Any, xp: Any) -> Self:
        return with_settings(self, solvers=tuple(solver.resolved(dtype, xp) for solver in self.solvers))

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return self.solve_where(residual, y0, per_system(residual.xp, y0, True, residual.xp.bool))

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        backend, chain = residual.backend, self.resolved(y0.dtype, residual.xp)
        claim = chain.solvers[0].claim(residual, y0, active)
        claim = claim._replace(raw=claim.raw._replace(error=_error(residual.xp, claim.raw)))
        cheap = backend.traced and is_cheaper_than_a_branch(y0.shape)
        if claim.raw.factors is None or not (cheap or backend.eliminates(y0.shape)):
            return chain._ended(residual, y0, active, claim)
        # made where they are used only: not if a branch took them along
        raw = chain._ended(residual, y0, active, claim._replace(raw=claim.raw._replace(factors=None)))
        return raw._replace(factors=backend.lu_factor(residual.jacobian(raw.y)))

    def _ended(self, residual: Residual, y0: Array, active: Array, claim: Claim) -> RawSolution:
        """Return what comes of the claim of the first solver: all that follows is one branch, and asked for once."""
        backend, xp = residual.backend, residual.xp
        open_ = active & (claim.asked | _failed(xp, claim.raw))
        few = round_size(backend, tuple(active.shape)) if residual.divisible and backend.traced else 0
        if few:  # each solver is compiled once then; in a batch that becomes smaller it would be once for each size
            return in_rounds(residual, open_, few, self._in_turns, claim.raw, y0, claim.asked, claim.first)  # type: ignore[no-any-return]

        def judged_and_tried(*parts: Any) -> RawSolution:
            claim = Claim(*parts)
            return self._in_turns(residual, claim.raw, open_, y0, claim.asked, claim.first)

        return backend.when(xp.any(open_), judged_and_tried, claim, claim.raw)  # type: ignore[no-any-return]

    def _in_turns(
        self, residual: Residual, raw: RawSolution, need: Array, y0: Array, asked: Array, first: Array
    ) -> RawSolution:
        """Judge what the first solver claims of the systems in `need`, and let the others try those that fail in turns.

        A loop, whose body holds one verdict for all of them.
        """
        backend, xp = residual.backend, residual.xp

        def turn(state: _Turn) -> _Turn:
            index, need, start, best = state
            new = Claim(best, asked & (index == 0), first)
            others, f = in_turns(residual, self.solvers[1:], y0, index), first
            if not all(is_together(solver, residual) for solver, _ in others):  # those evaluate f with its Jacobian
                f = backend.when(xp.any(need & (index > 0)), residual, (start,), first)
            for solver, mine in others:
                new = self._claim(solver, replace(residual, known=(start, f)), need & mine, new)
            found = _judged([(self.solvers[0], index == 0), *others], residual, state, new)
            best = _better(xp, best, found, need, index == 0)
            if residual.may_end:
                best = best._replace(status=xp.where(need & _is_ended(found), found.status, best.status))
            need = need & _failed(xp, best) & (index + 1 < len(self.solvers))
            # a system that needs nothing starts at its root, for solvers that cannot leave it out
            beside = _beside(residual, y0, start, best, index + 1)
            return _Turn(index + 1, need, xp.where(need[..., None], beside, best.y), best)

        start = _Turn(xp.zeros_like(xp.any(need), dtype=xp.int32), need, y0, raw)
        return backend.while_loop(lambda state: xp.any(state.need), turn, start).best  # type: ignore[no-any-return]

    def _claim(self, solver: Solver, residual: Residual, need: Array, old: Claim) -> Claim:
        """Return what a solver claims from the known point for the systems in `need` of it, `old` for the others."""
        xp = residual.xp
        assert residual.known is not None

        def attempt(start: Array, first: Array, *parts: Any) -> Claim:
            old, new = Claim(*parts), solver.claim(replace(residual, known=(start, first)), start, need, False)
            raw = new.raw._replace(factors=_alike(old.raw.factors, new.raw.factors), error=_error(xp, new.raw))
            return new._replace(raw=raw, asked=new.asked & need)

        return residual.backend.when(xp.any(need), attempt, (*residual.known, *old), old)  # type: ignore[no-any-return]


def adjusted(solver: Solver, settings: dict[str, Any]) -> Solver:
    """Return a solver, or the solvers of a chain, with other settings; raise if it has no such setting."""
    if isinstance(solver, Chain):
        return replace(solver, solvers=[adjusted(one, settings) for one in solver.solvers])
    known: set[str] = {f.name for f in fields(solver)} if is_dataclass(solver) else set()
    for name in settings.keys() - known:
        raise ArgumentError(
            f"{name}: the solver {type(solver).__name__} has no such setting. Leave it out, or choose another solver."
        )
    return replace(solver, **settings)  # type: ignore[type-var]


class _Turn(NamedTuple):
    """A turn of a chain.

    Attributes
    ----------
    index : integer scalar. The place of the solver whose turn it is; the first one has made its claim.
    need : boolean array, (*batch). The systems for which it is.
    start : array, (*batch, n). Where the solver starts.
    best : RawSolution. The best one of the solvers before.
    """

    index: Array
    need: Array
    start: Array
    best: RawSolution


def _judged(turns: list[tuple[Solver, Array]], residual: Residual, state: _Turn, claim: Claim) -> RawSolution:
    """Return a claim, judged by the tolerances of the solver whose turn it is: those that agree share a verdict."""
    shared: dict[Any, tuple[Solver, Array]] = {}
    for solver, mine in turns:
        if isinstance(solver, IterativeSolver):  # any other one has judged by itself
            key = _known(solver.rtol), _known(solver.atol)
            shared[key] = solver, mine | shared[key][1] if key in shared else mine
    raw = claim.raw
    for solver, mine in shared.values():
        raw = judged(solver, residual, state.start, claim.first, raw, claim.asked & state.need & mine)
    return raw


def _beside(residual: Residual, y0: Array, start: Array, best: RawSolution, turn: Array) -> Array:
    """Return the start of the next solver: beside `y0`, where no step led away from that, the later the farther."""
    xp = residual.xp
    stuck = ((best.status == int(Status.NONFINITE)) | (best.status == int(Status.STALLED))) & every(xp, best.y == y0)
    stuck = stuck | ~every(xp, start == y0)  # as in the turns before
    part = _NUDGE ** (1 / xp.astype(turn, y0.dtype))[..., None]
    return xp.where(stuck[..., None], y0 + part * start_scale(xp, y0, residual.scale), y0)


def _failed(xp: Any, best: RawSolution) -> Array:
    """Return where another solver may do better: not at a root that rounding alone leaves undetermined."""
    attained = (best.status == int(Status.ILL_DETERMINED)) & is_finite(xp, best.error)
    hopeless = attained | (best.status == int(Status.NONFINITE_START)) | _is_ended(best)
    return (best.status > int(Status.RUNNING)) & ~hopeless


def _is_ended(raw: RawSolution) -> Array:
    """Return where the user, or a limit on evaluations, has ended the solve: no other solver is to try."""
    return raw.status >= int(Status.STOPPED)


def _better(xp: Any, best: RawSolution, raw: RawSolution, need: Array, is_first: Array) -> RawSolution:
    """Return, per system, `raw` where it was needed and is the first one, succeeded or came closer, else `best`."""
    success = raw.status <= int(Status.AT_PRECISION)
    take = need & (is_first | success | (raw.residual_norm < best.residual_norm))
    factors = raw.factors
    if best.factors is not None:
        factors = select(xp, take, _alike(best.factors, factors), best.factors)
    chosen: RawSolution = select(xp, take, raw._replace(factors=None), best._replace(factors=None))
    steps = xp.where(need & ~is_first, best.steps + raw.steps, best.steps)
    return chosen._replace(steps=steps, factors=factors)


def _alike(old: Inverse | None, new: Inverse | None) -> Inverse | None:
    """Return the `new` factors, where they may take the place of the `old` ones.

    Else those of an earlier solver stay: they are a preconditioner, which need not belong to this root.
    """
    return new if isinstance(old, Factors) and isinstance(new, Factors) else old


def _error(xp: Any, raw: RawSolution) -> Array:
    return xp.full_like(raw.y, xp.inf) if raw.error is None else raw.error


def _known(setting: Any) -> Any:
    """Return what tells a setting from another one; in a compiled program it may be an array of unknown value."""
    return setting if setting is None or isinstance(setting, int | float) else id(setting)
