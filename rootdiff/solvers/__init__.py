"""Solvers: one method, one file."""

from rootdiff.solvers._anderson import Anderson
from rootdiff.solvers._auto import Auto
from rootdiff.solvers._bracket import BracketSolver, InBracket
from rootdiff.solvers._bracketing import ITP, Bisection, BracketedNewton, Chandrupatla
from rootdiff.solvers._broyden import Broyden
from rootdiff.solvers._chain import Chain
from rootdiff.solvers._chord import Chord
from rootdiff.solvers._continuation import Continuation
from rootdiff.solvers._df_sane import DFSane
from rootdiff.solvers._fixed_point import FixedPoint
from rootdiff.solvers._given import Given
from rootdiff.solvers._levenberg_marquardt import LevenbergMarquardt
from rootdiff.solvers._newton import Newton
from rootdiff.solvers._newton_krylov import NewtonKrylov
from rootdiff.solvers._pseudo_transient import PseudoTransient
from rootdiff.solvers._scipy import SciPy
from rootdiff.solvers._trust_region import TrustRegion

__all__ = [
    "ITP",
    "Bisection",
    "BracketSolver",
    "BracketedNewton",
    "Chandrupatla",
    "InBracket",
    "Anderson",
    "Auto",
    "Broyden",
    "Chain",
    "Chord",
    "Continuation",
    "DFSane",
    "FixedPoint",
    "Given",
    "LevenbergMarquardt",
    "Newton",
    "NewtonKrylov",
    "PseudoTransient",
    "SciPy",
    "TrustRegion",
]
