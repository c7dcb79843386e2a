"""rootdiff for JAX, Optimistix, JAXopt, `lax.custom_root` by hand, and back-propagation through the solver."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.problem import Calls, Problem


def build(problem: Problem, solve: Callable[..., Any], *, call: str = "root", mode: str = "jitted") -> Calls:
    """Return the calls of ``solve(f, y0, args) -> (y, steps)``.

    `mode`: "jitted", the whole call compiled; "same", eager with the same function; "fresh", eager with a new closure.
    """
    function = problem.function(call)
    y0, weights = jnp.asarray(problem.y0), jnp.asarray(problem.weights)
    args = tuple(map(jnp.asarray, problem.args))

    def bound() -> Callable[..., Any]:
        return lambda y, *args: function(jnp, y, *args)

    same = bound()

    def run(args: tuple[Any, ...]) -> tuple[Any, Any]:
        return solve(bound() if mode == "fresh" else same, y0, args)

    def loss(args: tuple[Any, ...]) -> tuple[Any, Any]:
        y, _ = run(args)
        return jnp.sum(y * weights), y

    def value_and_gradient(args: tuple[Any, ...]) -> tuple[Any, Any]:
        gradients, y = jax.grad(loss, has_aux=True)(args)
        return y, gradients

    forward, gradient = run, value_and_gradient
    if mode == "jitted":
        forward, gradient = jax.jit(run), jax.jit(value_and_gradient)
    return Calls(lambda: jax.block_until_ready(forward(args)), lambda: jax.block_until_ready(gradient(args)))


def each(problem: Problem, one: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``solve(f, y0, args)`` for a batch from that for one system."""

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        if not problem.batch_ndim:
            return one(f, y0, args)
        axes = (0, *(0 if b else None for b in problem.batched))
        y, steps = jax.vmap(lambda y0, *args: one(f, y0, args), in_axes=axes)(y0, *args)
        return y, None if steps is None else jnp.max(steps)

    return solve


def rootdiff_jax(problem: Problem, *, call: str = "root", mode: str = "jitted", **options: Any) -> Calls:
    import rootdiff_jax

    function = getattr(rootdiff_jax, call)

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        if call == "root_scalar":
            sol = function(f, problem.bracket, *args, **options)
        else:
            sol = function(f, y0, *args, batch_ndim=problem.batch_ndim, **options)
        return sol.y, jnp.max(sol.steps)

    return build(problem, solve, call=call, mode=mode)


