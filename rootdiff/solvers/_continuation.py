"""Continuation: the root is followed from easy parameters to the wanted ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._iterate import Solver
from rootdiff._norms import dot, max_norm, norm2
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status
from rootdiff.solvers._newton import Newton

#: Newton steps that a corrector may take; up to the first number the path is so straight that the step may double.
_EASY, _CORRECTOR_STEPS = 3, 8
#: Cosine of the largest angle between tangents: beyond, the corrector may have jumped to another branch.
_LARGEST_TURN = 0.7
#: Steps shorter than this part of the whole way are given up: the path ends here (a fold, for the natural parameter).
_SHORTEST = 1e-7


class _Path(NamedTuple):
    """The point z = (y / unit, lambda), the one before it, the tangent, step length, steps and status."""

    z: Array
    last: Array
    tangent: Array
    length: Array
    steps: Array
    status: Array


@dataclass(frozen=True, kw_only=True)
class Continuation(Solver):
    """Follows the root from the parameters `start`, along a straight line in parameter space, to those of the problem.

    `continuation` makes it; one system at a time.

    Parameters
    ----------
    start : tuple of arrays
        The differentiated parameters at the start of the path.
    solver : Solver
        Finds the root at the end, from where the path crosses the wanted parameters.
    method : {"arclength", "natural"}
        By pseudo-arclength, which passes folds, or by the parameter itself, which ends at a fold.
    first_step : float
        First step, as a fraction of the way in parameter space (and of the size of `y0`).
    max_steps : int
        Steps along the path, rejected ones included.

    References
    ----------
    Keller (1977), "Numerical solution of bifurcation and nonlinear eigenvalue problems". Allgower & Georg (1990),
    "Numerical Continuation Methods", chapters 2 and 6.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.continuation(lambda y, a: y**3 + y - a, np.array([0.0]), np.array([0.0]), np.array([10.0])).y
    array([2.])
    """

    start: tuple[Any, ...]
    solver: Solver = field(default_factory=Newton)
    method: Literal["arclength", "natural"] = "arclength"
    first_step: float = 0.1
    max_steps: int = 500

    runtime: ClassVar[tuple[str, ...]] = ("start", "first_step", "max_steps")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.first_step, int | float) and not 0 < self.first_step <= 1:
            raise ArgumentError(f"continuation: first_step is {self.first_step!r}; it must lie between 0 and 1.")

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        if y0.ndim != 1:
            raise ArgumentError("continuation: it follows one system at a time; batch_ndim must be 0.")
        xp = residual.xp
        size = max_norm(xp, y0)
        # all unknowns together weigh as much as the parameter
        unit = xp.where(size > 0, size, 1.0) * y0.shape[-1] ** 0.5
        curve = self._curve(residual, unit)
        zero = xp.zeros_like(y0[:1])
        along = xp.concat([xp.zeros_like(y0), zero + 1], axis=-1)
        first = self._corrected(curve, xp.concat([y0 / unit, zero], axis=-1), along)
        state = _Path(
            first.y,
            first.y,
            self._tangent(curve, first.y, along),
            xp.zeros_like(size) + self.first_step,
            xp.zeros_like(first.steps),
            xp.where(
                first.status <= int(Status.AT_PRECISION), xp.full_like(first.status, int(Status.RUNNING)), first.status
            ),
        )
        state = residual.backend.while_loop(
            lambda path: xp.all(path.status == int(Status.RUNNING)), lambda path: self._step(curve, along, path), state
        )
        # where the last step crosses lambda = 1
        way = state.z[-1] - state.last[-1]
        fraction = (1 - state.last[-1]) / xp.where(way != 0, way, 1.0)
        arrived = state.status == int(Status.CONVERGED)
        end = xp.where(arrived, state.last + fraction * (state.z - state.last), state.z)
        raw = self.solver.solve_where(residual, end[:-1] * unit, arrived)
        y = xp.where(arrived, raw.y, end[:-1] * unit)
        status = xp.where(arrived, raw.status, state.status)
        norm = xp.where(arrived, raw.residual_norm, max_norm(xp, residual(y)))
        return RawSolution(y, xp.astype(status, xp.int32), state.steps + raw.steps, norm, raw.factors)

    def _curve(self, residual: Residual, unit: Array) -> Residual:
        """Return the residual of z, whose last row holds z in the plane ``row . z = target``; its parameters."""
        xp = residual.xp
        count = len(self.start)
        ends, rest = residual.parameters[:count], residual.parameters[count:]

        def function(z: Array, row: Array, target: Array) -> Array:
            here = [a + z[-1] * (b - a) for a, b in zip(self.start, ends, strict=True)]
            plane = dot(xp, row, z) - target
            return xp.concat([residual.function(z[:-1] * unit, *here, *rest), plane[None]], axis=-1)

        return Residual(function, (), residual.backend)

    def _corrected(self, curve: Residual, guess: Array, row: Array) -> RawSolution:
        rtol = float(curve.xp.finfo(guess.dtype).eps) ** 0.5  # the path is only the way to the root
        newton = Newton(rtol=rtol, atol=rtol, max_steps=_CORRECTOR_STEPS)
        return newton.solve(curve.with_parameters(row, dot(curve.xp, row, guess)), guess)

    def _tangent(self, curve: Residual, z: Array, row: Array) -> Array:
        """Return the tangent with a positive product with `row` (Allgower & Georg 1990, section 2.1)."""
        xp, backend = curve.xp, curve.backend
        matrix = curve.with_parameters(row, dot(xp, row, z)).jacobian(z)
        last = xp.concat([xp.zeros_like(z[:-1]), xp.ones_like(z[-1:])], axis=-1)
        tangent = backend.lu_solve(backend.lu_factor(matrix), last)
        length = norm2(xp, tangent)
        return tangent / (length if self.method == "arclength" else xp.ones_like(length))

    def _step(self, curve: Residual, along: Array, path: _Path) -> _Path:
        xp = curve.xp
        arclength = self.method == "arclength"
        left = 1 - path.z[-1]
        length = path.length if arclength else xp.minimum(path.length, left)
        row = path.tangent if arclength else along
        raw = self._corrected(curve, path.z + length * path.tangent, row)
        tangent = self._tangent(curve, raw.y, row)
        turn = dot(xp, tangent, path.tangent) / (norm2(xp, tangent) * norm2(xp, path.tangent))
        good = (raw.status <= int(Status.AT_PRECISION)) & (turn >= _LARGEST_TURN)
        # where lambda turned back within the step, a parabola tells whether it passed 1 on the way
        before, after = path.tangent[-1], tangent[-1]
        peak = path.z[-1] + 0.5 * length * before * before / xp.where(before > after, before - after, 1.0)
        good = good & ~((before > 0) & (after < 0) & (peak >= 1))
        easy = (raw.steps <= _EASY) & (turn >= 0.5 * (1 + _LARGEST_TURN))
        steps = path.steps + 1
        following = length * xp.where(good, xp.where(easy, 2 * xp.ones_like(turn), xp.ones_like(turn)), 0.25)
        arrived = good & (raw.y[-1] >= 1 - 4 * xp.finfo(turn.dtype).eps)
        status = xp.where(following < _SHORTEST, int(Status.STALLED), int(Status.RUNNING))
        status = xp.where((status == int(Status.RUNNING)) & (steps >= self.max_steps), int(Status.MAX_STEPS), status)
        status = xp.where(arrived, int(Status.CONVERGED), status)
        return _Path(
            xp.where(good, raw.y, path.z),
            xp.where(good, path.z, path.last),
            xp.where(good, tangent, path.tangent),
            following,
            steps,
            xp.astype(status, xp.int32),
        )
