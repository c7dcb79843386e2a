"""One slow system in a batch: cubes, from whose far side Newton's method comes back by a third per step."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem, Reference, Row, Workload

#: Where the slow system starts, in units of its root: from there Newton's method takes 67 steps.
_FAR = 1e11


def build(batch: int = 256, n: int = 16) -> Problem:
    rng = np.random.default_rng(0)
    mix = np.eye(n) + 0.3 * rng.standard_normal((n, n)) / n**0.5
    values = rng.uniform(0.5, 2.0, (batch, n))
    start = np.ones((batch, n))
    start[batch // 2] = _FAR
    return Problem(
        residual=lambda xp, y, L, a: (L @ y[..., None])[..., 0] ** 3 - a,
        y0=np.linalg.solve(mix, start.T).T,
        args=(mix, values),
        weights=rng.standard_normal((batch, n)),
        reference=reference,
        accuracy=1e-6,
        batch_ndim=1,
        batched=(False, True),
        jacobian=lambda y, L, a: 3 * ((L @ y[..., None]) ** 2) * L,
        pullback=lambda y, u, L, a: (np.einsum("bi,bi,bj->ij", u, 3 * (y @ L.T) ** 2, y), -u),
    )


def reference(problem: Problem) -> Reference:
    """Return cube roots, mapped back; the steps are those of the easy systems."""
    mix, values = problem.args
    z = np.cbrt(values)
    y = np.linalg.solve(mix, z.T).T
    u = np.linalg.solve(mix.T, problem.weights.T).T
    return Reference(y, (-u.T @ y, u / (3 * z**2)), _steps(values, 1.0))


def _steps(values: Any, start: float) -> int:
    z, root, count = np.full_like(values, start), np.cbrt(values), 0
    while np.max(np.abs(z / root - 1)) > 1e-9:
        z, count = z - (z**3 - values) / (3 * z**2), count + 1
    return count


def floor(problem: Problem) -> Calls:
    """Newton's method for all systems as long as the easy ones need it, then for the slow one alone."""
    (mix, values), jacobian, pullback = problem.args, problem.jacobian, problem.pullback
    assert jacobian is not None
    assert pullback is not None
    slow = slice(len(values) // 2, len(values) // 2 + 1)
    few, many = problem.solved.steps, _steps(values[slow], _FAR)

    def step(y: Any, a: Any) -> Any:
        return y - np.linalg.solve(jacobian(y, mix, a), problem.residual(np, y, mix, a)[..., None])[..., 0]

    def forward() -> tuple[Any, Any]:
        y = problem.y0
        for _ in range(few):
            y = step(y, values)
        one = y[slow]
        for _ in range(many - few):
            one = step(one, values[slow])
        return np.concatenate([y[: slow.start], one, y[slow.stop :]]), many

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        u = np.linalg.solve(np.swapaxes(jacobian(y, mix, values), -1, -2), problem.weights[..., None])[..., 0]
        return y, tuple(-g for g in pullback(y, u, mix, values))

    return Calls(forward, gradient)


ROWS = (
    Row("floor", "NumPy's solve, the slow one alone", prepare=floor),
    *(
        Row(library, f"newton, lu, {name}", {**given, "solver": "newton", "adjoint": "lu", **options})
        for library, given in (("rootdiff", {"given": True}), ("rootdiff_torch", {}), ("rootdiff_jax", {}))
        for name, options in (("whole", {}), ("batched_args", {"batched_args": (None, 0)}))
    ),
    Row(
        "rootdiff_torch",
        "newton, lu, CUDA graph",
        {"solver": "newton", "adjoint": "lu", "cuda_graph": True},
        device="cuda",
    ),
    *(
        Row(library, name, settings)
        for library in ("rootdiff_torch", "rootdiff_jax")
        for name, settings in (("auto", {}), ("auto, batched_args", {"batched_args": (None, 0)}))
    ),
    Row("SciPy", "hybr, one by one, Jacobian given", {"method": "hybr", "tol": 1e-10}),
    Row("Optimistix", "Newton, vmap"),
    Row("JAXopt", "Broyden, lu, vmap", {"solver": "Broyden", "tol": 1e-9, "linear": "solve_lu"}),
    Row("lax.custom_root by hand", "Newton, LU, vmap"),
    Row("PyTorch by hand", "Newton, LU, vmap"),
    Row(
        "TorchDEQ",
        "broyden",
        {"f_solver": "broyden", "b_solver": "broyden", "damping": 0.1, "f_max_iter": 100, "f_tol": 1e-9},
    ),
    Row("TorchOpt", "Newton by hand, its implicit gradient", {"linear": "solve_normal_cg", "rtol": 1e-10, "atol": 0.0}),
    Row("xitorch", "broyden1", cannot="has no batch: one system of 4096 unknowns, which the slow one's scale hides"),
    Row("back-propagation, torch", "Newton, 67 steps unrolled", {"steps": 67}),
    Row("back-propagation, JAX", "Newton, 67 steps unrolled", {"steps": 67}),
    Row("CasADi", "newton, mapped", cannot="the matrix is shared: its map would copy it for each system"),
)

SLOW = Workload(
    "One slow system in a batch", build, {"256 systems, 67 Newton steps for one, 5 for the others": {}}, ROWS
)
