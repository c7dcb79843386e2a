"""Elementwise equations of one unknown: Kepler's, and implied volatility."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.problem import Calls, Problem, Reference, Row, Workload


def kepler(size: int) -> Problem:
    """Return ``E - e sin E = M`` for eccentricities up to 0.9; the data are made from E."""
    rng = np.random.default_rng(0)
    root, e = rng.uniform(0.0, np.pi, size), rng.uniform(0.0, 0.9, size)
    mean, weights = root - e * np.sin(root), rng.standard_normal(size)
    slope = 1 - e * np.cos(root)
    exact = Reference(root, (weights / slope, weights * np.sin(root) / slope))
    return _counted(
        exact,
        residual=lambda xp, y, M, e: y - e * xp.sin(y) - M,
        cell=lambda xp, y, M, e: M + e * xp.sin(y),
        y0=mean + 0.5 * e,
        args=(mean, e),
        weights=weights,
        jacobian=lambda y, M, e: 1 - e * np.cos(y),
        pullback=lambda y, u, M, e: (-u, -np.sin(y) * u),
        bracket=(0.0, 4.0),
    )


def volatility(size: int) -> Problem:
    """Return Black's call price as a function of the total volatility s, inverted; forward 1, strike exp(k)."""
    from scipy.special import ndtr

    rng = np.random.default_rng(0)
    s = rng.uniform(0.1, 1.0, size)
    k = 0.7 * s * rng.standard_normal(size)
    weights = rng.standard_normal(size)
    first, second = -k / s + s / 2, -k / s - s / 2
    price = ndtr(first) - np.exp(k) * ndtr(second)
    vega = _density(first)
    exact = Reference(s, (weights / vega, weights * np.exp(k) * ndtr(second) / vega))
    return _counted(
        exact,
        residual=_price,
        # from the inflection point Newton's method converges: Manaster & Koehler (1982)
        y0=np.maximum(np.sqrt(2 * np.abs(k)), 0.05),
        args=(price, k),
        weights=weights,
        jacobian=lambda s, price, k: _density(-k / s + s / 2),
        pullback=lambda s, u, price, k: (-u, -np.exp(k) * ndtr(-k / s - s / 2) * u),
        bracket=(1e-2, 5.0),
    )


def _counted(exact: Reference, **fields: Any) -> Problem:
    """Return a problem with the number of Newton's steps to a part in 1e9 in its reference."""

    def reference(problem: Problem) -> Reference:
        y, steps = problem.y0, 0
        while np.max(np.abs(y - exact.root)) > 1e-9 and steps < 100:
            y, steps = y - problem.residual(np, y, *problem.args) / problem.jacobian(y, *problem.args), steps + 1
        return exact._replace(steps=steps)

    shared = {"accuracy": 1e-6, "batch_ndim": 1, "batched": (True, True), "symmetric": True}
    return Problem(reference=reference, **shared, **fields)


def _density(x: Any) -> Any:
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _price(xp: Any, s: Any, price: Any, k: Any) -> Any:
    ndtr = _normal(xp)
    return ndtr(-k / s + s / 2) - xp.exp(k) * ndtr(-k / s - s / 2) - price


def _normal(xp: Any) -> Any:
    """Return the normal distribution function of a framework."""
    if xp.__name__ == "torch":
        return xp.special.ndtr
    from importlib import import_module

    return import_module("jax.scipy.special" if xp.__name__ == "jax.numpy" else "scipy.special").ndtr


def numpy_floor(problem: Problem) -> Calls:
    """Newton's method with the derivative written out and the number of steps known."""
    jacobian, pullback, args = problem.jacobian, problem.pullback, problem.args
    assert jacobian is not None
    assert pullback is not None

    def forward() -> tuple[Any, Any]:
        y, steps = problem.y0, problem.solved.steps
        for _ in range(steps):
            y = y - problem.residual(np, y, *args) / jacobian(y, *args)
        return y, steps

    def gradient() -> tuple[Any, tuple[Any, ...]]:
        y, _ = forward()
        u = problem.weights / jacobian(y, *args)
        return y, tuple(-g for g in pullback(y, u, *args))

    return Calls(forward, gradient)


