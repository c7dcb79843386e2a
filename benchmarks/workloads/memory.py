"""Memory of value and gradient against the number of solver steps, of a slow contraction."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Problem, Row, Workload
from benchmarks.workloads import deq

#: Spectral norm of the matrix: so slow a contraction still moves after hundreds of steps.
_RATE = 0.99


def build(steps: int, batch: int = 128, width: int = 512) -> Problem:
    """Return a cell, all of whose contenders take the same number of steps."""
    rng = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((width, width)))
    x = 0.1 * rng.standard_normal((batch, width))
    return Problem(
        residual=lambda xp, z, W, x: xp.tanh(z @ W.T + x) - z,
        cell=lambda xp, z, W, x: xp.tanh(z @ W.T + x),
        y0=np.zeros((batch, width), np.float32),
        args=((_RATE * orthogonal).astype(np.float32), x.astype(np.float32)),
        weights=rng.standard_normal((batch, width)).astype(np.float32),
        reference=deq.reference,
        accuracy=1e9,
        batch_ndim=1,
        batched=(False, True),
        steps=steps,
    )


def _ours(problem: Problem) -> dict[str, Any]:
    import rootdiff

    solver = rootdiff.FixedPoint(max_steps=problem.steps, rtol=0.0, atol=0.0)
    adjoint = rootdiff.GMRES(rtol=1e-4, max_restarts=2)  # about as many products as the peers allow
    return {"call": "fixed_point", "solver": solver, "adjoint": adjoint, "on_failure": "ignore"}


def _torchdeq(problem: Problem) -> dict[str, Any]:
    name = "fixed_point_iter"
    return {"f_solver": name, "b_solver": name, "f_max_iter": problem.steps, "f_tol": 0.0, "b_tol": 1e-4}


def _jaxopt(problem: Problem) -> dict[str, Any]:
    options = {"solver": "FixedPointIteration", "linear": "solve_gmres", "whole": True}
    return {**options, "maxiter": problem.steps, "tol": 0.0}


UNROLLED = {"method": "fixed point"}
ROWS = (
    Row("rootdiff_torch", "fixed_point, gmres", _ours),
    Row("rootdiff_jax", "fixed_point, gmres", _ours),
    Row("TorchDEQ", "fixed_point_iter", _torchdeq),
    Row("JAXopt", "FixedPointIteration, gmres", _jaxopt),
    Row("back-propagation, torch", "unrolled", UNROLLED),
    Row("back-propagation, JAX", "unrolled", UNROLLED),
)

MEMORY = Workload(
    "Memory against solver steps",
    build,
    {f"{steps} steps": {"steps": steps} for steps in (10, 30, 100, 300)},
    ROWS,
    full=("30 steps", "300 steps"),
    note="Peak memory is what this is about; few steps do not reach the root, and the error of the gradient says so.",
)
