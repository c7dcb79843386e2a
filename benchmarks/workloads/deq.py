"""A deep equilibrium cell: ``z = tanh(W z + x)``, float32, differentiated in W and x."""

from __future__ import annotations

from typing import Any

import numpy as np

import rootdiff
from benchmarks.problem import Calls, Problem, Reference, Row, Workload

#: Relative change of root and adjoint at which the floor stops; a gradient has to be right to a part in 1e3.
_CLOSE = 1e-5


def build(batch: int = 256, width: int = 512) -> Problem:
    """Return a cell whose matrix has independent normal entries and spectral norm 0.9."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((width, width))
    weight *= 0.9 / np.linalg.norm(weight, 2)
    x = rng.standard_normal((batch, width))
    return Problem(
        residual=lambda xp, z, W, x: xp.tanh(z @ W.T + x) - z,
        cell=lambda xp, z, W, x: xp.tanh(z @ W.T + x),
        y0=np.zeros((batch, width), np.float32),
        args=(weight.astype(np.float32), x.astype(np.float32)),
        weights=rng.standard_normal((batch, width)).astype(np.float32),
        reference=reference,
        accuracy=1e-3,
        batch_ndim=1,
        batched=(False, True),
        pullback=lambda z, u, W, x: ((u * _slope(z, W, x)).T @ z, u * _slope(z, W, x)),
        pushforward=lambda z, v, W, x: _slope(z, W, x) * (v @ W.T) - v,
        args_forward=lambda z, tangents, W, x: _slope(z, W, x) * (z @ tangents[0].T + tangents[1]),
        transposed=lambda z, u, W, x: (u * _slope(z, W, x)) @ W - u,
    )


def _slope(z: Any, W: Any, x: Any) -> Any:
    return 1 - np.tanh(z @ W.T + x) ** 2


def reference(problem: Problem) -> Reference:
    """Iterate the contraction in float64 to rounding, and solve a dense system for each gradient."""
    weight, x = (a.astype(float) for a in problem.args)
    z, steps, change = problem.y0.astype(float), 0, 1.0
    while change > 1e-15 and steps < 3000:
        new = np.tanh(z @ weight.T + x)
        z, change, steps = new, float(np.max(np.abs(new - z))), steps + 1
    slope, eye = 1 - z**2, np.eye(weight.shape[0])
    w = problem.weights.astype(float)
    v = np.stack([s * np.linalg.solve((eye - s[:, None] * weight).T, c) for s, c in zip(slope, w, strict=True)])
    return Reference(z, (v.T @ z, v), steps)


def _counts(problem: Problem) -> tuple[int, int]:
    """Return how many evaluations, and how many products with the transposed Jacobian, plain iteration needs."""
    (weight, x), z, forward = problem.args, problem.y0, 0
    change = np.inf
    while change > _CLOSE:
        new = np.tanh(z @ weight.T + x)
        change = np.linalg.norm(new - z) / np.linalg.norm(new)
        z, forward = new, forward + 1
    slope, u, backward, change = 1 - z**2, problem.weights, 0, np.inf
    while change > _CLOSE:
        new = problem.weights + (u * slope) @ weight
        change = np.linalg.norm(new - u) / np.linalg.norm(new)
        u, backward = new, backward + 1
    return forward, backward


def numpy_floor(problem: Problem) -> Calls:
    (weight, x), w, (count, back) = problem.args, problem.weights, _counts(problem)

    def forward() -> tuple[Any, Any]:
        z = np.tanh(x)
        for _ in range(count - 1):
            z = np.tanh(z @ weight.T + x)
        return z, count

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        z, _ = forward()
        slope, u = 1 - z * z, w
        for _ in range(back):
            u = w + (u * slope) @ weight
        v = u * slope
        return z, (v.T @ z, v)

    return Calls(forward, gradient)


def torch_floor(problem: Problem, *, device: str) -> Calls:
    import torch

    from benchmarks.contenders.with_torch import waited

    weight, x, w = (torch.tensor(array, device=device) for array in (*problem.args, problem.weights))
    count, back = _counts(problem)

    def solve() -> Any:
        z = torch.tanh(x)
        for _ in range(count - 1):
            z = torch.tanh(torch.addmm(x, z, weight.T))
        return z

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        z = solve()
        slope, u = 1 - z * z, w
        for _ in range(back):
            u = torch.addmm(w, u * slope, weight)
        v = u * slope
        gradients = (v.T @ z, v)
        return waited(z), gradients

    return Calls(lambda: (waited(solve()), count), gradient)


def jax_floor(problem: Problem) -> Calls:
    import jax
    import jax.numpy as jnp

    weight, x, w = map(jnp.asarray, (*problem.args, problem.weights))
    count, back = _counts(problem)

    def forward(weight: Any, x: Any) -> Any:
        return jax.lax.fori_loop(0, count - 1, lambda _, z: jnp.tanh(z @ weight.T + x), jnp.tanh(x))

    def gradient(weight: Any, x: Any, w: Any) -> Any:
        z = forward(weight, x)
        slope = 1 - z * z
        u = jax.lax.fori_loop(0, back, lambda _, u: w + (u * slope) @ weight, w)
        v = u * slope
        return z, (v.T @ z, v)

    solve, both = jax.jit(forward), jax.jit(gradient)
    return Calls(
        lambda: (jax.block_until_ready(solve(weight, x)), count),
        lambda: jax.block_until_ready(both(weight, x, w)),
    )


#: The tolerance of the peers.
_LIKE_PEERS = {"solver": rootdiff.FixedPoint(rtol=1e-5, atol=1e-5), "adjoint": rootdiff.GMRES(rtol=1e-5)}
_SERIES = {"solver": rootdiff.FixedPoint(rtol=1e-5, atol=1e-5), "adjoint": rootdiff.Neumann(terms=10)}
_BROYDEN = {"solver": rootdiff.Broyden(initial="identity"), "adjoint": "gmres"}
_FIXED = {"call": "fixed_point"}
_DEQ = {"f_tol": 1e-5, "b_tol": 1e-5, "f_stop_mode": "rel", "b_stop_mode": "rel", "f_max_iter": 80, "b_max_iter": 80}
ROWS = (
    Row("floor", "NumPy's products", prepare=numpy_floor),
    Row("floor", "torch's products", {"needs": ("torch",)}, prepare=torch_floor),
    Row("floor", "JAX's products", {"needs": ("jax",)}, prepare=jax_floor),
    Row("rootdiff", "anderson, gmres, vjp given", {"solver": "anderson", "adjoint": "gmres", "given": True}),
    *(
        row
        for library in ("rootdiff_torch", "rootdiff_jax")
        for row in (
            Row(library, "auto", _FIXED),
            Row(library, "anderson, gmres", {**_FIXED, "solver": "anderson", "adjoint": "gmres"}),
            Row(library, "fixed_point, gmres", {**_FIXED, "solver": "fixed_point", "adjoint": "gmres"}),
            Row(library, "fixed_point, gmres, both to 1e-5", {**_FIXED, **_LIKE_PEERS}),
            Row(library, "fixed_point to 1e-5, 10 terms of Neumann's series", {**_FIXED, **_SERIES}),
            Row(library, "broyden from -I, gmres", {**_FIXED, **_BROYDEN}, full=True),
        )
    ),
    Row("rootdiff_torch", "auto, CUDA graph", {**_FIXED, "cuda_graph": True}, device="cuda"),
    Row(
        "rootdiff_torch",
        "fixed_point, gmres, both to 1e-5, CUDA graph",
        {**_FIXED, **_LIKE_PEERS, "cuda_graph": True},
        device="cuda",
    ),
    Row(
        "rootdiff_torch",
        "fixed_point to 1e-5, 10 terms of Neumann's series, CUDA graph",
        {**_FIXED, **_SERIES, "cuda_graph": True},
        device="cuda",
    ),
    Row("SciPy", "root", cannot="no batch without a Jacobian: 256 solves of 512 unknowns, 1 s each"),
    Row(
        "Optimistix",
        "FixedPointIteration, GMRES",
        {
            "solver": "FixedPointIteration",
            "linear": "GMRES",
            "rtol": 1e-5,
            "atol": 1e-5,
            "linear_rtol": 1e-5,
            "whole": True,
        },
    ),
    Row(
        "JAXopt",
        "FixedPointIteration, gmres",
        {"solver": "FixedPointIteration", "tol": 1e-3, "linear": "solve_gmres", "whole": True},
    ),
    Row(
        "JAXopt",
        "AndersonAcceleration, gmres",
        {"solver": "AndersonAcceleration", "tol": 1e-3, "linear": "solve_gmres", "whole": True},
    ),
    Row(
        "lax.custom_root by hand",
        "plain iteration, Neumann series",
        {"method": "plain", "tolerance": 1e-5, "linear_rtol": 1e-5},
    ),
    *(
        Row("TorchDEQ", name, {"f_solver": name, "b_solver": name, **_DEQ})
        for name in ("fixed_point_iter", "anderson", "broyden")
    ),
    Row("PyTorch by hand", "plain iteration", {"method": "fixed point", "tolerance": 1e-5}),
    Row("TorchOpt", "custom_root", cannot="its solvers of the adjoint need the vmapped Jacobian: 131072 x 131072"),
    Row(
        "xitorch",
        "equilibrium, anderson_acc, bicgstab",
        {
            "call": "equilibrium",
            "method": "anderson_acc",
            "f_tol": 1e-2,
            "maxiter": 100,
            "backward": {"method": "bicgstab", "rtol": 1e-5},
        },
    ),
    Row("back-propagation, torch", "30 steps, unrolled", {"method": "fixed point", "steps": 30}),
    Row("back-propagation, JAX", "30 steps, unrolled", {"method": "fixed point", "steps": 30}),
    Row("CasADi", "rootfinder", cannot="computes in float64 alone, and needs a Jacobian of 512 x 512 per system"),
)

DEQ = Workload(
    "Deep equilibrium cell",
    build,
    {"batch 256, width 512": {}},
    ROWS,
    note="The floor is plain iteration: what it takes for a change of a part in 1e5, forward and backward.",
)
