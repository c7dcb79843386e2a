"""What a call costs beside its work: one unknown, one parameter."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem, Reference, Row, Workload


def build() -> Problem:
    return Problem(
        residual=lambda xp, y, a: y**3 + y - a,
        cell=lambda xp, y, a: a / (1 + y**2),
        y0=np.ones(1),
        args=(np.array([3.0]),),
        weights=np.ones(1),
        reference=reference,
        accuracy=1e-6,
        jacobian=lambda y, a: (3 * y**2 + 1)[..., None],
        pullback=lambda y, u, a: (-u,),
    )


def reference(problem: Problem) -> Reference:
    """Cardano's formula."""
    (a,), root = problem.args, np.sqrt(problem.args[0] ** 2 / 4 + 1 / 27)
    y = np.cbrt(a / 2 + root) + np.cbrt(a / 2 - root)
    return Reference(y, (1 / (3 * y**2 + 1),), 5)


def floor(problem: Problem) -> Calls:
    """Newton's steps in Python's floats."""
    a, steps = float(problem.args[0][0]), problem.solved.steps

    def forward() -> tuple[Any, Any]:
        y = 1.0
        for _ in range(steps):
            y -= (y**3 + y - a) / (3 * y**2 + 1)
        return np.array([y]), steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        return y, (1 / (3 * y**2 + 1),)

    return Calls(forward, gradient)


_NEWTON = {"solver": "newton", "adjoint": "lu"}
_FRESH = (("same function", "same"), ("fresh closure", "fresh"))
_JAX = (("jitted", "jitted"), *_FRESH)
_DEQ = {"f_solver": "broyden", "b_solver": "broyden", "damping": 0.25, "f_tol": 1e-9, "b_tol": 1e-9}

ROWS = (
    Row("floor", "Newton's steps in Python", prepare=floor),
    Row("rootdiff", "auto"),
    Row("rootdiff", "newton, lu", _NEWTON),
    Row("rootdiff", "newton, lu, derivatives given", {**_NEWTON, "given": True}),
    *(Row("rootdiff_torch", f"auto, {name}", {"mode": mode}, full=mode == "fresh") for name, mode in _FRESH),
    *(Row("rootdiff_torch", f"newton, lu, {name}", {**_NEWTON, "mode": mode}) for name, mode in _FRESH),
    *(Row("rootdiff_jax", f"auto, {name}", {"mode": mode}, full=mode == "fresh") for name, mode in _JAX),
    *(Row("rootdiff_jax", f"newton, lu, {name}", {**_NEWTON, "mode": mode}) for name, mode in _JAX),
    Row("SciPy", "hybr, Jacobian given", {"method": "hybr", "tol": 1e-10}),
    *(Row("Optimistix", f"Newton, {name}", {"mode": mode}) for name, mode in _JAX),
    *(
        Row(
            "JAXopt",
            f"Broyden, {name}",
            {"solver": "Broyden", "tol": 1e-9, "linear": "solve_lu", "mode": mode},
            full=mode != "jitted",
        )
        for name, mode in _JAX
    ),
    *(Row("lax.custom_root by hand", f"Newton, {name}", {"mode": mode}, full=mode == "fresh") for name, mode in _JAX),
    *(Row("PyTorch by hand", f"Newton, {name}", {"mode": mode}, full=mode == "fresh") for name, mode in _FRESH),
    Row("TorchDEQ", "broyden", _DEQ),
    Row("TorchOpt", "Newton by hand, solve_inv", {"linear": "solve_inv", "ns": False}),
    Row(
        "xitorch", "broyden1, exactsolve", {"method": "broyden1", "f_tol": 1e-10, "backward": {"method": "exactsolve"}}
    ),
    Row("back-propagation, torch", "Newton, unrolled"),
    Row("back-propagation, JAX", "Newton, unrolled, jitted"),
    Row("CasADi", "newton", {"residual": lambda ca, y, a: y**3 + y - a}),
)

OVERHEAD = Workload("Call overhead", build, {"n = 1": {}}, ROWS)
