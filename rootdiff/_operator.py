"""Linear operators: matrices known by their products, with what else is known of them in their type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

from rootdiff._backend import Array, Backend
from rootdiff._inverse import Inverse
from rootdiff._space import norm2


@dataclass(frozen=True)
class LinearOperator:
    """A square matrix per system, known by its products and, if need be, by its entries.

    Attributes
    ----------
    backend : Backend
    matvec, rmatvec : callable
        Products of the matrix, and of its transpose, with vectors (*batch, n), or with several of them per matrix,
        (several, *batch, n).
    dense : callable. Returns the matrices, (*batch, n, n).
    precision : float. Relative accuracy of the products, dimensionless.
    shape : tuple of int. Of the matrices, (*batch, n, n).
    transpose_of : LinearOperator or None
        The operator that this is the transpose of; its type tells what is known of the matrices.
    errors : callable or None. Returns the errors of the entries, (*batch, n, n), where they are measured.
    finer : callable or None. Returns the same operator with smaller errors, at a higher cost.
    """

    backend: Backend
    matvec: Callable[[Array], Array]
    rmatvec: Callable[[Array], Array]
    dense: Callable[[], Array]
    precision: float
    shape: tuple[int, ...]
    transpose_of: LinearOperator | None = field(default=None, kw_only=True)
    errors: Callable[[], Array] | None = field(default=None, kw_only=True)
    finer: Callable[[], LinearOperator] | None = field(default=None, kw_only=True)

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        if self.transpose_of is not None:
            return self.transpose_of
        across = self.backend.xp.matrix_transpose
        parts = (self.backend, self.rmatvec, self.matvec, lambda: across(self.dense()), self.precision, self.shape)
        return LinearOperator(*parts, transpose_of=self)

    @property
    def transposed(self) -> bool:
        """Whether the operator is the transpose of another."""
        return self.transpose_of is not None

    @property
    def original(self) -> LinearOperator:
        """The operator itself, or the one that it is the transpose of."""
        return self.transpose_of or self

    def inverted_by(self, inverse: Inverse) -> Callable[[Array], Array]:
        """Return the inverse of the operator, as a function of vectors, from an inverse of the `original`."""
        return partial(inverse.apply, self.backend, transpose=self.transposed)

    def error_sizes(self, x: Array, transposed: bool) -> Array | None:
        """Return the size of the error of each row of the product with `x`, (*batch, n), where it is measured.

        Of the product with the transpose, if `transposed`.
        """
        if self.errors is None:
            return None
        errors, xp = self.errors(), self.backend.xp
        return norm2(xp, (xp.matrix_transpose(errors) if transposed else errors) * x[..., None, :])

    def factored(self) -> Inverse:
        """Return the LU factors of the matrices."""
        return self.backend.lu_factor(self.dense())

    def several(self, rhs: Array) -> int:
        """Return how many leading axes of vectors number right-hand sides of the same matrices."""
        return rhs.ndim + 1 - len(self.shape)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class OfFixedPoint(LinearOperator):
    """G - I, with G the Jacobian of a cell."""


@dataclass(frozen=True)
class Dense(LinearOperator):
    """Matrices at hand: products are those with them.

    `remade` returns them, made once more: to carry them into a branch costs a compiled program a copy.
    """

    remade: Callable[[], Array] = field(kw_only=True)

    @classmethod
    def of(cls, backend: Backend, matrix: Array, precision: float, remade: Callable[[], Array] | None = None) -> Self:
        """Return the operator of matrices, (*batch, n, n), whose entries have such relative errors."""
        across = backend.xp.matrix_transpose(matrix)
        return cls(
            backend,
            lambda v: (matrix @ v[..., None])[..., 0],
            lambda u: (across @ u[..., None])[..., 0],
            lambda: matrix,
            precision,
            tuple(matrix.shape),
            remade=remade or (lambda: matrix),
        )


def by_entries(operator: LinearOperator) -> LinearOperator:
    """Return the same operator with its matrices at hand: for few unknowns these cost no more than products."""
    if operator.transposed:
        return by_entries(operator.T).T
    if isinstance(operator, Dense):
        return operator
    found = Dense.of(operator.backend, operator.dense(), operator.precision, operator.dense)
    return replace(found, errors=operator.errors, finer=operator.finer)
