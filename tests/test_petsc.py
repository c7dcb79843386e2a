"""PETSc's solvers and adjoints, on one process and on two of MPI; skipped where petsc4py is not installed."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rootdiff as rd

N = 61
A = np.linspace(0.5, 2.0, 2)
W = np.sin(np.arange(N))


def field(y: Any, a: Any) -> Any:
    """Couple neighbours in a ring, not symmetrically."""
    return 3 * y + a[0] * y**3 - np.roll(y, 1) - 0.5 * np.roll(y, -1) - a[1] * np.cos(np.arange(N))


def check(**options: Any) -> None:
    """Compare a root and its derivatives with those by Newton's method and LU, of the Jacobian written out."""
    sol = rd.root(field, np.zeros(N), A, jac_sparsity="detect", derivatives="complex-step", **options)
    y = rd.root(field, np.zeros(N), A, solver="newton").y
    np.testing.assert_allclose(sol.y, y, rtol=0, atol=1e-11)
    jacobian = np.diag(3 + 3 * A[0] * y**2) - np.roll(np.eye(N), 1, 0) - 0.5 * np.roll(np.eye(N), -1, 0)
    of_a = np.stack([y**3, -np.cos(np.arange(N))], axis=-1)
    np.testing.assert_allclose(sol.vjp(W)[0], -np.linalg.solve(jacobian.T, W) @ of_a, rtol=1e-10)
    np.testing.assert_allclose(sol.jvp(A), -np.linalg.solve(jacobian, of_a @ A), rtol=0, atol=1e-10)


def names(known: Any) -> list[str]:
    importlib.import_module("rootdiff.petsc")
    return [name for name in known("numpy") if name.startswith("petsc:")]


def test_solvers_and_adjoints_of_petsc() -> None:
    pytest.importorskip("petsc4py")
    for solver in names(rd.available_solvers):
        check(solver=solver, adjoint="petsc:gmres")
    for adjoint in names(rd.available_adjoints):
        if adjoint not in ("petsc:cg", "petsc:minres"):  # for symmetric matrices
            check(solver="newton", adjoint=adjoint)
    with pytest.raises(rd.AdjointError, match="STALLED"):
        check(solver="newton", adjoint=sys.modules["rootdiff.petsc"].KSP(max_steps=1, pc="none"))


def test_batches_and_small_matrices_of_petsc() -> None:
    pytest.importorskip("petsc4py")
    names(rd.available_solvers)
    a = np.array([[1.0, 8.0], [27.0, 64.0]])
    sol = rd.root(
        lambda y, a: y**3 - a, np.ones((2, 2)), a, batch_ndim=1, solver="petsc:newtonls", adjoint="petsc:preonly"
    )
    np.testing.assert_allclose(sol.y, np.cbrt(a), rtol=1e-12)
    np.testing.assert_allclose(sol.vjp(np.ones((2, 2)))[0], 1 / (3 * np.cbrt(a) ** 2), rtol=1e-8)
    with pytest.raises(rd.ConvergenceError, match=r"1 of 2 systems"):
        rd.root(lambda y, a: y**2 - a, np.ones((2, 1)), a[0][:, None] - 2, batch_ndim=1, solver="petsc:newtonls")
    with pytest.raises(rd.ArgumentError, match="nothing tells where the Jacobian has entries"):
        rd.root(lambda y: y - 1, np.zeros(2000), solver="petsc:newtonls", jac_sparsity=None)


@pytest.mark.skipif(shutil.which("mpirun") is None, reason="there is no mpirun")
def test_two_processes_of_mpi() -> None:
    pytest.importorskip("petsc4py")
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", sys.executable, "-m", "tests.test_petsc"]
    root = Path(__file__).parent.parent
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("OMPI_", "PMIX_"))}
    done = subprocess.run(command, cwd=root, env=outside, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout.count("holds") == 2, done.stderr[-4000:]


if __name__ == "__main__":
    names(rd.available_solvers)
    check(solver="petsc:newtonls", adjoint="petsc:preonly")
    check(solver="petsc:ngmres", adjoint="petsc:gmres")
    print("holds")
