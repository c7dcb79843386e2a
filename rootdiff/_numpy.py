"""The NumPy backend: loops in Python, LAPACK factorisations, derivatives by differences or complex steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import optree

from rootdiff import _space
from rootdiff._backend import Array, Backend, Function
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._line import Measured, Told, relative_rounding
from rootdiff._numpy_lu import factor, solve
from rootdiff._sizes import fits, is_dense
from rootdiff._slopes import Slopes

#: Entries of a vector up to which a loop over them beats NumPy's own reduction, which is one loop per vector...
_SHORT = 16
#: ... from so many vectors on.
_MANY = 32


class Namespace(_space.Namespace):
    """What is quicker than NumPy's own for short vectors, and `clip`; all else is that of NumPy."""

    module = np

    @staticmethod
    def max(x: Array, /, *, axis: int | None = None) -> Array:
        """Return the largest entries along an axis, or of all."""
        return _reduce(np.maximum, x, axis)

    @staticmethod
    def min(x: Array, /, *, axis: int | None = None) -> Array:
        """Return the smallest entries along an axis, or of all."""
        return _reduce(np.minimum, x, axis)

    @staticmethod
    def clip(x: Array, /, min: Any = None, max: Any = None) -> Array:
        """Return `x` with its entries kept between two numbers or arrays, of which one may be None."""
        return np.clip(x, min, max)

    @staticmethod
    def max_norm(x: Array, _: Function, /) -> Array:
        """Return the largest absolute entries over the last axis."""
        return _reduce(np.maximum, np.abs(x), -1)

    @staticmethod
    def numbers(like: Array, dtype: Any, /) -> Array:
        """Return the numbers 1 to n, (n,), in a dtype, None for that of `like`."""
        return np.arange(1, like.shape[-1] + 1, dtype=dtype or like.dtype)


def _reduce(ufunc: np.ufunc, x: Array, axis: int | None) -> Any:
    n = x.shape[-1] if x.ndim else 0
    if axis != -1 or not 0 < n <= _SHORT or x.size < _MANY * n:
        return ufunc.reduce(x, axis=axis)
    result = x[..., 0].copy()
    for k in range(1, n):
        ufunc(result, x[..., k], out=result)
    return result


