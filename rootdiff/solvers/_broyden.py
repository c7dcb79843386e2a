"""Broyden's good method with low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rootdiff._backend import Array, Backend, select, status_where
from rootdiff._inverse import Factors, Scaling, Updated
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import limited
from rootdiff._solution import RawSolution, Status
from rootdiff._space import dot, is_finite, max_norm, norm2, numbers, some
from rootdiff.solvers._fixed_point import secant_scale
from rootdiff.solvers._line_search import backtrack

#: A step cut to less than this part shows that the Jacobian of the updates is no longer that of the residual.
_SHORT = 0.1
#: Pairs of which products are made while there are no more: each costs as much as all that there is room for.
_SIZES = (4, 8, 16)


class _Memory(NamedTuple):
    """Whether no update has been made since H0 was set, whether the next step must set it anew, the steps taken.

    The inverse is H0, then `memory` pairs, then that of the last step, zero where it made none. The next step puts it
    in place of the oldest one: before they are read, so that their arrays, (*batch, memory, n), may be changed in
    place.
    """

    fresh: Array
    renew: Array
    count: Array


@dataclass(frozen=True, kw_only=True)
class Broyden(IterativeSolver):
    """Broyden's good method: one Jacobian at the start, then rank-one updates from the residuals alone.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the residual over the slope that the last step saw, or the
        quasi-Newton correction, whichever is larger.
    memory : int
        Updates that are kept; the oldest is dropped. Memory is ``2 * memory * n`` per system.
    initial : {"jacobian", "identity"}
        The first Jacobian: the true one, which is formed again when a line search fails, or minus the identity,
        that of a fixed-point residual ``cell(z) - z`` with a weak cell (matrix-free).

    References
    ----------
    Broyden (1965), "A class of methods for solving nonlinear simultaneous equations", method 1. Li & Fukushima (2000),
    "A derivative-free line search and global convergence of Broyden-like method for nonlinear equations", eq. 2.4,
    for the non-monotone acceptance.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root(lambda y, a: y**3 - a, np.array([1.5]), np.array([8.0]), solver=rootdiff.Broyden(memory=10)).y
    array([2.])
    """

    max_steps: int = 200
    memory: int = limited(30, least=1)
    initial: Literal["jacobian", "identity"] = "jacobian"

    def init(self, residual: Residual, y: Array) -> State:
        xp, at = residual.xp, Iterate.start(residual.xp, y, residual(y))
        nothing = xp.zeros_like(y)[..., None, :]
        # an array each, since each is changed in place
        pairs = Updated(self._first(xp, y), *(xp.concat([nothing] * self.memory, axis=-2) for _ in range(2)))
        yes = at.status == int(Status.RUNNING)
        return State(at, _Memory(yes, yes, xp.zeros_like(at.status)), Updated(pairs, nothing, nothing))

    def step(self, residual: Residual, state: State) -> State:
        xp, backend = residual.xp, residual.backend
        at, memory = state.iterate, state.memory
        pairs, fresh = self._renewed(residual, state, self._remembered(backend, state))
        inverse = self._filled(backend, pairs, memory.count)
        direction = -inverse.apply(backend, at.f)
        solvable = is_finite(xp, direction)
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, at.f)
        # a summable allowance for growth (Li & Fukushima 2000, eq. 2.4), at first a doubling
        allowance = 1 + 1 / (1 + xp.astype(memory.count, size.dtype)) ** 2

        def accept(trial: Array, length: Array | float) -> Array:
            return trial <= allowance * size

        trial = backtrack(residual, at.y, direction, state.search, accept)
        keep = trial.accepted[..., None]
        y, f = xp.where(keep, trial.y, at.y), xp.where(keep, trial.f, at.f)
        y_change, f_change = y - at.y, f - at.f
        left, right, made = _update(residual, inverse, y_change, f_change)
        error = xp.maximum(
            xp.abs(direction), xp.abs(f * secant_scale(xp, max_norm(xp, y_change), max_norm(xp, f_change))[..., None])
        )
        trusted = trial.accepted & (trial.length == 1)
        hopeless = trial.ended & ~trial.accepted & (fresh | (self.initial == "identity"))
        status = status_where(xp, hopeless, Status.STALLED, Status.RUNNING)
        status = xp.where(~solvable & fresh, int(Status.SINGULAR), status)
        return State(
            Iterate(y, f, xp.where(trusted[..., None], error, xp.inf), status),
            _Memory(
                fresh & ~made,
                ~trial.accepted | (trial.length < _SHORT),
                xp.where(trial.ended, memory.count + 1, memory.count),
            ),
            Updated(pairs, left[..., None, :], right[..., None, :]),
            trial.search,
        )

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        xp, (pairs, *newest) = residual.xp, raw.factors  # type: ignore[misc]
        here = numbers(xp, pairs.left[..., 0], xp.int32) - 1 == self._place(raw.steps)[..., None]
        here = (here & _is_made(xp, raw.factors)[..., None])[..., None]
        stacks = zip(pairs[1:], newest, strict=True)
        return raw._replace(factors=Updated(pairs.base, *(xp.where(here, row, stack) for stack, row in stacks)))

    def _first(self, xp: Any, y: Array) -> Factors | Scaling:
        """Return H0, or what stands for the one that is not made yet."""
        return Factors.zeros(xp, y) if self.initial == "jacobian" else Scaling(-xp.ones_like(y[..., :1]))

    def _remembered(self, backend: Backend, state: State) -> Updated:
        """Return the pairs with that of the last step in place of the oldest one."""
        pairs, *newest = state.inverse  # type: ignore[misc]
        made, place = _is_made(backend.xp, state.inverse), self._place(state.memory.count)
        place = backend.xp.max(place)  # the same one in all systems
        stacks = zip(pairs[1:], newest, strict=True)
        return Updated(pairs.base, *(backend.put(stack, place, row[..., 0, :], made) for stack, row in stacks))

    def _place(self, steps: Array) -> Array:
        """Return where the pair of the last of so many steps belongs."""
        return (steps + self.memory - 1) % self.memory

    def _filled(self, backend: Backend, pairs: Updated, count: Array) -> Updated:
        """Return no more pairs than there may be, as far as that is known."""
        for size in _SIZES:
            if size < self.memory and backend.surely_all(count <= size):
                return pairs._replace(left=pairs.left[..., :size, :], right=pairs.right[..., :size, :])
        return pairs

    def _renewed(self, residual: Residual, state: State, pairs: Updated) -> tuple[Updated, Array]:
        """Return the pairs, none and a new H0 in the systems that ask for one, and where there is no update."""
        xp, backend, y = residual.xp, residual.backend, state.iterate.y
        memory, _, search = state[1:]
        asked = memory.renew if search is None else memory.renew & ~search.trying
        if self.initial == "identity":
            return pairs, memory.fresh

        def renew(need: Array, old: Updated, fresh: Array) -> tuple[Array, Updated, Array]:
            nothing = xp.zeros_like(old.left), xp.zeros_like(old.right)
            new = Updated(backend.lu_factor(residual.jacobian(y)), *nothing)
            return xp.zeros_like(need), new if need.ndim == 0 else select(xp, need, new, old), fresh | need

        start = (residual.of_active(asked), pairs, memory.fresh)  # a system that has failed asks no more
        return backend.while_loop(lambda carry: xp.any(carry[0]), lambda carry: renew(*carry), start)[1:]  # type: ignore[no-any-return]


def _update(residual: Residual, inverse: Updated, y_change: Array, f_change: Array) -> tuple[Array, Array, Array]:
    """Return the pair of the good Broyden update, zero where none is made, and where one is (Broyden 1965, eq. 4.5)."""
    xp, backend = residual.xp, residual.backend
    right = inverse.apply(backend, y_change, transpose=True)
    image = inverse.apply(backend, f_change)
    curvature = dot(xp, y_change, image)
    length = dot(xp, y_change, y_change)
    # Broyden's own guard: skip the update when H would become singular
    made = (xp.abs(curvature) > 1e-8 * length) & xp.isfinite(curvature) & (length > 0)
    made = residual.of_active(made)
    left = (y_change - image) / xp.where(made, curvature, 1.0)[..., None]
    return xp.where(made[..., None], left, 0.0), right, made


def _is_made(xp: Any, inverse: Any) -> Array:
    """Return whether the last step has made a pair, (*batch)."""
    return some(xp, inverse.left[..., 0, :] != 0)
