"""A dense system whose Jacobian has a given condition number."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Problem, Reference, Row, Workload
from benchmarks.workloads import _floors

#: Errors in units of eps times the condition that still count: a factor n for a solve by LU.
_ALLOWED = 50


def build(condition: float, n: int = 50) -> Problem:
    """Return ``A y = b`` with singular values of A spaced by equal factors from 1 down."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    matrix = (left * np.logspace(0, -np.log10(condition), n)) @ right.T
    return Problem(
        residual=lambda xp, y, A, b: A @ y - b,
        y0=np.zeros(n),
        args=(matrix, matrix @ rng.standard_normal(n)),
        weights=rng.standard_normal(n),
        reference=reference,
        accuracy=max(1e-6, _ALLOWED * float(np.finfo(float).eps) * condition),
        batched=(False, False),
        jacobian=lambda y, A, b: A,
        pullback=lambda y, u, A, b: (np.outer(u, y), -u),
    )


def reference(problem: Problem) -> Reference:
    """Solve with 60 digits."""
    import mpmath

    matrix, b = problem.args
    with mpmath.workdps(60):
        y = mpmath.lu_solve(mpmath.matrix(matrix.tolist()), mpmath.matrix(b.tolist()))
        u = mpmath.lu_solve(mpmath.matrix(matrix.T.tolist()), mpmath.matrix(problem.weights.tolist()))
    y, u = (np.array([float(value) for value in vector]) for vector in (y, u))
    return Reference(y, (-np.outer(u, y), u), 1)


def casadi_residual(ca: Any, y: Any, A: Any, b: Any) -> Any:
    return A @ y - b


_BROYDEN = {"f_solver": "broyden", "b_solver": "broyden", "damping": 1.0, "f_max_iter": 200, "b_max_iter": 200}
ROWS = (
    Row("floor", "NumPy's solve", prepare=_floors.numpy_newton),
    Row("rootdiff", "auto, derivatives given", {"given": True}),
    Row("rootdiff_torch", "auto"),
    Row("rootdiff_torch", "newton, lstsq", {"solver": "newton", "adjoint": "lstsq"}, full=True),
    Row("rootdiff_jax", "auto"),
    Row("rootdiff_jax", "newton, lu", {"solver": "newton", "adjoint": "lu"}),
    Row("rootdiff_jax", "newton, lstsq", {"solver": "newton", "adjoint": "lstsq"}, full=True),
    Row("SciPy", "hybr, Jacobian given", {"method": "hybr", "tol": 1e-12}),
    Row("Optimistix", "Newton", {"rtol": 1e-10, "atol": 1e-10}),
    Row("JAXopt", "Broyden, normal_cg", {"solver": "Broyden", "tol": 1e-10}, full=True),
    Row("JAXopt", "Broyden, lu", {"solver": "Broyden", "tol": 1e-10, "linear": "solve_lu"}),
    Row("lax.custom_root by hand", "Newton, LU"),
    Row("PyTorch by hand", "Newton, LU"),
    Row("TorchDEQ", "broyden", {**_BROYDEN, "f_tol": 1e-10, "b_tol": 1e-10}),
    Row("TorchOpt", "Newton by hand, its solve_normal_cg", {"linear": "solve_normal_cg"}),
    Row("xitorch", "broyden1, exactsolve", {"f_tol": 1e-12, "maxiter": 500, "backward": {"method": "exactsolve"}}),
    Row("back-propagation, torch", "Newton, unrolled"),
    Row("back-propagation, JAX", "Newton, unrolled"),
    Row("CasADi", "newton", {"residual": casadi_residual}),
)

CONDITION = Workload(
    "50 x 50 with a given condition",
    build,
    {"1e4": {"condition": 1e4}, "1e8": {"condition": 1e8}, "1e12": {"condition": 1e12}},
    ROWS,
    full=("1e4", "1e8"),
)
