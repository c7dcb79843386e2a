"""A batch of no systems: its answer is empty."""

from __future__ import annotations

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution
from rootdiff._solver import Solver


class Nothing(Solver):
    """Returns the empty answer, after a look at the residual's structure."""

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        residual(y0)
        norm = residual.xp.zeros_like(y0[..., 0])
        none = residual.xp.astype(norm, residual.xp.int32)
        return RawSolution(y0, none, none, norm)
