"""The solver chosen by size."""

from __future__ import annotations

from dataclasses import dataclass

from rootdiff._backend import Array
from rootdiff._iterate import Solver
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution
from rootdiff.linear._auto import is_dense
from rootdiff.linear._gmres import GMRES
from rootdiff.solvers._anderson import Anderson
from rootdiff.solvers._newton import Newton

#: Unknowns up to which a fixed point is found by Newton's method; above, a Jacobian costs more than a few dozen cells.
_NEWTON_CELL = 64


@dataclass(frozen=True, kw_only=True)
class Auto(Solver):
    """`Newton` with LU for at most 1024 unknowns and 2^24 Jacobian entries in the batch, else with GMRES.

    Parameters
    ----------
    fixed_point : bool
        Whether the residual is that of a fixed point: then `Newton` with LU up to 64 unknowns, else `Anderson`.
    """

    fixed_point: bool = False

    def choose(self, shape: tuple[int, ...]) -> Solver:
        """Return the solver for unknowns of this shape, (*batch, n)."""
        if self.fixed_point:
            return Newton() if is_dense(shape, _NEWTON_CELL) else Anderson()
        return Newton() if is_dense(shape) else Newton(linear=GMRES())

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return self.choose(tuple(y0.shape)).solve(residual, y0)
