"""Solvers: one method, one file."""

from rootdiff.solvers._anderson import Anderson as Anderson
from rootdiff.solvers._auto import Auto as Auto
from rootdiff.solvers._bracket import BracketSolver as BracketSolver
from rootdiff.solvers._bracket import InBracket as InBracket
from rootdiff.solvers._bracketing import ITP as ITP
from rootdiff.solvers._bracketing import Bisection as Bisection
from rootdiff.solvers._bracketing import BracketedNewton as BracketedNewton
from rootdiff.solvers._bracketing import Chandrupatla as Chandrupatla
from rootdiff.solvers._broyden import Broyden as Broyden
from rootdiff.solvers._chain import Chain as Chain
from rootdiff.solvers._chain import adjusted as adjusted
from rootdiff.solvers._chord import Chord as Chord
from rootdiff.solvers._continuation import Continuation as Continuation
from rootdiff.solvers._df_sane import DFSane as DFSane
from rootdiff.solvers._fixed_point import FixedPoint as FixedPoint
from rootdiff.solvers._gauss_newton import GaussNewton as GaussNewton
from rootdiff.solvers._given import Given as Given
from rootdiff.solvers._given import Nothing as Nothing
from rootdiff.solvers._levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from rootdiff.solvers._minimum import Minimum as Minimum
from rootdiff.solvers._newton import Newton as Newton
from rootdiff.solvers._newton_krylov import NewtonKrylov as NewtonKrylov
from rootdiff.solvers._pseudo_transient import PseudoTransient as PseudoTransient
from rootdiff.solvers._scipy import SciPy as SciPy
from rootdiff.solvers._trust_region import TrustRegion as TrustRegion
