"""Gaussian elimination."""

from __future__ import annotations

from dataclasses import dataclass

from rootdiff._backend import Array, Backend
from rootdiff._iterate import norm2
from rootdiff._residual import LinearOperator
from rootdiff._solution import Status
from rootdiff.linear._base import LinearInfo, LinearSolver


@dataclass(frozen=True)
class LU(LinearSolver):
    """Dense LU factorisation with partial pivoting: O(n^3) work and n^2 memory per system.

    References
    ----------
    Golub & Van Loan (2013), "Matrix Computations", section 3.4.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint=rootdiff.LU())
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        backend, xp = operator.backend, operator.backend.xp
        matrix = operator.dense()
        factors = backend.lu_factor(matrix)
        x = backend.lu_solve(factors, rhs)
        residual = norm2(xp, (matrix @ x[..., None])[..., 0] - rhs)
        size = norm2(xp, rhs)
        relative = xp.where(size > 0, residual / xp.where(size > 0, size, 1.0), residual)
        finite = xp.all(xp.isfinite(x), axis=-1)
        status = xp.astype(xp.where(finite, int(Status.CONVERGED), int(Status.SINGULAR)), xp.int32)
        return x, LinearInfo(status, relative, factors)

    def start(self, backend: Backend, y: Array) -> tuple[Array, Array]:
        xp = backend.xp
        return xp.zeros_like(y[..., None] * y[..., None, :]), xp.zeros_like(y, dtype=xp.int32)
