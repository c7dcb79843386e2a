"""Dense systems ``y + tanh(W y) / 2 = b``, one or a batch, differentiated in W and b; and the work that they need."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem, Row, newton_reference
from benchmarks.workloads._floors import eliminate


def build(n: int, batch: int | None = None) -> Problem:
    """Return a problem whose matrix has entries of variance 1/n; `batch` systems, each with a matrix of its own."""
    rng = np.random.default_rng(0)
    shape = () if batch is None else (batch,)
    matrix, shift = rng.standard_normal((*shape, n, n)) / n**0.5, rng.standard_normal((*shape, n))
    weights = rng.standard_normal((*shape, n))
    return Problem(
        residual=lambda xp, y, W, b: y + xp.tanh((W @ y[..., None])[..., 0]) / 2 - b,
        cell=lambda xp, y, W, b: b - xp.tanh((W @ y[..., None])[..., 0]) / 2,
        y0=np.zeros((*shape, n)),
        args=(matrix, shift),
        weights=weights,
        reference=newton_reference,
        accuracy=1e-6,
        batch_ndim=len(shape),
        batched=(batch is not None,) * 2,
        jacobian=_jacobian,
        pullback=lambda y, u, W, b: (_weighted(y, u, W)[..., None] * y[..., None, :], -u),
    )


#: Iterations enough for the contraction ``y = b - tanh(W y) / 2``.
DEQ = {"f_tol": 1e-8, "b_tol": 1e-8, "f_max_iter": 200, "b_max_iter": 200}
#: Why rootdiff for NumPy wants derivatives here.
DIFFERENCES = "the gradient in 250000 parameters by differences is two calls for each: give the derivatives"


def casadi_residual(ca: Any, y: Any, W: Any, b: Any) -> Any:
    return y + ca.tanh(W @ y) / 2 - b


def _tanh(W: Any, y: Any) -> Any:
    return np.tanh((W @ y[..., None])[..., 0])


def _jacobian(y: Any, W: Any, b: Any) -> Any:
    return np.eye(y.shape[-1]) + ((1 - _tanh(W, y) ** 2) / 2)[..., None] * W


def _weighted(y: Any, u: Any, W: Any) -> Any:
    return u * (1 - _tanh(W, y) ** 2) / 2


# The floors: Newton's method with the Jacobian written out and the number of steps known. No convergence is tested. The
# factors of the last step serve the gradient, with one step of iterative refinement: they are of the iterate before.


def numpy_floor(problem: Problem) -> Calls:
    """One LAPACK call per step for the batch, and one for the gradient: NumPy has no batched factorisation to keep."""
    (W, b), steps, eye = problem.args, problem.solved.steps, np.eye(problem.y0.shape[-1])

    def forward() -> tuple[Any, Any]:
        y = problem.y0
        for _ in range(steps):
            t = np.tanh((W @ y[..., None])[..., 0])
            y = y - np.linalg.solve(eye + ((1 - t * t) / 2)[..., None] * W, (y + t / 2 - b)[..., None])[..., 0]
        return y, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        slope = (1 - _tanh(W, y) ** 2) / 2
        u = np.linalg.solve(np.swapaxes(eye + slope[..., None] * W, -1, -2), problem.weights[..., None])[..., 0]
        return y, (-(u * slope)[..., None] * y[..., None, :], u)

    return Calls(forward, gradient)


def torch_floor(problem: Problem, *, device: str) -> Calls:
    """torch.linalg.lu_factor, its factors kept."""
    import torch

    from benchmarks.contenders.with_torch import waited

    arrays = (*problem.args, problem.weights, problem.y0)
    W, b, w, y0 = (torch.tensor(array, device=device) for array in arrays)
    steps, eye = problem.solved.steps, torch.eye(y0.shape[-1], dtype=y0.dtype, device=device)

    def solve() -> tuple[Any, Any, Any]:
        y = y0
        for _ in range(steps):
            t = torch.tanh((W @ y[..., None])[..., 0])
            factors = torch.linalg.lu_factor(torch.addcmul(eye, ((1 - t * t) / 2)[..., None], W))
            y = y - torch.linalg.lu_solve(*factors, (y + t / 2 - b)[..., None])[..., 0]
        return (y, *factors)

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, *factors = solve()
        t = torch.tanh((W @ y[..., None])[..., 0])
        slope = (1 - t * t) / 2
        u = torch.linalg.lu_solve(*factors, w[..., None], adjoint=True)[..., 0]
        rest = w - u - (W.mT @ (slope * u)[..., None])[..., 0]
        u = u + torch.linalg.lu_solve(*factors, rest[..., None], adjoint=True)[..., 0]
        gradients = (-(u * slope)[..., None] * y[..., None, :], u)
        return waited(y), gradients

    return Calls(lambda: (waited(solve()[0]), steps), gradient)


def elimination_floor(problem: Problem) -> Calls:
    """Gaussian elimination without pivots, compiled by JAX, with the batch as the last, contiguous axis."""
    import jax
    import jax.numpy as jnp

    steps, n = problem.solved.steps, problem.y0.shape[-1]
    W, b, w = map(jnp.asarray, (*problem.args, problem.weights))

    def terms(W: Any, b: Any, y: Any) -> tuple[Any, Any, Any]:
        t = [jnp.tanh(sum(W[i, j] * y[j] for j in range(n))) for i in range(n)]
        slope = [(1 - each * each) / 2 for each in t]
        matrix = [[slope[i] * W[i, j] + (1.0 if i == j else 0.0) for j in range(n)] for i in range(n)]
        return [y[i] + t[i] / 2 - b[i] for i in range(n)], slope, matrix

    def newton(W: Any, b: Any) -> list[Any]:
        y = list(jnp.zeros_like(b))
        for _ in range(steps):
            f, _, matrix = terms(W, b, y)
            y = [a - c for a, c in zip(y, eliminate(matrix, f), strict=True)]
        return y

    def forward(W: Any, b: Any) -> Any:
        return jnp.stack(newton(jnp.moveaxis(W, 0, -1), b.T), axis=-1)

    def gradient(W: Any, b: Any, w: Any) -> tuple[Any, tuple[Any, Any]]:
        W, b = jnp.moveaxis(W, 0, -1), b.T
        y = newton(W, b)
        _, slope, matrix = terms(W, b, y)
        u = eliminate([list(column) for column in zip(*matrix, strict=True)], list(w.T))
        outer = jnp.stack([jnp.stack([-u[i] * slope[i] * y[j] for j in range(n)], -1) for i in range(n)], -2)
        return jnp.stack(y, axis=-1), (outer, jnp.stack(u, axis=-1))

    forward, gradient = jax.jit(forward), jax.jit(gradient)
    return Calls(
        lambda: jax.block_until_ready((forward(W, b), jnp.asarray(steps))),
        lambda: jax.block_until_ready(gradient(W, b, w)),
    )


FLOORS = (
    Row("floor", "NumPy's solve", prepare=numpy_floor),
    Row("floor", "torch's LU, kept", {"needs": ("torch",)}, prepare=torch_floor),
)
ELIMINATION = Row("floor", "elimination, batch last", {"needs": ("jax",)}, prepare=elimination_floor)
