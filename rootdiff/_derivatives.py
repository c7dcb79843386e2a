"""Derivatives that a NumPy user gives, in place of differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import LinearOperator as Products

from rootdiff._backend import Array
from rootdiff._by_products import ByProducts, of_parts
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._rules import check_rules
from rootdiff._sparse import Entries, Sparse, sparse, told
from rootdiff._sparsity import Pattern
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
    #: The parameters, of all those in `rules.args`, that are such here; None for all.
    places: tuple[int, ...] | None = None

    def only(self, places: Sequence[int]) -> GivenResidual:
        return replace(super().only(places), places=tuple(places))  # type: ignore[return-value, call-arg]

    @property
    def gives_jacobian(self) -> bool:
        return self.rules.jac is not None

    def check_rules(self, y: Array, where: Array) -> None:
        check_rules(self, y, where)

    def with_jacobian(self, y: Array) -> tuple[Array, Array]:
        return self(y), self.jacobian(y)

    def jacobian(self, y: Array) -> Array:
        rules, found = self.rules, self.by_jac(y)
        if found is not None:
            return found.dense()
        if rules.jvp is rules.vjp is None:
            return super().jacobian(y)
        product, axis = (self.vjp, -2) if rules.jvp is None else (self.jvp, -1)
        units = (np.broadcast_to(unit, y.shape) for unit in np.eye(y.shape[-1], dtype=y.dtype))
        return np.stack([product(y, unit) for unit in units], axis=axis)

    def jvp(self, y: Array, tangent: Array) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, tangent, None)
        return self.operator(y).matvec(tangent)

    def vjp(self, y: Array, cotangent: Array) -> Array:
        if self.rules.vjp is not None:
            return self.rules.structure.ravel(self._pulled(y, cotangent)[0])
        return self.operator(y).rmatvec(cotangent)

    def products(self, y: Array, vectors: Array, transpose: bool = False) -> tuple[Array, Array | None]:
        if self.rules.jvp is not None:
            return np.stack([self.jvp(y, vector) for vector in vectors]), None
        given = self.by_jac(y)
        if isinstance(given, ByProducts):
            return (given.rmatvec if transpose else given.matvec)(vectors), None
        return super().products(y, vectors, transpose)

    def operator(self, y: Array) -> LinearOperator:
        rules, n = self.rules, y.shape[-1]
        found = self.by_jac(y)
        if self.pattern is not None and (found is None or isinstance(found, ByProducts)):
            found = sparse(self, y, partial(told, self, y, self.pattern), self.pattern)
        if found is None:
            matrix = cache(lambda: self.jacobian(y))
            eps, shape = float(np.finfo(y.dtype).eps), (*y.shape, n)
            found = of_matrix(self.backend, matrix, eps, shape)
        matvec = partial(self.jvp, y) if rules.jvp else found.matvec
        rmatvec = partial(self.vjp, y) if rules.vjp else found.rmatvec
        return replace(found, matvec=matvec, rmatvec=rmatvec)

    def by_jac(self, y: Array) -> LinearOperator | None:
        """Return what `jac` tells of df/dy as an operator; None if there is no such rule."""
        if self.rules.jac is None:
            return None
        given, eps, shape = self._given(y), float(np.finfo(y.dtype).eps), (*y.shape, y.shape[-1])
        if isinstance(given, Products):
            return ByProducts.of(self.backend, given, y)
        if not sp.issparse(given):
            return of_matrix(self.backend, lambda: given, eps, shape)
        pattern = Pattern.known(shape[-1], given.indptr, given.indices)
        entries = Entries(given.data, np.zeros((), dtype=bool))
        products = (lambda v: (given @ v.T).T), (lambda u: (given.T @ u.T).T)
        return Sparse(self.backend, *products, given.toarray, eps, shape, pattern=pattern, entries=lambda: entries)

    def parameter_jvp(self, y: Array, tangents: tuple[Array, ...]) -> Array:
        if self.rules.jvp is not None:
            return self._pushed(y, np.zeros_like(y), tangents)
        return super().parameter_jvp(y, tangents)

    def parameter_vjps(self, y: Array, *cotangents: Array) -> list[tuple[Array, ...]]:
        if self.rules.vjp is None:
            return super().parameter_vjps(y, *cotangents)
        return [self._pulled_to_parameters(y, cotangent) for cotangent in cotangents]

    def _pulled_to_parameters(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
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
        return tuple(cotangents if self.places is None else (cotangents[place] for place in self.places))

    def parameter_errors(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        return super().parameter_errors(y, cotangent) if self.rules.vjp is None else ()

    def _given(self, y: Array) -> Any:
        """Return what `jac` returns, (*batch, n, n); of one system maybe sparse, sorted and unique, or products."""
        structure = self.rules.structure
        assert self.rules.jac is not None
        if len(structure.shapes) > 1:
            raise ArgumentError("jac: it is for a y0 that is one array; for a pytree give jvp or vjp.")
        given = structure.backend.call(self.rules.jac, structure.unravel(y), self.rules.args)
        shape, size, is_complex = structure.shapes[0], math.prod(structure.shapes[0]), structure.complex_leaves[0]
        of_one = sp.issparse(given) or isinstance(given, Products)
        matrix = given if of_one else as_array(given)
        wanted = structure.batch + ((size, size) if of_one else shape + shape)
        if matrix.shape != wanted:
            of_what = "a matrix of one system, flattened" if of_one else "the batch axes, those of the residual"
            diagonal = " For a diagonal return scipy.sparse.diags_array of it." if matrix.shape == shape else ""
            raise ArgumentError(
                f"jac: it returned shape {matrix.shape}, but must return {wanted}: {of_what}, those of y.{diagonal}"
            )
        if np.iscomplexobj(matrix) and not is_complex:
            raise ArgumentError(
                "jac: it returned complex numbers, but y0 is real. Return the derivative of real parts."
            )
        # a holomorphic residual acts on real and imaginary parts as multiplication by its derivative does
        if isinstance(matrix, Products):
            return of_parts(matrix) if is_complex else matrix
        if of_one:
            matrix = sp.csr_array(matrix)
            if is_complex:
                matrix = sp.block_array([[matrix.real, -matrix.imag], [matrix.imag, matrix.real]], format="csr")
            matrix = matrix.astype(y.dtype)
            matrix.sum_duplicates()
            return matrix
        matrix = matrix.reshape(*structure.batch, size, size)
        if is_complex:
            real, imag = np.real(matrix), np.imag(matrix)
            matrix = np.concat([np.concat([real, -imag], axis=-1), np.concat([imag, real], axis=-1)], axis=-2)
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


def of_matrix(backend: Any, matrix: Callable[[], Array], precision: float, shape: tuple[int, ...]) -> LinearOperator:
    products = (lambda v: np.matvec(matrix(), v)), (lambda u: np.matvec(np.matrix_transpose(matrix()), u))
    return LinearOperator(backend, *products, matrix, precision, shape)


def as_array(given: Any) -> Any:
    """Return what `jac` returns as an array of numbers."""
    try:
        matrix = np.asarray(given)
    except (TypeError, ValueError, RuntimeError):  # sparse ones of PyTorch and JAX
        matrix = np.asarray(None)
    if matrix.dtype.kind not in "biufc":
        raise ArgumentTypeError(
            f"jac: it returned {type(given).__name__}, of which NumPy makes no array of numbers. Return a dense array; "
            "or, for root, one of scipy.sparse or a scipy.sparse.linalg.LinearOperator."
        )
    return matrix


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
