"""Libraries that factor sparse matrices: each yields, of a matrix, functions that solve with it, the quickest first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias
from weakref import WeakKeyDictionary, finalize

import numpy as np
from scipy.sparse.linalg import splu

#: From right-hand sides, (n, count), and whether the matrix is transposed, to the solutions.
Solve: TypeAlias = Callable[[Any, bool], Any]

#: Columns in an order that few entries fill, with a pivot from the diagonal unless it is a thousand times too small: of
#: a circuit or a grid that takes a hundredth of the time of the default order. Then any order, and the largest pivot.
_WAYS: tuple[dict[str, Any], ...] = (
    {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 1e-3, "options": {"SymmetricMode": True}},
    {"permc_spec": "COLAMD", "diag_pivot_thresh": 1.0},
)
#: A matrix so far from symmetric, by differences, counts as such; the part of a residual, and the cycles, of multigrid.
_SYMMETRIC, _REDUCED, _CYCLES = 1e-6, 1e-10, 100
#: What rslab has found out of each pattern.
_ANALYSED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
Library = Literal["superlu", "rslab", "pardiso", "pyamg"]
#: The module of each.
_MODULES: dict[Library, str] = {"superlu": "scipy", "rslab": "rslab", "pardiso": "pypardiso", "pyamg": "pyamg"}


def is_there(library: Library) -> bool:
    """Return whether a library is installed."""
    return find_spec(_MODULES[library]) is not None


def ways(library: str, pattern: Any, matrix: Any) -> Iterator[Solve]:
    """Yield what solves with a `matrix`, in rows, of a `pattern`: that of the `library`, and those of SuperLU."""
    if library != "superlu":
        yield from {"rslab": _rslab, "pardiso": _pardiso, "pyamg": _pyamg}[library](pattern, matrix)
    columns = matrix.tocsc()
    for way in _WAYS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                factors = splu(columns, **way)
        except RuntimeError:  # "Factor is exactly singular"
            continue
        yield partial(_by_superlu, factors)


def _by_superlu(factors: Any, rhs: Any, transpose: bool) -> Any:
    return factors.solve(rhs, trans="T" if transpose else "N")


def _rslab(pattern: Any, matrix: Any) -> Iterator[Solve]:
    """KLU for networks, supernodal elimination for grids, as rslab chooses: once for a pattern, if that serves."""
    rslab, columns = import_module("rslab"), matrix.tocsc()
    for anew in (pattern not in _ANALYSED, True):
        try:
            if anew:  # its order of rows goes by these values
                _ANALYSED[pattern] = rslab.analyze(columns)
            factors = _ANALYSED[pattern].factor(columns.data)
        except RuntimeError:  # "numerically singular"
            continue
        if not factors.n_perturbed:
            yield partial(_by_rslab, factors)


def _by_rslab(factors: Any, rhs: Any, transpose: bool) -> Any:
    solve = factors.solve_transpose if transpose else factors.solve
    return np.stack([solve(column) for column in np.ascontiguousarray(rhs.T)], axis=-1)


def _pardiso(pattern: Any, matrix: Any) -> Iterator[Solve]:
    """MKL's PARDISO, which solves with the transpose where a matrix is given by columns."""
    module = import_module("pypardiso")
    solver = module.PyPardisoSolver()

    def solve(rhs: Any, transpose: bool) -> Any:
        return solver.solve(matrix.T if transpose else matrix, rhs)

    finalize(solve, solver.free_memory, everything=True)
    try:
        solver.factorize(matrix)
    except (module.PyPardisoError, ValueError):  # "Matrix A is singular, because it contains empty row(s)"
        return
    if not solver.get_iparm(14):  # the pivots that were too small, and were made larger
        yield solve


def _pyamg(pattern: Any, matrix: Any) -> Iterator[Solve]:
    """Krylov steps behind multigrid, by smoothed aggregation: for large grids, of which factors would fill memory."""
    amg, sign = import_module("pyamg"), np.sign(matrix.trace()) or 1.0
    symmetric = abs(matrix - matrix.T).max() <= _SYMMETRIC * abs(matrix).max()
    kind, steps = ("symmetric", "cg") if symmetric else ("nonsymmetric", "bicgstab")

    @cache
    def levels(transpose: bool) -> Any:
        return amg.smoothed_aggregation_solver(sign * (matrix.T if transpose else matrix).tocsr(), symmetry=kind)

    def solve(rhs: Any, transpose: bool) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cycles = levels(transpose and not symmetric)
            found = [cycles.solve(sign * column, tol=_REDUCED, maxiter=_CYCLES, accel=steps) for column in rhs.T]
        return np.stack(found, axis=-1)

    yield solve
