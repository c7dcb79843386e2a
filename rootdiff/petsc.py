"""PETSc for NumPy (extra ``petsc``): importing this registers solvers and adjoints ``petsc:...``.

All processes of ``PETSc.COMM_WORLD`` make the same calls with the same values. In each of them the residual sees all
unknowns; matrices, their factors and Krylov spaces are spread over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

try:
    from petsc4py import PETSc
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "rootdiff.petsc: petsc4py is not installed. How to install it beside a PETSc: docs/devices.md.", name="petsc4py"
    ) from error

from rootdiff._backend import Array
from rootdiff._operator import LinearOperator
from rootdiff._registry import register_adjoint, register_solver
from rootdiff._residual import Residual
from rootdiff._settings import runtime, with_settings
from rootdiff._solution import Status
from rootdiff._sparse import Sparse
from rootdiff._sparsity import Pattern
from rootdiff.linear import LinearInfo, LinearSolver
from rootdiff.linear._base import MARGIN, finite_status
from rootdiff.linear._lu import check_entries
from rootdiff.solvers import SciPy
from rootdiff.solvers._scipy import System

__all__ = ["KSP", "SNES"]

#: The nonlinear solvers of PETSc that use the Jacobian.
_NEWTON = ("newtonls", "newtontr")


@dataclass(frozen=True, kw_only=True)
class KSP(LinearSolver):
    """A linear solver of PETSc, for a Jacobian with a `jac_sparsity`, or a small one.

    Parameters
    ----------
    method : str
        A type of KSP (Balay et al., "PETSc/TAO Users Manual", ANL-21/39).
    pc : str, optional
        A type of preconditioner. Default: PETSc's, incomplete LU in each process; for "preonly" ``lu``, by MUMPS.
    rtol, max_steps
        Relative residual of a solution, by default ten times the accuracy of the Jacobian; and steps allowed.
    """

    method: str = "gmres"
    pc: str | None = None
    rtol: float | None = runtime(None)
    max_steps: int = 10_000

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        original, x = operator.original, np.empty_like(rhs)
        pattern, values = _entries(original)
        lead = rhs.ndim + 1 - len(original.shape)
        for system in np.ndindex(rhs.shape[lead:-1]):
            matrix = _Matrix(rhs.shape[-1], pattern)
            matrix.put(values[system])
            ksp = PETSc.KSP().create(PETSc.COMM_WORLD)
            self.set(ksp, float(self.tolerance(operator)) / MARGIN)
            ksp.setOperators(matrix.mat)
            for several in np.ndindex(rhs.shape[:lead]):
                matrix.of_b.setArray(rhs[several + system][matrix.own])
                (ksp.solveTranspose if operator.transposed else ksp.solve)(matrix.of_b, matrix.of_x)
                failed = ksp.getConvergedReason() == PETSc.KSP.ConvergedReason.DIVERGED_PCSETUP_FAILED
                x[several + system] = np.nan if failed else matrix.whole(matrix.of_x)
        return x, LinearInfo(finite_status(operator.backend.xp, x, Status.SINGULAR))

    def set(self, ksp: Any, rtol: float) -> None:
        """Make a KSP of PETSc one of these settings."""
        ksp.setType(self.method)
        ksp.setTolerances(rtol=rtol, atol=0.0, max_it=self.max_steps)
        chosen = "lu" if self.pc is None and self.method == "preonly" else self.pc
        if chosen is not None:
            ksp.getPC().setType(chosen)
        if chosen == "lu":
            ksp.getPC().setFactorSolverType("mumps")


@dataclass(frozen=True, kw_only=True)
class SNES(SciPy):
    """A nonlinear solver of PETSc; whether a point is a root is judged by rootdiff, as of `SciPy`.

    Parameters
    ----------
    method : str
        A type of SNES. ``newtonls`` and ``newtontr`` use the exact Jacobian.
    linear : KSP
        What solves for their steps.
    rtol, atol, max_steps
        As of `SciPy`.
    """

    method: str = "newtonls"  # type: ignore[assignment]
    linear: KSP = KSP(method="preonly")
    library, pattern = "PETSc", None

    def found(self, residual: Residual, y0: Array) -> tuple[Array, Array]:
        def values(y: Any) -> Any:
            return _entries(residual.operator(y))[1]

        solver = with_settings(self, pattern=residual.pattern)
        return solver._solve_batch(residual, values if self.method in _NEWTON else None, y0)

    def _run(self, system: System, goal: float) -> int:
        matrix, snes = _Matrix(system.best.size, self.pattern), PETSc.SNES().create(PETSc.COMM_WORLD)
        jacobian = system.jacobian

        def evaluate(_: Any, x: Any, f: Any) -> None:
            f.setArray(system(matrix.whole(x))[matrix.own])

        snes.setType(self.method)
        snes.setFunction(evaluate, matrix.of_b)
        if jacobian is not None:
            snes.setJacobian(lambda _, x, *__: matrix.put(jacobian(matrix.whole(x))), matrix.mat)
            self.linear.set(snes.getKSP(), 1e-5)
        snes.setTolerances(rtol=0.0, atol=goal, stol=self.rtol, max_it=self.max_steps)
        matrix.of_x.setArray(system.best[matrix.own])
        snes.solve(None, matrix.of_x)
        return int(snes.getIterationNumber())


class _Matrix:
    """A matrix of n unknowns and two vectors, of which this process has its `own` rows."""

    def __init__(self, n: int, pattern: Pattern | None) -> None:
        PETSc.garbage_cleanup(PETSc.COMM_WORLD)  # frees, on all processes, what each has let go of
        self.of_x, self.of_b = (PETSc.Vec().createMPI(n, comm=PETSc.COMM_WORLD) for _ in range(2))
        first, last = self.of_x.getOwnershipRange()
        if pattern is None:
            rows, columns = np.divmod(np.arange(n * n), n)
        else:
            rows, columns = pattern.rows.astype(np.int64), pattern.indices
        on_diagonal = np.arange(n) * (n + 1)  # PETSc wants these
        keys, self._places = np.unique(np.concatenate([rows * n + columns, on_diagonal]), return_inverse=True)
        self.own, self._here = slice(first, last), slice(*np.searchsorted(keys, [first * n, last * n]))
        ends = np.searchsorted(keys[self._here], n * np.arange(first, last + 1))
        self._rows = ends.astype(PETSc.IntType), (keys[self._here] % n).astype(PETSc.IntType)
        sizes, csr = (last - first, n), (*self._rows, np.zeros(ends[-1] - ends[0]))
        self.mat = PETSc.Mat().createAIJ((sizes, sizes), csr=csr, comm=PETSc.COMM_WORLD)
        self._scatter, self._all = PETSc.Scatter.toAll(self.of_x)

    def put(self, values: Any) -> None:
        """Set the entries, those of the pattern or all."""
        given = np.ravel(values)
        summed = np.bincount(self._places[: given.size], given, minlength=self._places.max() + 1)
        self.mat.setValuesCSR(*self._rows, summed[self._here])
        self.mat.assemble()

    def whole(self, vector: Any) -> Any:
        """Return all numbers of a vector, (n,)."""
        self._scatter.scatter(vector, self._all)
        return self._all.getArray().copy()


def _entries(operator: LinearOperator) -> tuple[Pattern | None, Any]:
    """Return the pattern of matrices and their values on it, (*batch, entries), or all, (*batch, n, n)."""
    check_entries(operator)
    if isinstance(operator, Sparse):
        return operator.pattern, operator.entries().values
    return None, operator.dense()


for _method in (*_NEWTON, "anderson", "ngmres", "nrichardson"):
    register_solver(f"petsc:{_method}", partial(SNES, method=_method), ["numpy"])
for _method in ("bcgs", "bicg", "cg", "fgmres", "gmres", "minres", "preonly", "tfqmr"):
    register_adjoint(f"petsc:{_method}", partial(KSP, method=_method), ["numpy"])