class Calls:
    """A function, the count of its calls, and how many a solve may have made when it takes another step, if limited."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0
        self.most: int | None = None

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.function(*args)

    def spent(self) -> bool:
        """Return whether no more are left."""
        return self.most is not None and self.count >= self.most


@dataclass(frozen=True)
class NumpyBackend(Backend):
    """NumPy, with derivatives by central differences or, on request, by complex steps.

    Attributes
    ----------
    box : tuple of arrays like y, or None
        Lower and upper bounds of the unknown, which differences do not leave.
    scale : array like y, or None
        The size of each unknown, positive, if the user tells it: what a difference takes for one otherwise.
    fine : bool
        Whether differences with respect to entries are of higher order, which costs twice the evaluations.
    sparsely : callable, or None
        ``sparsely(backend, function, primals, place, cotangents, errors)`` pulls back to a parameter of which a row of
        f reads few entries, or returns None; see `rootdiff._sparse_parameters`.
    measured : Measured or None
        What is known of a function that is itself measured.
    blind : int
        So many unknowns, the last ones, are such that f does not depend on them.
    quick : bool
        Whether the errors of a Jacobian's entries are looked at together, not one by one: for the steps of a solve.
    diff_step : float, or None
        The step of differences that the user tells, a part of each unknown and parameter.

    References
    ----------
    Squire & Trapp (1998), "Using complex variables to estimate derivatives of real functions".
    Moré & Wild (2011), "Estimating computational noise", for the noise that the steps stay clear of.
    """

    derivatives: Literal["finite-difference", "forward-difference", "complex-step"] = "finite-difference"
    box: tuple[Array, Array] | None = field(default=None, compare=False)
    scale: Array | None = field(default=None, compare=False)
    fine: bool = False
    quick: bool = False
    diff_step: float | None = None
    blind: int = 0
    measured: Measured | None = field(default=None, compare=False)
    sparsely: Callable[..., list[Array] | None] | None = field(default=None, compare=False)

    name = "numpy"
    xp = Namespace()
    measures = True

    def is_array(self, value: Any) -> bool:
        return isinstance(value, np.ndarray | np.generic)

    def call(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        try:
            # a copy, for the user may write the next value into the same buffer
            return _copied(function(*map(_read_only, (y, *args))))
        except ValueError as error:
            if "read-only" not in str(error):
                raise
            raise ArgumentError(
                f"residual: it changes y or args in place ({error}). Work on a copy, or write the result with "
                "np.where and np.concat."
            ) from error

    def put(self, stack: Array, place: Array, row: Array, where: Array | None = None) -> Array:
        np.copyto(stack[..., int(place), :], row, where=True if where is None else where[..., None])
        return stack

    @property
    def complex_step(self) -> bool:
        return self.derivatives == "complex-step"

    def told(self, dtype: Any) -> Told | None:
        """Return what the user tells of differences, if anything."""
        one_sided = self.derivatives == "forward-difference"
        if self.complex_step or (self.diff_step is None and not one_sided):
            return None
        return Told(self.diff_step or float(np.finfo(dtype).eps) ** (1 / 2), one_sided)

    def slopes(
        self,
        function: Function,
        primals: Sequence[Array],
        value: Array,
        box: tuple[Array, Array] | None = None,
        unit: Array | None = None,
    ) -> Slopes:
        """Return the derivatives of the function at the primals, where it has this value, with their errors."""
        measured, told = self.measured, self.told(value.dtype)
        return Slopes(function, primals, value, self.complex_step, box, self.fine, unit, measured, told, self.blind)

    def jvp(self, function: Function, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        value = function(*primals)
        return value, self.slopes(function, primals, value).along(tangents).value

    def vjp(self, function: Function, primals: Sequence[Array]) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
        value = function(*primals)
        return value, lambda cotangent: tuple(
            part[0] for part in _pulled_back(self.slopes(function, primals, value), [cotangent], range(len(primals)))
        )

    def parameter_slopes(self, function: Function, y: Array, parameters: Sequence[Array]) -> Slopes:
        """Return the derivatives of ``function(y, *parameters)``, where the rounding of y in f is seen too."""
        primals = y, *parameters
        return self.slopes(function, primals, function(*primals), self.box)

    def parameter_jvp(
        self, function: Function, y: Array, parameters: Sequence[Array], tangents: Sequence[Array]
    ) -> Array:
        return self.parameter_slopes(function, y, parameters).along((np.zeros_like(y), *tangents)).value

    def parameter_vjps(
        self, function: Function, y: Array, parameters: Sequence[Array], cotangents: Sequence[Array]
    ) -> list[tuple[Array, ...]]:
        if not any(map(np.any, cotangents)):
            return [tuple(map(np.zeros_like, parameters)) for _ in cotangents]
        return self._pulled_back(function, y, parameters, cotangents)

    def parameter_errors(
        self, function: Function, y: Array, parameters: Sequence[Array], cotangent: Array
    ) -> tuple[Array, ...]:
        return self._pulled_back(function, y, parameters, [cotangent], errors=True)[0]

    def _pulled_back(
        self,
        function: Function,
        y: Array,
        parameters: Sequence[Array],
        cotangents: Sequence[Array],
        errors: bool = False,
    ) -> list[tuple[Array, ...]]:
        primals, found = (y, *parameters), dict[int, list[Array]]()
        for place in range(1, len(primals)):
            sparse = self.sparsely and self.sparsely(self, function, primals, place, cotangents, errors)
            found |= {place: sparse} if sparse else {}
        rest = [place for place in range(1, len(primals)) if place not in found]
        if rest:
            slopes = self.parameter_slopes(function, y, parameters)
            found |= dict(zip(rest, _pulled_back(slopes, cotangents, rest, errors), strict=True))
        return [tuple(found[place][k] for place in range(1, len(primals))) for k in range(len(cotangents))]

    def with_jacobian(self, function: Function, y: Array) -> tuple[Array, Array]:
        value = function(y)
        return value, self.slopes(function, (y,), value, self.box, self.scale).jacobian(not self.quick).value

    def products(
        self, function: Function, y: Array, vectors: Array, transpose: bool = False
    ) -> tuple[Array, Array | None]:
        slopes = self.slopes(function, (y,), function(y), self.box, self.scale)
        found = [slopes.along((vector,)) for vector in vectors]
        return np.stack([part.value for part in found]), np.stack([part.error for part in found])

    def lengths(self, y: Array) -> Array:
        size, one = np.abs(y), np.ones_like(y) if self.scale is None else self.scale
        largest = np.max(size, axis=-1, keepdims=True)
        typical = np.minimum(one, np.where(largest > 0, largest, 1))
        # what may be a zero up to rounding tells no length: a step for it alone is looked for
        return np.where(size > np.finfo(y.dtype).eps ** 0.5 * typical, size, np.where(size == 0, one, typical))

    def with_scale(self, scale: Array) -> NumpyBackend:
        return replace(self, scale=scale)

    def linearize(
        self, function: Function, y: Array
    ) -> tuple[Function, Function, Callable[[], Array], Callable[[], Array]]:
        slopes = cache(lambda: self.slopes(function, (y,), function(y), self.box, self.scale))
        matrix, found = cache(lambda: slopes().jacobian(not self.quick)), cache(lambda: slopes().jacobian())
        lengths = cache(lambda: self.lengths(y))

        def matvec(v: Array) -> Array:
            # a step of a solve is served by one difference; a derivative by a matrix, if that fits
            if (is_dense if self.quick else fits)(y.shape) or v.shape != y.shape:
                return np.matvec(matrix().value, v)
            return slopes().product(v, lengths())

        return (
            matvec,
            lambda v: np.matvec(np.matrix_transpose(matrix().value), v),
            lambda: matrix().value,
            lambda: (found if self.quick else matrix)().error,
        )

    def precision(self, dtype: Any) -> float:
        eps, told = relative_rounding(dtype, self.measured), self.told(dtype)
        if told is not None:
            return max(told.step ** (1 if told.one_sided else 2), eps / told.step)
        return eps if self.complex_step else eps ** (4 / 5 if self.fine else 2 / 3)

    @property
    def refined(self) -> NumpyBackend | None:
        return None if self.complex_step or self.fine or self.told(float) else replace(self, fine=True, quick=False)

    lu_factor, lu_solve = staticmethod(factor), staticmethod(solve)


def _pulled_back(
    slopes: Slopes, cotangents: Sequence[Array], places: Sequence[int], errors: bool = False
) -> list[list[Array]]:
    """Return of each primal at `places` the cotangents, one for each of `cotangents`, or the size of their errors."""
    gradients = {place: [np.zeros_like(slopes.primals[place]) for _ in cotangents] for place in places}
    for place, index, found in slopes.columns(places, errors):
        column, axis = found.error if errors else found.value, -1 if Ellipsis in index else None
        for cotangent, gradient in zip(cotangents, gradients[place], strict=True):
            # a system without a cotangent, or that does not depend on this entry, adds nothing, NaN or not
            parts = np.where((cotangent == 0) | (column == 0), 0, cotangent * column)
            total = (
                np.linalg.norm(parts.reshape(-1) if axis is None else parts, axis=axis)
                if errors
                else np.sum(parts, axis=axis)
            )
            gradient[index] = total
    return list(gradients.values())


def _copied(tree: Any) -> Any:
    """Return a pytree with copies of the arrays in it."""
    if not isinstance(tree, np.ndarray):
        return optree.tree_map(lambda leaf: _copied(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
    if type(tree) is not np.ndarray and isinstance(tree, np.ma.MaskedArray):
        raise ArgumentTypeError(
            "residual: it returned a masked array, of which the mask would be lost. Return an ordinary array: leave "
            "masked entries out where it is made, or give them a value with np.ma.filled."
        )
    return np.array(tree)


def _read_only(tree: Any) -> Any:
    """Return a pytree with views of the arrays in it that cannot be written into."""
    if not isinstance(tree, np.ndarray):
        return optree.tree_map(lambda leaf: _read_only(leaf) if isinstance(leaf, np.ndarray) else leaf, tree)
    array = tree.view()  # the flags of `tree` are not read: of a broadcast array NumPy would warn
    array.flags.writeable = False
    return array
