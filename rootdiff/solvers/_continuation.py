"""Continuation: the root is followed from easy parameters to the wanted ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

from rootdiff._backend import Array, select, status_where
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver, run
from rootdiff._space import dot, is_finite, max_norm, norm2
from rootdiff.solvers._corrector import along, corrected, effort, is_found
from rootdiff.solvers._newton import Newton

#: Powers of eps. Steps that short, as a part of the whole way, are given up: the path ends here (a fold, for the
#: natural parameter). Somewhat longer ones may change the orientation. A tangent with so small a part along the
#: parameter is that of a fold. A root at the start is as near as the last one; at its inverse a path is lost.
_SHORTEST, _CROSSING, _FOLD, _NEAR = 0.45, 0.4, 0.25, 0.5


class PathInfo(NamedTuple):
    """What one step along a path did: as `StepInfo`, with the part of the way, and whether the step was taken."""

    method: str
    steps: Array
    y: Any
    residual_norm: Array
    step_norm: Array
    status: Array
    fraction: Array
    taken: Array


class _Path(NamedTuple):
    """The point z = (y / unit, lambda), the one before it, and the one nearest to the end; tangent and orientation.

    `length` is that of the next step; `turned` tells whether the path is the second one from a fold.
    """

    z: Array
    last: Array
    nearest: Array
    tangent: Array
    orientation: Array
    length: Array
    turned: Array
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
    max_step : float, optional
        Longest step, in the same unit; default: none.
    max_steps : int
        Steps along the path, rejected ones included.

    Notes
    -----
    Steps are so long that the corrector contracts by a nominal factor and the tangent turns by a nominal angle. Along a
    regular path the orientation of Jacobian and tangent is constant, so a step after which it is not has jumped to
    another branch, and is taken again, shorter; what remains at the shortest steps is a bifurcation, and is crossed.
    At a fold to start from, one side is followed, and if that does not lead to the end, the other.

    References
    ----------
    Keller (1977), "Numerical solution of bifurcation and nonlinear eigenvalue problems". Allgower & Georg (1990),
    "Numerical Continuation Methods", sections 2.1 (orientation) and 6.1 (steps by contraction and angle).

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.continuation(lambda y, a: y**3 + y - a, np.array([0.0]), np.array([0.0]), np.array([10.0])).y
    array([2.])
    """

    start: tuple[Any, ...] = field(metadata={"runtime": True})
    solver: Solver = field(default_factory=Newton)
    method: Literal["arclength", "natural"] = "arclength"
    first_step: float = runtime(0.1, above=0, most=1)
    max_step: float | None = runtime(None, above=0)
    max_steps: int = runtime(500)

    #: Causes and remedies in the words of a path.
    words: ClassVar[dict[Status, tuple[str, str]]] = {
        Status.STALLED: (
            "the path ends or runs away on the way to args1, or it does not begin, as no root was found at args0",
            "take args0 whose root is known and give it as y0; look at the path (history=True): at a fold only "
            "method='arclength' goes on, and after it there may be no root at args1",
        ),
        Status.MAX_STEPS: (
            "the limit on the steps along the path was reached",
            "raise max_steps, or look at the path (history=True)",
        ),
    }

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        if y0.ndim != 1:
            raise ArgumentError("continuation: it follows one system at a time; batch_ndim must be 0.")
        xp, observe, residual = residual.xp, residual.observe, replace(residual, observe=None)
        size = max_norm(xp, y0)
        # all unknowns together weigh as much as the parameter
        unit = xp.where(size > 0, size, 1.0) * y0.shape[-1] ** 0.5
        curve = self._curve(residual, unit)
        begin = self._begin(curve, y0 / unit)

        def step(path: _Path) -> _Path:
            new = self._step(curve, begin, path)
            if observe is not None:
                observe(self._record(curve, unit, path, new))
            return new

        if observe is not None:
            observe(self._record(curve, unit, begin, begin))
        path = residual.backend.while_loop(lambda path: xp.all(path.status == int(Status.RUNNING)), step, begin)
        # where the last step crosses lambda = 1
        way = path.z[-1] - path.last[-1]
        fraction = (1 - path.last[-1]) / xp.where(way != 0, way, 1.0)
        arrived = path.status == int(Status.CONVERGED)
        end = xp.where(arrived, path.last + fraction * (path.z - path.last), path.nearest)[:-1]
        raw = run(self.solver, residual, end * unit, arrived)
        # a root further off than the whole last step is that of another branch
        near = max_norm(xp, raw.y / unit - end) <= 2 * norm2(xp, path.z - path.last)
        y = xp.where(arrived, raw.y, end * unit)
        found = xp.where(near | (raw.status > int(Status.RUNNING)), raw.status, int(Status.STALLED))
        status = xp.where(arrived, found, path.status)
        norm = xp.where(arrived, raw.residual_norm, max_norm(xp, residual(y)))
        if observe is not None:
            found = status <= int(Status.AT_PRECISION)
            last = self._record(curve, unit, path, path)._replace(y=y, residual_norm=norm, status=status)
            observe(last._replace(fraction=xp.ones_like(norm), taken=found))
        error = xp.where(arrived, xp.inf if raw.error is None else raw.error, xp.inf)
        status = xp.astype(status, xp.int32)
        return RawSolution(y, status, path.steps + raw.steps, norm, raw.factors, raw.method, error)

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

    def _begin(self, curve: Residual, start: Array) -> _Path:
        """Return the path at the root for lambda = 0, which `start` is a guess of."""
        xp, eps = curve.xp, float(curve.xp.finfo(start.dtype).eps)
        zero = xp.zeros_like(start[:1])
        guess = xp.concat([start, zero], axis=-1)
        # with lambda = 0 as the last equation
        plane = curve.with_parameters(along(xp, guess), zero[0])
        finite = max_norm(xp, plane(guess)) < xp.inf
        guess = Newton().solve(plane, guess).y
        # the null vector of the Jacobian is the tangent, at a fold too
        tangent = xp.linalg.qr(xp.matrix_transpose(plane.jacobian(guess)[:-1, :]), mode="complete")[0][:, -1]
        fold = xp.abs(tangent[-1]) <= eps**_FOLD
        tangent = xp.where(xp.where(fold, xp.sum(tangent[:-1]), tangent[-1]) >= 0, tangent, -tangent)
        point = corrected(curve, guess, tangent)
        found = is_found(xp, point, zero[0]) & (xp.abs(point.z[-1]) <= eps**_NEAR)
        z = xp.where(found, point.z, guess)
        tangent, orientation = self._tangent(curve, z, tangent)
        found = found & is_finite(xp, tangent)
        status = status_where(xp, finite, Status.STALLED, Status.NONFINITE_START)
        status = xp.astype(xp.where(found, int(Status.RUNNING), status), xp.int32)
        length = xp.zeros_like(zero[0]) + self.first_step
        # a path that can go but one way has turned already
        return _Path(z, z, z, tangent, orientation, length, ~fold, xp.zeros_like(status), status)

    def _row(self, xp: Any, tangent: Array) -> Array:
        """Return the normal of the plane in which the corrector works."""
        return tangent if self.method == "arclength" else along(xp, tangent)

    def _tangent(self, curve: Residual, z: Array, tangent: Array) -> tuple[Array, Array]:
        """Return the tangent with a positive product with the last one, and the orientation of the curve.

        The sign of the determinant of Jacobian and tangent (Allgower & Georg 1990, section 2.1).
        """
        xp, backend = curve.xp, curve.backend
        row = self._row(xp, tangent)
        matrix = curve.with_parameters(row, dot(xp, row, z)).jacobian(z)
        new = backend.lu_solve(backend.lu_factor(matrix), along(xp, z))
        length = norm2(xp, new)
        new = new / (length if self.method == "arclength" else xp.ones_like(length))
        return new, xp.linalg.slogdet(matrix)[0]

    def _step(self, curve: Residual, begin: _Path, path: _Path) -> _Path:
        xp = curve.xp
        eps = float(xp.finfo(path.z.dtype).eps)
        length = path.length if self.max_step is None else xp.minimum(path.length, path.length * 0 + self.max_step)
        length = length if self.method == "arclength" else xp.minimum(length, 1 - path.z[-1])
        point = corrected(curve, path.z + length * path.tangent, self._row(xp, path.tangent))
        tangent, orientation = self._tangent(curve, point.z, path.tangent)
        too_long = effort(xp, point, tangent, path.tangent, length)
        good = is_found(xp, point, length) & (too_long <= 2) & is_finite(xp, tangent)
        good = good & ((orientation == path.orientation) | (length <= eps**_CROSSING))
        # where lambda turned back within the step, a parabola tells whether it passed 1 on the way
        before, after = path.tangent[-1], tangent[-1]
        peak = path.z[-1] + 0.5 * length * before * before / xp.where(before > after, before - after, 1.0)
        good = good & ~((before > 0) & (after < 0) & (peak >= 1))
        following = length * xp.where(good, 1 / xp.clip(too_long, 0.5, 2.0), 0.25)
        z, steps = xp.where(good, point.z, path.z), path.steps + 1
        arrived = good & (z[-1] >= 1 - 4 * eps)
        lost = (following < eps**_SHORTEST) & ~good | (max_norm(xp, z) > eps**-_NEAR)
        status = status_where(xp, lost, Status.STALLED, Status.RUNNING)
        status = xp.where(~lost & (steps >= self.max_steps), int(Status.MAX_STEPS), status)
        status = xp.astype(xp.where(arrived, int(Status.CONVERGED), status), xp.int32)
        new = _Path(
            z,
            xp.where(good, path.z, path.last),
            xp.where((z[-1] > path.nearest[-1]) & ~lost, z, path.nearest),
            xp.where(good, tangent, path.tangent),
            xp.where(good, orientation, path.orientation),
            following,
            path.turned,
            steps,
            status,
        )
        again = (status == int(Status.STALLED)) & ~path.turned
        other = begin._replace(
            nearest=new.nearest, tangent=-begin.tangent, orientation=-begin.orientation, turned=~begin.turned
        )
        return select(xp, again, other._replace(steps=steps), new)  # type: ignore[no-any-return]

    def _record(self, curve: Residual, unit: Array, old: _Path, new: _Path) -> PathInfo:
        xp = curve.xp
        row = along(xp, new.z)
        norm = max_norm(xp, curve.with_parameters(row, new.z[-1])(new.z))
        moved = max_norm(xp, (new.z - old.z)[:-1] * unit)
        taken = (new.steps == 0) | (xp.any(new.z != old.z) & (new.z[-1] < 1))
        name = type(self).__name__
        return PathInfo(name, new.steps, new.z[:-1] * unit, norm, moved, new.status, new.z[-1], taken)
