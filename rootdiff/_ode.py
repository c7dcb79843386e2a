"""Ordinary differential equations by implicit steps, each of which is a root."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Literal, get_args

import numpy as np
import optree

from rootdiff import _entry
from rootdiff._adapter import Adapter
from rootdiff._arguments import check_meaning, describe
from rootdiff._backend import Array
from rootdiff._bound import P
from rootdiff._errors import ArgumentError, ArgumentTypeError, ConvergenceError, check_choice
from rootdiff._failure import POLICIES, OnFailure, report
from rootdiff._implicit_steps import METHODS, columns, of_all, of_step, of_vectors
from rootdiff._numbers import as_unknown
from rootdiff._registry import AdjointName, SolverName
from rootdiff._residual import Residual
from rootdiff._sensitivities import apart
from rootdiff._solution import RawSolution, Solution, Status
from rootdiff._solver import Solver
from rootdiff._space import max_norm
from rootdiff._structure import Structure, flat_cotangent
from rootdiff._task import check_function, checked_args
from rootdiff._verdict import start_scale
from rootdiff.linear import LinearSolver

MethodName = Literal["backward_euler", "bdf2", "trapezoid", "radau3", "radau5", "lobatto4"]


def integrate(
    adapter: Adapter,
    /,
    f: Callable[..., Any],
    y0: Any,
    t: Any,
    *args: Any,
    method: MethodName = "radau5",
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    batch_ndim: int = 0,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Integrate ``dy/dt = f(t, y, *args)`` from `y0`, by an implicit step from each time to the next.

    Each step is a root, and has the derivative of one: that of `y` is the derivative of the numbers that are returned.
    How far these are from the solution of the equation is not told, and no step is chosen: shorter ones are nearer. For
    steps that adapt take diffrax or torchdiffeq.

    Parameters
    ----------
    f : callable
        ``f(t, y, *args)`` returns the rate of change, a pytree like `y`; `t` is an array without an axis.
    y0 : $array, number or pytree of them, (*batch, ...), floating
        The value at the first time.
    t : $array or list of numbers, (times,), real floating
        The times, at least two, increasing; of all systems, in the precision of `y0`.
    *args : pytrees
        As for `root`.
    method : {"backward_euler", "bdf2", "trapezoid", "radau3", "radau5", "lobatto4"}
        Of order 1, 2, 2, 3, 5, 4. A stiff equation takes those that damp its fast parts, "backward_euler", "bdf2",
        "radau3" and "radau5"; "trapezoid" and "lobatto4" keep the amplitude of oscillations. The unknowns of a step are
        as many values of y as the method has stages: 1, 1, 1, 2, 3, 2.
    solver, adjoint, rtol, atol, batch_ndim, on_failure
        As for `root`, of each step.

    Returns
    -------
    Solution
        `y` has an axis of times after those of the batch: (*batch, times, ...). Of each system `status` is that of
        the first step that fails, `steps` those of the solver in all steps, and `residual_norm` the largest.

    Raises
    ------
    $errors

    Notes
    -----
    $steps

    References
    ----------
    Hairer & Wanner (1996), "Solving Ordinary Differential Equations II".

    Examples
    --------
    >>> import $imports
    >>> sol = rd.ode.integrate(lambda t, y, a: -a * y, 1.0, [0.0, 0.5, 1.0], 2.0)
    >>> [round(value, 4) for value in sol.y.tolist()]
    [1.0, 0.3679, 0.1354]
    """
    check_function("f", f)
    check_choice("on_failure", on_failure, POLICIES)
    check_choice("method", method, get_args(MethodName))
    backend, y0, args = adapter.backend(), adapter.unknown(y0, args), checked_args(adapter, args)
    structure = describe(backend, y0, batch_ndim)
    start = structure.ravel(y0)
    t = _times(adapter, t, start)
    tableau = METHODS[method]
    residual = partial(of_step, of_vectors(f, structure), tableau, backend.xp)
    options: dict[str, Any] = {"adjoint": adjoint, "batch_ndim": batch_ndim, "on_failure": on_failure}
    of_root = options | {"solver": solver, "rtol": rtol, "atol": atol}
    stages, outcome = _taken(adapter, residual, start, len(tableau.nodes), t, args, of_root)
    y = structure.unravel(stages[..., -1, :])
    rest = dict.fromkeys(("method", "history", "sensitivities", "error", "aux", "evaluations"), adapter.nothing)
    sol = Solution(y, *outcome[:3], approximate=outcome[3], **rest)
    if not backend.measures:
        return sol
    # without a tape: all steps are one root, which has derivatives
    banded = ("banded", tableau.widths(structure.size))
    options |= {"solver": Judged(sol.status), "jac_sparsity": banded}
    whole = _entry.root(adapter, partial(of_all, residual, structure), stages, y0, t, *args, **options)
    over_time = replace(structure, batch=(*structure.batch, t.shape[0]))
    return sol._replace(sensitivities=AtTimes(whole.sensitivities, over_time, stages))


