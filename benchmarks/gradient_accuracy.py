"""Relative error of a gradient against the condition of the Jacobian: rootdiff's adjoints beside other libraries.

The residual is A y - B theta with 50 unknowns, 3 parameters and a symmetric positive definite A, the easiest kind for
iterative solvers (``--nonsymmetric`` for the other kind). Every library is handed the root, and differentiates it at
its defaults. A cell is the relative error of ``w^T dy/dtheta``, or why there is none. The exact value has 60 digits.

A second table is the bias of the approximate adjoints for z = tanh(W z + B theta), by the spectral radius of the cell.

    python benchmarks/gradient_accuracy.py --conditions 1e2 1e6 1e10
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import mpmath
import numpy as np

import rootdiff

N, PARAMETERS = 50, 3
ADJOINTS = ("auto", "lu", "lstsq", "gmres", "bicgstab", "cg", "lsmr")


class Problem(NamedTuple):
    """Matrices, the root, the cotangent and the exact gradient."""

    a: Any
    b: Any
    theta: Any
    y: Any
    w: Any
    gradient: Any


def problem(condition: float, dtype: str, symmetric: bool) -> Problem:
    """Return a problem whose A has singular values from 1 to 1/condition."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((N, N)))[0] for _ in range(2))
    right = left if symmetric else right
    a = (left * np.logspace(0, -np.log10(condition), N)) @ right.T
    a = (0.5 * (a + a.T) if symmetric else a).astype(dtype)
    b, theta = rng.standard_normal((N, PARAMETERS)).astype(dtype), np.ones(PARAMETERS, dtype)
    w = rng.standard_normal(N).astype(dtype)
    with mpmath.workdps(60):
        u = mpmath.lu_solve(mpmath.matrix(a.T.tolist()), mpmath.matrix(w.tolist()))
        exact = mpmath.matrix(b.T.tolist()) * u
        y = mpmath.lu_solve(mpmath.matrix(a.tolist()), mpmath.matrix((b.astype(float) @ theta).tolist()))
    gradient, root = (np.array([float(v) for v in vector]) for vector in (exact, y))
    return Problem(a, b, theta, root.astype(dtype), w, gradient)


def ours(adjoint: str, p: Problem) -> Any:
    given = {"jac": lambda y, t: p.a, "vjp": lambda primals, u: (p.a.T @ u, -p.b.T @ u)}
    f = lambda y, t: p.a @ y - p.b @ t  # noqa: E731
    return rootdiff.root(f, p.y, p.theta, adjoint=adjoint, **given).vjp(p.w)[0]


def ours_torch(p: Problem) -> Any:
    import torch

    import rootdiff_torch

    a, b, y, w = map(torch.tensor, (p.a, p.b, p.y, p.w))
    theta = torch.tensor(p.theta, requires_grad=True)
    sol = rootdiff_torch.root(lambda y, t: a @ y - b @ t, y, theta)
    return torch.autograd.grad(sol.y, theta, w)[0].numpy()


def _pulled(root: Callable[[Any], Any], p: Problem) -> Any:
    import jax

    return np.asarray(jax.vjp(root, jax.numpy.asarray(p.theta))[1](jax.numpy.asarray(p.w))[0])


def ours_jax(p: Problem) -> Any:
    from jax import numpy as jnp

    import rootdiff_jax

    y0 = jnp.asarray(p.y)
    return _pulled(lambda t: rootdiff_jax.root(lambda y, t: p.a @ y - p.b @ t, y0, t).y, p)


def jaxopt(p: Problem) -> Any:
    import jaxopt
    from jax import numpy as jnp

    solver = jaxopt.implicit_diff.custom_root(lambda y, t: p.a @ y - p.b @ t)(lambda y, t: jnp.asarray(p.y))
    return _pulled(lambda t: solver(None, t), p)


def optimistix(p: Problem) -> Any:
    import optimistix as optx
    from jax import numpy as jnp

    solver = optx.Newton(rtol=1e-8, atol=1e-8)
    f = lambda y, t: p.a @ y - p.b @ t  # noqa: E731
    return _pulled(lambda t: optx.root_find(f, solver, jnp.asarray(p.y), t, throw=False).value, p)


def torchdeq(p: Problem) -> Any:
    import torch
    import torchdeq as peer

    a, b, y, w = map(torch.tensor, (p.a, p.b, p.y, p.w))
    theta = torch.tensor(p.theta, requires_grad=True)
    deq = peer.get_deq(ift=True)
    roots, _ = deq(lambda z: z - (z @ a.T - (b @ theta)[None]), y[None])
    return torch.autograd.grad(roots[-1], theta, w[None])[0].numpy()


