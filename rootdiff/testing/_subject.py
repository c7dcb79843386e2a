"""What is checked, seen as functions of real vectors: unknowns y, (N), and parameters theta, (p), in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from rootdiff._errors import ArgumentError
from rootdiff.testing._drivers import Driver, backend_of

Vector = Any
#: Beyond this many unknowns, all systems of a batch together, the dense reference of a check takes too long.
MAX_UNKNOWNS = 1000


@dataclass(frozen=True)
class Outcome:
    """What an entry point returned: y, (N); per system status, steps and residual norm, where it says."""

    y: Vector
    status: Any
    steps: Any
    residual_norm: Any
    leaves: list[Any]


class Leaves:
    """Between array leaves and one real vector; a complex leaf is its real parts, then its imaginary parts."""

    def __init__(self, driver: Driver, leaves: Sequence[Any]) -> None:
        self.driver, self.like = driver, list(leaves)
        arrays = [driver.numpy(leaf) for leaf in leaves]
        self.shapes = [array.shape for array in arrays]
        self.complex = [np.iscomplexobj(array) for array in arrays]
        counts = [array.size * (2 if wide else 1) for array, wide in zip(arrays, self.complex, strict=True)]
        ends = np.cumsum(counts, dtype=int)
        self.slices = [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
        self.size = int(sum(counts))

    def vector(self, leaves: Sequence[Any], conjugate: bool = False) -> Vector:
        """Return the vector, (size), of such leaves; a missing one (None) counts as zero."""
        out = np.zeros(self.size)
        for leaf, part, wide in zip(leaves, self.slices, self.complex, strict=True):
            if leaf is None:
                continue
            array = np.ravel(self.driver.numpy(leaf))
            if wide:
                array = np.conj(array) if conjugate else array
                array = np.concatenate([array.real, array.imag])
            out[part] = np.real(array)
        return out

    def native(self, vector: Vector, conjugate: bool = False) -> list[Any]:
        """Return fresh leaves of a vector, in the dtype and on the device of the original ones."""
        out = []
        for like, shape, part, wide in zip(self.like, self.shapes, self.slices, self.complex, strict=True):
            array = vector[part]
            if wide:
                half = math.prod(shape)
                array = array[:half] + (-1j if conjugate else 1j) * array[half:]
            out.append(self.driver.native(array.reshape(shape), like))
        return out


class Subject:
    """A residual (or cell, or own entry point) with its input on one backend.

    Attributes
    ----------
    y, parameters : Leaves
    y0, theta : array, (N) and (p). Start and parameters, rounded as the framework holds them.
    names : tuple of str. What each parameter leaf is called, "args[0]" and so on.
    eps, dtype : accuracy and name of the dtype of y0.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        y0: Any,
        args: tuple[Any, ...],
        driver: Driver,
        entry: str | Callable[..., Any] = "root",
        options: dict[str, Any] | None = None,
    ) -> None:
        self.function, self.driver, self.entry = function, driver, entry
        self.options = dict(options or {})
        self.batch_ndim = int(self.options.get("batch_ndim", 0))
        y_leaves, self._y_tree = driver.backend.flatten(y0)
        self._y_leaves = [self._own(leaf) for leaf in y_leaves]
        self._args_leaves, self.args_tree = driver.backend.flatten(args)
        self._args_leaves = [self._own(leaf) for leaf in self._args_leaves]
        self.places = [place for place, leaf in enumerate(self._args_leaves) if driver.is_parameter(leaf)]
        self.names = self._names(args)
        self.y = Leaves(driver, self._y_leaves)
        self.parameters = Leaves(driver, [self._args_leaves[place] for place in self.places])
        if not 0 < self.y.size <= MAX_UNKNOWNS:
            raise ArgumentError(
                f"check: y0 has {self.y.size} unknowns in all; between 1 and {MAX_UNKNOWNS} can be checked, since the "
                "reference forms dense matrices. Check a smaller instance."
            )
        real = np.real(driver.numpy(self._y_leaves[0]))
        self.dtype, self.eps = str(real.dtype), float(np.finfo(real.dtype).eps)
        if str(getattr(self._y_leaves[0], "dtype", "")).endswith("bfloat16"):
            self.dtype, self.eps = "bfloat16", 2.0**-7
        self.y0 = self.y.vector(self._y_leaves)
        self.theta = self.parameters.vector(self.parameters.like)
        self._cache: dict[Any, Callable[..., Any]] = {}

    def with_options(self, **options: Any) -> Subject:
        """Return the same subject with other options of the entry point."""
        other = copy(self)
        other.options, other._cache = self.options | options, {}
        return other

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes of y0."""
        return tuple(self.y.shapes[0][: self.batch_ndim])

    @property
    def systems(self) -> Any:
        """Integer array, (N): which system of the batch each unknown belongs to."""
        count = math.prod(self.batch)
        parts = []
        for shape, wide in zip(self.y.shapes, self.y.complex, strict=True):
            place = np.repeat(np.arange(count), math.prod(shape[self.batch_ndim :]))
            parts += [place, place] if wide else [place]
        return np.concatenate(parts)

    def y_tree(self, y: Vector) -> Any:
        """Return y as the user's function takes it."""
        return self.driver.backend.unflatten(self._y_tree, self.y.native(y))

    def args_tuple(self, theta: Vector) -> tuple[Any, ...]:
        """Return args as the user's function takes them, everything in it a copy."""
        return self.rebuild(self.parameters.native(theta))

    def rebuild(self, parameters: Sequence[Any], other: Any = ...) -> tuple[Any, ...]:
        """Return args with these parameter leaves; `other` stands for the leaves that are no parameters."""
        merged = [self._own(leaf) if other is ... else other for leaf in self._args_leaves]
        for place, leaf in zip(self.places, parameters, strict=True):
            merged[place] = leaf
        return tuple(self.driver.backend.unflatten(self.args_tree, merged))

    def rounded(self, theta: Vector) -> Vector:
        """Return parameters as the framework holds them."""
        return self.parameters.vector(self.parameters.native(theta))

    def residual(self, y: Vector, theta: Vector) -> Vector:
        """Return f, (N), evaluated by the framework."""
        out = self._once("residual", self._make_residual)(self.y.native(y), self.parameters.native(theta))
        return self._y_vector(out)

    def call(self, y: Any, args: tuple[Any, ...]) -> Any:
        """Return what the user's function returns, eagerly."""
        return self.function(y, *args)

    def solve(self, solver: Any, adjoint: Any, y0: Vector | None = None) -> Outcome:
        """Return the solution from `y0`."""
        run = self._run(solver, adjoint)
        start = self.y.native(self.y0 if y0 is None else y0)

        def solved(y0: Any, parameters: Any) -> Any:
            sol = run(y0, parameters)
            fields = [getattr(sol, name, None) for name in ("status", "steps", "residual_norm")]
            return self.driver.leaves(sol), [field for field in fields if field is not None]

        function = self._once(("solve", solver, adjoint), lambda: self.driver.compiled(solved))
        leaves, fields = function(start, self.parameters.native(self.theta))
        status, steps, norm = [*(np.asarray(self.driver.numpy(field)) for field in fields), None, None, None][:3]
        return Outcome(self._y_vector(leaves), status, steps, norm, leaves)

    def vjp(self, solver: Any, adjoint: Any, w: Vector, y0: Vector | None = None) -> tuple[Vector, list[Any]]:
        """Return ``w^T dy/dtheta``, (p), and the leaves it came in."""
        function = self._once(("vjp", solver, adjoint), lambda: self.driver.vjp(self._run(solver, adjoint)))
        start = self.y.native(self.y0 if y0 is None else y0)
        leaves = function(start, self.parameters.native(self.theta), self._cotangents(w))
        return self.parameters.vector(leaves, self.driver.conjugate), leaves

    def jvp(self, solver: Any, adjoint: Any, v: Vector) -> Vector:
        """Return ``(dy/dtheta) v``, (N)."""
        function = self._once(("jvp", solver, adjoint), lambda: self.driver.jvp(self._run(solver, adjoint)))
        return self._y_vector(
            function(self.y.native(self.y0), self.parameters.native(self.theta), self.parameters.native(v))
        )

    def second(self, solver: Any, adjoint: Any, w: Vector, v: Vector) -> Vector:
        """Return the derivative in theta, (p), of ``w^T (dy/dtheta) v``."""
        function = self._once(("second", solver, adjoint), lambda: self.driver.second(self._run(solver, adjoint)))
        start, parameters = self.y.native(self.y0), self.parameters.native(self.theta)
        leaves = function(
            start, parameters, self._cotangents(w), self.parameters.native(v, conjugate=self.driver.conjugate)
        )
        return self.parameters.vector(leaves, self.driver.conjugate)

    def start_vjp(self, solver: Any, adjoint: Any, w: Vector) -> Vector | None:
        """Return ``w^T dy/dy0``, (N), which must be zero; None where nothing can differentiate it."""
        function = self.driver.start_vjp(self._run(solver, adjoint))
        if function is None:
            return None
        leaves = function(self.y.native(self.y0), self.parameters.native(self.theta), self._cotangents(w))
        return self.y.vector(leaves, self.driver.conjugate)

    def _cotangents(self, w: Vector) -> list[Any]:
        return self.y.native(w, conjugate=self.driver.conjugate)

    def _run(self, solver: Any, adjoint: Any) -> _Run:
        return _Run(self, solver, adjoint)

    def _make_residual(self) -> Callable[..., Any]:
        def leaves(y: Any, parameters: Any) -> Any:
            tree = self.driver.backend.unflatten(self._y_tree, y)
            out = self.driver.backend.flatten(self.function(tree, *self.rebuild(parameters)))[0]
            if self.entry == "fixed_point":
                return [after - before for after, before in zip(out, y, strict=True)]
            return out

        return self.driver.compiled(leaves)

    def _y_vector(self, leaves: Sequence[Any]) -> Vector:
        if len(leaves) != len(self.y.shapes):
            raise ArgumentError(f"check: got {len(leaves)} leaves, but y0 has {len(self.y.shapes)}.")
        return self.y.vector(leaves)

    def _once(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]

    def _own(self, leaf: Any) -> Any:
        """Return a leaf as a fresh array of this framework, unless it is no array."""
        if self.driver.backend.is_array(leaf):
            return self.driver.native(self.driver.numpy(leaf), leaf)
        return self.driver.native(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf

    def _names(self, args: tuple[Any, ...]) -> tuple[str, ...]:
        names = []
        for index, arg in enumerate(args):
            count = len(self.driver.backend.flatten(arg)[0])
            names += [f"args[{index}]"] if count == 1 else [f"args[{index}], leaf {k}" for k in range(count)]
        return tuple(names[place] for place in self.places)


class _Run:
    """``run(y0, parameters)``: the call of the entry point under check."""

    def __init__(self, subject: Subject, solver: Any, adjoint: Any) -> None:
        self.subject, self.places, self.args_tree = subject, subject.places, subject.args_tree
        self.rebuild = subject.rebuild
        options = dict(subject.options)
        if isinstance(subject.entry, str):
            options.setdefault("on_failure", "ignore")
        self.options = options | {
            name: value for name, value in (("solver", solver), ("adjoint", adjoint)) if value is not None
        }

    def __call__(self, y0: Sequence[Any], parameters: Sequence[Any]) -> Any:
        subject = self.subject
        entry = subject.driver.entry(subject.entry) if isinstance(subject.entry, str) else subject.entry
        tree = subject.driver.backend.unflatten(subject._y_tree, list(y0))
        return entry(subject.function, tree, *self.rebuild(list(parameters)), **self.options)


def own_backend(y0: Any, args: tuple[Any, ...]) -> str:
    """Return the backend that y0 belongs to."""
    return backend_of(_leaves((y0, args)))


def _leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list | tuple):
        return [leaf for part in tree for leaf in _leaves(part)]
    return [tree]
