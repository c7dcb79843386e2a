"""Linear solvers: one method, one file."""

from rootdiff.linear._auto import AutoLinear as AutoLinear
from rootdiff.linear._base import LinearFunction as LinearFunction
from rootdiff.linear._base import LinearInfo as LinearInfo
from rootdiff.linear._base import LinearSolver as LinearSolver
from rootdiff.linear._bicgstab import BiCGStab as BiCGStab
from rootdiff.linear._cg import CG as CG
from rootdiff.linear._gmres import GMRES as GMRES
from rootdiff.linear._krylov import Krylov as Krylov
from rootdiff.linear._lsmr import LSMR as LSMR
from rootdiff.linear._lstsq import LeastSquares as LeastSquares
from rootdiff.linear._lu import LU as LU
from rootdiff.linear._lu import SparseLU as SparseLU
from rootdiff.linear._truncated import Neumann as Neumann
from rootdiff.linear._truncated import OneStep as OneStep
from rootdiff.linear._truncated import Phantom as Phantom
from rootdiff.linear._truncated import Reuse as Reuse
