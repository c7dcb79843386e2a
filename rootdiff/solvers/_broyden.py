"""Broyden's good method with low-rank updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from array_api_compat import array_namespace

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Factors, Scaling, Updated
from rootdiff._loop import IterativeSolver, running
from rootdiff._norms import dot, max_norm, norm2, numbers
from rootdiff._residual import Residual
from rootdiff._select import select, status_where
from rootdiff._solution import Status
from rootdiff.solvers._fixed_point import secant_scale
from rootdiff.solvers._line_search import backtrack

#: A step cut to less than this part shows that the Jacobian of the updates is no longer that of the residual.
_SHORT = 0.1
#: Pairs of which products are made while there are no more: each costs as much as all that there is room for.
_SIZES = (4, 8, 16)


class BroydenState(NamedTuple):
    """Iterate, residual, error, status; the inverse Jacobian as H0 + sum of left_i right_i^T.

    `left` and `right` are (*batch, memory, n). The pair of the last step, `newest`, each (*batch, n), takes the place
    of the oldest one in the next step, where it has been `updated`: before they are read, so that these arrays may be
    changed in place. `fresh` tells that no update has been made since H0 was set, `renew` that the next step must set
    it anew; `count` steps taken.
    """

    y: Array
    f: Array
    error: Array
    status: Array
    factors: Factors | None
    left: Array
    right: Array
    newest: tuple[Array, Array]
    updated: Array
    fresh: Array
    renew: Array
    count: Array

    @property
    def inverse(self) -> Updated:
        """The estimate of the inverse Jacobian."""
        xp = array_namespace(self.y)
        newest = (numbers(xp, self.right[..., 0], xp.int32) - 1 == self.place[..., None]) & self.updated[..., None]
        left, right = (
            xp.where(newest[..., None], row[..., None, :], stack)
            for stack, row in zip((self.left, self.right), self.newest, strict=True)
        )
        return Updated(self.base, left, right)

    @property
    def base(self) -> Factors | Scaling:
        """H0."""
        return Scaling(-1 + 0 * self.y) if self.factors is None else self.factors

    @property
    def place(self) -> Array:
        """Where the pair of the last step belongs, (*batch)."""
        memory = self.left.shape[-2]
        return (self.count + memory - 1) % memory


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
    memory: int = 30
    initial: Literal["jacobian", "identity"] = "jacobian"

    loose = (*IterativeSolver.loose, "left", "right", "newest", "updated", "count")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory < 1:
            raise ArgumentError(f"Broyden: memory is {self.memory!r}; it must be at least 1.")

    def init(self, residual: Residual, y: Array) -> BroydenState:
        xp = residual.xp
        status = running(xp, y)
        # an array each, since each is changed in place
        left, right = (xp.concat([xp.zeros_like(y)[..., None, :]] * self.memory, axis=-2) for _ in range(2))
        factors = Factors.zeros(xp, y) if self.initial == "jacobian" else None
        yes, nothing = status == int(Status.RUNNING), xp.zeros_like(y)
        unknown, count = xp.full_like(y, xp.inf), xp.zeros_like(status)
        newest = (nothing, nothing)
        return BroydenState(y, residual(y), unknown, status, factors, left, right, newest, ~yes, yes, yes, count)

    def step(self, residual: Residual, state: BroydenState) -> BroydenState:
        xp = residual.xp
        whole = self._renewed(residual, self._remembered(residual, state))
        state = self._filled(residual, whole)
        direction = -self._inverse(residual, state, state.f)
        solvable = xp.all(xp.isfinite(direction), axis=-1)
        direction = xp.where(solvable[..., None], direction, xp.zeros_like(direction))
        size = norm2(xp, state.f)
        # a summable allowance for growth (Li & Fukushima 2000, eq. 2.4), at first a doubling
        allowance = 1 + 1 / (1 + xp.astype(state.count, size.dtype)) ** 2

        def accept(trial: Array, length: Array | float) -> Array:
            return trial <= allowance * size

        trial = backtrack(residual, state.y, direction, accept)
        keep = trial.accepted[..., None]
        y, f = xp.where(keep, trial.y, state.y), xp.where(keep, trial.f, state.f)
        y_change, f_change = y - state.y, f - state.f
        newest, updated = self._update(residual, state, y_change, f_change)
        error = xp.maximum(
            xp.abs(direction), xp.abs(f * secant_scale(xp, max_norm(xp, y_change), max_norm(xp, f_change))[..., None])
        )
        trusted = trial.accepted & (trial.length == 1)
        hopeless = ~trial.accepted & (state.fresh | (self.initial == "identity"))
        status = status_where(xp, hopeless, Status.STALLED, Status.RUNNING)
        status = xp.where(~solvable & state.fresh, int(Status.SINGULAR), status)
        return BroydenState(
            y,
            f,
            xp.where(trusted[..., None], error, xp.full_like(error, xp.inf)),
            status,
            state.factors,
            whole.left,
            whole.right,
            newest,
            updated,
            state.fresh & ~updated,
            ~trial.accepted | (trial.length < _SHORT),
            state.count + 1,
        )

    def _remembered(self, residual: Residual, state: BroydenState) -> BroydenState:
        """Return the state with the pair of the last step in place of the oldest one."""
        backend = residual.backend
        place = residual.xp.max(state.place)
        left, right = (
            backend.put(stack, place, row, state.updated)
            for stack, row in zip((state.left, state.right), state.newest, strict=True)
        )
        return state._replace(left=left, right=right)

    def _filled(self, residual: Residual, state: BroydenState) -> BroydenState:
        """Return the state with no more pairs than there may be, as far as that is known."""
        for size in _SIZES:
            if size < self.memory and residual.backend.surely_all(state.count <= size):
                return state._replace(left=state.left[..., :size, :], right=state.right[..., :size, :])
        return state

    def _renewed(self, residual: Residual, state: BroydenState) -> BroydenState:
        """Return the state with a new H0 in the systems that ask for one."""
        xp, backend = residual.xp, residual.backend
        if self.initial == "identity":
            return state

        def renew(carry: tuple[Array, BroydenState]) -> tuple[Array, BroydenState]:
            need, old = carry
            new = old._replace(
                factors=backend.lu_factor(residual.jacobian(old.y)),
                left=xp.zeros_like(old.left),
                right=xp.zeros_like(old.right),
                fresh=xp.ones_like(old.fresh),
            )
            mixed = new if need.ndim == 0 else select(xp, need, new, old)
            return xp.zeros_like(need), mixed

        need = state.renew & ~residual.unwanted(state.renew)  # one that has failed asks no more
        return backend.while_loop(lambda carry: xp.any(carry[0]), renew, (need, state))[1]  # type: ignore[no-any-return]

    def _inverse(self, residual: Residual, state: BroydenState, vector: Array, transpose: bool = False) -> Array:
        """Return H v, or H^T v."""
        return Updated(state.base, state.left, state.right).apply(residual.backend, vector, transpose)

    def _update(
        self, residual: Residual, state: BroydenState, y_change: Array, f_change: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """Return the pair of the good Broyden update (Broyden 1965, eq. 4.5), and where it is made."""
        xp = residual.xp
        right = self._inverse(residual, state, y_change, transpose=True)
        image = self._inverse(residual, state, f_change)
        curvature = dot(xp, y_change, image)
        length = dot(xp, y_change, y_change)
        # Broyden's own guard: skip the update when H would become singular
        made = (xp.abs(curvature) > 1e-8 * length) & xp.isfinite(curvature) & (length > 0)
        made = made & ~residual.unwanted(length)
        return ((y_change - image) / xp.where(made, curvature, 1.0)[..., None], right), made
