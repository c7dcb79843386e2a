"""Several solvers, one after the other, until each system has its root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from rootdiff._backend import Array
from rootdiff._compaction import limit, put, taken
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._inverse import Factors
from rootdiff._residual import Residual
from rootdiff._select import select
from rootdiff._sizes import is_cheaper_than_a_branch
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver, run
from rootdiff._verdict import start_scale

#: Part of the size of an unknown by which a start moves away from where a square root or a norm has no derivative.
_NUDGE = 1e-3


@dataclass(frozen=True)
class Chain(Solver):
    """Solvers that take turns: each one tries, from `y0`, the systems that those before it failed.

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
        return type(self)(tuple(solver.resolved(dtype, xp) for solver in self.solvers))

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return self.solve_where(residual, y0, residual.xp.isfinite(y0[..., 0]) | True)

    def solve_where(self, residual: Residual, y0: Array, active: Array) -> RawSolution:
        backend = residual.backend
        first = run(self.solvers[0], residual, y0, active)
        first = first._replace(error=_error(residual.xp, first))
        cheap = backend.traced and is_cheaper_than_a_branch(y0.shape)
        if first.factors is None or not (cheap or backend.eliminates(y0.shape)):
            return self._after(0, residual, y0, active, first)
        # made where they are used only: not if a branch took them along
        raw = self._after(0, residual, y0, active, first._replace(factors=None))
        return raw._replace(factors=backend.lu_factor(residual.jacobian(raw.y)))

    def _after(self, index: int, residual: Residual, y0: Array, active: Array, best: RawSolution) -> RawSolution:
        """Return what the solvers after the one at `index` make of the `best` of those up to it."""
        if index + 1 == len(self.solvers):
            return best
        xp, solver = residual.xp, self.solvers[index + 1]
        few = limit(residual.backend, tuple(active.shape)) if residual.divisible and residual.backend.traced else 0

        def attempt(*parts: Any) -> RawSolution:
            best = RawSolution(*parts)
            need = _failed(xp, best, active)
            if few:
                return self._in_rounds(index, residual, y0, need, best, few)
            # a system that needs nothing starts at its root, for solvers that cannot leave it out
            raw = run(solver, residual, xp.where(need[..., None], _nudged(residual, y0, best), best.y), need)
            return self._after(index + 1, residual, y0, active, _better(xp, best, raw, need))

        # all further solvers in one branch: where none is needed, that is asked once
        return residual.backend.when(xp.any(_failed(xp, best, active)), attempt, best, best)  # type: ignore[no-any-return]

    def _in_rounds(
        self, index: int, residual: Residual, y0: Array, need: Array, best: RawSolution, few: int
    ) -> RawSolution:
        """Return what `_after` does where systems are `need`-ed, by the further solvers for a `few` systems at a time.

        Each of them is compiled once then; in a batch that becomes smaller it would be once for each size.
        """
        xp, take, lead = residual.xp, residual.take, need.ndim
        assert take is not None
        rest = Chain(self.solvers[index + 1 :])

        def attempt(state: tuple[RawSolution, Array]) -> tuple[RawSolution, Array]:
            best, need = state
            flat = xp.reshape(need, (-1,))
            chosen = flat & (xp.cumulative_sum(xp.astype(flat, xp.int32)) <= few)
            order = residual.backend.indices(chosen, few)

            def pick(array: Array) -> Array:
                return xp.take(array, order, axis=0)

            start, old, wanted = taken(xp, (y0, best, need), pick, lead)
            at_rest = xp.where(wanted[..., None], start, old.y)
            raw = rest.solve_where(replace(take(pick, few), take=None), at_rest, wanted)
            return put(xp, best, _better(xp, old, raw, wanted), chosen, lead), need & ~xp.reshape(chosen, need.shape)

        return residual.backend.while_loop(lambda state: xp.any(state[1]), attempt, (best, need))[0]  # type: ignore[no-any-return]


def _nudged(residual: Residual, y0: Array, best: RawSolution) -> Array:
    """Return the start of the next solver, a little off `y0` where the derivative there is not finite."""
    xp = residual.xp
    stuck = (best.status == int(Status.NONFINITE)) & xp.all(best.y == y0, axis=-1)
    return xp.where(stuck[..., None], y0 + _NUDGE * start_scale(xp, y0, residual.scale), y0)


def _failed(xp: Any, best: RawSolution, active: Array) -> Array:
    """Return where another solver may do better: not at a root that rounding alone leaves undetermined."""
    attained = (best.status == int(Status.ILL_DETERMINED)) & xp.all(xp.isfinite(best.error), axis=-1)
    hopeless = attained | (best.status == int(Status.NONFINITE_START))
    return (best.status > int(Status.RUNNING)) & ~hopeless & active


def _better(xp: Any, best: RawSolution, raw: RawSolution, need: Array) -> RawSolution:
    """Return, per system, `raw` where it was needed and succeeded or came closer, else `best`."""
    take = need & ((raw.status <= int(Status.AT_PRECISION)) | (raw.residual_norm < best.residual_norm))
    factors = best.factors
    if isinstance(factors, Factors) and isinstance(raw.factors, Factors):
        # else those of an earlier method stay: they are a preconditioner, which need not belong to this root
        factors = select(xp, take, raw.factors, factors)
    return RawSolution(
        xp.where(take[..., None], raw.y, best.y),
        xp.where(take, raw.status, best.status),
        xp.where(need, best.steps + raw.steps, best.steps),
        xp.where(take, raw.residual_norm, best.residual_norm),
        factors,
        xp.where(take, raw.method, best.method),
        xp.where(take[..., None], _error(xp, raw), _error(xp, best)),
    )


def _error(xp: Any, raw: RawSolution) -> Array:
    return xp.full_like(raw.y, xp.inf) if raw.error is None else raw.error
