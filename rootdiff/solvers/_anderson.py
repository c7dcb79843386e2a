"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rootdiff._backend import Array, select
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import limited, runtime
from rootdiff._solution import RawSolution, Status
from rootdiff._space import dot, numbers, projections
from rootdiff.solvers._correct import corrected
from rootdiff.solvers._fixed_point import (
    damped,
    finite_status,
    first_iterate,
    hopeless,
    no_estimate,
    secant_error,
)
from rootdiff.solvers._line_search import backtrack


class _Memory(NamedTuple):
    """The last changes of ``y + damping * f`` and of f.

    `change` and `f_change`, (*batch, n), are those of the last step, which the next one puts in place of the oldest of
    `changes` and `f_changes`, (*batch, depth, n): before it reads them, so that it may change these arrays in place.
    Of the changes of f, `gram`, (*batch, depth, depth), has the inner products, `projection`, (*batch, depth), those
    with f. `count`, (*batch), steps taken; `secant`, (*batch, n), as for `secant_error`.
    """

    change: Array
    f_change: Array
    changes: Array
    f_changes: Array
    gram: Array
    projection: Array
    count: Array
    secant: Array


@dataclass(frozen=True, kw_only=True)
class Anderson(IterativeSolver):
    """Anderson acceleration of ``y + damping * f(y)``: mixes the last steps so that the residual is least.

    Where it stalls next to a multiple root, and a Jacobian is small enough to be formed, Newton corrections go on.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the residual over the slope that the last step saw.
    depth : int
        Steps that are mixed (m); memory is ``2 * depth * n`` per system.
    damping : float
        Fraction of the mixed residual that is added (beta), in (0, 2). Dimensionless.
    regularisation : float, optional
        Tikhonov term, relative to the squared lengths of the differences; default eps^(2/3) of the dtype.

    References
    ----------
    Anderson (1965), "Iterative procedures for nonlinear integral equations". Walker & Ni (2011), "Anderson
    acceleration for fixed-point iterations", eq. 2.2.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.fixed_point(np.cos, np.array([1.0]), solver=rootdiff.Anderson(depth=3)).y
    array([0.73908513])
    """

    max_steps: int = 200
    depth: int = limited(5, least=1)
    damping: float = runtime(1.0, above=0, below=2)
    regularisation: float | None = runtime(None, least=0)

    short_steps = 0

    def init(self, residual: Residual, y: Array) -> State:
        xp, at = residual.xp, first_iterate(residual, y)
        row = xp.concat([xp.zeros_like(y[..., :1])] * self.depth, axis=-1)
        gram, nothing = row[..., None] * row[..., None, :], xp.zeros_like(y)
        # an array each, since each is changed in place
        changes, f_changes = (xp.concat([nothing[..., None, :]] * self.depth, axis=-2) for _ in range(2))
        count = xp.zeros_like(at.status)
        return State(at, _Memory(nothing, nothing, changes, f_changes, gram, row, count, at.error))

    def step(self, residual: Residual, state: State) -> State:
        xp, at = residual.xp, state.iterate
        memory = self._remembered(residual, state.memory, at.f)
        mixed = (self._weights(residual, memory)[..., None, :] @ memory.changes)[..., 0, :]
        trial = backtrack(residual, at.y, damped(self.damping, at.f) - mixed, state.search)
        y_change, f_change = trial.y - at.y, trial.f - at.f
        error, secant = no_estimate(xp, trial.y), memory.secant
        if not hopeless(self, residual, trial):
            error, secant = secant_error(xp, trial.f, trial.size, at.norm, y_change, f_change, secant)
        change = y_change + damped(self.damping, f_change)
        new = memory._replace(change=change, f_change=f_change, count=memory.count + 1, secant=secant)
        at = Iterate(trial.y, trial.f, error, finite_status(xp, trial.accepted), trial.size)
        if trial.search is not None:  # another trial finds the same changes in the same places
            old = state.memory._replace(changes=new.changes, f_changes=new.f_changes)
            at, new = select(xp, trial.ended, (at, new), (state.iterate, old))
        return State(at, new, search=trial.search)

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        return corrected(self, residual, first_norm, raw, raw.status == int(Status.STALLED))

    def _remembered(self, residual: Residual, old: _Memory, f: Array) -> _Memory:
        """Return the memory with the changes of the last step in place of the oldest ones."""
        xp, backend = residual.xp, residual.backend
        places = old.count % self.depth  # the same one in all systems
        place = xp.max(places)
        newest = numbers(xp, old.projection, xp.int32) - 1 == places[..., None]
        changes = backend.put(old.changes, place, old.change)
        f_changes = backend.put(old.f_changes, place, old.f_change)
        projection = projections(xp, f_changes, f)
        # those of the older changes with f have changed by those with its change
        row = xp.where(newest, dot(xp, old.f_change, old.f_change)[..., None], projection - old.projection)
        gram = xp.where(newest[..., None, :], row[..., :, None], old.gram)
        gram = xp.where(newest[..., :, None], row[..., None, :], gram)
        return old._replace(changes=changes, f_changes=f_changes, gram=gram, projection=projection)

    def _weights(self, residual: Residual, memory: _Memory) -> Array:
        """Return gamma, (*batch, depth), the minimiser of |f - sum gamma_i df_i| (Walker & Ni 2011, eq. 2.2)."""
        xp, backend = residual.xp, residual.backend
        regularisation = self.regularisation
        if regularisation is None:
            regularisation = float(xp.finfo(memory.gram.dtype).eps) ** (2 / 3)
        squares = xp.linalg.diagonal(memory.gram)
        filled = squares > 0
        lengths = xp.where(filled, xp.sqrt(squares), xp.ones_like(squares))
        index = numbers(xp, squares)
        identity = xp.astype(index[:, None] == index, lengths.dtype)
        scaled = memory.gram / (lengths[..., :, None] * lengths[..., None, :])
        matrix = scaled + identity * (regularisation + xp.astype(~filled, lengths.dtype))[..., None]
        rhs = memory.projection / lengths
        weights = backend.eliminate(matrix, rhs)[0] / lengths
        return xp.where(xp.isfinite(weights), weights, xp.zeros_like(weights))
