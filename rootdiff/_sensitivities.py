"""Derivatives of a root for NumPy, which has no tape."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import optree

from rootdiff import _implicit
from rootdiff._arguments import check_tangent, is_parameter
from rootdiff._backend import Array
from rootdiff._derivatives import GivenResidual
from rootdiff._environment import Environment
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._residual import Residual
from rootdiff._structure import Structure, flat_cotangent
from rootdiff.linear import LinearSolver

#: Roundings of f by which its norm at the root may grow between a solve and its derivative.
_MOVED = 100.0
#: Which arguments to differentiate in, as `argnums` of `jax.grad`; None for all.
Argnums = int | tuple[int, ...] | None


class Binding(NamedTuple):
    """What makes the residual again, where it has been pickled: ``bind(function, y, args, options, fixed_point)``."""

    bind: Callable[..., Any]
    function: Callable[..., Any]
    options: Any
    fixed_point: bool


@dataclass(frozen=True, repr=False)  # a Solution prints its numbers
class Sensitivities:
    """The linearised problem at a root, on the user's pytrees.

    Attributes
    ----------
    residual : Residual
        Its parameters are the floating leaves of `args`.
    y : array, (*batch, n). The root; of a failed system the best iterate.
    args : tuple
        Copies of the arguments of the solve.
    failed : boolean array, (*batch). Systems whose derivatives are not vouched for: none, if failures are ignored.
    error : array, (*batch, n), or None. Estimate of the error of `y`.
    residual_norm : array, (*batch). Largest absolute residual at `y`, at the time of the solve.
    binding : Binding
    environment : Environment. Of what the residual reads.
    believed : bool
        Whether to take the rules of the user, and the residual as it is now, without a look at them.
    """

    residual: Residual
    structure: Structure
    adjoint: LinearSolver
    y: Array
    factors: Any
    args: tuple[Any, ...]
    on_failure: str
    failed: Array
    residual_norm: Array
    error: Array | None
    binding: Binding
    environment: Environment = field(default_factory=Environment)
    believed: bool = False

    def vjp(self, cotangent: Any, argnums: Argnums = None, several: bool = False) -> Any:
        """Return one cotangent per argument that `argnums` names; with `several`, one for each row of `cotangent`."""
        places = self._places("vjp", argnums)
        given = apart("vjp", cotangent) if several else [cotangent]
        cotangents = [flat_cotangent("vjp", self.structure, one, self.y) for one in given]
        residual = self.residual.only(places)
        if self.structure.is_empty or not places or not cotangents:
            gradients = [tuple(np.zeros_like(parameter) for parameter in residual.parameters)] * len(cotangents)
        else:
            with self._as_solved():
                gradients = _implicit.vjps(residual, self.adjoint, self.y, cotangents, *self._known)
        if not several:
            return self._like_args(argnums, places, gradients[0])
        shapes = [(len(gradients), *np.shape(parameter)) for parameter in residual.parameters]
        stacks = [np.reshape([each[k] for each in gradients], shape) for k, shape in enumerate(shapes)]
        return self._like_args(argnums, places, stacks)

    def jvp(self, *tangents: Any, argnums: Argnums = None, several: bool = False) -> Any:
        """Return the derivative of y along one tangent per argument that `argnums` names, or `several` of them."""
        numbers = _numbers("jvp", argnums, len(self.args))
        if len(tangents) != len(numbers):
            wanted = "so give as many" if argnums is None else f"so argnums={argnums!r} takes {len(numbers)}"
            raise ArgumentError(f"jvp: got {len(tangents)} tangents; the solve had {len(self.args)} args, {wanted}.")
        flat = []
        for each in apart("jvp", tangents) if several else [tangents]:
            given = dict(zip(numbers, each, strict=True))
            parts = (self._tangents(index, arg, given.get(index)) for index, arg in enumerate(self.args))
            flat.append(tuple(itertools.chain.from_iterable(parts)))
        found = [self.y] * len(flat)
        if not self.structure.is_empty and flat:
            with self._as_solved():
                found = _implicit.jvps(self.residual, self.adjoint, self.y, flat, *self._known)
        return self.structure.unravel(np.reshape(found, (len(flat), *self.y.shape)) if several else found[0])

    @property
    def _known(self) -> tuple[Any, ...]:
        """What the solve knows, as `_implicit.vjps` takes it."""
        return self.factors, self.on_failure, self.failed, self.error

    def jacobian(self, argnums: Argnums = None) -> Any:
        """Return dy/dargs, one entry per argument that `argnums` names: a linear solve for each entry of it."""
        places, lead = self._places("jacobian", argnums), len(self.structure.batch)
        shapes = [np.shape(self.residual.parameters[place]) for place in places]
        blocks = [np.zeros(shape + self.y.shape, dtype=self.y.dtype) for shape in shapes]
        block_of = dict(zip(places, blocks, strict=True))
        if any(block.size for block in blocks):
            with self._as_solved():
                y = _implicit.regular_point(np, self.y, self.failed)
                factors, *known = self._known
                solution = _implicit.solver(self.residual.operator, self.adjoint.starting_from(factors), y, *known)
                for place, index, rhs in _parameter_columns(self.residual, y, places):
                    column, block = solution(rhs), block_of[place]
                    if Ellipsis in index:  # an entry of each system, which no other system depends on
                        rest, own = index[1:], tuple(np.indices(self.structure.batch))
                        block[(*(slice(None),) * lead, *rest)] = np.where(np.isnan(column), np.nan, 0)
                        index = (*own, *rest, *own)
                    block[index] = -column
        return self._like_args(argnums, places, map(self._block, blocks, shapes))

    def __deepcopy__(self, memo: Any) -> Sensitivities:
        return self  # nothing in it changes

    def __reduce__(self) -> Any:
        """Pickle what makes the residual again; where it cannot be pickled, a `Solution` loses its derivatives only."""
        names = ("adjoint", "y", "factors", "on_failure", "failed", "residual_norm", "error")
        rest = {name: getattr(self, name) for name in names}
        parts = (self.binding, self.structure.unravel(self.y), self.args, self.residual.backend.box, rest)  # type: ignore[attr-defined]
        try:
            pickle.dumps(parts)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            return Lost, (str(error),)
        return _restored, parts

    @contextmanager
    def _as_solved(self) -> Iterator[None]:
        """Put back what the residual reads, and check that it and its rules are those of the solve."""
        with np.errstate(all="ignore"), self.environment.restored():
            assert self._checked
            yield

    @cached_property
    def _checked(self) -> bool:
        """True, once it is known that the residual is that of the solve and that the rules are its derivatives."""
        if self.believed:
            return True
        good = ~self.failed
        self._check_residual(good)
        self.residual.check_rules(self.y, good)
        return True

    def _check_residual(self, good: Array) -> None:
        value = self.residual(self.y)
        norm = np.max(np.abs(value), axis=-1)
        if not np.any(good & (norm > self.residual_norm)):
            return
        noise = self.residual.backend.slopes(self.residual._of_y, (self.y,), value).noise  # type: ignore[attr-defined]
        moved = good & (norm > self.residual_norm + _MOVED * np.max(noise, axis=-1))
        if np.any(moved):
            raise ArgumentError(
                f"residual: at the root its norm is {np.max(norm[moved]):.3g}, but at the solve it was "
                f"{np.max(self.residual_norm[moved]):.3g}. What it reads besides y and args has changed since (an "
                "array written into, a variable bound anew), or it is random; its derivative would be that of another "
                "problem. Pass what changes through args, which the solve copies."
            )

    def _block(self, block: Array, shape: tuple[int, ...]) -> Any:
        """Return the pytree like y of derivatives, ``leaf.shape + shape``, from flat ones, ``shape + y.shape``."""
        first, last = range(len(shape)), range(-len(shape), 0)
        return optree.tree_map(lambda leaf: np.moveaxis(leaf, first, last), self.structure.unravel(block))

    def _tangents(self, index: int, arg: Any, tangent: Any) -> list[Array]:
        leaves, tree = optree.tree_flatten(arg)
        if tangent is None:
            return [np.zeros_like(leaf) for leaf in leaves if is_parameter(leaf)]
        try:
            values = tree.flatten_up_to(tangent)
        except ValueError as error:
            raise ArgumentError(
                f"jvp: tangent {index} has another structure than args[{index}]; give a pytree like it, or None."
            ) from error
        flat = []
        for leaf, value in zip(leaves, values, strict=True):
            check_tangent(index, leaf, value)
            if not is_parameter(leaf):
                continue
            array = np.zeros_like(leaf) if value is None else _real(f"jvp: tangent {index}", value, leaf.dtype)
            if array.shape != np.shape(leaf):
                raise ArgumentError(
                    f"jvp: tangent {index} has shape {array.shape}, but args[{index}] has {np.shape(leaf)}."
                )
            flat.append(array)
        return flat

    def _places(self, method: str, argnums: Argnums) -> list[int]:
        """Return the places, among all parameters, of those in the arguments that `argnums` names."""
        wanted = set(_numbers(method, argnums, len(self.args)))
        flatten = self.structure.backend.flatten
        owners = [n for n, arg in enumerate(self.args) for leaf in flatten(arg)[0] if is_parameter(leaf)]
        return [place for place, number in enumerate(owners) if number in wanted]

    def _like_args(self, argnums: Argnums, places: Sequence[int], values: Iterable[Any]) -> Any:
        """Return what belongs to the parameters at `places` as pytrees like the arguments that `argnums` names."""
        found, count = dict(zip(places, values, strict=True)), itertools.count()
        leaves, tree = self.structure.backend.flatten(self.args)
        filled = [found.get(next(count)) if is_parameter(leaf) else None for leaf in leaves]
        args = self.structure.backend.unflatten(tree, filled)
        if not isinstance(argnums, tuple | NoneType):
            return args[argnums]
        return tuple(args[number] for number in _numbers("", argnums, len(args)))


def _numbers(method: str, argnums: Argnums, count: int) -> tuple[int, ...]:
    """Return the numbers of the arguments that `argnums` names, of so many."""
    if argnums is None:
        return tuple(range(count))
    numbers = argnums if isinstance(argnums, tuple) else (argnums,)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not -count <= number < count:
            some = f"{count}, so give an int from {-count} to {count - 1}, or a tuple of such (None for all)"
            had = some if count else "none"
            raise ArgumentError(f"{method}: argnums={argnums!r} is not among the numbers of args; the solve had {had}.")
    found = tuple(int(number) % count for number in numbers)
    if len(set(found)) < len(found):
        raise ArgumentError(f"{method}: argnums={argnums!r} names an argument twice; give each of them once.")
    return found


def apart(method: str, trees: Any) -> list[Any]:
    """Return the pytrees of what leaves hold along their first axis."""
    leaves, tree = optree.tree_flatten(trees)
    shapes = [np.shape(leaf) for leaf in leaves]
    if len({shape[:1] for shape in shapes} | {()}) != 2 or () in shapes:
        raise ArgumentError(
            f"{method}: with several=True each leaf has one axis more, its first, of one length; got shapes {shapes}."
        )
    return [optree.tree_unflatten(tree, [np.asarray(leaf)[k] for leaf in leaves]) for k in range(shapes[0][0])]


def _parameter_columns(residual: Residual, y: Array, places: Sequence[int]) -> Iterator[tuple[int, Any, Array]]:
    """Yield place, index and derivative of the residual, (*batch, n), of entries as `Slopes.columns` does."""
    if isinstance(residual, GivenResidual) and residual.rules.jvp is not None:
        parameters = residual.parameters
        for place in places:
            for index in np.ndindex(parameters[place].shape):
                tangents = tuple(np.zeros_like(p) for p in parameters)
                tangents[place][index] = 1
                yield place, index, residual.parameter_jvp(y, tangents)
        return
    smooth = residual.at(y)
    slopes = smooth.backend.parameter_slopes(smooth.function, y, residual.parameters)  # type: ignore[attr-defined]
    for place, index, found in slopes.columns([1 + place for place in places]):
        yield place - 1, index, found.value


@dataclass(frozen=True)
class Lost:
    """What is left of the derivatives of a root where its residual could not be pickled."""

    reason: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ArgumentTypeError(
            f"Solution: it has been pickled without its derivatives, since the residual cannot be: {self.reason}. "
            "Define the residual at the top of a module, or ask for derivatives where the solve was made."
        )


def _restored(binding: Binding, y: Any, args: tuple[Any, ...], box: Any, rest: dict[str, Any]) -> Sensitivities:
    bind, function, options, fixed_point = binding
    residual, structure, args = bind(function, y, args, options, fixed_point)
    residual = residual.with_backend(replace(residual.backend, box=box))
    return Sensitivities(residual, structure, args=args, binding=binding, **rest)


def _real(what: str, value: Any, dtype: Any) -> Array:
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise ArgumentError(f"{what} is complex, but what it belongs to is real. Give its real part.")
    return np.astype(array, dtype)
