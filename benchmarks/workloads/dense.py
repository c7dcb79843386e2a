"""One dense system with a matrix as its parameter."""

from __future__ import annotations

import rootdiff
from benchmarks.problem import Row, Workload
from benchmarks.workloads import _tanh

ROWS = (
    *_tanh.FLOORS,
    Row("rootdiff", "auto", cannot=_tanh.DIFFERENCES),
    Row("rootdiff", "auto, derivatives given", {"given": True}),
    Row("rootdiff", "newton, lu, derivatives given", {"solver": "newton", "adjoint": "lu", "given": True}),
    Row("rootdiff_torch", "auto"),
    Row("rootdiff_torch", "newton, lu", {"solver": "newton", "adjoint": "lu"}),
    Row("rootdiff_torch", "newton_krylov, gmres", {"solver": "newton_krylov", "adjoint": "gmres"}),
    Row("rootdiff_jax", "auto"),
    Row("rootdiff_jax", "newton, lu", {"solver": "newton", "adjoint": "lu"}),
    Row("rootdiff_jax", "newton_krylov, gmres", {"solver": "newton_krylov", "adjoint": "gmres"}),
    *(
        Row(library, name, {"call": "fixed_point", "solver": solver, "adjoint": "gmres", **options}, device="cuda")
        for library, options, graph in (
            ("rootdiff_torch", {"cuda_graph": True}, ", CUDA graph"),
            ("rootdiff_jax", {}, ""),
        )
        for name, solver in (
            (f"fixed_point, gmres{graph}", "fixed_point"),
            (f"broyden from -I, gmres{graph}", rootdiff.Broyden(initial="identity")),
        )
    ),
    Row("SciPy", "hybr, Jacobian given", {"method": "hybr", "tol": 1e-10}),
    Row("Optimistix", "Newton", {"solver": "Newton"}),
    Row("JAXopt", "Broyden, gmres", {"solver": "Broyden", "tol": 1e-9, "linear": "solve_gmres"}),
    Row("lax.custom_root by hand", "Newton, LU"),
    Row("PyTorch by hand", "Newton, LU"),
    Row("TorchDEQ", "fixed_point_iter", {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter", **_tanh.DEQ}),
    Row("TorchDEQ", "broyden", {"f_solver": "broyden", "b_solver": "broyden", **_tanh.DEQ}),
    Row("TorchOpt", "Newton by hand, its implicit gradient", {"linear": "solve_normal_cg", "rtol": 1e-10, "atol": 0.0}),
    Row(
        "xitorch",
        "broyden1, gmres",
        {"method": "broyden1", "f_tol": 1e-8, "backward": {"method": "gmres", "rtol": 1e-9}},
    ),
    Row("back-propagation, torch", "Newton, unrolled"),
    Row("back-propagation, JAX", "Newton, unrolled"),
    Row("CasADi", "newton", {"residual": _tanh.casadi_residual}),
)

DENSE = Workload(
    "One dense system",
    _tanh.build,
    {"n = 500, a 500 x 500 parameter": {"n": 500}},
    ROWS,
    note="The floor factors; rows without a factorisation can stay below it, since this Jacobian is well conditioned.",
)
