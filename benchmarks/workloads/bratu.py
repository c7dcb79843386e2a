"""Bratu's equation ``-lap u = lambda exp u`` on a square grid, matrix-free, differentiated in a field lambda."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem, Reference, Row, Workload

LAMBDA = 5.0


def laplacian(xp: Any, u: Any) -> Any:
    """Return minus the five-point Laplacian times h^2, with zeros at the border; u is (*batch, m, m)."""
    row, column = xp.zeros_like(u[..., :1, :]), xp.zeros_like(u[..., :, :1])
    up, down = xp.concatenate([u[..., 1:, :], row], -2), xp.concatenate([row, u[..., :-1, :]], -2)
    left, right = xp.concatenate([u[..., :, 1:], column], -1), xp.concatenate([column, u[..., :, :-1]], -1)
    return 4 * u - up - down - left - right


def build(m: int) -> Problem:
    h2 = 1 / (m + 1) ** 2
    rng = np.random.default_rng(0)
    return Problem(
        residual=lambda xp, u, field: laplacian(xp, u) - h2 * field * xp.exp(u),
        y0=np.zeros((m, m)),
        args=(np.full((m, m), LAMBDA),),
        weights=rng.standard_normal((m, m)),
        reference=reference,
        accuracy=1e-6,
        pullback=lambda u, v, field: (-h2 * np.exp(u) * v,),
        pushforward=lambda u, v, field: laplacian(np, v) - h2 * field * np.exp(u) * v,
        args_forward=lambda u, tangents, field: -h2 * np.exp(u) * tangents[0],
        symmetric=True,
    )


def _matrix(m: int) -> Any:
    from scipy import sparse

    line = sparse.diags_array([-1.0, 2.0, -1.0], offsets=[-1, 0, 1], shape=(m, m))
    return sparse.csc_array(sparse.kron(line, sparse.eye_array(m)) + sparse.kron(sparse.eye_array(m), line))


def reference(problem: Problem) -> Reference:
    """Newton's method with a sparse LU factorisation in float64."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    m = problem.y0.shape[0]
    matrix, h2, field = _matrix(m), 1 / (m + 1) ** 2, problem.args[0].ravel()
    u, sizes = np.zeros(m * m), [1.0]
    while sizes[-1] > 1e-14 and len(sizes) < 50:
        factors = splu(sparse.csc_array(matrix - sparse.diags_array(h2 * field * np.exp(u))))
        change = factors.solve(matrix @ u - h2 * field * np.exp(u))
        u = u - change
        sizes.append(float(np.max(np.abs(change))))
        if sizes[-1] >= sizes[-2]:
            break
    factors = splu(sparse.csc_array(matrix - sparse.diags_array(h2 * field * np.exp(u))))
    v = factors.solve(problem.weights.ravel())
    return Reference(u.reshape(m, m), ((h2 * np.exp(u) * v).reshape(m, m),), sum(size > 1e-9 for size in sizes[1:]))


def sines(m: int) -> tuple[Any, Any]:
    """Return the orthonormal, symmetric sine transform and the eigenvalues of the Laplacian above."""
    k = np.arange(1, m + 1)
    waves = np.sqrt(2 / (m + 1)) * np.sin(np.pi * np.outer(k, k) / (m + 1))
    eigenvalues = 2 - 2 * np.cos(np.pi * k / (m + 1))
    return waves, eigenvalues[:, None] + eigenvalues


class SinePreconditioner:
    """The inverse Laplacian by sine transforms, written as products, in the framework and precision of its argument."""

    def __init__(self, m: int) -> None:
        self.m, (self.waves, self.eigenvalues) = m, sines(m)

    def __call__(self, y: Any, v: Any) -> Any:
        waves, eigenvalues = _like(self.waves, v), _like(self.eigenvalues, v)
        grid = v.reshape(*v.shape[:-1], self.m, self.m)
        return (waves @ ((waves @ grid @ waves) / eigenvalues) @ waves).reshape(v.shape)


def _like(array: Any, v: Any) -> Any:
    return v.new_tensor(array) if hasattr(v, "new_tensor") else array


def _cg(matvec: Any, b: Any, count: int, inverse: Any) -> Any:
    """Preconditioned conjugate gradients for a known number of steps."""
    x, r = np.zeros_like(b), b
    z = inverse(r)
    p, size = z, np.vdot(r, z)
    for _ in range(count):
        product = matvec(p)
        length = size / np.vdot(p, product)
        x, r = x + length * p, r - length * product
        z = inverse(r)
        new = np.vdot(r, z)
        p, size = z + new / size * p, new
    return x