def optimistix(
    problem: Problem,
    *,
    solver: str = "Newton",
    linear: str | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-9,
    linear_rtol: float = 1e-9,
    mode: str = "jitted",
    bracket: bool = False,
    call: str = "",
    whole: bool = False,
    **options: Any,
) -> Calls:
    """`linear`: one of Lineax' iterative solvers, for steps and adjoint; `whole`: the batch as one system."""
    import lineax
    import optimistix as peer

    tags = frozenset({lineax.positive_semidefinite_tag}) if linear == "CG" else frozenset()
    extra, adjoint, inner = {}, peer.ImplicitAdjoint(), {}
    if linear is not None:
        chosen = getattr(lineax, linear)(rtol=linear_rtol, atol=linear_rtol)
        extra, adjoint = {"linear_solver": chosen}, peer.ImplicitAdjoint(linear_solver=chosen)
        extra = extra if solver in ("Newton", "Chord") else {}
    if bracket:
        inner = {"options": dict(zip(("lower", "upper"), problem.bracket or (), strict=True))}
    chosen_solver = getattr(peer, solver)(rtol=rtol, atol=atol, **extra, **options)
    call = call or ("fixed_point" if solver == "FixedPointIteration" else "root")
    entries = {"fixed_point": peer.fixed_point, "least_squares": peer.least_squares, "minimize": peer.minimise}
    find = entries.get(call, peer.root_find)
    tagged = {"tags": tags} if tags else {}

    @cache  # Optimistix compiles once per function object
    def with_args(f: Any) -> Any:
        return lambda y, args: f(y, *args)

    def one(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        sol = find(
            with_args(f), chosen_solver, y0, args, throw=False, max_steps=500, adjoint=adjoint, **tagged, **inner
        )
        return sol.value, sol.stats["num_steps"]

    return build(problem, one if whole else each(problem, one), call=call, mode=mode)


def jaxopt(
    problem: Problem,
    *,
    solver: str,
    linear: str | None = None,
    mode: str = "jitted",
    call: str = "",
    whole: bool = False,
    **options: Any,
) -> Calls:
    import jaxopt as peer

    call = call or ("fixed_point" if solver in ("FixedPointIteration", "AndersonAcceleration") else "root")
    inner = {} if linear is None else {"implicit_diff_solve": getattr(peer.linear_solve, linear)}

    @cache
    def made(f: Any) -> Any:
        return getattr(peer, solver)(f, **inner, **options)

    def one(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        y, state = made(f).run(y0, *args)
        return y, state.iter_num

    return build(problem, one if whole else each(problem, one), call=call, mode=mode)


def custom_root(
    problem: Problem,
    *,
    method: str = "newton",
    tolerance: float = 1e-9,
    mode: str = "jitted",
    linear_rtol: float = 1e-9,
) -> Calls:
    """Run the shortest loop that a user would write, with JAX's own rule of a root around it."""
    one = {"newton": _newton, "newton + cg": _newton_cg, "plain": _plain, "elementwise": _elementwise}[method]

    def solve(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        step, linear = one(linear_rtol)
        return jax.lax.custom_root(
            lambda y: f(y, *args), y0, lambda g, y: _loop(lambda y: step(g, y), y, tolerance), linear, has_aux=True
        )

    return build(problem, solve if method in ("plain", "elementwise") else each(problem, solve), mode=mode)


def _loop(step: Callable[[Any], Any], y0: Any, tolerance: float) -> tuple[Any, Any]:
    """Repeat ``y - step(y)`` until the step is small; the count is a float, as custom_root wants it."""

    def body(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        y, _, count = state
        change = step(y)
        return y - change, jnp.max(jnp.abs(change)), count + 1

    state = jax.lax.while_loop(
        lambda s: (s[1] > tolerance) & (s[2] < 500), body, (y0, jnp.asarray(jnp.inf, y0.dtype), jnp.zeros((), y0.dtype))
    )
    return state[0], state[2]


def _newton(rtol: float) -> tuple[Any, Any]:
    step = lambda g, y: jnp.linalg.solve(jax.jacfwd(g)(y), g(y))  # noqa: E731
    return step, lambda g, b: jnp.linalg.solve(jax.jacfwd(g)(b), b)


def _elementwise(rtol: float) -> tuple[Any, Any]:
    def step(g: Any, y: Any) -> Any:
        value, slope = jax.jvp(g, (y,), (jnp.ones_like(y),))
        return value / slope

    return step, lambda g, b: b / g(jnp.ones_like(b))


def _newton_cg(rtol: float) -> tuple[Any, Any]:
    from jax.scipy.sparse.linalg import cg

    def step(g: Any, y: Any) -> Any:
        value, linear = jax.linearize(g, y)
        return cg(linear, value, tol=rtol, maxiter=2000)[0]

    def solved(matvec: Any, b: Any) -> Any:
        return cg(matvec, b, tol=rtol, maxiter=2000)[0]

    return step, lambda g, b: jax.lax.custom_linear_solve(g, b, solve=solved, symmetric=True)


def _plain(rtol: float) -> tuple[Any, Any]:
    """Plain iteration of the cell, and of the linear equation: the residual is ``cell(y) - y``."""

    def series(matvec: Any, b: Any) -> Any:
        small = rtol * jnp.max(jnp.abs(b))
        return _loop(lambda v: b - matvec(v), -b, small)[0]

    def linear(g: Any, b: Any) -> Any:
        return jax.lax.custom_linear_solve(g, b, solve=series, transpose_solve=series)

    return lambda g, y: -g(y), linear


def unrolled(
    problem: Problem, *, method: str = "newton", steps: int | None = None, mode: str = "jitted", inner: int = 0
) -> Calls:
    """As many steps as the reference needed, all of them differentiated."""
    count = steps or problem.steps or problem.solved.steps

    def newton(f: Any, y: Any, args: Any) -> Any:
        return y - jnp.linalg.solve(jax.jacfwd(f)(y, *args), f(y, *args))

    def elementwise(f: Any, y: Any, args: Any) -> Any:
        value, slope = jax.jvp(lambda y: f(y, *args), (y,), (jnp.ones_like(y),))
        return y - value / slope

    def newton_cg(f: Any, y: Any, args: Any) -> Any:
        value, linear = jax.linearize(lambda y: f(y, *args), y)
        return y - _cg_steps(linear, value, inner)

    steps_by = {"newton": newton, "elementwise": elementwise, "newton + cg": newton_cg}
    steps_by["fixed point"] = lambda f, y, args: f(y, *args)
    step = steps_by[method]

    def one(f: Any, y0: Any, args: Any) -> tuple[Any, Any]:
        y, _ = jax.lax.scan(lambda y, _: (step(f, y, args), None), y0, None, length=count)
        return y, jnp.asarray(count)

    solve = each(problem, one) if method == "newton" else one
    return build(problem, solve, call="fixed_point" if method == "fixed point" else "root", mode=mode)


def _cg_steps(matvec: Callable[[Any], Any], b: Any, count: int) -> Any:
    """Return the iterate of conjugate gradients after a number of steps."""

    def step(state: Any, _: None) -> tuple[Any, None]:
        x, r, p, size = state
        product = matvec(p)
        length = size / jnp.maximum(jnp.sum(p * product), 1e-300)
        x, r = x + length * p, r - length * product
        new = jnp.sum(r * r)
        return (x, r, r + new / jnp.maximum(size, 1e-300) * p, new), None

    state, _ = jax.lax.scan(step, (jnp.zeros_like(b), b, b, jnp.sum(b * b)), None, length=count)
    return state[0]
