"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._iterate import IterativeSolver, running
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status
from rootdiff.solvers._correct import corrected
from rootdiff.solvers._fixed_point import accept_finite, check_damping, finite_status, secant_error
from rootdiff.solvers._line_search import backtrack


class AndersonState(NamedTuple):
    """Iterate, residual, error estimate, status; differences of the last steps, (*batch, depth, n), newest first."""

    y: Array
    f: Array
    error: Array
    status: Array
    y_changes: Array
    f_changes: Array


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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_damping(self.damping, type(self).__name__)
        if self.depth < 1:
            raise ArgumentError(f"Anderson: depth is {self.depth!r}; it must be at least 1 (0 is `FixedPoint`).")
        if isinstance(self.regularisation, int | float) and not self.regularisation >= 0:
            raise ArgumentError(f"Anderson: regularisation is {self.regularisation!r}; it must be at least 0, or None.")

    def init(self, residual: Residual, y: Array) -> AndersonState:
        xp = residual.xp
        empty = xp.concat([xp.zeros_like(y)[..., None, :]] * self.depth, axis=-2)
        return AndersonState(y, residual(y), xp.full_like(y, xp.inf), running(xp, y), empty, empty)

    def step(self, residual: Residual, state: AndersonState) -> AndersonState:
        xp = residual.xp
        weights = self._weights(residual, state)[..., None]
        mixed = state.f - xp.sum(weights * state.f_changes, axis=-2)
        step = self.damping * mixed - xp.sum(weights * state.y_changes, axis=-2)
        trial = backtrack(residual, state.y, step, accept_finite(xp))
        y_change, f_change = trial.y - state.y, trial.f - state.f
        return AndersonState(
            trial.y,
            trial.f,
            secant_error(xp, trial.f, y_change, f_change),
            finite_status(xp, trial.accepted),
            xp.concat([y_change[..., None, :], state.y_changes[..., :-1, :]], axis=-2),
            xp.concat([f_change[..., None, :], state.f_changes[..., :-1, :]], axis=-2),
        )

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        return corrected(self, residual, first_norm, raw, raw.status == int(Status.STALLED))

    def _weights(self, residual: Residual, state: AndersonState) -> Array:
        """Return gamma, (*batch, depth), the minimiser of |f - sum gamma_i df_i| (Walker & Ni 2011, eq. 2.2)."""
        xp, backend = residual.xp, residual.backend
        regularisation = self.regularisation
        if regularisation is None:
            regularisation = float(xp.finfo(state.f.dtype).eps) ** (2 / 3)
        gram = state.f_changes @ xp.matrix_transpose(state.f_changes)
        projection = (state.f_changes @ state.f[..., None])[..., 0]
        lengths = xp.sqrt(xp.linalg.diagonal(gram))
        lengths = xp.where(lengths > 0, lengths, xp.ones_like(lengths))  # a slot not yet filled
        index = xp.cumulative_sum(xp.ones_like(lengths), axis=-1)
        identity = xp.astype(index[..., :, None] == index[..., None, :], gram.dtype)
        scaled = gram / (lengths[..., :, None] * lengths[..., None, :])
        empty = xp.astype(xp.linalg.diagonal(gram) == 0, gram.dtype)[..., None]
        matrix = scaled + identity * (regularisation + empty)
        weights = backend.lu_solve(backend.lu_factor(matrix), projection / lengths) / lengths
        return xp.where(xp.isfinite(weights), weights, xp.zeros_like(weights))
