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
from rootdiff._iterate import IterativeSolver, Solver
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
from rootdiff.solvers import Anderson, Broyden, FixedPoint, Newton, SciPy

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
    "ConvergenceError",
    "ConvergenceWarning",
    "DuplicateNameError",
    "FixedPoint",
    "GradientReport",
    "IterativeSolver",
    "LeastSquares",
    "LinearFunction",
    "LinearInfo",
    "LinearOperator",
    "LinearSolver",
    "Neumann",
    "Newton",
    "OneStep",
    "Phantom",
    "RawSolution",
    "Residual",
    "Reuse",
    "RootdiffError",
    "SciPy",
    "Solution",
    "Solver",
    "Status",
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
