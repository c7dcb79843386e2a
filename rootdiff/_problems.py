"""What the entry points `root_scalar` and `continuation` of all backends share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._arguments import check_precision
from rootdiff._backend import Array, Backend
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._hooks import Hooks
from rootdiff._numbers import as_array, as_value, is_list_of_numbers, is_number
from rootdiff._solution import Solution
from rootdiff._solver import Solver
from rootdiff.solvers import BracketSolver, InBracket


class Path(NamedTuple):
    """The path of a continuation, as ``sol.history``.

    Attributes
    ----------
    fraction : array, (points,). Part of the way from `args0` to `args1`, from 0 on; it turns back at folds.
    y : pytree like y0, each leaf (points, ...). The root there: to about half of the digits, at the end to all.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.continuation(lambda y, a: y**2 + a - 1, [1.0], 0.0, 0.75, history=True)
    >>> sol.history.fraction[0], sol.history.y[0], sol.history.fraction[-1], sol.history.y[-1].round(6)
    (np.float64(0.0), array([1.]), np.float64(1.0), array([0.5]))
    """

    fraction: Array
    y: Any


def with_path(backend: Backend, hooks: Hooks, solution: Solution) -> Solution:
    """Return the solution of a continuation with the path that `hooks` have recorded, if they have."""
    records: list[Any] = hooks.records
    taken = [info for info in records if bool(info.taken)]
    if not taken:
        return solution
    xp = backend.xp
    _, tree = backend.flatten(solution.y)
    leaves = zip(*(backend.flatten(info.y)[0] for info in taken), strict=True)
    y = backend.unflatten(tree, [xp.stack(points) for points in leaves])
    return solution._replace(history=Path(xp.stack([info.fraction for info in taken]), y))


def scalar_problem(
    backend: Backend, residual: Callable[..., Any], bracket: Any, args: tuple[Any, ...], solver: Any
) -> tuple[Array, Solver]:
    """Return the start and the solver of a scalar problem, elementwise over what bracket and residual broadcast to.

    `bracket` is ``(lo, hi)``, a list will do, or one starting point from which to search. The start is to be solved
    with all of its axes as batch axes.
    """
    if not isinstance(solver, BracketSolver):
        raise ArgumentTypeError(
            f"solver: got {solver!r}; root_scalar needs one that keeps a bracket: 'chandrupatla', 'itp', 'bisection' "
            "or 'bracketed_newton'."
        )
    if isinstance(bracket, tuple | list) and len(bracket) != 2:
        raise ArgumentError(f"bracket: got {bracket!r}; it must be a tuple (lo, hi), or one starting point.")
    ends = tuple(bracket) if isinstance(bracket, tuple | list) else (bracket,)
    arrays = [_end(backend, end, (*ends, *args)) for end in ends]
    xp = backend.xp
    # what its shape is, without a number that the residual may not take
    value = backend.call(residual, xp.where(xp.isfinite(arrays[0]), arrays[0], 0.0), args)
    value = as_value(backend, value, arrays[0].ndim == 0)
    if not backend.is_array(value):
        raise ArgumentTypeError(f"residual: it returned {type(value).__name__}; it must return a {backend.name} array.")
    if not any(map(backend.is_array, ends)) and xp.isdtype(value.dtype, "real floating"):
        arrays = [xp.astype(array, value.dtype) for array in arrays]  # that of arrays closed over, with no args
    *arrays, _ = xp.broadcast_arrays(*arrays, value)
    if len(arrays) == 1:
        return arrays[0], solver
    return arrays[0], InBracket(solver=solver, lo=arrays[0], hi=arrays[1])


def _end(backend: Backend, end: Any, others: tuple[Any, ...]) -> Array:
    """Return an end as an array; plain numbers take dtype and device from the first floating array there is."""
    if backend.is_array(end):
        check_precision(backend, end, "bracket")
        return end
    if isinstance(end, complex) or not (is_number(end) or is_list_of_numbers(end)):
        raise ArgumentTypeError(
            f"bracket: it holds a {type(end).__name__}, but must hold numbers or {backend.name} arrays."
        )
    return as_array(backend, end, others)


def continuation_start(
    backend: Backend, args0: Any, args1: Any, is_parameter: Callable[[Any], bool]
) -> tuple[Any, Any]:
    """Return the differentiated leaves of `args0`, and `args1` as a tuple, after a check that they match."""
    args0, args1 = (args if isinstance(args, tuple) else (args,) for args in (args0, args1))
    leaves0, tree0 = backend.flatten(args0)
    leaves1, tree1 = backend.flatten(args1)
    if tree0 != tree1:
        raise ArgumentError("continuation: args0 and args1 have different structures; give two tuples of like pytrees.")
    for one, other in zip(leaves0, leaves1, strict=True):
        if is_parameter(one) != is_parameter(other) or getattr(one, "shape", ()) != getattr(other, "shape", ()):
            raise ArgumentError(f"continuation: args0 holds {one!r} where args1 holds {other!r}; give like arrays.")
    start = tuple(leaf for leaf in leaves0 if is_parameter(leaf))
    if not start:
        raise ArgumentError(
            f"continuation: args0 holds no floating {backend.name} arrays, so there is no path to follow."
        )
    return start, args1
