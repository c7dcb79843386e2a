"""The JAX backend: `lax` loops, derivatives by tracing, SciPy on the host through a callback."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax import lax
from jax.experimental.multihost_utils import process_allgather

from rootdiff._backend import Array, Backend, Function, HostFunction, take_new
from rootdiff._inverse import Factors
from rootdiff._sizes import are_better_together
from rootdiff_jax import xla
from rootdiff_jax._callback import by_numpy, on_host
from rootdiff_jax._mesh import vary, varying_axes
from rootdiff_jax._namespace import Namespace
from rootdiff_jax.xla import on_mesh, while_loop

#: Numbers from which work done twice costs more than the branch that keeps it apart.
_MANY = 4096
#: Columns of a Jacobian that are made at a time: what a residual makes on the way to each takes memory of its own.
_COLUMNS = 512


@dataclass(frozen=True)
class JaxBackend(Backend):
    """JAX; `reverse_only` is for a residual with a `custom_vjp` in it, which has no forward mode.

    Its products with the Jacobian are then transposes of products with the transposed Jacobian. One that is not
    `differentiable` has neither. The unknowns of a system may be `spread` over devices.
    """

    reverse_only: bool = False
    differentiable: bool = True
    spread: bool = False

    name = "jax"
    traced = True
    prefers_transpose = False
    xp: ClassVar[Any] = Namespace()

    def is_array(self, value: Any) -> bool:
        return isinstance(value, jax.Array)

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        return jax.tree.flatten(tree)

    def unflatten(self, structure: Any, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(structure, leaves)

    def while_loop(self, cond: Function, body: Function, state: Any, assess: Function = take_new) -> Any:
        return while_loop(cond, lambda state: assess(body(state), state), _varying_alike(state))

    def when(
        self, needed: Array, function: Function, operands: tuple[Any, ...], otherwise: Any, often: bool = False
    ) -> Any:
        # a loop, since vmap runs both branches of lax.cond; and that inside, since XLA moves work that a loop does not
        # change out of it, but not out of a branch
        def once(carry: tuple[Array, Any]) -> tuple[Array, Any]:
            held, value = carry
            carried = dict(
                zip(places, jax.tree.leaves(value), strict=True)
            )  # what it is called with costs no copy then
            inputs = [carried.get(id(leaf), leaf) for leaf in leaves]

            def called() -> Any:
                token = xla.HARDLY_EVER.set(xla.HARDLY_EVER.get() or not often)
                try:
                    return jax.tree.map(on_mesh, function(*jax.tree.unflatten(tree, map(on_mesh, inputs))))
                finally:
                    xla.HARDLY_EVER.reset(token)

            return jnp.zeros_like(held), lax.cond(held, called, lambda: value)

        leaves, tree = jax.tree.flatten(operands)
        places = [id(leaf) for leaf in jax.tree.leaves(otherwise)]
        otherwise = jax.tree.map(on_mesh, otherwise)
        return self.while_loop(lambda carry: carry[0], once, (needed, otherwise))[1]

    def indices(self, mask: Array, count: int) -> Array:
        # no sort, which would cost as much as several steps
        found = jnp.searchsorted(jnp.cumsum(mask), jnp.arange(1, count + 1))
        return jnp.minimum(found, mask.size - 1)

    def parts(self, count: int) -> int:
        return math.gcd(count, jax.device_count())

    def by_part(self, parts: int, function: Function, *arrays: Array) -> Array:
        if parts == 1:
            return function(*arrays)
        # XLA sees that a part needs nothing of the others
        split = [jnp.reshape(array, (parts, -1, *array.shape[1:])) for array in arrays]
        found = jax.vmap(function)(*split)
        return jnp.reshape(found, (-1, *found.shape[2:]))

    def put(self, stack: Array, place: Array, row: Array, where: Array | None = None) -> Array:
        if where is not None:
            row = jnp.where(where[..., None], row, lax.dynamic_index_in_dim(stack, place, axis=-2, keepdims=False))
        return lax.dynamic_update_index_in_dim(stack, row, place, axis=-2)

    def surely_all(self, mask: Array | Callable[[], Array]) -> bool:
        return False

    def evaluated_once(self, function: Function, y: Array) -> Any:
        return _apart(function, y) if y.shape[-1] == 1 else function(y)

    def linearized(self, function: Function, y: Array) -> tuple[Array, Callable[[], Array]]:
        value, _, _, dense = self._linearized(function, y)
        return value, dense

    def _with_slope(self, function: Function, y: Array) -> tuple[Array, Array]:
        def both(y: Array) -> tuple[Array, Array]:
            if self.reverse_only:
                value, pullback = jax.vjp(function, y)
                rows = _products_with_units(lambda unit: pullback(unit)[0], value, -2)
                return value, rows[..., 0]
            return jax.jvp(function, (y,), (jnp.ones_like(y),))

        if y.size >= _MANY and _has_sine_and_cosine(both, y):
            # a program for a CPU has a loop for each result, each reducing the angle anew; complex numbers are one
            packed = self.evaluated_once(lambda y: lax.complex(*both(y)), y)
            return jnp.real(packed), jnp.imag(packed)
        return self.evaluated_once(both, y)  # type: ignore[no-any-return]

    def jvp(self, function: Function, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        if not self.reverse_only:
            return jax.jvp(function, tuple(primals), tuple(tangents))
        value, pullback = jax.vjp(function, *primals)
        (tangent,) = jax.linear_transpose(pullback, value)(tuple(tangents))
        return value, tangent

    def vjp(self, function: Function, primals: Sequence[Array]) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
        return jax.vjp(function, *primals)

    def linearize(self, function: Function, y: Array) -> tuple[Function, Function, Callable[[], Array]]:
        return self._linearized(function, y)[1:]

    def _linearized(self, function: Function, y: Array) -> tuple[Array, Function, Function, Callable[[], Array]]:
        """Return the value at `y`, and what `linearize` does."""
        if y.shape[-1] == 1:  # the slopes are the matrices
            value, slope = self._with_slope(function, y)

            def scaled(vector: Array) -> Array:
                return slope * vector

            return value, scaled, scaled, lambda: slope[..., None]

        def transpose(product: Function) -> Function:
            return lambda vector: jax.linear_transpose(product, y)(vector)[0]

        if self.reverse_only:
            value, pullback = jax.vjp(function, y)

            def rmatvec(cotangent: Array) -> Array:
                return pullback(cotangent)[0]

            return value, transpose(rmatvec), rmatvec, lambda: self._formed(rmatvec, value, -2)
        value, matvec = jax.linearize(function, y)
        return (
            value,
            partial(_apart, matvec),
            partial(_apart, transpose(matvec)),
            lambda: self._formed(matvec, y, -1),
        )

    def _formed(self, product: Function, like: Array, axis: int) -> Array:
        """Return the Jacobian or, along the axis -2, its transpose; of unknowns that are spread, not silently."""
        if self.spread:
            warnings.warn(
                f"y0: the {like.shape[-1]} unknowns of a system are spread over devices, and its Jacobian, which this "
                "solve forms, will be gathered on each of them. Without a matrix, above 1024 unknowns: solver='auto', "
                "'newton_krylov', 'anderson' or 'df_sane', adjoint='auto', 'gmres', 'bicgstab', 'cg' or 'lsmr'.",
                stacklevel=2,
            )
        return _products_with_units(product, like, axis)

    def products(
        self, function: Function, y: Array, vectors: Array, transpose: bool = False
    ) -> tuple[Array, Array | None]:
        _, matvec, rmatvec, _ = self._linearized(function, y)
        return jax.vmap(rmatvec if transpose else matvec)(vectors), None

    def lengths(self, y: Array) -> Array:
        # not constants, or the compiler computes what a linear part of the residual makes of them, by itself and slowly
        return jnp.where(jnp.isnan(y), y, jnp.ones_like(y))

    def lu_factor(self, matrix: Array) -> Factors:
        if matrix.shape[-1] == 1:
            return Factors(matrix, jnp.zeros_like(matrix[..., 0], dtype=jnp.int32))
        return Factors(*xla.lu_factor(matrix))

    def lu_solve(self, factors: Factors, rhs: Array, transpose: bool = False) -> Array:
        if rhs.shape[-1] == 1:
            return rhs / factors[0][..., 0]
        return xla.lu_solve(factors, rhs, transpose)

    def eliminates(self, shape: tuple[int, ...]) -> bool:
        return are_better_together(shape)

    def eliminate(self, matrix: Array, rhs: Array, transpose: bool = False) -> tuple[Array, Any]:
        if not self.eliminates(rhs.shape):
            return super().eliminate(matrix, rhs, transpose)
        return xla.eliminate(matrix, rhs, transpose)

    def eliminate_again(self, known: Any, rhs: Array, transpose: bool = False) -> Array:
        matrix, stable = known
        return xla.eliminate_again(matrix, stable, rhs, transpose)

    def constant(self, array: Any, like: Array) -> Array:
        return jnp.asarray(array)

    def by_numpy(self, function: Function, like: Array, *arrays: Array) -> Array:
        return by_numpy(function, like, *arrays)

    def on_host(self, function: HostFunction, residual: Any, y: Array, *values: Any) -> tuple[Array, Array]:
        return on_host(function, residual, y, *values)

    def to_numpy(self, array: Array) -> Any:
        if getattr(array, "is_fully_addressable", True) or array.is_fully_replicated:
            return np.asarray(array)
        return process_allgather(array, tiled=True)  # some of it is on devices of other processes, which run this too


@dataclass(frozen=True)
class SteppingBackend(JaxBackend):
    """JAX on concrete arrays, with loops in Python, for those who watch the steps."""

    traced = False
    while_loop, when = Backend.while_loop, Backend.when
    evaluated_once = Backend.evaluated_once  # each operation by itself: there is nothing to merge
    eliminates = Backend.eliminates  # so many operations pay only in one program


def _apart(function: Function, vector: Array) -> Any:
    """Return ``function(vector)``, one array or a tuple of them, kept apart from what is made of it.

    The compiler repeats elementwise work, such as a sine or a stencil, for each of the results that it merges it into.
    """
    return function(vector) if vector.size < _MANY else _in_a_branch(function, vector)


def computed_once(array: Array) -> Any:
    """Return an array, computed once: all that is made of it is made of the same numbers.

    Where it is computed anew for several results, its roundings need not be the same. If it is but rounding, the
    difference of two terms that should be equal, then what solves for the one does not for the other.
    """
    return _in_a_branch(lambda array: array, array)


def _in_a_branch(function: Function, operand: Array) -> Any:
    """Return ``function(operand)``, from a branch that is always taken, but not to the knowledge of the compiler."""
    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(operand)

    def zeros(operand: Array) -> Any:
        return jax.tree.map(lambda part: jnp.zeros(part.shape, part.dtype), shapes)

    def negative(operand: Array) -> Any:
        return jax.tree.map(jnp.negative, function(operand))

    # a result that is spread over devices has a type of its own, which only what is made of the operand has too
    alike = all(map(_are_spread_alike, jaxpr.out_avals, jax.make_jaxpr(zeros)(operand).out_avals))
    yes: Array = lax.optimization_barrier(jnp.asarray(True))  # type: ignore[no-untyped-call]
    return lax.cond(yes, function, zeros if alike else negative, operand)


def _are_spread_alike(kind: Any, other: Any) -> bool:
    """Return whether arrays of two types are spread over devices in the same way."""
    return varying_axes(kind) == varying_axes(other) and kind.sharding == other.sharding


def _products_with_units(product: Function, like: Array, axis: int) -> Array:
    """Return the products with all unit vectors like a vector, along an axis; where they are many, some at a time."""
    n = like.shape[-1]
    blocks = -(-n // _COLUMNS)
    size = -(-n // blocks)

    def some(start: Any) -> Array:
        units = jnp.arange(n) == start + jnp.arange(size)[:, None]
        return jax.vmap(lambda unit: product(jnp.zeros_like(like) + unit), out_axes=axis)(units)

    def step(block: Array, found: Array) -> Array:
        start = jnp.minimum(block * size, n - size)
        return lax.dynamic_update_slice_in_dim(found, some(start), start, axis=axis)

    if blocks == 1:
        return some(0)
    zeros = jnp.zeros_like(like)
    zeros = zeros if jax.eval_shape(product, like).shape == like.shape else product(zeros)
    shape = (*zeros.shape, n) if axis == -1 else (*zeros.shape[:-1], n, zeros.shape[-1])
    return lax.fori_loop(0, blocks, step, jnp.broadcast_to(jnp.expand_dims(zeros, axis), shape))


def _has_sine_and_cosine(function: Function, y: Array) -> bool:
    """Return whether a function of reals that fit a complex number takes both, so that they belong together."""
    if y.dtype not in (jnp.float32, jnp.float64):
        return False
    taken = {equation.primitive for equation in jax.make_jaxpr(function)(y).eqns}
    return {lax.sin_p, lax.cos_p} <= taken


def _varying_alike(state: Any) -> Any:
    """Return `state` with every array typed as varying over all the mesh axes that one of them varies over.

    Inside ``shard_map`` a loop must have the types of its result from the start, and constants do not vary.
    """
    axes = frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(state)))
    return jax.tree.map(lambda value: vary(value, axes), state) if axes else state
