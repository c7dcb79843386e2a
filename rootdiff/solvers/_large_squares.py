"""Gauss-Newton steps for many unknowns: by products with the Jacobian, or by sparse factors of the normal equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from rootdiff._backend import Array, select, status_where
from rootdiff._iterate import Iterate, State, running
from rootdiff._loop import IterativeSolver
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._settings import with_settings
from rootdiff._solution import RawSolution, Status
from rootdiff._space import dot, is_finite, norm2, per_system
from rootdiff._sparse import normal, told
from rootdiff.linear import CG, LU
from rootdiff.solvers._newton import Newton
from rootdiff.solvers._newton_krylov import NewtonKrylov

#: Damping at the start, in curvatures of the sum along its gradient; the part of a promise that a step must keep.
_FIRST, _ACCEPT = 1e-3, 1e-4
#: Relative residual to which a step is solved for by products: Newton corrections follow.
_INNER = 1e-3


class _Memory(NamedTuple):
    """The equations, (*batch, m), the damping, and what a step that fails multiplies it by, (*batch)."""

    r: Array
    damping: Array
    growth: Array


@dataclass(frozen=True, kw_only=True)
class LargeGaussNewton(IterativeSolver):
    """Levenberg-Marquardt steps of the normal equations, one trial each, where `GaussNewton` takes no whole matrix.

    They end where the sum of squares promises to fall by no more than half its digits. Newton corrections of the
    gradient, with the whole Hessian, follow.

    References
    ----------
    Nielsen (1999), "Damping parameter in Marquardt's method", eq. 2.4.
    """

    max_steps: int = 1000

    patience: ClassVar[int] = 10**6  # a trial that fails is a step
    short_steps: ClassVar[int] = 0

    @property
    def descends(self) -> bool:
        return True

    def init(self, residual: Residual, y: Array) -> State:
        assert residual.squares is not None
        xp = residual.xp
        start = per_system(xp, y, _FIRST), per_system(xp, y, 2)
        return _at(residual, y, residual.squares(y), running(xp, y), *start)

    def step(self, residual: Residual, state: State) -> State:
        assert residual.squares is not None
        xp, y, (r, damping, growth), box = residual.xp, state.iterate.y, state.memory, residual.box
        gradient = state.iterate.f if box is None else residual.free(y)
        free = xp.ones_like(y) if box is None else xp.astype(~box.holds(y, gradient), y.dtype)
        gradient = free * gradient
        forward, solve = _normal_equations(residual.squares, y, free)
        bend, slope = forward(gradient), norm2(xp, gradient)
        curvature = (norm2(xp, bend) / xp.where(slope > 0, slope, xp.ones_like(slope))) ** 2
        step = solve(damping * curvature, -gradient)
        whole = promised = _promised(xp, gradient, step, forward)
        trial = y + step
        if box is not None:
            trial = box.projected(trial)
            promised = _promised(xp, gradient, trial - y, forward)
        after = residual.squares(trial)
        gained = dot(xp, r - after, r + after)
        ratio = gained / xp.where(promised > 0, promised, xp.ones_like(promised))
        accepted = (promised > 0) & xp.isfinite(gained) & (ratio > _ACCEPT) & is_finite(xp, step)
        eased = damping * xp.clip(1 - (2 * ratio - 1) ** 3, 1 / 3)
        damping = xp.where(accepted, eased, damping * growth)
        growth = xp.where(accepted, per_system(xp, y, 2), 2 * growth)
        size = norm2(xp, r)
        resolved = whole > float(xp.finfo(y.dtype).eps) ** 0.5 * size * size
        status = status_where(xp, resolved, Status.RUNNING, Status.STALLED)
        keep = accepted[..., None]
        return _at(residual, xp.where(keep, trial, y), xp.where(keep, after, r), status, damping, growth)

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        """Return the solution after Newton's method for the gradient, unless that leads up."""
        assert residual.squares is not None
        xp = residual.xp
        newton = Newton() if residual.pattern is not None else NewtonKrylov(linear=CG())
        newton = with_settings(newton, rtol=self.rtol, atol=self.atol)
        done = (raw.status == int(Status.STALLED)) | (raw.status == int(Status.CONVERGED))
        found = newton.solve_where(residual, raw.y, done)
        low, eps = norm2(xp, residual.squares(raw.y)), float(xp.finfo(raw.y.dtype).eps)
        down = done & (norm2(xp, residual.squares(found.y)) <= (1 + eps**0.5) * low)
        steps = xp.astype(raw.steps + found.steps, xp.int32)
        found = found._replace(steps=steps, method=None)
        return select(xp, down, found, raw._replace(factors=found.factors, method=None))  # type: ignore[no-any-return]


def _promised(xp: Any, gradient: Array, step: Array, forward: Callable[[Array], Array]) -> Array:
    """Return by how much a step lets the squares fall, if the equations are linear, (*batch)."""
    return -2 * dot(xp, gradient, step) - norm2(xp, forward(step)) ** 2


def _at(residual: Residual, y: Array, r: Array, status: Array, damping: Array, growth: Array) -> State:
    """Return the state at a point, whose norm is that of r."""
    xp, gradient = residual.xp, residual(y)
    status = xp.where(is_finite(xp, gradient), status, int(Status.NONFINITE))
    iterate = Iterate(y, gradient, xp.full_like(y, xp.inf), xp.astype(status, xp.int32), norm2(xp, r))
    return State(iterate, _Memory(r, damping, growth))


def _normal_equations(
    squares: Residual, y: Array, free: Array
) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """Return the product with J at `y`, and ``s(shift, v)`` with ``(J^T J + shift) s = v`` for a shift, (*batch).

    The columns of J of unknowns that are not `free`, (*batch, n), of zeros and ones, are zero.
    """
    backend, pattern = squares.backend, squares.pattern
    of_all, rmatvec, *_ = backend.linearize(squares._of_y, y)

    def matvec(v: Array) -> Array:
        return of_all(free * v)

    if pattern is not None:
        values, wrong, _ = told(squares, y, pattern)
        values = values * squares.xp.take(free, backend.constant(np.array(pattern.indices), y), axis=-1)

        def by_factors(shift: Array, v: Array) -> Array:
            factors = pattern.normal.factors(LU.library)
            return factors(normal(backend, pattern, values, shift), wrong).apply(backend, v)

        return matvec, by_factors

    def solve(shift: Array, v: Array) -> Array:
        def twice(x: Array) -> Array:
            return free * rmatvec(matvec(x)) + shift[..., None] * x

        shape = (*y.shape, y.shape[-1])
        operator = LinearOperator(backend, twice, twice, lambda: v, backend.precision(y.dtype), shape)
        return CG(rtol=_INNER).solve(operator, v)[0]

    return matvec, solve
