"""A framework, seen by the solvers: the array-API standard, and the few things it lacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Protocol, Self, TypeAlias

import numpy as np
import optree

from rootdiff._inverse import Factors

Array: TypeAlias = Any
Function: TypeAlias = Callable[..., Array]
#: From an array, (count, ...), with one entry per system of a batch, to those of some of the systems.
Pick: TypeAlias = Callable[[Array], Array]
#: What `Backend.on_host` runs: ``(evaluate, jacobian, y, *values) -> (y, steps)``, everything a NumPy array.
HostFunction: TypeAlias = Callable[..., tuple[Any, Any]]


def take_new(new: Any, old: Any) -> Any:
    """Return `new`: what a loop does that assesses no step."""
    return new


def in_python(cond: Function, body: Function, state: Any, assess: Function) -> Any:
    """Return what `Backend.while_loop` does, by a loop of Python's that looks at the condition each time."""
    while cond(state):
        state = assess(body(state), state)
    return state


class Backend(Protocol):
    """A framework: its array namespace, derivatives, loops and branches, LU factors, and the way to the host.

    A new one owes `name`, `xp`, `is_array`, `jvp`, `vjp`, `linearize`, `lu_factor` and `lu_solve`. All else has a
    default, that of a framework whose arrays have values while Python runs.
    """

    # arrays, and the calls of a user's functions

    #: The registry's name of this framework, such as ``"numpy"``.
    name: ClassVar[str]
    #: The array-API namespace.
    xp: ClassVar[Any]

    def is_array(self, value: Any) -> bool:
        """Return whether `value` is an array of this framework."""

    def flatten(self, tree: Any) -> tuple[list[Any], Any]:
        """Return the leaves of a pytree and its structure, which compares with ``==``."""
        return optree.tree_flatten(tree)

    def unflatten(self, structure: Any, leaves: Sequence[Any]) -> Any:
        """Return the pytree of this structure with these leaves."""
        return optree.tree_unflatten(structure, leaves)

    def call(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        """Return ``function(y, *args)``; a function that changes its inputs in place is an `ArgumentError`."""
        return function(y, *args)

    # derivatives, of functions from flat vectors to flat vectors; the systems of a batch are independent, so that one
    # product differentiates all of them

    #: Whether the residual has a derivative, as far as is known: one that calls out of a JAX program has none.
    differentiable: bool = True
    #: Whether a product with a transposed Jacobian costs less than one with the Jacobian; None: it depends.
    prefers_transpose: ClassVar[bool | None] = None

    #: Whether derivatives are measured along directions, so that products with a transposed Jacobian take its entries.
    measures: ClassVar[bool] = False

    @property
    def refined(self) -> Self | None:
        """The same backend with more accurate derivatives; None where these are exact to rounding."""
        return None

    def jvp(self, function: Function, primals: Sequence[Array], tangents: Sequence[Array]) -> tuple[Array, Array]:
        """Return ``function(*primals)`` and its derivative along `tangents`."""

    def vjp(self, function: Function, primals: Sequence[Array]) -> tuple[Array, Callable[[Array], tuple[Array, ...]]]:
        """Return ``function(*primals)`` and the pullback from a cotangent to one cotangent per primal."""

    def parameter_jvp(
        self, function: Function, y: Array, parameters: Sequence[Array], tangents: Sequence[Array]
    ) -> Array:
        """Return the derivative of ``function(y, *parameters)`` along tangents of the parameters."""
        return self.jvp(partial(function, y), parameters, tangents)[1]

    def parameter_vjps(
        self, function: Function, y: Array, parameters: Sequence[Array], cotangents: Sequence[Array]
    ) -> list[tuple[Array, ...]]:
        """Return the cotangents of the parameters of ``function(y, *parameters)``, for each of several cotangents."""
        return [*map(self.vjp(partial(function, y), parameters)[1], cotangents)]

    def parameter_errors(
        self, function: Function, y: Array, parameters: Sequence[Array], cotangent: Array
    ) -> tuple[Array, ...]:
        """Return the size of the errors of `parameter_vjps`, where derivatives are measured; else nothing."""
        return ()

    def linearize(
        self, function: Function, y: Array
    ) -> tuple[Function, Function, Callable[[], Array], *tuple[Callable[[], Array], ...]]:
        """Return the products of the Jacobian at `y` and of its transpose, and a function that forms it.

        The Jacobian is (*batch, n, n); where its entries are measured, a fourth function returns their errors. Work
        that several products share (an evaluation of `function`, a matrix of differences) is done once, and not before
        it is needed.
        """

    def products(
        self, function: Function, y: Array, vectors: Array, transpose: bool = False
    ) -> tuple[Array, Array | None]:
        """Return the products of the Jacobian at `y` with vectors, (several, *batch, n), and their errors, if measured.

        Those of its `transpose` are asked for only where derivatives are not measured.
        """
        matvec, rmatvec, *_ = self.linearize(function, y)
        product = rmatvec if transpose else matvec
        return self.xp.stack([product(vectors[place, ...]) for place in range(vectors.shape[0])]), None

    def lengths(self, y: Array) -> Array:
        """Return how far, (*batch, n), the vectors of `products` should go in each unknown."""
        return self.xp.ones_like(y)

    def with_jacobian(self, function: Function, y: Array) -> tuple[Array, Array]:
        """Return `function` at `y`, (*batch, n), and its Jacobian matrices there, (*batch, n, n)."""
        value, form = self.linearized(function, y)
        return value, form()

    def linearized(self, function: Function, y: Array) -> tuple[Array, Callable[[], Array]]:
        """Return `function` at `y`, and what forms its Jacobian matrices there, where a compiled program is traced."""
        return function(y), self.linearize(function, y)[2]

    def precision(self, dtype: Any) -> float:
        """Return the relative accuracy of derivatives in this dtype: eps, or that of differences."""
        return float(self.xp.finfo(dtype).eps)

    def with_scale(self, scale: Array) -> Self:
        """Return the backend for unknowns of these sizes, (*batch, n): one that takes differences steps by them."""
        return self

    def evaluated_once(self, function: Function, y: Array) -> Any:
        """Return ``function(y)``, a tuple of arrays or one, computed once however many results are made of it."""
        return function(y)

    # loops and branches, and what they need of arrays

    #: Whether the unknowns of one system lie on several devices, each of which would get the whole matrix to factor it.
    spread: bool = False
    #: Whether array values may be unknown while Python runs, so that nothing can branch on them.
    traced: ClassVar[bool] = False

    def while_loop(self, cond: Function, body: Function, state: Any, assess: Function = take_new) -> Any:
        """Set `state`, a tuple of arrays, to ``assess(body(state), state)`` while ``cond(state)`` holds.

        `cond` returns a boolean scalar. `assess` decides what of a step is kept. It evaluates no function of the
        user's, since it may be run twice for a step.
        """
        return in_python(cond, body, state, assess)

    def when(
        self, needed: Array, function: Function, operands: tuple[Any, ...], otherwise: Any, often: bool = False
    ) -> Any:
        """Return ``function(*operands)`` where `needed`, a boolean scalar, holds, else `otherwise`, a pytree like it.

        The function is run only then: hardly ever, unless `often` is told, so that a compiler is to make it small, not
        fast. Its arrays come in as operands where they are computed for it alone.
        """
        return function(*operands) if needed else otherwise

    def surely_all(self, mask: Array | Callable[[], Array]) -> bool:
        """Return whether all of a boolean array holds; False where to know it one would wait for a device.

        A function that returns the array is not called where that is so.
        """
        return bool(self.xp.all(mask() if callable(mask) else mask))

    def indices(self, mask: Array, count: int) -> Array:
        """Return the indices at which a mask, (systems,), holds, `count` or fewer; then the last index fills up."""
        return self.xp.nonzero(mask)[0]

    def parts(self, count: int) -> int:
        """Return in how many parts, of equal size, so many systems may be on devices of their own."""
        return 1

    def by_part(self, parts: int, function: Function, *arrays: Array) -> Array:
        """Return ``function(*arrays)``, of arrays (systems, ...); each of so many parts in order by itself."""
        return function(*arrays)

    def put(self, stack: Array, place: Array, row: Array, where: Array | None = None) -> Array:
        """Return `stack`, (*batch, m, n), with `row`, (*batch, n), at `place`, an integer scalar.

        In the systems `where`, (*batch); None: in all of them. The stack is given up: where arrays can be changed, it
        is changed in place.
        """
        xp = self.xp
        here = (xp.cumulative_sum(xp.ones_like(stack[..., :1], dtype=xp.int32), axis=-2) - 1) == place
        return xp.where(here if where is None else here & where[..., None, None], row[..., None, :], stack)

    # dense factors

    def lu_factor(self, matrix: Array) -> Factors:
        """Return the LU factors, (*batch, n, n), and pivots, (*batch, n); a singular matrix does not raise."""

    def lu_solve(self, factors: Factors, rhs: Array, transpose: bool = False) -> Array:
        """Return the solutions, (*batch, n) or (several, *batch, n), like `rhs`; not finite where singular."""

    def eliminates(self, shape: tuple[int, ...]) -> bool:
        """Return whether to solve for vectors of this shape, (*batch, n), is cheaper without factors that are kept."""
        return False

    def eliminate(self, matrix: Array, rhs: Array, transpose: bool = False) -> tuple[Array, Any]:
        """Return the solution, (*batch, n), of one system per right-hand side, and what `eliminate_again` needs."""
        factors = self.lu_factor(matrix)
        return self.lu_solve(factors, rhs, transpose), factors

    def eliminate_again(self, known: Any, rhs: Array, transpose: bool = False) -> Array:
        """Return the solution for other right-hand sides, with the matrices that `eliminate` was given."""
        return self.lu_solve(known, rhs, transpose)

    # the host

    def to_numpy(self, array: Array) -> Any:
        """Return a concrete array as a NumPy array."""
        return np.asarray(array)

    def constant(self, array: Any, like: Array) -> Array:
        """Return a NumPy array as one of this framework, where `like` is."""
        return self.xp.asarray(array, device=like.device)

    def by_numpy(self, function: Function, like: Array, *arrays: Array) -> Array:
        """Return ``function(*arrays)``, an array like `like`, computed by NumPy on the host.

        A transform adds leading axes to all of the arrays, of length one where they do not differ along them.
        """
        found = function(*map(self.to_numpy, arrays))
        return self.xp.asarray(found, dtype=like.dtype, device=like.device)

    def on_host(self, function: HostFunction, residual: Any, y: Array, *values: Any) -> tuple[Array, Array]:
        """Return ``function(evaluate, jacobian, y, *values)``, computed by NumPy on the host.

        `evaluate` and `jacobian` are those of the `Residual`, from NumPy arrays to NumPy arrays; the `values` are
        numbers or arrays, which may be traced here, but not there. The function returns a vector like `y`, (*batch, n),
        and int32 step counts, (*batch).
        """

        def lifted(array: Any, dtype: Any) -> Array:
            return self.xp.asarray(array, dtype=dtype, device=y.device)

        def there(function: Function) -> Function:
            return lambda array: self.to_numpy(function(lifted(array, y.dtype)))

        def plain(value: Any) -> Any:
            return self.to_numpy(value) if self.is_array(value) and value.ndim else value

        root, steps = function(there(residual), there(residual.jacobian), self.to_numpy(y), *map(plain, values))
        return lifted(root, y.dtype), lifted(steps, self.xp.int32)


def select(xp: Any, mask: Array, new: Any, old: Any) -> Any:
    """Return, per system, `new` where `mask` holds and else `old`; both pytrees of arrays."""
    wide = cache(lambda ndim: xp.reshape(mask, mask.shape + (1,) * (ndim - mask.ndim)))
    return optree.tree_map(lambda a, b: a if a is b else xp.where(wide(a.ndim), a, b), new, old)


def keep(backend: Backend, active: Array, new: Any, old: Any) -> Any:
    """Return what `select` does for the `active` systems; copies nothing where all are, if that is known."""
    if backend.surely_all(active):
        return new
    return select(backend.xp, active, new, old)


def status_where(xp: Any, mask: Array, yes: int, no: int) -> Array:
    """Return the status `yes` where `mask` holds and else `no`: int32, where numbers alone would have no such dtype."""
    return xp.where(mask, xp.full_like(mask, int(yes), dtype=xp.int32), int(no))
