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
from rootdiff._hooks import History
from rootdiff._iterate import Iterate, State
from rootdiff._loop import IterativeSolver, StepInfo
from rootdiff._numpy_adapter import continuation, detect_sparsity, fixed_point, gradient_report, root, root_scalar
from rootdiff._operator import LinearOperator
from rootdiff._problems import Path
from rootdiff._registry import (
    available_adjoints,
    available_solvers,
    get_adjoint,
    get_solver,
    register_adjoint,
    register_solver,
)
from rootdiff._report import GradientReport
from rootdiff._residual import Residual
from rootdiff._solution import Method, RawSolution, Solution, Status
from rootdiff._solver import Solver
from rootdiff._sparsity import Pattern
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
    SparseLU,
)
from rootdiff.solvers import (
    ITP,
    Anderson,
    Bisection,
    BracketedNewton,
    BracketSolver,
    Broyden,
    Chain,
    Chandrupatla,
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
    "ITP",
    "LSMR",
    "LU",
    "AdjointError",
    "Anderson",
    "ArgumentError",
    "ArgumentTypeError",
    "Backend",
    "BiCGStab",
    "Bisection",
    "BracketSolver",
    "BracketedNewton",
    "Broyden",
    "Chain",
    "Chandrupatla",
    "Chord",
    "ConvergenceError",
    "ConvergenceWarning",
    "DFSane",
    "DuplicateNameError",
    "FixedPoint",
    "GradientReport",
    "History",
    "Iterate",
    "IterativeSolver",
    "LeastSquares",
    "LevenbergMarquardt",
    "LinearFunction",
    "LinearInfo",
    "LinearOperator",
    "LinearSolver",
    "Method",
    "Neumann",
    "Newton",
    "NewtonKrylov",
    "Path",
    "Pattern",
    "OneStep",
    "Phantom",
    "PseudoTransient",
    "RawSolution",
    "Residual",
    "Reuse",
    "RootdiffError",
    "SciPy",
    "Solution",
    "Solver",
    "SparseLU",
    "State",
    "Status",
    "StepInfo",
    "TrustRegion",
    "UnknownNameError",
    "available_adjoints",
    "available_solvers",
    "continuation",
    "detect_sparsity",
    "fixed_point",
    "get_adjoint",
    "get_solver",
    "gradient_report",
    "register_adjoint",
    "register_solver",
    "root",
    "root_scalar",
]
