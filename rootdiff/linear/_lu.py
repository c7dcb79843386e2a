"""Gaussian elimination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rootdiff._backend import Array, select
from rootdiff._errors import ArgumentError
from rootdiff._inverse import Eliminated, Factors, Inverse, Scaling, SparseFactors, Updated, with_base
from rootdiff._operator import Dense, LinearOperator
from rootdiff._residual import Residual
from rootdiff._sizes import is_dense
from rootdiff._solution import Status
from rootdiff._space import norm2
from rootdiff._sparse import Sparse
from rootdiff._sparse_libraries import Library, is_there
from rootdiff.linear._base import LinearInfo, LinearSolver, Point, finite_status, refined, relative_size
from rootdiff.linear._contract import backward_stable

#: What a step of refinement, one product and one solve, must gain: else n^3 work for new factors is better use of time.
_GAIN = 0.1


@dataclass(frozen=True)
class LU(LinearSolver):
    """Dense LU factorisation with partial pivoting: O(n^3) work and n^2 memory per system.

    A sparse one, as by `SparseLU`, where `jac_sparsity` or a sparse `jac` tells the pattern.

    As adjoint it starts from the factors that the solver ended with, of one right-hand side from its quasi-Newton
    inverse too, and removes by iterative refinement the error of their being of another point; it factors anew only
    where that stalls, or where there are at most 64 unknowns. New factors get one step of refinement, so that rows in
    other units are solved too.

    References
    ----------
    Golub & Van Loan (2013), "Matrix Computations", section 3.4. Higham (2002), "Accuracy and Stability of Numerical
    Algorithms", chapter 12, for the refinement.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([4.0]), adjoint=rootdiff.LU())
    >>> sol.vjp(np.array([1.0]))
    (array([0.25]),)
    """

    direct = True
    library: ClassVar[Library] = "superlu"

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        # then it is factored anew at once: an update is work, and takes memory, for each of several right-hand sides
        at_hand = isinstance(operator.original, Dense) or (operator.several(rhs) and isinstance(self.known, Updated))
        if self.known is not None and not at_hand and _is_start(self.known, operator):
            return self._reuse(operator, rhs, self.known)
        backend, xp = operator.backend, operator.backend.xp
        factors: Inverse
        if not operator.several(rhs) and backend.eliminates(rhs.shape):
            x, kept = backend.eliminate(operator.original.dense(), rhs, transpose=operator.transposed)
            factors = Eliminated(kept)
        else:
            factors = self.factor(operator)
            x = operator.inverted_by(factors)(rhs)
        return x, LinearInfo(_status(xp, x, factors), None, factors)

    def blank(self, residual: Residual, y: Array) -> Inverse | None:
        if residual.backend.eliminates(y.shape):
            return None
        return (Factors if residual.pattern is None else residual.pattern.factors(self.library)).zeros(residual.xp, y)

    def factor(self, operator: LinearOperator) -> Inverse:
        """Return the factors of the matrix that is not transposed, which serve both directions."""
        original, known = operator.original, self.known
        if not isinstance(original, Sparse):
            return original.factored()
        known = known.base if isinstance(known, Updated) else known
        return original.factored(getattr(known, "library", self.library))  # that of the solver

    def _reuse(self, operator: LinearOperator, rhs: Array, old: Inverse) -> tuple[Array, LinearInfo]:
        """Refine from the factors at hand; where that stalls for any right-hand side of a matrix, factor it anew."""
        backend, xp = operator.backend, operator.backend.xp
        size = norm2(xp, rhs)
        x, norm = _solved(operator, old, rhs, size)
        stale = ~backward_stable(operator, x, rhs, norm, size)
        several = operator.several(rhs)
        stale = xp.any(stale, axis=tuple(range(several))) if several else stale

        def anew(rhs: Array) -> tuple[tuple[Array, Array], Inverse]:
            fresh = with_base(old, self.factor(operator))
            again = _solved(operator, fresh, rhs, size)
            if stale.ndim == 0:  # of a single matrix: it is stale
                return again, fresh
            each = stale | xp.zeros_like(norm, dtype=xp.bool)
            return select(xp, each, again, (x, norm)), select(xp, stale, fresh, old)

        (x, norm), factors = backend.when(xp.any(stale), anew, (rhs,), ((x, norm), old))
        return x, LinearInfo(_status(xp, x, factors), relative_size(xp, norm, size), factors)


@dataclass(frozen=True)
class SparseLU(LU):
    """Sparse LU factorisation of a Jacobian whose pattern `jac_sparsity` or a sparse `jac` tells.

    That is what `LU` does where there is a pattern; without one this solver takes the whole matrix, and refuses it
    above 1024 unknowns. SciPy's SuperLU orders the columns by minimum degree of A^T + A, with pivots near the
    diagonal, as grids, networks and circuits want it; where a product shows a backward error of more than 1e-12 it is
    refined, or factored anew with any order and pivot. The factors are made on the host, in float64.

    Parameters
    ----------
    library : {"superlu", "rslab", "pardiso", "pyamg"}
        What makes the factors: SciPy; rslab (extra `rslab`), KLU for networks and a supernodal elimination for grids,
        whose analysis of a pattern is kept; MKL's PARDISO (extra `pardiso`); in place of factors pyamg's multigrid
        (extra `pyamg`), for grids whose factors would fill the memory. Where a library finds no pivot, or its
        solutions are not good, SuperLU's factors are taken. In steps and in the derivative it is that of the solver:
        ``solver=Newton(linear=SparseLU(library="rslab"))``.

    References
    ----------
    Davis & Palamadai Natarajan (2010), "Algorithm 907: KLU". Schenk & Gärtner (2004), "Solving unsymmetric sparse
    systems of linear equations with PARDISO".
    Li (2005), "An overview of SuperLU".

    Examples
    --------
    >>> import numpy as np, rootdiff as rd
    >>> f = lambda y, a: a * y - 0.5 * np.sin(np.roll(y, 1)) - 1
    >>> pattern = rd.detect_sparsity(f, np.ones(100), 2.0)
    >>> solver = rd.Newton(linear=rd.SparseLU())
    >>> rd.root(f, np.ones(100), 2.0, jac_sparsity=pattern, solver=solver, adjoint="sparse_lu").y[:2].round(4)
    array([0.6516, 0.6516])
    """

    library: Library = "superlu"  # type: ignore[misc]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not is_there(self.library):
            raise ArgumentError(f"SparseLU: {self.library} is not installed. pip install 'rootdiff[{self.library}]'.")

    def factor(self, operator: LinearOperator) -> Inverse:
        check_entries(operator)
        return super().factor(operator)


def check_entries(operator: LinearOperator) -> None:
    """Raise if no pattern tells the entries of matrices that are too large to be formed."""
    if not isinstance(operator.original, Sparse) and not is_dense(operator.shape[:-1]):
        raise ArgumentError(
            "sparse_lu: nothing tells where the Jacobian has entries, and it is too large to be formed. Give "
            "jac_sparsity='detect', ('banded', (l, u)) or a sparse array of SciPy; or take adjoint='gmres'."
        )


def _is_start(inverse: Inverse, operator: LinearOperator) -> bool:
    """Return whether an inverse can take the place of factors: a diagonal cannot, nor can those of another kind."""
    base = inverse.base if isinstance(inverse, Updated) else inverse
    return not isinstance(base, Scaling) and isinstance(base, SparseFactors) == isinstance(operator.original, Sparse)


def _status(xp: Any, x: Array, factors: Inverse) -> Array:
    status = finite_status(xp, x, Status.SINGULAR)
    return xp.where(factors.wrong, int(Status.WRONG_SPARSITY), status) if isinstance(factors, SparseFactors) else status


def _solved(operator: LinearOperator, known: Inverse, rhs: Array, size: Array) -> tuple[Array, Array]:
    """Return x and the norm of ``b - A x``, by an inverse at hand, refined while a step gains."""
    inverse, goal = operator.inverted_by(known), 2 * operator.precision * size
    start = Point.of(operator, rhs, inverse(rhs))
    at = refined(operator, rhs, start, lambda at: inverse(at.residual), goal, _GAIN)
    return at.x, at.norm
