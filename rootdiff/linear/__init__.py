"""Linear solvers: one method, one file."""

from rootdiff.linear._auto import AutoLinear
from rootdiff.linear._base import LinearInfo, LinearSolver
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._lu import LU

__all__ = ["GMRES", "LU", "AutoLinear", "LinearInfo", "LinearSolver"]
