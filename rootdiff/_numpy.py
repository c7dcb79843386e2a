"""The NumPy backend: loops in Python, LAPACK factorisations, derivatives by differences or complex steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import optree
from scipy.linalg import get_lapack_funcs

from rootdiff import _elimination
from rootdiff._backend import Array, Factoring, Function, HostFunction, in_python, last
from rootdiff._differences import Line, Slope, first_step, power_of_two, scale, slope
from rootdiff._errors import ArgumentError
from rootdiff._norms import numbers
from rootdiff._numpy_namespace import Namespace

#: No step is longer than this part of an entry, unless the entry is so small that it may be a zero up to rounding.
_LONGEST = 0.25
#: Patterns of the nudges that show the rounding of f; one alone may show nothing, where f is rounded coarsely.
_NUDGES = (3, 5)
#: Rounding that one difference meets, in parts of what was known, which the next one is told of.
_MORE = 8.0
#: Entries whose ratios to their tangents are within this factor take one step together.
_MAGNITUDE = 100.0


@dataclass(frozen=True)
class NumpyBackend(Factoring):
    """NumPy, with derivatives by central differences or, on request, by complex steps.

    References
    ----------
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
        value = function(y)
        return value, self.measured_jacobian(function, y, value).value[..., 0]

    def jvp(self, function: Function, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        value = function(*primals)
        return value, self.directional(function, primals, tangents, value).value

    def directional(
        self, function: Function, primals: Sequence[Array], tangents: Sequence[Array], value: Array
    ) -> Slope:
        """Return the derivative along `tangents`, and its error: a difference for each order of magnitude in them."""
        total = Slope(*[np.zeros_like(value)] * 3)
        noise = None
        for ratio, group in _of_one_magnitude(primals, tangents):
            if self.derivatives == "complex-step":
                step = 1e-20 * ratio
                imaginary = _imaginary(_along(function, primals, group, 1j * step))
                part = Slope(imaginary / step, *[np.zeros_like(value)] * 2)
            else:
                noise = self._noise(function, primals, value) if noise is None else noise
                along = partial(_along, function, primals, group)
                part = _slope(along, value, noise, ratio, ratio, shared=value.ndim > 1)
            total = Slope(*(a + b for a, b in zip(total, part, strict=True)))
        return total

    def vjp(self, function: Function, primals: Sequence[Array]) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
        value = function(*primals)
        first_noise = self._noise(function, primals, value)

        def pullback(cotangent: Array) -> tuple[Array, ...]:
            gradients, noise = [], first_noise
            for place, primal in enumerate(primals):
                array = np.asarray(primal)
                gradient = np.zeros_like(array)
                for index in np.ndindex(array.shape):
                    found = self._entry_slope(function, primals, value, noise, place, index)
                    noise, column = _learnt(found, noise, array[index]), found.value
                    # a system without a cotangent, or that does not depend on this entry, adds nothing, NaN or not
                    terms = np.where((cotangent == 0) | (column == 0), 0, cotangent * column)
                    gradient[index] = np.sum(terms)
                gradients.append(gradient)
            return tuple(gradients)

        return value, pullback

    def jacobian(self, function: Function, y: Array) -> Array:
        return self.measured_jacobian(function, y, function(y)).value

    def measured_jacobian(self, function: Function, y: Array, value: Array) -> Slope:
        """Return the Jacobian and its errors, both (*batch, n, n), at `y`, where the function has this value."""
        noise, columns = self._noise(function, (y,), value), []
        for place in range(y.shape[-1]):
            columns.append(self._entry_slope(function, (y,), value, noise, 0, (..., place)))
            noise = _learnt(columns[-1], noise, y[..., place, None])
        return Slope(*(np.stack(parts, axis=-1) for parts in zip(*columns, strict=True)))

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
        """Return the change of each component of f when its inputs change by a rounding error, and its own rounding."""
        if self.derivatives == "complex-step":
            return np.zeros_like(value)
        eps = np.finfo(value.dtype).eps
        changes = [np.abs(function(*_nudged(primals, eps, phase)) - value) for phase in _NUDGES]
        return np.max(np.where(np.isfinite(changes), changes, 0), axis=0) + eps * np.abs(value)

    def _entry_slope(
        self, function: Function, primals: Sequence[Array], value: Array, noise: Array, place: int, index: Any
    ) -> Slope:
        """Return the derivative, shaped like f, with respect to one entry (of each system) of one primal."""
        array = np.asarray(primals[place])
        size = np.abs(array[index])
        shared = np.ndim(size) == 0 and value.ndim > 1

        def along(step: Any) -> Array:
            moved = array.astype(np.result_type(array.dtype, 1j)) if np.iscomplexobj(step) else array.copy()
            moved[index] += step
            return function(*primals[:place], moved, *primals[place + 1 :])

        if self.derivatives == "complex-step":
            step = np.where(size > 0, size, 1.0) * 1e-20  # far below rounding: there is no cancellation to balance
            return Slope(_imaginary(along(1j * step)) / step[..., None], *[np.zeros_like(value)] * 2)
        largest = np.max(np.abs(array)) if shared or array.ndim == 0 else np.max(np.abs(array), axis=-1)
        return _slope(along, value, noise, scale(size, largest), size, shared)


def _slope(along: Function, value: Array, noise: Array, length: Any, size: Any, shared: bool) -> Slope:
    """Return the derivative along a line on which a step of this `length` is as long as what it moves.

    That is of the `size`, or where this is small of a size that is not known. A step that is `shared` by the systems of
    a batch is one for all.
    """
    first = max(first_step(value.dtype), first_step(length.dtype))
    longest = np.where(_LONGEST * size > first, _LONGEST * size, np.inf)
    step = power_of_two(first * length, length.dtype)
    if not shared:
        return slope(Line(along, value, noise, step, longest))
    line = Line(lambda step: along(step).reshape(-1), value.reshape(-1), noise.reshape(-1), step, longest)
    return Slope(*(part.reshape(value.shape) for part in slope(line)))


def _learnt(found: Slope, noise: Array, entry: Array) -> Array:
    """Return the size of rounding errors of f, for the next derivative, as the last one, in this entry, has shown it.

    A term of f is rounded; and the differences may have met more rounding. Much more is a kink, and of one entry.
    """
    seen = np.minimum(found.noise, _MORE * noise)
    return np.fmax(np.maximum(noise, seen), np.finfo(noise.dtype).eps * np.abs(found.value * entry))


def _of_one_magnitude(primals: Sequence[Array], tangents: Sequence[Array]) -> Iterator[tuple[Any, list[Array]]]:
    """Yield the tangents in parts, with the least ratio of an entry to its tangent: of one order of magnitude each.

    An entry that is zero counts as one of size one.
    """
    ratios = []
    for primal, tangent in zip(primals, tangents, strict=True):
        p, t = np.broadcast_arrays(np.abs(primal), np.abs(tangent))
        ratios.append(np.where(t > 0, np.maximum(np.where(p > 0, p, 1) / np.where(t > 0, t, 1), 1e-200), np.inf))
    least = 0.0
    while True:
        least = min((float(np.min(ratio[ratio >= least], initial=np.inf)) for ratio in ratios), default=np.inf)
        if not least < np.inf:
            return
        most = _MAGNITUDE * least
        yield (
            np.float64(least),
            [np.where((ratio >= least) & (ratio < most), t, 0) for ratio, t in zip(ratios, tangents, strict=True)],
        )
        least = most


def _nudged(primals: Sequence[Array], eps: Any, phase: int) -> Iterator[Array]:
    """Yield the primals with their entries changed by two roundings, in a pattern of signs."""
    for primal in primals:
        array = np.asarray(primal)
        signs = np.sign(np.sin(numbers(np, array.reshape(-1)) ** 2 + phase)).reshape(array.shape)
        yield np.astype(array * (1 + 2 * max(eps, np.finfo(array.dtype).eps) * signs), array.dtype)


def _along(function: Function, primals: Sequence[Array], tangents: Sequence[Array], step: Any) -> Array:
    """Return the function at the primals plus `step` times the tangents."""
    moved = [p + step * t for p, t in zip(primals, tangents, strict=True)]
    if np.iscomplexobj(step):
        return function(*moved)
    return function(*[np.astype(m, p.dtype) for m, p in zip(moved, primals, strict=True)])


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
