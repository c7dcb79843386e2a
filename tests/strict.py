"""A fourth framework: `array_api_strict`, which has the array-API standard and nothing else; derivatives by NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_strict as xp
import numpy as np

from rootdiff import _entry, _implicit
from rootdiff._adapter import Adapter, Found
from rootdiff._backend import Backend
from rootdiff._bound import bound
from rootdiff._numpy import NumpyBackend
from rootdiff._solver import run
from rootdiff._task import Task

Array = type(xp.zeros(1))
NumPy = np.ndarray | np.generic
NUMPY = NumpyBackend()


def outside(value: Any) -> Any:
    """Return NumPy arrays, tuples of them and functions of them as those of `array_api_strict`."""
    return _converted(value, lambda leaf: xp.asarray(leaf) if isinstance(leaf, NumPy) else leaf, inside)


def inside(value: Any) -> Any:
    """Return what `outside` returned as it was."""
    return _converted(value, lambda leaf: np.asarray(leaf) if isinstance(leaf, Array) else leaf, outside)


def _converted(value: Any, forth: Callable[[Any], Any], back: Callable[[Any], Any]) -> Any:
    if callable(value):
        return lambda *args: _converted(value(*map(back, args)), forth, back)
    if isinstance(value, tuple | list):
        parts = [_converted(part, forth, back) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return forth(value)


def _by_numpy(name: str) -> Any:
    return lambda self, *args, **options: outside(getattr(NUMPY, name)(*map(inside, args), **options))


class StrictBackend(Backend):
    name, xp = "strict", xp

    jvp, vjp, linearize, lu_factor, lu_solve = map(_by_numpy, ("jvp", "vjp", "linearize", "lu_factor", "lu_solve"))

    def is_array(self, value: Any) -> bool:
        return isinstance(value, Array)

    def precision(self, dtype: Any) -> float:
        return NUMPY.precision(inside(xp.zeros(1, dtype=dtype)).dtype)


class Derivative:
    """The derivative of a root, by the theorem as it stands."""

    def __init__(self, task: Task, raw: Any) -> None:
        self.at = task.residual(), task.adjoint, raw.y
        self.known = {"factors": raw.factors, "error": raw.error}

    def vjp(self, w: Any) -> Any:
        return _implicit.vjps(*self.at, [w], **self.known)[0]

    def jvp(self, *v: Any) -> Any:
        return _implicit.jvps(*self.at, [v], **self.known)[0]


class Strict(Adapter):
    package, words = "strict", {}

    def entered(self, function: Any) -> Any:
        return np.errstate(all="ignore")(function)

    def backend(self, derivatives: Any = None) -> StrictBackend:
        return StrictBackend()

    def is_parameter(self, leaf: Any) -> bool:
        return isinstance(leaf, Array)

    def solve(self, task: Task) -> Found:
        raw = run(task.solver, task.options.hooks.attach(task.residual(), task.structure, task.start), task.start)
        derivative = Derivative(task, raw)
        return Found(raw.y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.method, raw.error, derivative)

    def measured(self, task: Task) -> Any:
        return task.residual()


STRICT = Strict()
_NAMES = "root fixed_point implicit least_squares minimize root_scalar continuation gradient_report"
root, fixed_point, implicit, least_squares, minimize, root_scalar, continuation, gradient_report = (
    bound(getattr(_entry, name), STRICT) for name in _NAMES.split()
)
