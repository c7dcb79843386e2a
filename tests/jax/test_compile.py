"""What compiles anew, and what must not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT, SOLVER, START, THETA, exact, f, loss


class Compiles:
    """Counts the programs that XLA is asked for."""

    def __enter__(self) -> Compiles:
        self.count = 0

        def note(event: str, *_: Any, **__: Any) -> None:
            self.count += event == "/jax/core/compile/backend_compile_duration"

        self._note = note
        jax.monitoring.register_event_duration_secs_listener(note)
        return self

    def __exit__(self, *_: Any) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)


def compiles(first: Callable[[], Any], *following: Callable[[], Any]) -> int:
    jax.block_until_ready(first())
    with Compiles() as counter:
        for call in following:
            jax.block_until_ready(call())
    return counter.count


def short(y: Any, theta: Any) -> Any:
    """Return the residual of one unknown, whose program is half as long as one of three."""
    return y**3 + y - theta[:1]


def call(solver: Any = "newton", y0: Any = START[:1], theta: Any = THETA, **options: Any) -> Any:
    start, theta = jnp.asarray(y0), jnp.asarray(theta)
    return lambda: rd.root(short if len(start) == 1 else f, start, theta, solver=solver, adjoint="lu", **options).y


def test_counter_counts() -> None:
    assert compiles(lambda: None, lambda: jax.jit(lambda x: x + 17.0)(jnp.ones(3))) >= 1


@pytest.mark.transform("no new compile: other tolerances and step limits, also of a solver inside a solver")
def test_settings_are_runtime_values() -> None:
    assert compiles(call(rd.Newton(rtol=1e-8)), call(rd.Newton(rtol=1e-6)), call(rd.Newton(rtol=1e-4))) == 0
    assert compiles(call(rd.Newton()), call(rd.Newton(max_steps=77))) == 0
    assert compiles(call(rd.FixedPoint(), on_failure="nan"), call(rd.FixedPoint(damping=0.3), on_failure="nan")) == 0
    inner = [rd.Newton(linear=rd.GMRES(rtol=rtol)) for rtol in (1e-8, 1e-9)]
    assert compiles(call(inner[0], START), call(inner[1], START)) == 0


@dataclass(frozen=True, kw_only=True)
class Damped(rd.FixedPoint):
    """Has other defaults, and settings of its own."""

    damping: float = 0.5
    marked: float = field(default=1.0, metadata={"runtime": True})
    plain: float = 1.0


def test_marked_settings_of_a_users_solver_are_runtime_values() -> None:
    def solver(**settings: float) -> Any:
        return call(Damped(**settings), on_failure="nan")  # type: ignore[arg-type]

    assert compiles(solver(), solver(damping=0.3), solver(marked=2.0)) == 0
    assert compiles(solver(), solver(plain=2.0)) > 0


@pytest.mark.transform("no new compile: other settings of the solvers in a chain, of one in a chain in a chain")
def test_settings_of_a_chain_are_runtime_values() -> None:
    def chain(steps: int, rtol: float) -> Any:
        return call(rd.Chain([rd.FixedPoint(max_steps=steps), rd.Chain([rd.FixedPoint(), rd.Newton(rtol=rtol)])]))

    assert compiles(chain(1, 1e-8), chain(2, 1e-9), chain(50, 1e-6)) == 0
    assert compiles(chain(1, 1e-8), call(rd.Chain([rd.FixedPoint(max_steps=1), rd.Newton(rtol=1e-8)]))) > 0


def test_settings_of_a_chain_reach_their_solver() -> None:
    def steps(first: int, second: int) -> int:
        chain = rd.Chain([rd.Newton(max_steps=first), rd.Newton(max_steps=second)])
        start = 50 * jnp.asarray(START[:1])
        return int(rd.root(short, start, jnp.asarray(THETA), solver=chain, on_failure="ignore").steps)

    assert [steps(1, 1), steps(2, 1), steps(1, 3)] == [2, 3, 4]


@pytest.mark.transform("no new compile: other tolerances and limits of a SciPy method, in a chain too")
@pytest.mark.parametrize(
    "method", ["hybr", "krylov", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("lm", "df-sane"))]
)
def test_settings_of_scipy_are_runtime_values(method: Any) -> None:
    def solver(rtol: float, steps: int) -> Any:
        return rd.SciPy(method=method, rtol=rtol, max_steps=steps)

    assert compiles(call(solver(1e-8, 500)), call(solver(1e-6, 500)), call(solver(1e-8, 400))) == 0
    if method == "hybr":  # the default tolerance, and a chain, are the same for all
        assert compiles(call(rd.SciPy()), call(rd.SciPy(max_steps=77))) == 0
        chains = [rd.Chain([solver(rtol, 500), rd.Newton(rtol=rtol)]) for rtol in (1e-8, 1e-9)]
        assert compiles(call(chains[0]), call(chains[1])) == 0


@pytest.mark.parametrize(
    "dtype",
    [
        jnp.float32,
        jnp.complex128,
        *(pytest.param(dtype, marks=pytest.mark.exhaustive) for dtype in (jnp.float64, jnp.complex64)),
    ],
)
def test_scipy_solves_in_the_precision_of_the_program_in_whatever_thread(dtype: Any) -> None:
    def solve(a: Any, power: Any, key: Any) -> Any:
        def residual(y: Any, a: Any, power: Any, key: Any) -> Any:
            return y**power - a + 0 * jax.random.uniform(key, (2,), dtype=y.real.dtype)

        return rd.root(residual, jnp.ones(2, dtype), a, power, key, solver="scipy:hybr").y

    operands = jnp.asarray([8.0, 27.0], dtype), jnp.asarray(3), jax.random.key(0)
    program = jax.jit(solve).lower(*operands).compile()
    with ThreadPoolExecutor(1) as pool:  # where float64 has not been enabled
        found = pool.submit(program, *operands).result()
    np.testing.assert_allclose(found, [2.0, 3.0], rtol=100 * float(jnp.finfo(dtype).eps))
    assert found.dtype == dtype


def test_settings_of_scipy_reach_the_host() -> None:
    def error(rtol: float) -> float:
        solver = rd.SciPy(method="df-sane", rtol=rtol)
        return float(jnp.max(jnp.abs(call(solver, START)() - exact(THETA).y)))

    assert error(1e-12) < 1e-10 < error(1e-3) < 1e-1
    hurried = rd.SciPy(max_steps=2)
    assert int(rd.root(f, 50 * jnp.asarray(START), THETA, solver=hurried, on_failure="ignore").status) != 0


@pytest.mark.transform("no new compile: another initial guess, other arguments")
def test_values_are_runtime_values() -> None:
    assert compiles(call(), call(y0=START[:1] + 0.1), call(theta=THETA + 0.1)) == 0


@pytest.mark.transform("no new compile: a fresh lambda or closure per eager call, forward and gradient")
def test_fresh_closures() -> None:
    def fresh(number: float, array: Any) -> Any:
        return rd.root(lambda y: f(y, array) * number, jnp.asarray(START), solver=SOLVER).y

    arrays = [jnp.asarray(THETA) + 0.1 * k for k in range(3)]
    assert compiles(*(lambda k=k: fresh(1.0 + k, arrays[k]) for k in range(3))) == 0
    gradients = [lambda k=k: jax.grad(lambda t: loss(fresh(1.0 + k, t)))(arrays[k]) for k in range(3)]
    assert compiles(*gradients) == 0
    np.testing.assert_allclose(gradients[2](), exact(arrays[2]).gradient, **EXACT)


def test_fresh_closures_over_custom_rules() -> None:
    def fresh(scale: float) -> Any:
        return rd.fixed_point(
            lambda z: jax.nn.relu(0.3 * z * scale) + jax.nn.softplus(-z), jnp.ones(2), solver=SOLVER
        ).y

    assert compiles(lambda: fresh(1.0), lambda: fresh(0.5)) == 0


def test_residual_is_traced_once_per_eager_call() -> None:
    traces = []

    def counted(y: Any, theta: Any) -> Any:
        traces.append(1)
        return f(y, theta)

    for _ in range(3):
        rd.root(counted, jnp.asarray(START), jnp.asarray(THETA), solver=SOLVER)
    assert len(traces) == 3


def test_jitted_residual_is_traced_once() -> None:
    traces = []

    @jax.jit
    def counted(y: Any, theta: Any) -> Any:
        traces.append(1)
        return f(y, theta)

    for _ in range(3):
        rd.root(counted, jnp.asarray(START), jnp.asarray(THETA), solver=SOLVER)
    assert len(traces) == 1


@pytest.mark.transform("donated buffers")
def test_donated_initial_guess() -> None:
    step = jax.jit(lambda y, theta: rd.root(f, y, theta, solver=SOLVER).y, donate_argnums=0)
    y = jnp.asarray(START) + 0.0
    found = step(y, jnp.asarray(THETA))
    assert y.is_deleted()
    np.testing.assert_allclose(found, exact(THETA).y, **EXACT)
