"""Derivatives of a root for NumPy, which has no tape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from rootdiff import _implicit
from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._structure import Structure
from rootdiff.linear import LinearSolver


@dataclass(frozen=True, repr=False)  # a Solution prints its numbers
class Sensitivities:
    """The linearised problem at a root, on the user's pytrees.

    Attributes
    ----------
    residual : Residual
        Its parameters are the floating leaves of `args`.
    y : array, (*batch, n). The root; of a failed system the best iterate.
    failed : boolean array, (*batch). Systems whose derivatives are not vouched for: none, if failures are ignored.
    args : tuple
        The arguments of the solve.
    is_parameter : callable
        Tells the leaves of `args` that are differentiated.
    """

    residual: Residual
    structure: Structure
    adjoint: LinearSolver
    y: Array
    factors: Any
    args: tuple[Any, ...]
    is_parameter: Callable[[Any], bool]
    on_failure: str
    failed: Array

    def vjp(self, cotangent: Any) -> tuple[Any, ...]:
        """Return one cotangent per argument."""
        check_cotangent(self.structure, cotangent)
        if self.structure.is_empty:
            return self._like_args([np.zeros_like(parameter) for parameter in self.residual.parameters])
        w = np.astype(self.structure.ravel(cotangent), self.y.dtype)
        with np.errstate(all="ignore"):
            gradients, _ = _implicit.vjp(
                self.residual, self.adjoint, self.y, w, self.factors, self.on_failure, self.failed
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
        with np.errstate(all="ignore"):
            derivative, _ = _implicit.jvp(
                self.residual, self.adjoint, self.y, flat, self.factors, self.on_failure, self.failed
            )
        return self.structure.unravel(derivative)

    def jacobian(self) -> tuple[Any, ...]:
        """Return dy/dargs, one entry per argument: a linear solve for each entry of args."""
        factors = self.factors
        columns: list[list[Array]] = []
        for place, parameter in enumerate(self.residual.parameters):
            shape = np.shape(parameter)
            columns.append([])
            for index in () if self.structure.is_empty else np.ndindex(shape):
                tangents = [np.zeros_like(p) for p in self.residual.parameters]
                tangents[place][index] = 1
                with np.errstate(all="ignore"):
                    column, info = _implicit.jvp(
                        self.residual, self.adjoint, self.y, tuple(tangents), factors, self.on_failure, self.failed
                    )
                factors = factors if info.factors is None else info.factors
                columns[-1].append(column)
        blocks = [
            self._block(parts, np.shape(parameter))
            for parts, parameter in zip(columns, self.residual.parameters, strict=True)
        ]
        return self._like_args(blocks)

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
            return [np.zeros_like(leaf) for leaf in leaves if self.is_parameter(leaf)]
        try:
            values = tree.flatten_up_to(tangent)
        except ValueError as error:
            raise ArgumentError(
                f"jvp: tangent {index} has another structure than args[{index}]; give a pytree like it, or None."
            ) from error
        flat = []
        for leaf, value in zip(leaves, values, strict=True):
            if not self.is_parameter(leaf):
                continue
            array = np.zeros_like(leaf) if value is None else np.asarray(value, dtype=np.asarray(leaf).dtype)
            if array.shape != np.shape(leaf):
                raise ArgumentError(
                    f"jvp: tangent {index} has shape {array.shape}, but args[{index}] has {np.shape(leaf)}."
                )
            flat.append(array)
        return flat

    def _like_args(self, parameters: Any) -> tuple[Any, ...]:
        leaves, tree = self.structure.backend.flatten(self.args)
        values = iter(parameters)
        filled = [next(values) if self.is_parameter(leaf) else None for leaf in leaves]
        return self.structure.backend.unflatten(tree, filled)  # type: ignore[no-any-return]


def check_cotangent(structure: Structure, cotangent: Any) -> None:
    """Raise unless `cotangent` is like the unknown."""
    leaves, tree = optree.tree_flatten(cotangent)
    shapes = [structure.batch + shape for shape in structure.shapes]
    if tree != structure.tree or [np.shape(leaf) for leaf in leaves] != shapes:
        raise ArgumentError(
            f"vjp: the cotangent has leaves of shape {[np.shape(leaf) for leaf in leaves]}; "
            f"it must be like y, with {shapes}."
        )
