"""The protocol of linear solvers: adjoint solvers of the implicit rule and Newton's inner solvers alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

from rootdiff._backend import Array, select, status_where
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Inverse
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._settings import check_settings, with_settings
from rootdiff._solution import Status
from rootdiff._space import is_finite, norm2

#: Tolerances are this many times the accuracy of the products, so that rounding in the test itself does not matter.
MARGIN = 10.0
#: Steps of refinement: more gain too little to be worth their products.
_MAX_REFINEMENTS = 10


class LinearInfo(NamedTuple):
    """How a linear solve went.

    Attributes
    ----------
    status : integer array, (*batch). `Status` values.
    relative_residual : array, (*batch), or None
        ``norm(A x - b) / norm(b)``, dimensionless; zero where b is zero. None: the solver did not compute it.
    factors : Inverse or None
        The inverse with which the solution was found, of the matrix that is not transposed.
    rank : integer array, (*batch), or None
        Numerical rank, where the solver determines it; below n the solution is that of minimum norm.
    change : array, (*batch), or None
        Relative change of the solution that errors of the matrix bring about, where a check has estimated it.
    """

    status: Array
    relative_residual: Array | None = None
    factors: Inverse | None = None
    rank: Array | None = None
    change: Array | None = None


class LinearSolver(ABC):
    """A way to solve A x = b; a value, made of plain settings.

    Attributes
    ----------
    exact : bool
        Whether the solution is that of the system to within a tolerance; False for an approximation whose
        bias no residual test bounds.
    direct : bool
        Whether small systems are solved by their entries.
    known : Inverse or None
        An approximate inverse of the matrix that is not transposed, such as the forward solver ended with:
        `LinearOperator.inverted_by` applies it. `starting_from` sets it; it is no setting.
    guess : array, (*batch, n), or None
        Where an iteration may start, set in the same way; zero is taken where that is better.
    """

    exact: ClassVar[bool] = True
    direct: ClassVar[bool] = False
    known: Inverse | None = None
    guess: Array | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    @abstractmethod
    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        """Return x with A x = b for each right-hand side of `rhs`, (*batch, n), and how it went."""

    def blank(self, residual: Residual, y: Array) -> Inverse | None:
        """Return what stands for the inverse before the first solve with a residual at `y`; None if it keeps none."""
        return None

    def starting_from(self, known: Inverse | None, guess: Array | None = None) -> Self:
        """Return the solver with what is known of the system: an approximate inverse, a guess at the solution."""
        given = {name: value for name, value in (("known", known), ("guess", guess)) if value is not None}
        for name in given.keys() & getattr(self, "__dataclass_fields__", {}).keys():
            raise ArgumentError(
                f"{type(self).__name__}: it has a setting {name!r}, which LinearSolver itself uses. Rename it."
            )
        return with_settings(self, **given) if given else self

    def tolerance(self, operator: LinearOperator) -> Any:
        """Return the relative residual that counts as solved: the setting `rtol`, else 10 times the accuracy of A."""
        rtol = getattr(self, "rtol", None)
        return MARGIN * operator.precision if rtol is None else rtol


@dataclass(frozen=True)
class LinearFunction(LinearSolver):
    """A user's function ``(operator, rhs) -> x`` as a linear solver; its result is checked by one product.

    Parameters
    ----------
    function : callable
        From a `LinearOperator` and right-hand sides, (*batch, n), to solutions of that shape.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> adjoint = rootdiff.LinearFunction(lambda operator, rhs: np.linalg.solve(operator.dense(), rhs))
    >>> rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint=adjoint).vjp(np.array([1.0]))
    (array([0.25]),)
    """

    function: Callable[[LinearOperator, Array], Array]

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        x = self.function(operator, rhs)
        fits = operator.backend.is_array(x) and tuple(x.shape) == tuple(rhs.shape)  # else an error where it is checked
        return x, LinearInfo(finite_status(operator.backend.xp, x if fits else rhs))


class Point(NamedTuple):
    """An approximate solution x with its residual ``b - A x``, (*batch, n), and the norm of that, (*batch)."""

    x: Array
    residual: Array
    norm: Array

    @classmethod
    def of(cls, operator: LinearOperator, rhs: Array, x: Array) -> Self:
        residual = rhs - operator.matvec(x)
        return cls(x, residual, norm2(operator.backend.xp, residual))


def refined(
    operator: LinearOperator, rhs: Array, start: Point, correction: Callable[[Point], Array], goal: Array, gain: float
) -> Point:
    """Return where corrections lead from `start`, until the residual norm is `goal` or one leaves more than `gain`.

    Iterative refinement (Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 12.1).
    """
    backend, xp = operator.backend, operator.backend.xp

    def unfinished(state: tuple[Point, Array, Array]) -> Array:
        at, before, count = state
        return (at.norm > goal) & (at.norm <= gain * before) & (count < _MAX_REFINEMENTS)

    def body(state: tuple[Point, Array, Array]) -> tuple[Point, Array, Array]:
        old, before, count = state
        active = unfinished(state)
        new = Point.of(operator, rhs, old.x + correction(old))
        better = active & (new.norm < old.norm)
        return select(xp, better, new, old), xp.where(active, old.norm, before), count + 1

    first = (start, xp.full_like(start.norm, xp.inf), xp.zeros_like(start.norm, dtype=xp.int32))
    return backend.while_loop(lambda state: xp.any(unfinished(state)), body, first)[0]  # type: ignore[no-any-return]


def finite_status(xp: Any, x: Array, failure: Status = Status.NONFINITE) -> Array:
    """Return CONVERGED for each system whose solution is finite, else `failure`."""
    finite = is_finite(xp, x)
    return status_where(xp, finite, Status.CONVERGED, failure)


def relative_size(xp: Any, norm: Array, size: Array) -> Array:
    """Return the norm of a residual over that of b, (*batch), and itself where b is zero."""
    return norm / xp.where(size > 0, size, xp.ones_like(size))
