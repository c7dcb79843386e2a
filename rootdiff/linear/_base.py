"""The protocol of linear solvers: adjoint solvers of the implicit rule and Newton's inner solvers alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from rootdiff._backend import Array, Backend
from rootdiff._residual import LinearOperator


class LinearInfo(NamedTuple):
    """How a linear solve went.

    Attributes
    ----------
    status : integer array, (*batch). `Status` values.
    relative_residual : array, (*batch). ``norm(A x - b) / norm(b)``, dimensionless; zero where b is zero.
    factors : tuple of arrays or None. LU factors of the matrix, where the solver made some.
    """

    status: Array
    relative_residual: Array
    factors: tuple[Array, Array] | None = None


class LinearSolver(ABC):
    """A way to solve A x = b; a value, made of plain settings.

    Attributes
    ----------
    exact : bool
        Whether the solution is that of the system to within a tolerance; False for an approximation whose
        bias no residual test bounds.
    """

    exact: ClassVar[bool] = True
    runtime: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        """Return x with A x = b for each right-hand side of `rhs`, (*batch, n), and how it went."""

    def start(self, backend: Backend, y: Array) -> tuple[Array, Array] | None:
        """Return arrays shaped like the factors that `solve` reports for systems shaped like `y`, or None."""
        return None
