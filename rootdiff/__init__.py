"""Differentiable root finding: state ``f(y, *args) = 0``, name a solver, get the root and its exact derivatives."""

from rootdiff._backend import Backend
from rootdiff._certificate import gradient_report
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
from rootdiff._report import GradientReport
from rootdiff._residual import LinearOperator, Residual
from rootdiff._root import fixed_point, root
from rootdiff._solution import RawSolution, Solution, Status
from rootdiff.linear import (
    CG,
    GMRES,
    LSMR,
    LU,
    BiCGStab,
    LeastSquares,
    LinearFunction,
    LinearInfo,
    LinearSolver,
    Neumann,
    OneStep,
    Phantom,
    Reuse,
)
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
    "CG",
    "GMRES",
    "LSMR",
    "LU",
    "AdjointError",
    "Anderson",
    "ArgumentError",
    "ArgumentTypeError",
    "Backend",
    "BiCGStab",
    "Broyden",
    "Chain",
    "Chord",
    "ConvergenceError",
    "ConvergenceWarning",
    "DFSane",
    "DuplicateNameError",
    "FixedPoint",
    "GradientReport",
    "IterativeSolver",
    "LeastSquares",
    "LinearFunction",
    "LevenbergMarquardt",
    "LinearInfo",
    "LinearOperator",
    "LinearSolver",
    "Neumann",
    "Newton",
    "OneStep",
    "Phantom",
    "NewtonKrylov",
    "PseudoTransient",
    "RawSolution",
    "Residual",
    "Reuse",
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
    "gradient_report",
    "register_adjoint",
    "register_solver",
    "root",
]