def _times(adapter: Adapter, t: Any, like: Array) -> Array:
    """Return the times as an array of the dtype of `like`; raise if they are none."""
    backend = adapter.backend()
    check_meaning(backend, "t", t)
    xp, numbers = backend.xp, t
    try:
        t = adapter.lifted(as_unknown(backend, t, like))
    except ArgumentError as error:
        raise ArgumentError(f"t: got {numbers!r}; its lists have different lengths. Give one list of times.") from error
    if not backend.is_array(t) or not xp.isdtype(t.dtype, ("real floating", "integral")):
        raise ArgumentTypeError(f"t: got {t!r}; it must be a {backend.name} array of real times, or a list of numbers.")
    if t.ndim != 1 or t.shape[0] < 2:
        raise ArgumentError(
            f"t: it has shape {tuple(t.shape)}; it must be (times,), with at least two: that of y0 and one more."
        )
    if not backend.traced and t.device != like.device:
        raise ArgumentError(f"t: it is on device {t.device}, but y0 is on {like.device}. Move it there.")
    t = xp.astype(t, like.dtype)
    if adapter.is_concrete(t + 0) and not bool(xp.all(xp.isfinite(t[1:] - t[:-1]) & (t[1:] > t[:-1]))):
        raise ArgumentError(
            f"t: it must be finite, and increase from each time to the next in {like.dtype}, the precision of y0. Sort "
            "it, leave out equal times, and for a way back in time integrate -f over -t."
        )
    return t


