"""The derivative-free spectral method DF-SANE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from rootdiff._backend import Array, select, status_where
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import limited
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import RawSolution, Status
from rootdiff._space import dot, max_norm, norm2, per_system
from rootdiff.solvers._correct import corrected
from rootdiff.solvers._fixed_point import secant_error
from rootdiff.solvers._line_search import Trial

#: La Cruz, Martínez & Raydan (2006), section 4: the constant of the line search and the limits of the spectral step.
_ARMIJO = 1e-4
_SHORTEST, _LONGEST = 1e-10, 1e10


class _Memory(NamedTuple):
    """Spectral step, last norms of f (newest first), first norm, count; `secant`, (*batch, n): see `secant_error`."""

    spectral: Array
    norms: Array
    first: Array
    count: Array
    secant: Array


@dataclass(frozen=True, kw_only=True)
class DFSane(IterativeSolver):
    """DF-SANE: steps along plus or minus the residual, of spectral length; no derivatives and no linear algebra.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the residual over the slope that the last step saw.
    memory : int
        Last norms of f of which the largest must nearly be undercut.

    References
    ----------
    La Cruz, Martínez & Raydan (2006), "Spectral residual method without gradient information for solving large-scale
    nonlinear systems of equations".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root(lambda y, a: y**3 - a, np.array([1.5]), np.array([8.0]), solver=rootdiff.DFSane()).y
    array([2.])
    """

    max_steps: int = 1000
    memory: int = limited(10, least=1)

    #: Long, since the residual may grow for a while before it falls.
    patience: ClassVar[int] = 200
    short_steps = 0

    def init(self, residual: Residual, y: Array) -> State:
        xp = residual.xp
        at = Iterate.start(xp, y, residual(y))
        size = norm2(xp, at.f)
        length = norm2(xp, y)
        # the first step is as long as y at most, as an infinite or overlong one would leave the domain
        spectral = xp.minimum(xp.ones_like(size), xp.where(length > 0, length, 1.0) / xp.where(size > 0, size, 1.0))
        norms = xp.stack([size] * self.memory, axis=-1)
        return State(at, _Memory(spectral, norms, size, xp.zeros_like(at.status), at.error))

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        # its secants say nothing of directions in which none went: of few unknowns the verdict asks for the Jacobian
        claimed = raw.status <= int(Status.AT_PRECISION)
        return corrected(self, residual, first_norm, raw, claimed) if has_few_unknowns(raw.y.shape) else raw

    def step(self, residual: Residual, state: State) -> State:
        xp = residual.xp
        at, memory, *_ = state
        size = norm2(xp, at.f)
        unit = xp.where(size > 0, size, 1.0)
        # eta_k = |f_0|^2 / (1 + k)^2 sums to a finite allowance; bound and allowance in units of |f|^2
        allowance = (memory.first / unit / (1 + xp.astype(memory.count, size.dtype))) ** 2
        bound = xp.max(memory.norms / unit[..., None], axis=-1) ** 2 + allowance

        def accept(trial: Array, length: Array) -> Array:
            return (trial / unit) ** 2 <= bound - _ARMIJO * length**2

        trial = _both_ways(residual, at.y, -memory.spectral[..., None] * at.f, accept)
        keep = trial.accepted[..., None]
        y, f = xp.where(keep, trial.y, at.y), xp.where(keep, trial.f, at.f)
        y_change, f_change = y - at.y, f - at.f
        curvature, length = dot(xp, y_change, f_change), dot(xp, y_change, y_change)
        spectral = length / xp.where(curvature != 0, curvature, 1.0)
        # section 4: outside the limits the step length returns to |f|^-1 between 1 and 1e5
        outside = ~(xp.abs(spectral) >= _SHORTEST) | ~(xp.abs(spectral) <= _LONGEST) | (curvature == 0)
        spectral = xp.where(outside, xp.clip(1 / xp.where(size > 0, norm2(xp, f), 1.0), 1.0, 1e5), spectral)
        status = status_where(xp, trial.accepted, Status.RUNNING, Status.STALLED)
        sizes = max_norm(xp, f), max_norm(xp, at.f)
        error, secant = secant_error(xp, f, *sizes, y_change, f_change, memory.secant, still=float("inf"))
        norms = xp.concat([norm2(xp, f)[..., None], memory.norms[..., :-1]], axis=-1)
        return State(
            Iterate(y, f, xp.where(keep, error, xp.inf), status),
            _Memory(spectral, norms, memory.first, memory.count + 1, secant),
        )


def _both_ways(residual: Residual, y: Array, step: Array, accept: Callable[[Array, Array], Array]) -> Trial:
    """Search along `step` and against it in turn, at halved lengths, since nothing tells which way is downhill."""
    xp = residual.xp
    eps = xp.finfo(y.dtype).eps

    def trial(length: Array) -> tuple[Array, ...]:
        point = residual.moved(y, length[..., None] * step)
        f = residual(point)
        size = norm2(xp, f)
        accepted = xp.isfinite(size) & accept(size, length)
        vanished = (max_norm(xp, length[..., None] * step) <= eps * max_norm(xp, y)) | (xp.abs(length) < 1e-12)
        return point, f, size, length, accepted, residual.of_active(~(accepted | vanished))

    def body(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        length, going = carry[3], carry[5]
        return select(xp, going, trial(xp.where(length > 0, -length, -0.5 * length)), carry)  # type: ignore[no-any-return]

    start = trial(per_system(xp, y, 1))
    point, f, size, length, accepted, _ = residual.backend.while_loop(lambda carry: xp.any(carry[5]), body, start)
    return Trial(point, f, size, length, accepted)
