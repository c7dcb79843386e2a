"""The solvers and adjoint solvers that are known by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from rootdiff import linear, solvers
from rootdiff._names import Names
from rootdiff._solver import Solver
from rootdiff.linear import LinearFunction, LinearSolver
from rootdiff.solvers._scipy_minimizer import OF_SQUARES, Method

SOLVERS: Names[Solver] = Names("solver", "rootdiff.solvers", Solver)  # type: ignore[type-abstract]
ADJOINTS: Names[LinearSolver] = Names("adjoint", "rootdiff.adjoints", LinearSolver)  # type: ignore[type-abstract]
#: The names of the built-in ones, for editors to offer; any other name is a string too.
# fmt: off
Solvers = Literal[
    "anderson", "auto", "bisection", "bracketed_newton", "broyden", "chandrupatla", "chord", "df_sane",
    "fixed_point", "itp", "levenberg_marquardt", "newton", "newton_krylov", "optimistix:BFGS", "optimistix:Chord",
    "optimistix:Dogleg", "optimistix:LevenbergMarquardt", "optimistix:Newton", "pseudo_transient", "scipy:anderson",
    "scipy:broyden1", "scipy:df-sane", "scipy:hybr", "scipy:krylov", "scipy:lm", "trust_region",
]
# fmt: on
Adjoints = Literal[
    "auto", "bicgstab", "cg", "gmres", "lsmr", "lstsq", "lu", "neumann", "one_step", "phantom", "reuse", "sparse_lu"
]
if TYPE_CHECKING:
    SolverName: TypeAlias = Solvers | str
    AdjointName: TypeAlias = Adjoints | str
else:  # so that `help` stays short
    SolverName = AdjointName = str
#: Those of `least_squares` and `minimize` alone, which find no roots.
MINIMIZERS: Names[Solver] = Names("solver", "rootdiff.minimizers", Solver)  # type: ignore[type-abstract]


def register_solver(name: str, factory: Callable[[], Solver], backends: Iterable[str] | None = None) -> None:
    """Make a solver known by name to `root` and `fixed_point` of every backend.

    Parameters
    ----------
    name : str
    factory : callable
        Called without arguments for each solve; returns a `Solver`. A class will do.
    backends : iterable of str, optional
        Backends it runs on, among "numpy", "torch", "jax" and those of other adapters; default: every one.

    Raises
    ------
    DuplicateNameError
        If the name is taken.

    Notes
    -----
    A package registers its solvers without being imported first through entry points of the group
    ``rootdiff.solvers`` (adjoints: ``rootdiff.adjoints``), each naming a factory.

    Examples
    --------
    >>> import rootdiff
    >>> rootdiff.register_solver("patient-newton", lambda: rootdiff.Newton(max_steps=500))
    >>> rootdiff.get_solver("patient-newton").max_steps
    500
    """
    SOLVERS.register(name, factory, backends)


def register_adjoint(name: str, factory: Callable[..., Any], backends: Iterable[str] | None = None) -> None:
    """Make an adjoint solver known by name; as `register_solver`.

    Parameters
    ----------
    name : str
    factory : callable
        Called without arguments for each solve; returns a `LinearSolver`. Or the solver itself as a plain function
        ``(operator, rhs) -> x`` from a `LinearOperator` and right-hand sides, (*batch, n); what it returns is
        checked by one product.
    backends : iterable of str, optional
        As for `register_solver`.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.register_adjoint("long-gmres", lambda: rootdiff.GMRES(restart=100))
    >>> rootdiff.get_adjoint("long-gmres").restart
    100
    >>> rootdiff.register_adjoint("inverse", lambda operator, rhs: np.linalg.inv(operator.dense()) @ rhs)
    """
    if callable(factory) and _takes(factory, 2) and not _takes(factory, 0):
        factory = partial(LinearFunction, factory)
    ADJOINTS.register(name, factory, backends)


def _takes(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with this many arguments."""
    try:
        inspect.signature(function).bind(*range(count))
    except (TypeError, ValueError):
        return False
    return True


