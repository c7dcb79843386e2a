"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._iterate import IterativeSolver, running
from rootdiff._norms import dot, max_norm
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status
from rootdiff.solvers._correct import corrected
from rootdiff.solvers._fixed_point import check_damping, damped, finite_status, hopeless, no_estimate, secant_error
from rootdiff.solvers._line_search import backtrack


class AndersonState(NamedTuple):
    """Iterate, residual, error estimate, status; changes of ``y + damping * f`` and of f in the last steps.

    The newest come first, each a vector, (*batch, n), so that a new one costs no copy of the others. `gram`,
    (*batch, depth, depth), has the inner products of the changes of f, `projection`, (*batch, depth), theirs with f.
    """

    y: Array
    f: Array
    error: Array
    status: Array
    f_norm: Array
    changes: tuple[Array, ...]
    f_changes: tuple[Array, ...]
    gram: Array
    projection: Array


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
    depth: int = 5
    damping: float = 1.0
    regularisation: float | None = None

    runtime = (*IterativeSolver.runtime, "damping", "regularisation")
    loose = (*IterativeSolver.loose, "changes", "f_changes", "gram", "projection")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, type(self).__name__)
        if self.depth < 1:
            raise ArgumentError(f"Anderson: depth is {self.depth!r}; it must be at least 1 (0 is `FixedPoint`).")
        if isinstance(self.regularisation, int | float) and not self.regularisation >= 0:
            raise ArgumentError(f"Anderson: regularisation is {self.regularisation!r}; it must be at least 0, or None.")

    def init(self, residual: Residual, y: Array) -> AndersonState:
        xp = residual.xp
        empty = (xp.zeros_like(y),) * self.depth
        row = xp.concat([xp.zeros_like(y[..., :1])] * self.depth, axis=-1)
        gram = row[..., None] * row[..., None, :]
        f = residual(y)
        return AndersonState(y, f, no_estimate(xp, y), running(xp, y), max_norm(xp, f), empty, empty, gram, row)

    def step(self, residual: Residual, state: AndersonState) -> AndersonState:
        xp = residual.xp
        count = _filled(residual, state.gram)
        weights = self._weights(residual, state)
        step = damped(self.damping, state.f)
        for place, change in enumerate(state.changes[:count]):
            step = step - weights[..., place, None] * change
        trial = backtrack(residual, state.y, step)
        y_change, f_change = trial.y - state.y, trial.f - state.f
        if hopeless(self, residual, trial):
            error = no_estimate(xp, trial.y)
        else:
            moved, changed = max_norm(xp, y_change), max_norm(xp, f_change)
            error = secant_error(xp, trial.f, trial.size, state.f_norm, moved, changed)
        f_changes = (f_change, *state.f_changes[:-1])
        products = [dot(xp, change, trial.f) for change in f_changes[: count + 1]]
        projection = xp.stack([*products, *[xp.zeros_like(trial.size)] * (self.depth - len(products))], axis=-1)
        # those of the changes before with f have changed by those with its change
        others = projection[..., 1:] - state.projection[..., :-1]
        row = xp.concat([dot(xp, f_change, f_change)[..., None], others], axis=-1)
        below = xp.concat([row[..., 1:, None], state.gram[..., :-1, :-1]], axis=-1)
        return AndersonState(
            trial.y,
            trial.f,
            error,
            finite_status(xp, trial.accepted),
            trial.size,
            (y_change + damped(self.damping, f_change), *state.changes[:-1]),
            f_changes,
            xp.concat([row[..., None, :], below], axis=-2),
            projection,
        )

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        return corrected(self, residual, first_norm, raw, raw.status == int(Status.STALLED))

    def _weights(self, residual: Residual, state: AndersonState) -> Array:
        """Return gamma, (*batch, depth), the minimiser of |f - sum gamma_i df_i| (Walker & Ni 2011, eq. 2.2)."""
        xp, backend = residual.xp, residual.backend
        regularisation = self.regularisation
        if regularisation is None:
            regularisation = float(xp.finfo(state.f.dtype).eps) ** (2 / 3)
        squares = xp.linalg.diagonal(state.gram)
        filled = squares > 0
        lengths = xp.where(filled, xp.sqrt(squares), xp.ones_like(squares))
        index = xp.cumulative_sum(xp.ones_like(lengths), axis=-1)
        identity = xp.astype(index[..., :, None] == index[..., None, :], lengths.dtype)
        scaled = state.gram / (lengths[..., :, None] * lengths[..., None, :])
        matrix = scaled + identity * (regularisation + xp.astype(~filled, lengths.dtype))[..., None]
        weights = backend.lu_solve(backend.lu_factor(matrix), state.projection / lengths) / lengths
        return xp.where(xp.isfinite(weights), weights, xp.zeros_like(weights))


def _filled(residual: Residual, gram: Array) -> int:
    """Return how many changes there are to mix: all but the last ones that are known to be zero in every system."""
    count = gram.shape[-1]
    while count > 0 and residual.backend.surely_all(gram[..., count - 1, count - 1] == 0):
        count -= 1
    return count  # type: ignore[no-any-return]
