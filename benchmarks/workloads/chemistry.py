"""Stiff chemistry: one implicit Euler step of Robertson's reactions, for many rates and step lengths at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Problem, Row, Workload, newton_reference
from benchmarks.workloads import _floors

#: Robertson (1966): rates of the three reactions, per second; and the concentrations before the step.
_RATES, _BEFORE = (0.04, 3e7, 1e4), (1.0, 0.0, 0.0)


def build(batch: int = 4096) -> Problem:
    """Return steps of 0.01 to 1000 s, rates within a factor of two of Robertson's; the parameters are logarithms."""
    rng = np.random.default_rng(0)
    rates = np.log(_RATES) + rng.uniform(-0.7, 0.7, (batch, 3))
    lengths = np.log(10.0) * rng.uniform(-2, 3, (batch, 1))
    return Problem(
        residual=residual,
        y0=np.tile([1.0, 1e-5, 0.0], (batch, 1)),
        args=(rates, lengths),
        weights=rng.standard_normal((batch, 3)) * [1.0, 1e4, 1.0],
        reference=newton_reference,
        accuracy=1e-6,
        batch_ndim=1,
        batched=(True, True),
        jacobian=_jacobian,
        pullback=_pullback,
    )


def residual(xp: Any, y: Any, rates: Any, lengths: Any) -> Any:
    first, second, third = _speeds(xp, y, rates)
    step = xp.exp(lengths[..., 0])
    a = y[..., 0] - _BEFORE[0] + step * (first - third)
    b = y[..., 1] - _BEFORE[1] - step * (first - third - second)
    c = y[..., 2] - _BEFORE[2] - step * second
    return xp.stack([a, b, c], -1)


def casadi_residual(ca: Any, y: Any, rates: Any, lengths: Any) -> Any:
    k, step = ca.exp(rates), ca.exp(lengths)
    first, second, third = k[0] * y[0], k[1] * y[1] ** 2, k[2] * y[1] * y[2]
    a, b = y[0] - 1 + step * (first - third), y[1] - step * (first - third - second)
    return ca.vertcat(a, b, y[2] - step * second)


def _speeds(xp: Any, y: Any, rates: Any) -> tuple[Any, Any, Any]:
    k = xp.exp(rates)
    return k[..., 0] * y[..., 0], k[..., 1] * y[..., 1] ** 2, k[..., 2] * y[..., 1] * y[..., 2]


def _jacobian(y: Any, rates: Any, lengths: Any) -> Any:
    k, step = np.exp(rates), np.exp(lengths)[..., 0]
    zero, one = np.zeros_like(step), np.ones_like(step)
    k1, k2, k3 = k[..., 0], 2 * k[..., 1] * y[..., 1], k[..., 2]
    by_2, by_3 = k3 * y[..., 2], k3 * y[..., 1]
    rows = (
        (one + step * k1, -step * by_2, -step * by_3),
        (-step * k1, one + step * (by_2 + k2), step * by_3),
        (zero, -step * k2, one),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _pullback(y: Any, u: Any, rates: Any, lengths: Any) -> tuple[Any, Any]:
    first, second, third = _speeds(np, y, rates)
    step = np.exp(lengths[..., 0])
    a, b, c = u[..., 0], u[..., 1], u[..., 2]
    by_rates = step[..., None] * np.stack([(a - b) * first, (b - c) * second, (b - a) * third], -1)
    return by_rates, np.sum(by_rates, -1, keepdims=True)


ROWS = (
    Row("floor", "NumPy's solve", prepare=_floors.numpy_newton),
    Row("floor", "elimination, batch last, NumPy", prepare=_floors.numpy_elimination),
    Row("rootdiff", "auto", cannot="differences in 16384 parameters, over 30 s: give the derivatives"),
    Row("rootdiff", "auto, derivatives given", {"given": True}),
    Row("rootdiff_torch", "auto"),
    Row("rootdiff_torch", "newton, lu", {"solver": "newton", "adjoint": "lu"}),
    Row(
        "rootdiff_torch",
        "newton, lu, CUDA graph",
        {"solver": "newton", "adjoint": "lu", "cuda_graph": True},
        device="cuda",
    ),
    Row("rootdiff_jax", "auto"),
    Row("rootdiff_jax", "newton, lu", {"solver": "newton", "adjoint": "lu"}),
    Row("rootdiff_jax", "auto, batched_args", {"batched_args": (0, 0)}),
    Row("rootdiff_jax", "newton, lu, batched_args", {"solver": "newton", "adjoint": "lu", "batched_args": (0, 0)}),
    Row("SciPy", "hybr, one by one, Jacobian given", {"method": "hybr", "tol": 1e-12}),
    Row("Optimistix", "Newton, vmap", {"rtol": 1e-10, "atol": 1e-12}),
    Row("JAXopt", "Broyden, lu, vmap", {"solver": "Broyden", "tol": 1e-10, "linear": "solve_lu"}, full=True),
    Row("lax.custom_root by hand", "Newton, LU, vmap", {"tolerance": 1e-11}),
    Row("PyTorch by hand", "Newton, LU, vmap", {"tolerance": 1e-11}),
    Row("TorchDEQ", "broyden", cannot="y - f(y) does not contract: the Jacobian has entries of 1e7"),
    Row("TorchOpt", "Newton by hand, its implicit gradient", cannot="its normal equations do not converge in 30 s"),
    Row("xitorch", "broyden1", cannot="has no batch: one system of 12288 unknowns, with entries of 1e7"),
    Row("back-propagation, torch", "Newton, unrolled"),
    Row("back-propagation, JAX", "Newton, unrolled"),
    Row("CasADi", "newton, mapped", {"residual": casadi_residual}),
)

CHEMISTRY = Workload("Stiff chemistry: Robertson's reactions, an implicit step", build, {"4096 x 3": {}}, ROWS)