def torchopt(p: Problem) -> Any:
    import torch
    import torchopt as peer

    a, b, y, w = map(torch.tensor, (p.a, p.b, p.y, p.w))
    theta = torch.tensor(p.theta, requires_grad=True)
    solver = peer.diff.implicit.custom_root(lambda y, t: a @ y - b @ t, argnums=1)(lambda y, t: y.clone())
    return torch.autograd.grad(solver(y.clone().requires_grad_(), theta), theta, w)[0].numpy()


def xitorch(p: Problem) -> Any:
    import torch
    from xitorch.optimize import rootfinder

    a, b, y, w = map(torch.tensor, (p.a, p.b, p.y, p.w))
    theta = torch.tensor(p.theta, requires_grad=True)
    root = rootfinder(lambda y, t: a @ y - b @ t, y, params=(theta,))
    return torch.autograd.grad(root, theta, w)[0].numpy()


PEERS = {"JAXopt": jaxopt, "Optimistix": optimistix, "TorchDEQ": torchdeq, "TorchOpt": torchopt, "xitorch": xitorch}
METHODS: dict[str, Callable[[Problem], Any]] = {
    **{f"rootdiff {name}": partial(ours, name) for name in ADJOINTS},
    "rootdiff_torch auto": ours_torch,
    "rootdiff_jax auto": ours_jax,
    **PEERS,
}


def cell(method: Callable[[Problem], Any], p: Problem) -> str:
    """Return the relative error, or the reason that there is none."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            gradient = method(p)
    except rootdiff.ConvergenceError as error:
        status = max(int(value) for value in np.ravel(error.solution.status))
        return f"refused: {rootdiff.Status(status).name}"
    except Exception as error:  # a peer may fail in any way
        return type(error).__name__
    if np.isnan(gradient).any():
        return "nan"
    return f"{np.linalg.norm(gradient - p.gradient) / np.linalg.norm(p.gradient):.1e}"


def accuracy(conditions: list[float], dtypes: list[str], symmetric: bool) -> None:
    """Print the first table."""
    for dtype in dtypes:
        problems = [problem(condition, dtype, symmetric) for condition in conditions]
        print(f"\n| {dtype} | " + " | ".join(f"{condition:.0e}" for condition in conditions) + " |")
        print("|---" * (1 + len(conditions)) + "|")
        eps = np.finfo(dtype).eps
        print("| eps x condition | " + " | ".join(f"{eps * condition:.1e}" for condition in conditions) + " |")
        for name, method in METHODS.items():
            print(f"| {name} | " + " | ".join(cell(method, p) for p in problems) + " |", flush=True)


def bias(radii: list[float]) -> None:
    """Print the second table."""
    rng = np.random.default_rng(0)
    weight, b = rng.standard_normal((N, N)), rng.standard_normal((N, PARAMETERS)) / N
    weight /= np.abs(np.linalg.eigvals(weight)).max()
    adjoints = {
        "one_step": rootdiff.OneStep(),
        **{f"neumann, {k} terms": rootdiff.Neumann(terms=k) for k in (2, 5, 20, 80)},
        **{f"phantom, {k} steps": rootdiff.Phantom(steps=k) for k in (2, 5, 20, 80)},
        "reuse": rootdiff.Reuse(),
        "auto (exact)": "auto",
    }
    print("\n| bias, by spectral radius | " + " | ".join(f"{radius:g}" for radius in radii) + " |")
    print("|---" * (1 + len(radii)) + "|")
    for name, adjoint in adjoints.items():
        errors = []
        for radius in radii:
            sol = rootdiff.fixed_point(
                lambda z, t, radius=radius: np.tanh(radius * weight @ z + b @ t),
                np.zeros(N),
                np.ones(PARAMETERS),
                solver="broyden",
                adjoint=adjoint,
                derivatives="complex-step",
            )
            slope = (1 - sol.y**2)[:, None]
            exact = np.linalg.solve(np.eye(N) - slope * radius * weight, slope * b).sum(axis=0)
            gradient = sol.vjp(np.ones(N))[0]
            errors.append(f"{np.linalg.norm(gradient - exact) / np.linalg.norm(exact):.1e}")
        print(f"| {name} | " + " | ".join(errors) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", type=float, nargs="+", default=[1e2, 1e4, 1e6, 1e8, 1e10, 1e12])
    parser.add_argument("--dtypes", nargs="+", default=["float64", "float32"])
    parser.add_argument("--radii", type=float, nargs="+", default=[0.3, 0.6, 0.9, 0.99])
    parser.add_argument("--nonsymmetric", action="store_true")
    options = parser.parse_args()
    try:
        import jax

        jax.config.update("jax_enable_x64", True)
    except ImportError:
        pass
    for name in ("rootdiff", *(peer.lower() for peer in PEERS)):
        try:
            print(name, version(name) if name != "rootdiff" else rootdiff.__version__, end="; ")
        except PackageNotFoundError:
            print(name, "not installed", end="; ")
    print()
    accuracy(options.conditions, options.dtypes, not options.nonsymmetric)
    bias(options.radii)


if __name__ == "__main__":
    main()
