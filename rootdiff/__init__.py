"""Differentiable root finding: state ``f(y, *args) = 0``, name a solver, get the root and its exact derivatives."""

from rootdiff._backend import Backend
from rootdiff._errors import (
    AdjointError,
    ArgumentError,
    ArgumentTypeError,
    ConvergenceError,
    ConvergenceWarning,
    DuplicateNameError,
    RootdiffError,
    UnknownNameError,
)
from rootdiff._iterate import IterativeSolver, Solver, StepInfo
from rootdiff._registry import (
    available_adjoints,
    available_solvers,
    get_adjoint,
    get_solver,
    register_adjoint,
    register_solver,
)
from rootdiff._residual import LinearOperator, Residual
from rootdiff._root import fixed_point, root
from rootdiff._solution import RawSolution, Solution, Status
from rootdiff.linear import GMRES, LU, LinearInfo, LinearSolver
from rootdiff.solvers import (
    Anderson,
    Broyden,
    Chain,
    Chord,
    DFSane,
    FixedPoint,
    LevenbergMarquardt,
    Newton,
    NewtonKrylov,
    PseudoTransient,
    SciPy,
    TrustRegion,
)

__version__ = "0.1.0"

__all__ = [
    "GMRES",
    "LU",
    "AdjointError",
    "Anderson",
    "ArgumentError",
    "ArgumentTypeError",
    "Backend",
    "Broyden",
    "Chain",
    "Chord",
    "ConvergenceError",
    "ConvergenceWarning",
    "DFSane",
    "DuplicateNameError",
    "FixedPoint",
    "IterativeSolver",
    "LevenbergMarquardt",
    "LinearInfo",
    "LinearOperator",
    "LinearSolver",
    "Newton",
    "NewtonKrylov",
    "PseudoTransient",
    "RawSolution",
    "Residual",
    "RootdiffError",
    "SciPy",
    "Solution",
    "Solver",
    "Status",
    "StepInfo",
    "TrustRegion",
    "UnknownNameError",
    "available_adjoints",
    "available_solvers",
    "fixed_point",
    "get_adjoint",
    "get_solver",
    "register_adjoint",
    "register_solver",
    "root",
]
