"""Least squares by the singular value decomposition."""

from __future__ import annotations

from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._settings import limited
from rootdiff._solution import Status
from rootdiff._space import norm2
from rootdiff.linear._base import MARGIN, LinearInfo, LinearSolver, finite_status, relative_size


@dataclass(frozen=True, kw_only=True)
class LeastSquares(LinearSolver):
    """The solution of minimum norm by SVD: for a Jacobian that is singular, where the derivative still exists.

    A singular system that is consistent (a redundant equation, a gauge freedom that the loss does not see) is
    solved by the x of least norm; `LinearInfo.rank` and `gradient_report` say that this happened. One that is
    inconsistent has no derivative: its status is `Status.SINGULAR`. About 20 times the work of `LU`.

    Parameters
    ----------
    rcond : float, optional
        Singular values below ``rcond`` times the largest count as zero. Default: 10 times (or sqrt(n) times, if that
        is more) the accuracy of the Jacobian.

    References
    ----------
    Golub & Van Loan (2013), "Matrix Computations", section 5.5.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> twice = lambda y, a: np.stack([y[0] + y[1] - a, 2 * (y[0] + y[1] - a)])
    >>> sol = rootdiff.root(twice, np.array([1.0, 1.0]), 2.0, adjoint="lstsq")
    >>> np.round(sol.jvp(1.0), 8)
    array([0.5, 0.5])
    """

    rcond: float | None = limited(None, least=0, below=1)

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        xp = operator.backend.xp
        matrix = operator.dense()
        finite = xp.all(xp.isfinite(matrix), axis=(-2, -1))
        # the decomposition of a batch must not fail for one system
        left, values, right = xp.linalg.svd(
            xp.where(finite[..., None, None], matrix, xp.zeros_like(matrix)), full_matrices=False
        )
        default = max(MARGIN, rhs.shape[-1] ** 0.5) * operator.precision
        kept = values > (default if self.rcond is None else self.rcond) * values[..., :1]
        inverse = xp.where(kept, 1 / xp.where(kept, values, xp.ones_like(values)), xp.zeros_like(values))

        def solve(vector: Array) -> Array:
            weights = inverse * (xp.matrix_transpose(left) @ vector[..., None])[..., 0]
            return (xp.matrix_transpose(right) @ weights[..., None])[..., 0]

        x = solve(rhs)
        x = x + solve(rhs - operator.matvec(x))  # one refinement, for the rounding of U, s and V
        x = xp.where(finite[..., None], x, xp.full_like(x, xp.nan))
        rank = xp.sum(xp.astype(kept, xp.int32), axis=-1, dtype=xp.int32)
        relative = relative_size(xp, norm2(xp, rhs - operator.matvec(x)), norm2(xp, rhs))
        return x, LinearInfo(finite_status(xp, x, Status.NONFINITE), relative, rank=rank)
