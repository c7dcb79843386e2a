"""Batches of small dense systems."""

from __future__ import annotations

from benchmarks.problem import Row, Workload
from benchmarks.workloads import _tanh

_AS_ONE = "has no batch: one system of 32768 unknowns, over 30 s"

ROWS = (
    *_tanh.FLOORS,
    _tanh.ELIMINATION,
    Row("rootdiff", "auto", cannot=_tanh.DIFFERENCES),
    Row("rootdiff", "auto, derivatives given", {"given": True}),
    Row("rootdiff", "newton, lu, derivatives given", {"solver": "newton", "adjoint": "lu", "given": True}),
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
    Row("SciPy", "hybr, one by one, Jacobian given", {"method": "hybr", "tol": 1e-10}),
    Row("Optimistix", "Newton, vmap", {"solver": "Newton"}),
    Row("JAXopt", "Broyden, lu, vmap", {"solver": "Broyden", "tol": 1e-9, "linear": "solve_lu"}, full=True),
    Row("lax.custom_root by hand", "Newton, LU, vmap"),
    Row("PyTorch by hand", "Newton, LU, vmap"),
    Row("TorchDEQ", "fixed_point_iter", {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter", **_tanh.DEQ}),
    Row("TorchDEQ", "broyden", {"f_solver": "broyden", "b_solver": "broyden", **_tanh.DEQ}),
    Row("TorchOpt", "Newton by hand, its implicit gradient", {"linear": "solve_normal_cg", "rtol": 1e-10, "atol": 0.0}),
    Row("xitorch", "broyden1", cannot=_AS_ONE),
    Row("back-propagation, torch", "Newton, unrolled"),
    Row("back-propagation, JAX", "Newton, unrolled"),
    Row("CasADi", "newton, mapped", {"residual": _tanh.casadi_residual}),
)

BATCH = Workload("Batch of small dense systems", _tanh.build, {"4096 x 8": {"n": 8, "batch": 4096}}, ROWS)
