"""Derivatives that a NumPy user gives, in place of differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._rules import check_rules
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

    def check_rules(self, y: Array, where: Array) -> None:
        check_rules(self, y, where)

    def with_jacobian(self, y: Array) -> tuple[Array, Array]:
        return self(y), self.jacobian(y)

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

    def jvp(self, y: Array, tangent: Array) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, tangent, None)
        return np.matvec(self.jacobian(y), tangent)

    def vjp(self, y: Array, cotangent: Array) -> Array:
        if self.rules.vjp is not None:
            return self.rules.structure.ravel(self._pulled(y, cotangent)[0])
        return np.matvec(np.matrix_transpose(self.jacobian(y)), cotangent)

    def operator(self, y: Array) -> LinearOperator:
        matrix = cache(lambda: self.jacobian(y))
        matvec = partial(self.jvp, y) if self.rules.jvp else lambda v: np.matvec(matrix(), v)
        rmatvec = partial(self.vjp, y) if self.rules.vjp else lambda u: np.matvec(np.matrix_transpose(matrix()), u)
        shape = (*y.shape, y.shape[-1])
        return LinearOperator(self.backend, matvec, rmatvec, matrix, float(np.finfo(y.dtype).eps), shape)

    def parameter_jvp(self, y: Array, tangents: tuple[Array, ...]) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, np.zeros_like(y), tangents)
        return super().parameter_jvp(y, tangents)

    def parameter_vjp(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        if self.rules.vjp is None:
            return super().parameter_vjp(y, cotangent)
        cotangents = []
        for index, (arg, given) in enumerate(zip(self.rules.args, self._pulled(y, cotangent)[1:], strict=True)):
            leaves, tree = self.backend.flatten(arg)
            try:
                values = [None] * len(leaves) if given is None else tree.flatten_up_to(given)
            except ValueError as error:
                raise ArgumentError(
                    f"vjp: the cotangent that it returned for args[{index}] has another structure; it must be a pytree "
                    "like it, or None for zero."
                ) from error
            pairs = zip(leaves, values, strict=True)
            cotangents += [_cotangent(index, leaf, value) for leaf, value in pairs if self.rules.is_parameter(leaf)]
        return tuple(cotangents)

    def parameter_errors(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        return super().parameter_errors(y, cotangent) if self.rules.vjp is None else ()

    def _given_jacobian(self, y: Array) -> Array:
        structure = self.rules.structure
        assert self.rules.jac is not None
        if len(structure.shapes) > 1:
            raise ArgumentError("jac: it is for a y0 that is one array; for a pytree give jvp or vjp.")
        given = structure.backend.call(self.rules.jac, structure.unravel(y), self.rules.args)
        matrix = np.asarray(given.toarray() if hasattr(given, "toarray") else given)  # a sparse matrix of SciPy
        shape = structure.shapes[0]
        if matrix.shape != structure.batch + shape + shape:
            raise ArgumentError(
                f"jac: it returned shape {matrix.shape}, but must return {structure.batch + shape + shape}: "
                "the batch axes, those of the residual, those of y."
            )
        size = math.prod(shape)
        matrix = matrix.reshape(*structure.batch, size, size)
        if structure.complex_leaves[0]:
            # a holomorphic residual acts on real and imaginary parts as multiplication by its derivative does
            real, imag = np.real(matrix), np.imag(matrix)
            matrix = np.concat([np.concat([real, -imag], axis=-1), np.concat([imag, real], axis=-1)], axis=-2)
        elif np.iscomplexobj(matrix):
            raise ArgumentError(
                "jac: it returned complex numbers, but y0 is real. Return the derivative of real parts."
            )
        return np.astype(matrix, y.dtype)

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
        primals = (structure.unravel(y), *self.rules.args)
        along = (structure.unravel(tangent), *self.backend.unflatten(tree, tangents))
        output = self.backend.call(self.rules.jvp, primals, (along,))
        structure.check(output, "jvp")
        return structure.ravel(output)

    def _pulled(self, y: Array, cotangent: Array) -> tuple[Any, ...]:
        structure = self.rules.structure
        assert self.rules.vjp is not None
        primals = (structure.unravel(y), *self.rules.args)
        output = self.backend.call(self.rules.vjp, primals, (structure.unravel(cotangent),))
        if not isinstance(output, tuple) or len(output) != 1 + len(self.rules.args):
            raise ArgumentError(
                f"vjp: it returned {type(output).__name__}, but must return a tuple of {1 + len(self.rules.args)} "
                "cotangents, for y and for each of args."
            )
        structure.check(output[0], "vjp")
        return output


def _cotangent(index: int, leaf: Array, value: Any) -> Array:
    if value is None:
        return np.zeros_like(leaf)
    array = np.asarray(value)
    if array.shape != leaf.shape:
        raise ArgumentError(
            f"vjp: the cotangent that it returned for args[{index}] has shape {array.shape}, but the argument has "
            f"shape {leaf.shape}; a vjp sums over what the argument is broadcast to."
        )
    return np.astype(array, leaf.dtype)
