"""Derivatives that a NumPy user gives, in place of differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._residual import Byproduct, LinearOperator, Residual
from rootdiff._structure import Structure


@dataclass(frozen=True)
class DerivativeRules:
    """What the user gave: any of ``jac(y, *args)``, ``jvp(primals, tangents)`` and ``vjp(primals, cotangent)``."""

    jac: Callable[..., Any] | None
    jvp: Callable[..., Any] | None
    vjp: Callable[..., Any] | None
    structure: Structure
    args: tuple[Any, ...]
    is_parameter: Callable[[Any], bool]


@dataclass(frozen=True)
class GivenResidual(Residual):
    """A residual that takes from the user's rules what they tell, and the rest from differences."""

    rules: DerivativeRules

    @property
    def gives_jacobian(self) -> bool:
        return self.rules.jac is not None

    def jacobian(self, y: Array) -> Array:
        rules, n = self.rules, y.shape[-1]
        if rules.jac is not None:
            return self._given_jacobian(y)
        eye = np.eye(n, dtype=y.dtype)
        if rules.jvp is not None:
            return np.stack([self.jvp(y, np.broadcast_to(eye[k], y.shape)) for k in range(n)], axis=-1)
        if rules.vjp is not None:
            return np.stack([self.vjp(y, np.broadcast_to(eye[k], y.shape)) for k in range(n)], axis=-2)
        return super().jacobian(y)

    def with_slope(self, y: Array) -> tuple[Array, Array]:
        return self(y), self.jacobian(y)[..., 0]

    def jvp(self, y: Array, tangent: Array) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, tangent, None)
        return np.matvec(self.jacobian(y), tangent)

    def vjp(self, y: Array, cotangent: Array) -> Array:
        if self.rules.vjp is not None:
            return self.rules.structure.ravel(self._pulled(y, cotangent)[0])
        return np.matvec(np.matrix_transpose(self.jacobian(y)), cotangent)

    def operator(self, y: Array, factors: Byproduct | None = None) -> LinearOperator:
        matrix = cache(lambda: self.jacobian(y))
        matvec = partial(self.jvp, y) if self.rules.jvp else lambda v: np.matvec(matrix(), v)
        rmatvec = partial(self.vjp, y) if self.rules.vjp else lambda u: np.matvec(np.matrix_transpose(matrix()), u)
        return LinearOperator(self.backend, matvec, rmatvec, matrix, float(np.finfo(y.dtype).eps), factors)

    def parameter_jvp(self, y: Array, tangents: tuple[Array, ...]) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, np.zeros_like(y), tangents)
        return super().parameter_jvp(y, tangents)

    def parameter_vjp(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        if self.rules.vjp is None:
            return super().parameter_vjp(y, cotangent)
        leaves, tree = self.backend.flatten(self.rules.args)
        given = tree.flatten_up_to(tuple(self._pulled(y, cotangent)[1:]))
        pairs = [(leaf, value) for leaf, value in zip(leaves, given, strict=True) if self.rules.is_parameter(leaf)]
        return tuple(np.zeros_like(leaf) if value is None else np.asarray(value) for leaf, value in pairs)

    def _given_jacobian(self, y: Array) -> Array:
        structure = self.rules.structure
        assert self.rules.jac is not None
        if len(structure.shapes) > 1:
            raise ArgumentError("jac: it is for a y0 that is one array; for a pytree give jvp or vjp.")
        matrix = np.asarray(structure.backend.call(self.rules.jac, structure.unravel(y), self.rules.args))
        shape = structure.shapes[0]
        if matrix.shape != structure.batch + shape + shape:
            raise ArgumentError(
                f"jac: it returned shape {matrix.shape}, but must return {structure.batch + shape + shape}: "
                "the batch axes, those of the residual, those of y."
            )
        return np.astype(matrix.reshape(*structure.batch, y.shape[-1], y.shape[-1]), y.dtype)

    def _pushed(self, y: Array, tangent: Array, parameters: tuple[Array, ...] | None) -> Array:
        structure = self.rules.structure
        leaves, tree = self.backend.flatten(self.rules.args)
        values = iter(parameters or ())
        zeros = parameters is None
        tangents = [
            (np.zeros_like(leaf) if zeros else next(values)) if self.rules.is_parameter(leaf) else None
            for leaf in leaves
        ]
        assert self.rules.jvp is not None
        output = self.rules.jvp(
            (structure.unravel(y), *self.rules.args),
            (structure.unravel(tangent), *self.backend.unflatten(tree, tangents)),
        )
        structure.check(output, "jvp")
        return structure.ravel(output)

    def _pulled(self, y: Array, cotangent: Array) -> tuple[Any, ...]:
        structure = self.rules.structure
        assert self.rules.vjp is not None
        output = self.rules.vjp((structure.unravel(y), *self.rules.args), structure.unravel(cotangent))
        if not isinstance(output, tuple) or len(output) != 1 + len(self.rules.args):
            raise ArgumentError(
                f"vjp: it returned {type(output).__name__}, but must return a tuple of {1 + len(self.rules.args)} "
                "cotangents, for y and for each of args."
            )
        structure.check(output[0], "vjp")
        return output