def get_solver(name: str | Solver, backend: str | None = None) -> Solver:
    """Return the solver of a registered name; a solver is returned as it is.

    Parameters
    ----------
    name : str or Solver
    backend : str, optional
        Backend that it must run on.

    Raises
    ------
    UnknownNameError
        If the name is not registered, or not for this backend; the message lists those that are.

    Examples
    --------
    >>> import rootdiff
    >>> rootdiff.get_solver("newton").max_steps
    100
    """
    return SOLVERS.get(name, backend)


def get_minimizer(name: str | Solver, backend: str | None = None) -> Solver:
    """Return the solver of a name that `least_squares` and `minimize` know; the rest is as for `get_solver`."""
    if isinstance(name, str) and name in MINIMIZERS.names(backend):
        return MINIMIZERS.get(name, backend)
    return SOLVERS.get(name, backend, MINIMIZERS)


def get_adjoint(name: str | LinearSolver, backend: str | None = None) -> LinearSolver:
    """Return the adjoint solver of a registered name; as `get_solver`.

    Examples
    --------
    >>> import rootdiff
    >>> rootdiff.get_adjoint("lu")
    LU()
    """
    return ADJOINTS.get(name, backend)


def available_solvers(backend: str | None = None) -> tuple[str, ...]:
    """Return the names of the registered solvers, those of plug-ins included.

    Parameters
    ----------
    backend : str, optional
        Only those that run on this backend.

    Examples
    --------
    >>> import rootdiff
    >>> "newton" in rootdiff.available_solvers("numpy")
    True
    """
    return SOLVERS.names(backend)


def available_adjoints(backend: str | None = None) -> tuple[str, ...]:
    """Return the names of the registered adjoint solvers; as `available_solvers`.

    Examples
    --------
    >>> import rootdiff
    >>> "lu" in rootdiff.available_adjoints()
    True
    """
    return ADJOINTS.names(backend)


for _name, _solver in {
    "auto": solvers.Auto,
    "newton": solvers.Newton,
    "broyden": solvers.Broyden,
    "anderson": solvers.Anderson,
    "fixed_point": solvers.FixedPoint,
    "trust_region": solvers.TrustRegion,
    "levenberg_marquardt": solvers.LevenbergMarquardt,
    "chord": solvers.Chord,
    "newton_krylov": solvers.NewtonKrylov,
    "pseudo_transient": solvers.PseudoTransient,
    "df_sane": solvers.DFSane,
    "chandrupatla": solvers.Chandrupatla,
    "itp": solvers.ITP,
    "bisection": solvers.Bisection,
    "bracketed_newton": solvers.BracketedNewton,
}.items():
    register_solver(_name, _solver)
for _method in ("hybr", "lm", "krylov", "broyden1", "anderson", "df-sane"):
    register_solver(f"scipy:{_method}", partial(solvers.SciPy, method=_method))
for _method in get_args(Method):
    _entry = "least_squares" if _method in OF_SQUARES else "minimize"
    MINIMIZERS.register(f"scipy:{_entry}:{_method}", partial(solvers.SciPyMinimizer, method=_method))
MINIMIZERS.register("gauss_newton", solvers.GaussNewton)
MINIMIZERS.register("newton_trust_region", solvers.NewtonTrustRegion)
for _name, _adjoint in {
    "auto": linear.AutoLinear,
    "lu": linear.LU,
    "sparse_lu": linear.SparseLU,
    "lstsq": linear.LeastSquares,
    "gmres": linear.GMRES,
    "bicgstab": linear.BiCGStab,
    "cg": linear.CG,
    "lsmr": linear.LSMR,
    "one_step": linear.OneStep,
    "neumann": linear.Neumann,
    "phantom": linear.Phantom,
    "reuse": linear.Reuse,
}.items():
    register_adjoint(_name, _adjoint)