def jax_floor(problem: Problem) -> Calls:
    """Do the same, compiled by JAX, with its derivatives."""
    import jax
    import jax.numpy as jnp

    y0, w, args = jnp.asarray(problem.y0), jnp.asarray(problem.weights), tuple(map(jnp.asarray, problem.args))
    steps = problem.solved.steps

    def solve(*args: Any) -> Any:
        y = y0
        for _ in range(steps):
            value, slope = jax.jvp(lambda y: problem.residual(jnp, y, *args), (y,), (jnp.ones_like(y),))
            y = y - value / slope
        return y

    def gradient(*args: Any) -> Any:
        y = solve(*args)
        _, pull = jax.vjp(lambda y, *args: problem.residual(jnp, y, *args), y, *args)
        slope, *_ = pull(jnp.ones_like(y))
        return y, pull(-w / slope)[1:]

    forward, both = jax.jit(solve), jax.jit(gradient)
    return Calls(lambda: (jax.block_until_ready(forward(*args)), steps), lambda: jax.block_until_ready(both(*args)))


_SCALAR = {"call": "root_scalar"}
_EACH = {"batched_args": (0, 0)}
_TORCHOPT = {"method": "elementwise", "rtol": 1e-9, "atol": 0.0}
_BISECTION = {"solver": "Bisection", "bracket": True, "rtol": 1e-10, "atol": 1e-10}


def _rows(bracket: tuple[float, float], deq: Row) -> tuple[Row, ...]:
    jaxopt = {"solver": "Bisection", "lower": bracket[0], "upper": bracket[1], "maxiter": 60, "tol": 1e-11}
    newton = {"solver": "newton", "adjoint": "lu"}
    return (
        Row("floor", "Newton, NumPy", prepare=numpy_floor),
        Row("floor", "Newton, compiled by JAX", {"needs": ("jax",)}, prepare=jax_floor),
        Row("rootdiff", "root_scalar", cannot="takes no given derivatives, and differences take over 30 s"),
        Row("rootdiff", "root, newton, lu, derivatives given", {**newton, "given": True}),
        Row("rootdiff", "root, newton, lu, batched_args, derivatives given", {**newton, **_EACH, "given": True}),
        *(
            Row(library, name, settings, full="bracketed" in name)
            for library in ("rootdiff_torch", "rootdiff_jax")
            for name, settings in (
                ("root_scalar, chandrupatla", _SCALAR),
                ("root_scalar, bracketed_newton", {**_SCALAR, "solver": "bracketed_newton"}),
                ("root, newton, lu", newton),
                ("root, newton, lu, batched_args", {**newton, **_EACH}),
                ("root, auto, batched_args", _EACH),
            )
        ),
        Row("rootdiff_torch", "root, newton, lu, CUDA graph", {**newton, "cuda_graph": True}, device="cuda"),
        Row("SciPy", "elementwise.find_root", {"method": "find_root"}),
        Row("SciPy", "newton (secant)", {"method": "newton", "tol": 1e-10}),
        Row("Optimistix", "Newton, vmap"),
        Row("Optimistix", "Bisection, vmap", _BISECTION, full=True),
        Row("JAXopt", "Bisection, vmap", {**jaxopt, "check_bracket": False}),
        Row("lax.custom_root by hand", "Newton, elementwise", {"method": "elementwise"}),
        Row("PyTorch by hand", "Newton, elementwise", {"method": "elementwise"}),
        deq,
        Row("TorchOpt", "Newton by hand, its implicit gradient", _TORCHOPT, full=True),
        Row("xitorch", "broyden1", cannot="has no batch: one system with all elements as unknowns"),
        Row("back-propagation, torch", "Newton, unrolled", {"method": "elementwise"}),
        Row("back-propagation, JAX", "Newton, unrolled", {"method": "elementwise"}),
    )


_DEQ = {"f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter", "f_tol": 1e-9, "b_tol": 1e-9}
KEPLER = Workload(
    "Kepler's equation, elementwise",
    kepler,
    {"1e5 elements": {"size": 100_000}, "1e6 elements": {"size": 1_000_000}},
    (
        *_rows((0.0, 4.0), Row("TorchDEQ", "fixed_point_iter", {**_DEQ, "f_max_iter": 300, "b_max_iter": 300})),
        Row("CasADi", "newton, mapped", {"residual": lambda ca, y, M, e: y - e * ca.sin(y) - M}),
    ),
    full=("1e6 elements",),
)
VOLATILITY = Workload(
    "Implied volatility, elementwise",
    volatility,
    {"1e5 elements": {"size": 100_000}, "1e6 elements": {"size": 1_000_000}},
    (
        *_rows((1e-2, 5.0), Row("TorchDEQ", "fixed_point_iter", cannot="no contraction is known for it")),
        Row("CasADi", "newton, mapped", cannot="has no normal distribution function with a derivative in this form"),
    ),
    full=("1e6 elements",),
)
