"""Linear solvers: one method, one file."""

from rootdiff.linear._auto import AutoLinear
from rootdiff.linear._base import LinearFunction, LinearInfo, LinearSolver
from rootdiff.linear._bicgstab import BiCGStab
from rootdiff.linear._cg import CG
from rootdiff.linear._gmres import GMRES
from rootdiff.linear._krylov import Krylov
from rootdiff.linear._lsmr import LSMR
from rootdiff.linear._lstsq import LeastSquares
from rootdiff.linear._lu import LU, SparseLU
from rootdiff.linear._truncated import Neumann, OneStep, Phantom, Reuse

__all__ = [
    "CG",
    "GMRES",
    "LSMR",
    "LU",
    "AutoLinear",
    "BiCGStab",
    "Krylov",
    "LeastSquares",
    "LinearFunction",
    "LinearInfo",
    "LinearSolver",
    "Neumann",
    "OneStep",
    "Phantom",
    "Reuse",
    "SparseLU",
]
