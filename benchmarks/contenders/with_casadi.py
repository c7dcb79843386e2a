"""CasADi: the residual as a symbolic expression, its rootfinder, and the derivative that it brings."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem


def casadi(problem: Problem, *, residual: Any, tolerance: float = 1e-11, plugin: str = "newton") -> Calls:
    """`residual` is that of one system, ``residual(casadi, y, *args)`` in CasADi's matrices."""
    import casadi as ca

    y0, args = problem.system(0) if problem.batch_ndim else (problem.y0, problem.args)
    count = len(problem.y0) if problem.batch_ndim else 1
    y = ca.MX.sym("y", y0.size)
    symbols = [ca.MX.sym(f"p{place}", *np.atleast_1d(a).shape) for place, a in enumerate(args)]
    stacked = ca.vertcat(*[ca.vec(s) for s in symbols])
    p = ca.MX.sym("p", stacked.numel())
    unstack = ca.Function("unstack", [p], _unstack(ca, p, symbols))
    finder = ca.rootfinder(
        "finder", plugin, {"x": y, "p": p, "g": residual(ca, y, *_list(unstack(p)))}, {"abstol": tolerance}
    )
    w = ca.MX.sym("w", y0.size)
    found = finder(y, p)
    root = ca.Function("root", [y, p], [found])
    gradient = ca.Function("gradient", [y, p, w], [found, ca.jtimes(found, p, w, True)])
    start = problem.y0.reshape(count, -1).T
    parameters = np.concatenate([_columns(a, b, count) for a, b in zip(problem.args, _batched(problem), strict=True)])
    weights = problem.weights.reshape(count, -1).T
    root, gradient = root.map(count), gradient.map(count)

    def value_and_gradient() -> tuple[Any, tuple[Any, ...]]:
        values, gradients = (np.asarray(each) for each in gradient(start, parameters, weights))
        return values.T.reshape(problem.y0.shape), _split(gradients, problem, count)

    return Calls(lambda: (np.asarray(root(start, parameters)).T.reshape(problem.y0.shape), None), value_and_gradient)


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def _batched(problem: Problem) -> tuple[bool, ...]:
    return problem.batched or (False,) * len(problem.args)


def _unstack(ca: Any, p: Any, symbols: list[Any]) -> list[Any]:
    parts, place = [], 0
    for s in symbols:
        parts.append(ca.reshape(p[place : place + s.numel()], *s.shape))
        place += s.numel()
    return parts


def _columns(array: Any, batched: bool, count: int) -> Any:
    """Return an argument as columns, one per system, entries in CasADi's (Fortran's) order."""
    systems = array if batched else np.broadcast_to(array, (count, *array.shape))
    return np.stack([a.ravel(order="F") for a in systems], axis=-1)


def _split(columns: Any, problem: Problem, count: int) -> tuple[Any, ...]:
    gradients, place = [], 0
    for a, b in zip(problem.args, _batched(problem), strict=True):
        shape = a.shape[1:] if b else a.shape
        size = int(np.prod(shape))
        part = columns[place : place + size].T.reshape(count, *shape[::-1])
        part = np.moveaxis(part, range(1, part.ndim), range(part.ndim - 1, 0, -1))
        gradients.append(part if b else part.sum(axis=0))
        place += size
    return tuple(gradients)