def _taken(
    adapter: Adapter,
    residual: Callable[..., Array],
    start: Array,
    count: int,
    t: Array,
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> tuple[Array, tuple[Array, Array, Array, Array]]:
    """Return the stages of all steps, (*batch, times, stages, n), and status, steps, norm and approximate of them all.

    From `start`, (*batch, n), by so many stages.
    """
    backend, place = adapter.backend(), start.ndim - 1
    xp, rows = backend.xp, columns(backend.xp, t)

    def step(state: tuple[Array, Array], row: tuple[Array, Array, Array]) -> tuple[Any, Any]:
        before, y = state
        with _named(adapter, row):
            zeros = xp.stack([xp.zeros_like(y)] * count, axis=-2)
            scale = start_scale(xp, y)[..., None, :] + zeros
            sol = _entry.root(adapter, residual, zeros, before, y, *row, args, y_scale=scale, **options)
        stages = y[..., None, :] + sol.y
        return (y, stages[..., -1, :]), (stages, sol.status, sol.steps, sol.residual_norm, sol.approximate)

    stages, status, steps, norm, approximate = adapter.along(step, (start, start), rows)
    first = xp.stack([start] * count, axis=-2)
    stages = xp.concat([first[None, ...], stages], axis=0)
    stages = xp.permute_dims(stages, (*range(1, 1 + place), 0, place + 1, place + 2))
    failed = xp.astype(status > int(Status.AT_PRECISION), xp.int32)
    own = xp.cumulative_sum(failed, axis=0) <= failed  # what comes after a failure is none of its own
    status, norm = (xp.max(xp.where(own, part, xp.zeros_like(part)), axis=0) for part in (status, norm))
    outcome = status, xp.sum(steps, axis=0, dtype=steps.dtype), norm, xp.any(approximate, axis=0)
    if backend.traced and adapter.is_concrete((failed, norm, t)):  # where no step could tell
        number = int(xp.argmax(xp.max(xp.reshape(failed, (failed.shape[0], -1)), axis=1)))
        with _named(adapter, tuple(column[number] for column in rows)):
            sol = Solution(stages, *outcome[:3])
            report(backend, sol, options["on_failure"], options["solver"], (start, t, *args))
    return stages, outcome


@contextmanager
def _named(adapter: Adapter, row: tuple[Array, Array, Array]) -> Iterator[None]:
    """Tell of a failure in which step it is."""
    try:
        yield
    except ConvergenceError as error:
        if adapter.is_concrete(row):
            start, h, _ = map(float, row)
            error.add_note(
                f"In the step from t = {start:.6g} to {start + h:.6g}: take shorter steps where y moves far."
            )
        raise


@dataclass(frozen=True)
class Judged(Solver):
    """Returns the start: the stages of all steps, which have been judged one by one."""

    status: Array

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return RawSolution(y0, self.status, 0 * self.status, max_norm(residual.xp, residual(y0)))


@dataclass(frozen=True, repr=False)
class AtTimes:
    """The derivatives of values at times, which are the last `stages` of a root of all stages.

    Of the root's unknowns, (*batch, times, stages, n), of which `structure` has the first two for batch axes.
    """

    of_stages: Any
    structure: Structure
    stages: Array

    def vjp(self, cotangent: Any, several: bool = False, **options: Any) -> Any:
        """Return the cotangents of y0, t and args."""
        given = apart("vjp", cotangent) if several else [cotangent]
        w = np.zeros((len(given), *self.stages.shape), dtype=self.stages.dtype)
        for row, each in zip(w, given, strict=True):
            row[..., -1, :] = flat_cotangent("vjp", self.structure, each, self.stages)
        return self.of_stages.vjp(w if several else w[0], several=several, **options)

    def jvp(self, *tangents: Any, **options: Any) -> Any:
        """Return the derivative of y along tangents of y0, t and args."""
        return self.structure.unravel(self.of_stages.jvp(*tangents, **options)[..., -1, :])

    def jacobian(self, **options: Any) -> Any:
        """Return the derivatives of y in y0, t and args."""
        return optree.tree_map(self._block, self.of_stages.jacobian(**options))

    def _block(self, block: Array) -> Any:
        last = block.take(-1, axis=self.stages.ndim - 2)
        axes = range(last.ndim - self.stages.ndim + 1), range(self.stages.ndim - 1 - last.ndim, 0)
        found = self.structure.unravel(np.moveaxis(last, axes[1], axes[0]))
        return optree.tree_map(lambda leaf: np.moveaxis(leaf, *axes), found)


@dataclass(frozen=True)
class Ode(Generic[P]):
    """Ordinary differential equations: `integrate` by implicit steps, and conditions on whole solutions for `root`.

    A steady state needs none of them: it is the root of f.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.ode.integrate(lambda t, y, a: -a * y, np.array([1.0]), [0.0, 0.5, 1.0], np.array([2.0]))
    >>> sol.y[:, 0].round(4), sol.vjp(np.array([[0.0], [0.0], [1.0]]), argnums=2).round(4)
    (array([1.    , 0.3679, 0.1354]), array([-0.1353]))
    """

    integrate: Callable[P, Solution]
    _adapter: Adapter

    def collocation(self, f: Callable[..., Any], boundary: Callable[..., Any], t: Any) -> Callable[..., Any]:
        """Return the residual ``(y, *args)`` of ``dy/dt = f(t, y, *args)`` with conditions at the first and last time.

        The unknown y is a pytree of arrays (times, ...), its values at the times `t`, (times,), which increase. `f` is
        called with those of all intervals at once, (intervals, ...), and their times, (intervals,), and returns their
        rates: index y from its end, as in ``y[..., 0]``. ``boundary(start, end, *args)`` takes the values at the ends,
        without the axis of times, and returns what is zero there, as many numbers as y has at one time; so many more as
        are unknown parameters, where these are part of the unknown: ``lambda u, *args: residual(*u, *args)`` is the
        residual of ``u = (y, parameter)``, of which `f` and `boundary` get each as another argument.

        Between two times y is a cubic, which meets the equation at both and between them: its error is of order 4 in
        their distance. How large it is is not told. With ``jac_sparsity="detect"`` the Jacobian costs as many products
        as for a few times. No derivative is taken in `t` in NumPy.

        References
        ----------
        Kierzenka & Shampine (2001), "A BVP solver based on residual control and the MATLAB PSE", section 2.
        """
        check_function("f", f)
        check_function("boundary", boundary)
        t = self._grid(t)

        def residual(y: Any, *args: Any) -> Any:
            return self._left(f, t, y, args), boundary(*self._ends(y), *args)

        return residual

    def periodic_orbit(self, f: Callable[..., Any], phase: Callable[..., Any], t: Any) -> Callable[..., Any]:
        """Return the residual ``((y, period), *args)`` of a periodic solution of ``dy/dt = f(t, y, *args)``.

        As `collocation`, at the parts `t` of a period, (times,), from 0 to 1. The period is an array without an axis.
        ``phase(start, *args)`` returns a number that is zero at the first time, and tells so the orbits apart that are
        shifts of each other. A constant solution is one too: start from a guess that goes round.
        """
        check_function("f", f)
        check_function("phase", phase)
        t = self._grid(t)

        def residual(unknown: Any, *args: Any) -> Any:
            y, period = unknown
            start, end = self._ends(y)
            leaves = (self._adapter.backend().flatten(tree)[0] for tree in (start, end))
            gap = [a - b for a, b in zip(*leaves, strict=True)]
            return self._left(f, period * t, y, args), gap, phase(start, *args)

        return residual

    def _grid(self, t: Any) -> Array:
        backend = self._adapter.backend()
        if not backend.is_array(t):
            raise ArgumentTypeError(f"t: got {t!r}; it must be a {backend.name} array of real times.")
        return _times(self._adapter, t, t)

    def _ends(self, y: Any) -> tuple[Any, Any]:
        backend = self._adapter.backend()
        leaves, tree = backend.flatten(y)
        return tuple(backend.unflatten(tree, [leaf[place] for leaf in leaves]) for place in (0, -1))

    def _left(self, f: Callable[..., Any], t: Array, y: Any, args: tuple[Any, ...]) -> list[Array]:
        """Return what is left of the equation of each interval, (intervals, ...), of each leaf of y."""
        backend = self._adapter.backend()
        xp = backend.xp
        leaves, tree = backend.flatten(y)
        shapes = [tuple(getattr(leaf, "shape", ())) for leaf in leaves]
        if any(shape[:1] != tuple(t.shape) for shape in shapes):
            raise ArgumentError(
                f"y0: its leaves have shapes {shapes}; the first axis of each must be that of the {len(t)} times of t."
            )
        t = xp.astype(t, xp.real(leaves[0]).dtype)

        def rates(t: Array, leaves: list[Array]) -> list[Array]:
            found, other = backend.flatten(f(t, backend.unflatten(tree, leaves), *args))
            if other != tree or [getattr(a, "shape", None) for a in found] != [a.shape for a in leaves]:
                raise ArgumentError("f: it returned another structure, or other shapes, than those of y.")
            return found

        outer, h = rates(t, leaves), t[1:] - t[:-1]
        lengths = [xp.reshape(h, (-1, *(1 for _ in leaf.shape[1:]))) for leaf in leaves]
        ends = [
            (leaf[:-1], leaf[1:], r[:-1], r[1:], length) for leaf, r, length in zip(leaves, outer, lengths, strict=True)
        ]
        middles = rates(t[:-1] + h / 2, [(a + b) / 2 + length / 8 * (p - q) for a, b, p, q, length in ends])
        return [
            b - a - length / 6 * (p + 4 * middle + q)
            for (a, b, p, q, length), middle in zip(ends, middles, strict=True)
        ]