def sine_floor(problem: Problem) -> Calls:
    """Newton's method and conjugate gradients behind sine transforms, with the numbers of steps known."""
    m, w, field = problem.y0.shape[0], problem.weights, problem.args[0]
    waves, eigenvalues = sines(m)
    h2, steps = 1 / (m + 1) ** 2, problem.solved.steps
    inverse = lambda r: waves @ ((waves @ r @ waves) / eigenvalues) @ waves  # noqa: E731
    # what reaches 1e-9: each inner step gains a factor of four, each outer one squares the error
    inner = [min(2 * 2**step, 16) for step in range(steps)]

    def forward() -> tuple[Any, Any]:
        u = problem.y0
        for count in inner:
            reaction = h2 * field * np.exp(u)
            u = u - _cg(lambda v, r=reaction: laplacian(np, v) - r * v, laplacian(np, u) - reaction, count, inverse)
        return u, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        u, _ = forward()
        weight = h2 * np.exp(u)
        v = _cg(lambda v: laplacian(np, v) - field * weight * v, w, 16, inverse)
        return u, (weight * v,)

    return Calls(forward, gradient)


def stencil_floor(problem: Problem) -> Calls:
    """Newton's method and plain conjugate gradients, compiled by JAX, with the numbers of steps known."""
    import jax
    import jax.numpy as jnp

    from benchmarks.contenders.with_jax import _cg_steps

    m = problem.y0.shape[0]
    field, w, h2, steps = (
        jnp.asarray(problem.args[0]),
        jnp.asarray(problem.weights),
        1 / (m + 1) ** 2,
        problem.solved.steps,
    )
    count = 2 * m  # about what a residual of 1e-9 takes

    def newton(field: Any) -> Any:
        u = jnp.zeros_like(field)
        for step in range(steps):
            reaction = h2 * field * jnp.exp(u)
            matvec = lambda v, r=reaction: laplacian(jnp, v) - r * v  # noqa: E731
            u = u - _cg_steps(matvec, laplacian(jnp, u) - reaction, min(count, (m // 2) * 2**step))
        return u

    def gradient(field: Any, w: Any) -> Any:
        u = newton(field)
        weight = h2 * jnp.exp(u)
        return u, (weight * _cg_steps(lambda v: laplacian(jnp, v) - field * weight * v, w, 3 * m),)

    forward, both = jax.jit(newton), jax.jit(gradient)
    return Calls(lambda: (jax.block_until_ready(forward(field)), steps), lambda: jax.block_until_ready(both(field, w)))


def scipy_sparse(problem: Problem) -> Calls:
    """SciPy as its documentation has it: Newton's method by sparse LU, the transposed system with the same factors."""
    from scipy import sparse
    from scipy.sparse.linalg import splu

    m = problem.y0.shape[0]
    h2, w = 1 / (m + 1) ** 2, problem.weights.ravel()
    matrix = _matrix(m)

    def solve() -> tuple[Any, Any, int]:
        field, u, size, steps = problem.args[0].ravel(), np.zeros(m * m), 1.0, 0
        while size > 1e-9:
            reaction = h2 * field * np.exp(u)
            factors = splu(sparse.csc_array(matrix - sparse.diags_array(reaction)))
            change = factors.solve(matrix @ u - reaction)
            u, size, steps = u - change, np.max(np.abs(change)), steps + 1
        return u, factors, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        u, factors, _ = solve()
        return u.reshape(m, m), ((h2 * np.exp(u) * factors.solve(w, "T")).reshape(m, m),)

    def forward() -> tuple[Any, Any]:
        u, _, steps = solve()
        return u.reshape(m, m), steps

    return Calls(forward, gradient)


def _rows() -> tuple[Row, ...]:
    import rootdiff as rd

    sine = {m: SinePreconditioner(m) for m in (64, 128)}
    by_size = lambda v: sine[round(v.shape[-1] ** 0.5)]  # noqa: E731
    preconditioned = {
        "solver": rd.NewtonKrylov(preconditioner=lambda y, v: by_size(v)(y, v)),
        "adjoint": rd.GMRES(preconditioner=lambda operator, v: by_size(v)(None, v)),
    }
    conjugate = {"solver": rd.Newton(linear=rd.CG()), "adjoint": "cg"}
    ours = tuple(
        Row(library, name, {**settings, **given}, full=name == "newton with cg, cg")
        for library, given in (("rootdiff", {"given": True}), ("rootdiff_torch", {}), ("rootdiff_jax", {}))
        for name, settings in (
            ("auto", {}),
            ("newton with cg, cg", conjugate),
            ("newton_krylov with cg, cg", {"solver": rd.NewtonKrylov(linear=rd.CG()), "adjoint": "cg"}),
            (  # the tolerance of the peers
                "newton_krylov with cg, cg to 1e-10",
                {"solver": rd.NewtonKrylov(linear=rd.CG()), "adjoint": rd.CG(rtol=1e-10)},
            ),
            ("newton_krylov, gmres, sine transforms", preconditioned),
        )
    )
    deq = {"damping": 0.25, "f_tol": 1e-9, "b_tol": 1e-9, "f_max_iter": 500, "b_max_iter": 500}
    return (
        Row("floor", "cg behind sine transforms, NumPy", prepare=sine_floor),
        Row("floor", "cg, compiled stencil", {"needs": ("jax",)}, prepare=stencil_floor),
        *ours,
        Row(
            "rootdiff_torch",
            "newton_krylov with cg, cg to 1e-10, CUDA graph",
            {"solver": rd.NewtonKrylov(linear=rd.CG()), "adjoint": rd.CG(rtol=1e-10), "cuda_graph": True},
            device="cuda",
        ),
        Row("SciPy", "Newton by hand, sparse LU", prepare=scipy_sparse),
        Row("SciPy", "krylov", {"method": "krylov", "options": {"fatol": 1e-10}}),
        Row("Optimistix", "Newton, CG", {"linear": "CG", "linear_rtol": 1e-10, "whole": True}),
        Row("Optimistix", "Newton, GMRES", {"linear": "GMRES", "linear_rtol": 1e-8, "rtol": 1e-7, "whole": True}),
        Row("JAXopt", "Broyden, cg", cannot="Broyden's method from the identity: over 30 s"),
        Row("lax.custom_root by hand", "Newton with CG", {"method": "newton + cg", "linear_rtol": 1e-10}),
        Row("PyTorch by hand", "Newton", cannot="PyTorch has no matrix-free linear solver"),
        Row("TorchDEQ", "broyden", {"f_solver": "broyden", "b_solver": "broyden", **deq}),
        Row(
            "TorchOpt", "custom_root", cannot="gives the gradient alone; PyTorch has no matrix-free solver for the root"
        ),
        Row("xitorch", "broyden1, cg", cannot="Broyden's method from the identity: over 30 s"),
        Row("back-propagation, JAX", "Newton-CG, unrolled", {"method": "newton + cg", "inner": 200}),
        Row("back-propagation, torch", "Newton-CG", cannot="PyTorch has no matrix-free linear solver"),
        Row("CasADi", "rootfinder", cannot="factors the Jacobian of 4096 unknowns for each direction of a derivative"),
    )


BRATU = Workload(
    "Bratu's equation, lambda = 5, matrix-free",
    build,
    {"64 x 64": {"m": 64}, "128 x 128": {"m": 128}},
    _rows(),
    full=("128 x 128",),
)


def _sparse(library: str) -> Any:
    """Return the settings of a solve by entries, of which a library solves the systems."""

    def settings(problem: Problem) -> dict[str, Any]:
        import rootdiff as rd

        m = problem.y0.shape[0]
        solver = rd.Newton(linear=rd.SparseLU(library=library))  # type: ignore[arg-type]
        return {"jac_sparsity": rd.Pattern.of(_matrix(m), m * m), "solver": solver}

    return settings


SPARSE_BRATU = Workload(
    "Bratu's equation, lambda = 5, by the entries of its Jacobian",
    build,
    {f"{m} x {m}": {"m": m} for m in (128, 256, 512)},
    (
        *(
            Row(package, f"newton, {library}", _sparse(library))
            for package in ("rootdiff", "rootdiff_torch", "rootdiff_jax")
            for library in ("superlu", "pyamg")
        ),
        Row("SciPy", "Newton by hand, sparse LU", prepare=scipy_sparse),
        Row("SciPy", "krylov", {"method": "krylov", "options": {"fatol": 1e-10}}),
        Row("Optimistix", "Newton, CG", {"linear": "CG", "linear_rtol": 1e-10, "whole": True}),
        Row("Optimistix", "Newton, GMRES", {"linear": "GMRES", "linear_rtol": 1e-8, "rtol": 1e-7, "whole": True}),
    ),
    full=("256 x 256", "512 x 512"),
)
