"""The choice between a direct and an iterative linear solve."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._inverse import Factors
from rootdiff._operator import FixedPoint, LinearOperator
from rootdiff._sizes import TRIED, fits, has_few_unknowns, is_dense, is_one_large
from rootdiff._solution import Status
from rootdiff._sparse import Sparse
from rootdiff.linear._base import LinearInfo, LinearSolver
from rootdiff.linear._contract import checked
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._lsmr import LSMR
from rootdiff.linear._lu import LU
from rootdiff.linear._trial import attempt

#: Vectors of a Krylov space, as many as `GMRES` keeps.
_CYCLE = 30


@dataclass(frozen=True)
class AutoLinear(LinearSolver):
    """`LU` for at most 1024 unknowns and 2^24 matrix entries in the batch, or where a factorisation is at hand.

    So too, sparse, where the pattern of the Jacobian is known. Else, and for fixed points of more than 64 unknowns and
    few right-hand sides, `GMRES`, with what the solver knows of the inverse as preconditioner; the systems in which it
    does not reach its tolerance are solved again, by `LU` if their matrices have at most 2^24 entries, else by `LSMR`.
    One system of more than 256 unknowns that `LU` would have to factor is tried in JAX by a short GMRES before, which
    is believed only if a second one shows that the matrix is not singular.

    Parameters
    ----------
    few : bool
        Whether there are few systems, so that this trial may pay.
    """

    few: bool = True

    direct = True

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        shape, known = operator.shape[:-1], self.known
        dense, many = is_dense(shape), not has_few_unknowns(shape)
        lu = LU().starting_from(known)
        if isinstance(operator.original, Sparse):
            return lu.solve(operator, rhs)
        # one factorisation serves all right-hand sides, each of which would have a Krylov space of its own
        several = math.prod(rhs.shape[: operator.several(rhs)])
        contracts = isinstance(operator.original, FixedPoint) and many and several * _CYCLE < shape[-1]
        if isinstance(known, Factors) or (dense and not contracts):
            if self._tries(operator, rhs):
                return _again(operator, rhs, *attempt(operator, rhs), lu)
            return lu.solve(operator, rhs)
        first = (GMRES(max_restarts=1) if dense else GMRES()).starting_from(known, self.guess)
        x, info = checked(operator, first, rhs)
        return _again(operator, rhs, x, info, lu if fits(shape) else LSMR().starting_from(known))

    def _tries(self, operator: LinearOperator, rhs: Array) -> bool:
        """Return whether a short GMRES may save a factorisation."""
        one = not operator.several(rhs) and is_one_large(rhs.shape, TRIED)
        return self.few and operator.backend.traced and self.known is None and one


def _again(
    operator: LinearOperator, rhs: Array, x: Array, info: LinearInfo, second: LinearSolver
) -> tuple[Array, LinearInfo]:
    """Return the solutions `x`, and those of the `second` solver for the systems in which they failed."""
    xp = operator.backend.xp
    failed = info.status > int(Status.AT_PRECISION)

    def solve(rhs: Array, x: Array) -> tuple[Array, Array, Array]:
        other_x, other = checked(operator, second, rhs)
        return (
            xp.where(failed[..., None], other_x, x),
            xp.where(failed, other.status, info.status),
            xp.where(failed, other.relative_residual, info.relative_residual),
        )

    known = (x, info.status, info.relative_residual)
    x, status, relative = operator.backend.when(xp.any(failed), solve, (rhs, x), known)
    return x, LinearInfo(status, relative)
