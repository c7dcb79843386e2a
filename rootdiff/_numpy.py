"""The NumPy backend: loops in Python, LAPACK factorisations, derivatives by differences or complex steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import optree
from scipy.linalg import get_lapack_funcs

from rootdiff import _elimination
from rootdiff._backend import Array, Factoring, Function, HostFunction, in_python, last
from rootdiff._errors import ArgumentError
from rootdiff._numpy_namespace import Namespace

#: A second difference below this part of the first leaves the central difference an error of about its square.
_CURVATURE = 1e-4
#: A second difference below this many times the rounding noise of f says nothing about curvature.
_CLEAR_OF_NOISE = 1e3
#: Changes of a step before it is taken as it is: enough for a factor 1e20, all that an entry without effect costs.
_MAX_STEP_CHANGES = 7


@dataclass(frozen=True)
class NumpyBackend(Factoring):
    """NumPy, with derivatives by central differences or, on request, by complex steps.

    References
    ----------
    Nocedal & Wright (2006), section 8.1: the step eps^(1/3) of a central difference.
    Squire & Trapp (1998), "Using complex variables to estimate derivatives of real functions".
    Moré & Wild (2011), "Estimating computational noise", for the noise that the steps stay clear of.
    """

    derivatives: Literal["finite-difference", "complex-step"] = "finite-difference"

    name = "numpy"
    traced = False
    pulls = None
    xp = Namespace()

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray | np.generic)

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        return optree.tree_flatten(tree)

    def unflatten(self, structure: Any, leaves: Sequence[Any]) -> Any:
        return optree.tree_unflatten(structure, leaves)

    def call(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        try:
            return function(_read_only(y), *_read_only(args))
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise ArgumentError(
                f"residual: it changes y or args in place ({error}). Work on a copy, or write the result with "
                "np.where and np.concat."
            ) from error

    def while_loop(self, cond: Function, body: Function, state: Any, account: Function = last) -> Any:
        return in_python(cond, body, state, account)

    def when(self, needed: Array, function: Function, operands: tuple[Any, ...], otherwise: Any) -> Any:
        return function(*operands) if needed else otherwise

    def indices(self, mask: Array, count: int) -> Array:
        return np.nonzero(mask)[0]

    def put(self, stack: Array, place: Array, row: Array, where: Array | None = None) -> Array:
        np.copyto(stack[..., int(place), :], row, where=True if where is None else where[..., None])
        return stack

    def surely_all(self, mask: Array | Callable[[], Array]) -> bool:
        return bool(np.all(mask() if callable(mask) else mask))

    def once(self, function: Function, y: Array) -> Any:
        return function(y)

    def with_slope(self, function: Function, y: Array) -> tuple[Array, Array]:
        return function(y), self.jacobian(function, y)[..., 0]

    def jvp(self, function: Function, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        value = function(*primals)
        ratios = [np.abs(p) / np.abs(t) for p, t in _moving(primals, tangents)]
        if not ratios:
            return value, np.zeros_like(value)

        def along(step: Any) -> Array:
            return function(*[p + step * t for p, t in zip(primals, tangents, strict=True)])

        smallest = min(float(np.min(ratio[ratio > 0], initial=np.inf)) for ratio in ratios)
        smallest = max(smallest, 1e-200) if np.isfinite(smallest) else 1.0
        if self.derivatives == "complex-step":
            step = 1e-20 * smallest
            return value, _imaginary(along(1j * step)) / step
        scale = max(float(np.max(np.abs(t))) for _, t in _moving(primals, tangents))
        size = max(float(np.max(np.abs(p))) for p, _ in _moving(primals, tangents)) or 1.0
        step = size / scale * _central(value.dtype)
        for _ in range(_MAX_STEP_CHANGES):
            plus, minus = along(step), along(-step)
            first, second = np.max(np.abs(plus - minus)), np.max(np.abs(plus - 2 * value + minus))
            if second <= _CURVATURE * first or second <= _CLEAR_OF_NOISE * np.max(
                self._noise(function, primals, value)
            ):
                break
            # one of the entries is small in its units, and f is curved on the scale of this step
            change = _CURVATURE * first / second if np.isfinite(second) else 0.0
            step = step * min(max(float(change), 1e-3), 0.5)
        else:
            step = smallest * _central(value.dtype)
        return value, _central_difference(along(step), along(-step), value, step)

    def vjp(self, function: Function, primals: Sequence[Array]) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
        value = function(*primals)
        noise = self._noise(function, primals, value)

        def pullback(cotangent: Array) -> tuple[Array, ...]:
            gradients = []
            for place, primal in enumerate(primals):
                array = np.asarray(primal)
                gradient = np.zeros_like(array)
                for index in np.ndindex(array.shape):
                    column = self._entry_derivative(function, primals, value, noise, place, index)
                    # a system without a cotangent, or that does not depend on this entry, adds nothing, NaN or not
                    terms = np.where((cotangent == 0) | (column == 0), 0, cotangent * column)
                    gradient[index] = np.sum(terms)
                gradients.append(gradient)
            return tuple(gradients)

        return value, pullback

    def jacobian(self, function: Function, y: Array) -> Array:
        value = function(y)
        noise = self._noise(function, (y,), value)
        columns = [
            self._entry_derivative(function, (y,), value, noise, 0, (..., place)) for place in range(y.shape[-1])
        ]
        return np.stack(columns, axis=-1)

    def linearize(self, function: Function, y: Array) -> tuple[Function, Function, Callable[[], Array]]:
        matrix = cache(lambda: self.jacobian(function, y))
        return (lambda v: np.matvec(matrix(), v)), (lambda v: np.matvec(np.matrix_transpose(matrix()), v)), matrix

    def precision(self, dtype: Any) -> float:
        eps = float(np.finfo(dtype).eps)
        return eps if self.derivatives == "complex-step" else eps ** (2 / 3)

    def lu_factor(self, matrix: Array) -> tuple[Array, Array]:
        if matrix.shape[-1] == 1:
            return matrix, np.zeros(matrix.shape[:-1], dtype=np.int32)
        (getrf,) = get_lapack_funcs(("getrf",), (matrix,))
        if matrix.ndim == 2:
            factors, pivots, _ = getrf(matrix)
            return factors, pivots
        if _elimination.pays(matrix.shape):
            return _elimination.factor(matrix)
        flat = matrix.reshape((-1, *matrix.shape[-2:]))
        pairs = [getrf(one)[:2] for one in flat]
        factors = np.stack([pair[0] for pair in pairs]).reshape(matrix.shape)
        return factors, np.stack([pair[1] for pair in pairs]).reshape(matrix.shape[:-1])

    def lu_solve(self, factors: tuple[Array, Array], rhs: Array, transpose: bool = False) -> Array:
        matrix, pivots = factors
        if rhs.shape[-1] == 1:
            with np.errstate(all="ignore"):
                return rhs / matrix[..., 0]
        (getrs,) = get_lapack_funcs(("getrs",), (matrix, rhs))
        if matrix.ndim == 2:
            return getrs(matrix, pivots, rhs, trans=int(transpose))[0]
        if _elimination.pays(matrix.shape):
            return _elimination.solve(factors, rhs, transpose)
        n = matrix.shape[-1]
        systems = zip(matrix.reshape((-1, n, n)), pivots.reshape((-1, n)), rhs.reshape((-1, n)), strict=True)
        return np.stack([getrs(m, p, b, trans=int(transpose))[0] for m, p, b in systems]).reshape(rhs.shape)

    def on_host(self, function: HostFunction, residual: Any, y: Array, *values: Any) -> tuple[Array, Array]:
        return function(residual, residual.jacobian, y, *values)

    def to_numpy(self, array: Array) -> Any:
        return np.asarray(array)

    def _noise(self, function: Function, primals: Sequence[Array], value: Array) -> Array:
        """Return the change of f, (*batch, 1), when its inputs change by a rounding error."""
        if self.derivatives == "complex-step":
            return np.zeros_like(value[..., :1])
        eps = np.finfo(value.dtype).eps
        nudged = function(*[np.asarray(p) * (1 + 2 * eps) for p in primals])
        return np.max(np.abs(nudged - value), axis=-1, keepdims=True) + eps * np.max(
            np.abs(value), axis=-1, keepdims=True
        )

    def _entry_derivative(
        self, function: Function, primals: Sequence[Array], value: Array, noise: Array, place: int, index: Any
    ) -> Array:
        """Return the derivative, shaped like f, with respect to one entry (of each system) of one primal.

        The step suits an entry of size one or larger. It shrinks where f is curved on that scale, which half the
        step tells, or not finite, and grows where the difference drowns in rounding noise: for entries that are
        small or large in the units they come in.
        """
        array = np.asarray(primals[place])

        def along(step: Any) -> Array:
            moved = array.astype(np.result_type(array.dtype, 1j)) if np.iscomplexobj(step) else array.copy()
            moved[index] += step
            return function(*primals[:place], moved, *primals[place + 1 :])

        size = np.abs(array[index])
        per_system = np.ndim(size) > 0
        step = np.maximum(size, 1) * _central(array.dtype)

        def shaped(step: Any) -> Any:
            return step[..., None] if per_system else step

        if self.derivatives == "complex-step":
            step = np.where(size > 0, size, 1.0) * 1e-20  # far below rounding: there is no cancellation to balance
            return _imaginary(along(1j * step)) / shaped(step)
        shortest = np.where(size > 0, size, np.finfo(array.dtype).eps) * _central(array.dtype) * 1e-3
        for _ in range(_MAX_STEP_CHANGES):
            plus, half = along(step), along(0.5 * step)
            first = 2 * np.max(np.abs(plus - value), axis=-1)
            second = 4 * np.max(np.abs(plus - 2 * half + value), axis=-1)
            clear = _CLEAR_OF_NOISE * noise[..., 0]
            change = np.where(second > np.maximum(_CURVATURE * first, clear), _CURVATURE * first / second, 1.0)
            change = np.where(np.maximum(first, second) <= clear, 1e3, np.maximum(change, 1e-3))
            # a system that is not finite as it stands has no say
            change = np.where(np.isfinite(second), change, np.where(np.isfinite(value).all(axis=-1), 0.1, 1e3))
            change = change if per_system else np.min(change)
            if np.all((change == 1) | (change < 1) & (step <= shortest)):
                break
            step = np.maximum(change * step, np.minimum(step, shortest))
        else:
            step = np.where(change < 1, 1e3 * shortest, step)  # still curved: an entry of another order of magnitude
        return _central_difference(along(step), along(-step), value, shaped(step))


def _moving(primals: Sequence[Array], tangents: Sequence[Array]) -> list[tuple[Array, Array]]:
    """Return the entries that a step along the tangents moves, and by how much."""
    pairs = [(np.asarray(p), np.asarray(t)) for p, t in zip(primals, tangents, strict=True)]
    return [(np.broadcast_to(p, t.shape)[t != 0], t[t != 0]) for p, t in pairs if np.any(t != 0)]


def _central(dtype: Any) -> Any:
    return np.finfo(dtype).eps ** (1 / 3)


def _central_difference(plus: Array, minus: Array, value: Array, step: Any) -> Array:
    """Return the central difference, or the one-sided one where the other side leaves the domain of f."""
    with np.errstate(invalid="ignore"):
        central = (plus - minus) / (2 * step)
        one_sided = np.where(np.isfinite(plus), (plus - value) / step, (value - minus) / step)
    return np.where(np.isfinite(central), central, one_sided).astype(value.dtype)


def _imaginary(value: Array) -> Array:
    if not np.isdtype(value.dtype, "complex floating"):
        raise ArgumentError(
            "derivatives: the complex step needs a residual that keeps complex numbers complex, but this one returned "
            f"{value.dtype}. Avoid np.abs, np.real and float buffers in it, or use derivatives='finite-difference'."
        )
    return np.imag(value)


def _read_only(tree: Any) -> Any:
    def view(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        array = leaf.view()
        array.flags.writeable = False
        return array

    return optree.tree_map(view, tree)
