"""The residual on flat vectors with its derivatives, and its Jacobian as a linear operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rootdiff._backend import Array, Backend, Function, Pick
from rootdiff._inverse import Eliminated, Factors, Inverse


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
    factors : Inverse or None
        Approximate inverse of this matrix (or of its transpose, if `transposed`): a preconditioner.
    transposed : bool
        Whether `factors` belong to the transpose.
    guess : array, (*batch, n), or None
        Where an iterative solver may start; zero is taken where that is better.
    fixed_point : bool
        Whether the matrix is G - I, with G the Jacobian of a cell, or its transpose.
    matrix : array, (*batch, n, n), or None
        The matrices, where they are at hand: products are then those with them.
    several : int
        Leading axes of the vectors that number right-hand sides of the same matrices, which need not have them.
    form : callable, optional
        Returns these matrices, not transposed, made once more: to carry them into a branch costs a compiled program a
        copy, whether the branch is taken or not.
    """

    backend: Backend
    matvec: Callable[[Array], Array]
    rmatvec: Callable[[Array], Array]
    dense: Callable[[], Array]
    precision: float
    factors: Inverse | None = None
    transposed: bool = False
    guess: Array | None = None
    fixed_point: bool = False
    matrix: Array | None = None
    several: int = 0
    form: Callable[[], Array] | None = None

    def tabulated(self) -> LinearOperator:
        """Return the same operator by its entries, for systems so small that they cost no more than a few products."""
        matrix = self.dense()
        across = self.backend.xp.matrix_transpose(matrix)
        return replace(
            self,
            matvec=lambda v: (matrix @ v[..., None])[..., 0],
            rmatvec=lambda u: (across @ u[..., None])[..., 0],
            dense=lambda: matrix,
            matrix=matrix,
            form=self.T.dense if self.transposed else self.dense,
        )

    def distinct(self, matrix: Array, rhs: Array) -> Array:
        """Return matrices, (*batch, n, n), without the axes of `several` right-hand sides, (several, *batch, n)."""
        return matrix[*(0,) * (matrix.ndim - 1 - rhs.ndim + self.several), ...]

    @property
    def symmetric_product(self) -> Callable[[Array], Array]:
        """The cheaper one of two products that are the same where the matrix is symmetric."""
        prefers_transpose = self.backend.prefers_transpose
        return self.matvec if prefers_transpose is None or prefers_transpose == self.transposed else self.rmatvec

    def factored(self) -> LinearOperator:
        """Return the same operator with LU factors, where it has none because the backend eliminates."""
        if not isinstance(self.factors, Eliminated):
            return self
        matrix = self.factors.known[0] if self.form is None else self.form()
        return replace(self, factors=self.backend.lu_factor(matrix))

    def approximate_inverse(self, vector: Array) -> Array:
        """Return what `factors` make of a vector, (*batch, n); not finite where they hold nothing."""
        if self.factors is None:
            raise ValueError("approximate_inverse: this operator has no factors.")
        return self.factors.apply(self.backend, vector, self.transposed)

    @property
    def is_factored(self) -> bool:
        """Whether `factors` are LU factors alone."""
        return isinstance(self.factors, Factors)

    @property
    def T(self) -> LinearOperator:
        """The transpose."""
        across = self.backend.xp.matrix_transpose
        return replace(
            self,
            matvec=self.rmatvec,
            rmatvec=self.matvec,
            dense=lambda: across(self.dense()),
            transposed=not self.transposed,
            matrix=None if self.matrix is None else across(self.matrix),
            guess=None,
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
        Called by the loop after each step with the step's record; of traced arrays where the backend traces.
    take : callable, optional
        ``take(pick, count)`` returns the residual of the systems of the batch, so many, that `pick` picks; see
        `rootdiff._compaction`.
    active : boolean array, (*batch), or None
        The systems whose next step is wanted, None for all: a line search does not wait for the others.
    fixed_point : bool
        Whether the residual is ``cell(y) - y``.
    scale : array, (*batch, n), or None
        The size of each unknown, positive, in its own units, if the user tells it.
    """

    function: Function
    parameters: tuple[Array, ...]
    backend: Backend
    correct: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)
    observe: Callable[[Any], None] | None = field(default=None, kw_only=True)
    take: Callable[[Pick, int], Residual] | None = field(default=None, kw_only=True)
    active: Array | None = field(default=None, kw_only=True)
    fixed_point: bool = field(default=False, kw_only=True)
    scale: Array | None = field(default=None, kw_only=True)

    @property
    def xp(self) -> Any:
        """The array namespace."""
        return self.backend.xp

    @property
    def gives_jacobian(self) -> bool:
        """Whether the user has written out the Jacobian."""
        return False

    @property
    def differentiable(self) -> bool:
        """Whether it has a derivative as far as is known: one that calls out of a JAX program has none."""
        return self.backend.differentiable

    @property
    def divisible(self) -> bool:
        """Whether some of the systems can be solved by themselves; not if a user watches or corrects their steps."""
        return self.take is not None and self.correct is None and self.observe is None

    def __call__(self, y: Array) -> Array:
        """Return the residual, (*batch, n), at `y`, (*batch, n)."""
        return self.backend.once(self._of_y, y)

    def _of_y(self, y: Array) -> Array:
        return self.function(y, *self.parameters)

    def with_slope(self, y: Array) -> tuple[Array, Array]:
        """Return the residual and its derivative, both (*batch, 1), of systems of one unknown."""
        return self.backend.with_slope(self._of_y, y)

    def moved(self, y: Array, step: Array) -> Array:
        """Return the trial point ``y + step``, corrected as the user asked."""
        trial = y + step
        return trial if self.correct is None else self.correct(trial, y)

    def unwanted(self, like: Array) -> Array:
        """Return where a system's next step is not wanted, a boolean array shaped as `like`, (*batch)."""
        return self.xp.zeros_like(like, dtype=self.xp.bool) if self.active is None else ~self.active

    def with_parameters(self, *parameters: Array) -> Residual:
        """Return the same residual with other parameters."""
        return replace(self, parameters=parameters)

    def jvp(self, y: Array, tangent: Array) -> Array:
        """Return (df/dy) v, (*batch, n)."""
        return self.backend.jvp(self._of_y, (y,), (tangent,))[1]

    def vjp(self, y: Array, cotangent: Array) -> Array:
        """Return (df/dy)^T u, (*batch, n)."""
        return self.backend.vjp(self._of_y, (y,))[1](cotangent)[0]

    def jacobian(self, y: Array) -> Array:
        """Return df/dy, (*batch, n, n)."""
        return self.backend.linearize(self._of_y, y)[2]()

    def measured_jacobian(self, y: Array) -> tuple[Array, Array] | None:
        """Return df/dy, (*batch, n, n), and the errors of its entries, where they are measured; else None."""
        return self.backend.measured_jacobian(self._of_y, y)

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

    def operator(self, y: Array, factors: Inverse | None = None) -> LinearOperator:
        """Return df/dy at `y` as a linear operator."""
        matvec, rmatvec, dense = self.backend.linearize(self._of_y, y)
        precision = self.backend.precision(y.dtype)
        return LinearOperator(self.backend, matvec, rmatvec, dense, precision, factors, fixed_point=self.fixed_point)
