"""Damped fixed-point (Picard) iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rootdiff._backend import Array, select, status_where
from rootdiff._iterate import Iterate, State, running
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import max_norm
from rootdiff.solvers._line_search import Trial, backtrack

#: Part of f that a step must leave for its secant to tell the slope at its end.
_LOCAL = 1e-3
#: Factor by which the secant of an unknown may rise from one step to the next: among many unknowns there is always one
#: whose f hardly changes, by chance, in one step.
_RISE = 4.0


@dataclass(frozen=True, kw_only=True)
class FixedPoint(IterativeSolver):
    """The iteration ``y + damping * f(y)``: for a cell, ``z = cell(z)`` itself, which must be a contraction.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the residual over the slope that the last steps saw.
    damping : float
        Fraction of the residual that is added, in (0, 2); 1 is the plain iteration. Dimensionless.

    References
    ----------
    Ortega & Rheinboldt (1970), "Iterative Solution of Nonlinear Equations in Several Variables", section 12.1.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.fixed_point(np.cos, np.array([1.0]), solver="fixed_point").y
    array([0.73908513])
    """

    max_steps: int = 1000
    damping: float = runtime(1.0, above=0, below=2)

    short_steps = 0

    # the memory is the secant of each unknown, (*batch, n)

    def init(self, residual: Residual, y: Array) -> State:
        at = first_iterate(residual, y)
        return State(at, at.error)

    def step(self, residual: Residual, state: State) -> State:
        xp = residual.xp
        at, secant, _, search = state
        trial = backtrack(residual, at.y, damped(self.damping, at.f), search)
        error = no_estimate(xp, trial.y)
        if not hopeless(self, residual, trial):
            error, secant = secant_error(xp, trial.f, trial.size, at.norm, trial.y - at.y, trial.f - at.f, secant)
        new = State(Iterate(trial.y, trial.f, error, finite_status(xp, trial.accepted), trial.size), secant)
        if trial.search is not None:
            new = select(xp, trial.ended, new, State(at, state.memory))
        return new._replace(search=trial.search)


def first_iterate(residual: Residual, y: Array) -> Iterate:
    """Return the iterate before the first step, with the norm that the secants of the first one are judged by."""
    xp, f = residual.xp, residual(y)
    return Iterate(y, f, no_estimate(xp, y), running(xp, y), max_norm(xp, f))


def damped(damping: Any, f: Array) -> Array:
    """Return ``damping * f``, by no pass over it where that is `f`."""
    return f if isinstance(damping, int | float) and damping == 1 else damping * f


def no_estimate(xp: Any, y: Array) -> Array:
    """Return an infinite error estimate, (*batch, n), which takes no memory of that size where views do not."""
    return xp.broadcast_to(xp.full_like(y[..., :1], xp.inf), tuple(y.shape))


def hopeless(solver: IterativeSolver, residual: Residual, trial: Trial) -> bool:
    """Return whether it is known that no system can be within tolerance at a trial point whose size is max |f|.

    That is the least that `secant_error` makes of the error, which then need not be known.
    """
    xp = residual.xp
    atol = float(xp.finfo(trial.y.dtype).eps) ** 0.75 if solver.atol is None else solver.atol
    return residual.backend.surely_all(lambda: ~(trial.size <= solver.rtol * max_norm(xp, trial.y) + atol))


def finite_status(xp: Any, accepted: Array) -> Array:
    """Return RUNNING where a trial was accepted, else NONFINITE."""
    return status_where(xp, accepted, Status.RUNNING, Status.NONFINITE)


def secant_error(
    xp: Any, f: Array, size: Array, last: Array, y_change: Array, f_change: Array, secant: Array, still: float = 0.0
) -> tuple[Array, Array]:
    """Return the residual over the slope that the last steps saw, an estimate of the error in y, and these secants.

    The secant of an unknown is its change over that of its row, which tells an unknown that moves slowly from one that
    has arrived. The estimate is infinite after a step that reduced f to less than a thousandth: the slope over so many
    times the error that is left need not be that at its end, as on the far side of a pole.

    Parameters
    ----------
    f, y_change, f_change : array, (*batch, n). The residual after the step, and the changes in it.
    size, last : array, (*batch). Largest absolute residual after and before the step.
    secant : array, (*batch, n). That of the step before; infinite where there was none.
    still : float
        The secant of an unknown that has not moved yet: zero where its f is that of a fixed point, so that it is as far
        off as f is large; infinite where f may be in any units.
    """
    moved, changed = xp.abs(y_change), xp.abs(f_change)
    known = changed > 0
    ratio = xp.where(known, moved / xp.where(known, changed, xp.ones_like(changed)), xp.inf)
    ratio = xp.where(moved > 0, xp.minimum(ratio, _RISE * secant), secant)
    scale = secant_scale(xp, max_norm(xp, y_change), max_norm(xp, f_change))[..., None]
    slow = xp.where((moved > 0) | xp.isfinite(ratio), ratio, still)
    error = xp.where(f == 0, xp.zeros_like(f), xp.abs(f) * xp.maximum(scale, slow))
    return xp.where((size >= _LOCAL * last)[..., None], error, xp.inf), ratio


def secant_scale(xp: Any, moved: Array, changed: Array) -> Array:
    """Return the factor, (*batch), from the residual to an estimate of the error in y.

    It is max |dy| / max |df| of the last step, but at least 1. For a contraction with rate r whose slowest mode has
    come to dominate it is 1 / (1 - r), the a-posteriori bound of Banach's theorem.
    """
    known = changed > 0
    ratio = moved / xp.where(known, changed, 1.0)
    # without a change of f there is no slope to judge by: unless nothing moved, the error is unknown
    return xp.where((moved > 0) & ~known, xp.inf, xp.clip(ratio, 1.0))
