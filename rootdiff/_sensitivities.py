"""Derivatives of a root for NumPy, which has no tape."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import optree

from rootdiff import _implicit
from rootdiff._backend import Array
from rootdiff._derivatives import GivenResidual
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._parameters import check_tangent, is_parameter
from rootdiff._residual import Residual
from rootdiff._state import State
from rootdiff._structure import Structure, flat_cotangent
from rootdiff.linear import LinearSolver

#: Roundings of f by which its norm at the root may grow between a solve and its derivative.
_MOVED = 100.0


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
    state : State. Of what the residual reads.
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
    state: State = field(default_factory=State)
    believed: bool = False

    def vjp(self, cotangent: Any) -> tuple[Any, ...]:
        """Return one cotangent per argument."""
        w = flat_cotangent("vjp", self.structure, cotangent, self.y)
        if self.structure.is_empty:
            return self._like_args([np.zeros_like(parameter) for parameter in self.residual.parameters])
        with self._as_solved():
            gradients, _ = _implicit.vjp(
                self.residual, self.adjoint, self.y, w, self.factors, self.on_failure, self.failed, self.error
            )
        return self._like_args(gradients)

    def jvp(self, *tangents: Any) -> Any:
        """Return the derivative of y along one tangent per argument."""
        if len(tangents) != len(self.args):
            raise ArgumentError(
                f"jvp: got {len(tangents)} tangents; the solve had {len(self.args)} args, so give as many."
            )
        flat = tuple(
            part
            for index, pair in enumerate(zip(self.args, tangents, strict=True))
            for part in self._tangents(index, *pair)
        )
        if self.structure.is_empty:
            return self.structure.unravel(self.y)
        with self._as_solved():
            derivative, _ = _implicit.jvp(
                self.residual, self.adjoint, self.y, flat, self.factors, self.on_failure, self.failed, self.error
            )
        return self.structure.unravel(derivative)

    def jacobian(self) -> tuple[Any, ...]:
        """Return dy/dargs, one entry per argument: a linear solve for each entry of args."""
        parameters = self.residual.parameters
        if self.structure.is_empty:
            return self._like_args([self._block([], np.shape(parameter)) for parameter in parameters])
        columns: list[list[Array]] = [[] for _ in parameters]
        with self._as_solved():
            y = _implicit.regular_point(np, self.y, self.failed)
            operator, adjoint = self.residual.operator(y), self.adjoint.starting_from(self.factors)
            beside = None if self.error is None else _implicit.Beside(y, self.error, self.residual.operator)
            for place, rhs in _parameter_columns(self.residual, y):
                column, info = _implicit.solve(operator, adjoint, rhs, self.on_failure, self.failed, beside)
                adjoint = adjoint.starting_from(info.factors)
                columns[place].append(-column)
        blocks = [self._block(parts, np.shape(p)) for parts, p in zip(columns, parameters, strict=True)]
        return self._like_args(blocks)

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
        with np.errstate(all="ignore"), self.state.restored():
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

    def _block(self, columns: list[Array], shape: tuple[int, ...]) -> Any:
        """Return the pytree like y of derivatives with shape ``leaf.shape + shape``."""
        if not columns:  # a parameter without entries, or no systems
            root = self.structure.unravel(self.y)
            return optree.tree_map(lambda leaf: np.zeros(leaf.shape + shape, dtype=leaf.dtype), root)
        trees = [self.structure.unravel(column) for column in columns]
        return optree.tree_map(lambda *leaves: np.stack(leaves, axis=-1).reshape(leaves[0].shape + shape), *trees)

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

    def _like_args(self, parameters: Any) -> tuple[Any, ...]:
        leaves, tree = self.structure.backend.flatten(self.args)
        values = iter(parameters)
        filled = [next(values) if is_parameter(leaf) else None for leaf in leaves]
        return self.structure.backend.unflatten(tree, filled)  # type: ignore[no-any-return]


def _parameter_columns(residual: Residual, y: Array) -> Iterator[tuple[int, Array]]:
    """Yield the derivative of the residual, (*batch, n), for each entry of a parameter, with the place of that."""
    parameters = residual.parameters
    if isinstance(residual, GivenResidual) and residual.rules.jvp is not None:
        for place, parameter in enumerate(parameters):
            for index in np.ndindex(parameter.shape):
                tangents = tuple(np.zeros_like(p) for p in parameters)
                tangents[place][index] = 1
                yield place, residual.parameter_jvp(y, tangents)
        return
    slopes = residual.backend.parameter_slopes(residual.function, y, parameters)  # type: ignore[attr-defined]
    for place, parameter in enumerate(parameters):
        for index in np.ndindex(parameter.shape):
            yield place, slopes.entry(1 + place, index).value


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
    residual = replace(residual, backend=replace(residual.backend, box=box))
    return Sensitivities(residual, structure, args=args, binding=binding, **rest)


def _real(what: str, value: Any, dtype: Any) -> Array:
    array = np.asarray(value)
    if np.iscomplexobj(array):
        raise ArgumentError(f"{what} is complex, but what it belongs to is real. Give its real part.")
    return np.astype(array, dtype)
