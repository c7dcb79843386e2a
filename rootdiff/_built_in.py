"""The names of the built-in solvers and adjoints, for editors to offer; any other name is a string too."""

from typing import TYPE_CHECKING, Literal, TypeAlias

Solvers = Literal[
    "anderson",
    "auto",
    "bisection",
    "bracketed_newton",
    "broyden",
    "chandrupatla",
    "chord",
    "df_sane",
    "fixed_point",
    "itp",
    "levenberg_marquardt",
    "newton",
    "newton_krylov",
    "optimistix:BFGS",
    "optimistix:Chord",
    "optimistix:Dogleg",
    "optimistix:LevenbergMarquardt",
    "optimistix:Newton",
    "pseudo_transient",
    "scipy:anderson",
    "scipy:broyden1",
    "scipy:df-sane",
    "scipy:hybr",
    "scipy:krylov",
    "scipy:lm",
    "trust_region",
]
Adjoints = Literal[
    "auto", "bicgstab", "cg", "gmres", "lsmr", "lstsq", "lu", "neumann", "one_step", "phantom", "reuse", "sparse_lu"
]
if TYPE_CHECKING:
    SolverName: TypeAlias = Solvers | str
    AdjointName: TypeAlias = Adjoints | str
else:  # so that `help` stays short
    SolverName = AdjointName = str
