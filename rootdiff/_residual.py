"""The residual on flat vectors with its derivatives, and its Jacobian as a linear operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rootdiff._backend import Array, Backend, Function


@dataclass(frozen=True)
class LinearOperator:
    """A square matrix per system, known by its products and, if need be, by its entries.

    Attributes
    ----------
    backend : Backend
    matvec, rmatvec : callable
        Products of the matrix, and of its transpose, with vectors (*batch, n).
    dense : callable
        Returns the matrices, (*batch, n, n).
    precision : float
        Relative accuracy of the products, dimensionless.
    factors : tuple of arrays or None
        LU factors of a matrix near this one (or near its transpose, if `transposed`): a preconditioner.
    transposed : bool
        Whether `factors` belong to the transpose.
    """

    backend: Backend
    matvec: Callable[[Array], Array]
    rmatvec: Callable[[Array], Array]
    dense: Callable[[], Array]
    precision: float
    factors: tuple[Array, Array] | None = None
    transposed: bool = False

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        return LinearOperator(
            self.backend,
            self.rmatvec,
            self.matvec,
            lambda: self.backend.xp.matrix_transpose(self.dense()),
            self.precision,
            self.factors,
            not self.transposed,
        )


@dataclass(frozen=True)
class Residual:
    """A residual with its parameters bound: what a solver sees.

    Attributes
    ----------
    function : callable
        ``function(y, *parameters)`` with `y` and its value (*batch, n); the parameters are any arrays.
    parameters : tuple of arrays
        What the root is differentiated with respect to.
    backend : Backend
    correct : callable, optional
        ``correct(trial, y)`` returns the point, (*batch, n), to try in place of `trial`, a step away from `y`.
    observe : callable, optional
        Called by the loop after each step, where nothing is traced, with the step's record.
    """

    function: Function
    parameters: tuple[Array, ...]
    backend: Backend
    correct: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)
    observe: Callable[[Any], None] | None = field(default=None, kw_only=True)

    @property
    def xp(self) -> Any:
        """The array namespace."""
        return self.backend.xp

    def __call__(self, y: Array) -> Array:
        """Return the residual, (*batch, n), at `y`, (*batch, n)."""
        return self.function(y, *self.parameters)

    def moved(self, y: Array, step: Array) -> Array:
        """Return the trial point ``y + step``, corrected as the user asked."""
        trial = y + step
        return trial if self.correct is None else self.correct(trial, y)

    def with_parameters(self, *parameters: Array) -> Residual:
        """Return the same residual with other parameters."""
        return replace(self, parameters=parameters)

    def jvp(self, y: Array, tangent: Array) -> Array:
        """Return (df/dy) v, (*batch, n)."""
        return self.backend.jvp(self, (y,), (tangent,))[1]

    def vjp(self, y: Array, cotangent: Array) -> Array:
        """Return (df/dy)^T u, (*batch, n)."""
        return self.backend.vjp(self, (y,))[1](cotangent)[0]

    def jacobian(self, y: Array) -> Array:
        """Return df/dy, (*batch, n, n)."""
        return self.backend.jacobian(self, y)

    def parameter_jvp(self, y: Array, tangents: tuple[Array, ...]) -> Array:
        """Return (df/dargs) v, (*batch, n), with one tangent per parameter."""

        def of_parameters(*parameters: Array) -> Array:
            return self.function(y, *parameters)

        return self.backend.jvp(of_parameters, self.parameters, tangents)[1]

    def parameter_vjp(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        """Return (df/dargs)^T u, one array per parameter."""

        def of_parameters(*parameters: Array) -> Array:
            return self.function(y, *parameters)

        return self.backend.vjp(of_parameters, self.parameters)[1](cotangent)

    def operator(self, y: Array, factors: tuple[Array, Array] | None = None) -> LinearOperator:
        """Return df/dy at `y` as a linear operator."""
        matvec, rmatvec, dense = self.backend.linearize(self, y)
        return LinearOperator(self.backend, matvec, rmatvec, dense, self.backend.precision(y.dtype), factors)
