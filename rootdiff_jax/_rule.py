"""The root as a differentiable JAX operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rootdiff import _implicit
from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._settings import Template
from rootdiff_jax._trace import Traced


@dataclass(frozen=True)
class Problem:
    """What a solve is compiled for: the residual, both solvers, the failure policy."""

    function: Traced
    solver: Template
    adjoint: Template
    on_failure: str

    def residual(self, operands: tuple[Any, ...]) -> Residual:
        """Return the residual with its parameters bound."""
        return Residual(self.function, operands, JaxBackend(self.function.reverse_only))


class Inputs(NamedTuple):
    """Start, runtime settings of solver and adjoint, and everything else that the residual depends on."""

    y0: Array
    solver: tuple[Any, ...]
    adjoint: tuple[Any, ...]
    operands: tuple[Any, ...]


class Outputs(NamedTuple):
    """What a solve returns: `y` is `best`, the best iterate, but NaN in failed systems unless failures are ignored.

    Only `y` has a derivative.
    """

    y: Array
    best: Array
    status: Array
    steps: Array
    residual_norm: Array
    factors: Any


@partial(jax.jit, static_argnums=0)
def solve(problem: Problem, inputs: Inputs) -> Outputs:
    """Return the root; a JAX operation that every transform may be applied to."""
    rule = _reverse_rule if problem.function.reverse_only else _rule
    return rule(problem, *inputs)


def _forward(
    problem: Problem, y0: Array, solver: tuple[Any, ...], adjoint: tuple[Any, ...], operands: tuple[Any, ...]
) -> Outputs:
    raw = problem.solver.fill(solver).solve(problem.residual(operands), y0)
    y = raw.y
    if problem.on_failure != "ignore":
        y = jnp.where(_failed(raw.status)[..., None], jnp.nan, y)
    return Outputs(y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.factors)


_rule = jax.custom_jvp(_forward, nondiff_argnums=(0,))
_reverse_rule = jax.custom_vjp(_forward, nondiff_argnums=(0,))


@_rule.defjvp
def _rule_jvp(problem: Problem, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Outputs, Outputs]:
    outputs = _rule(problem, *primals)
    _, _, adjoint, operands = primals
    y = _linearisation_point(outputs)

    def of_operands(*values: Any) -> Array:
        return problem.function(y, *values)

    _, rhs = jax.jvp(of_operands, operands, tangents[-1])
    tangent = -_linear_solve(problem, adjoint, operands, y, outputs, rhs, transposed=False)
    return outputs, jax.tree.map(_zero_tangent, outputs)._replace(y=tangent)


def _reverse_forward(problem: Problem, *inputs: Any) -> tuple[Outputs, Any]:
    outputs = _reverse_rule(problem, *inputs)
    return outputs, (inputs, outputs)


def _reverse_backward(problem: Problem, saved: Any, cotangents: Outputs) -> tuple[Any, ...]:
    (y0, solver, adjoint, operands), outputs = saved
    y = _linearisation_point(outputs)
    u = _linear_solve(problem, adjoint, operands, y, outputs, cotangents.y, transposed=True)
    _, pullback = jax.vjp(lambda *values: problem.function(y, *values), *operands)
    return (*jax.tree.map(_zero_tangent, (y0, solver, adjoint)), pullback(-u))


_reverse_rule.defvjp(_reverse_forward, _reverse_backward)


def _linear_solve(
    problem: Problem,
    settings: tuple[Any, ...],
    operands: tuple[Any, ...],
    y: Array,
    outputs: Outputs,
    rhs: Array,
    transposed: bool,
) -> Array:
    """Solve with the Jacobian at `y`, or its transpose: itself a differentiable operation.

    A failed system gives NaN, but for a zero right-hand side zero: what does not depend on it stays clear of it.
    """
    residual = problem.residual(operands)
    adjoint = problem.adjoint.fill(settings)
    failed = None if problem.on_failure == "ignore" else _failed(outputs.status)

    def solver(of_transpose: bool) -> Callable[[Any, Array], Array]:
        def solve(_: Any, b: Array) -> Array:
            operator = residual.operator(y, outputs.factors)
            operator = operator.T if of_transpose else operator
            x, _ = _implicit.solve(operator, adjoint, b, problem.on_failure, failed)
            return jnp.where(jnp.all(b == 0, axis=-1, keepdims=True), jnp.zeros_like(x), x)

        return solve

    product = residual.vjp if transposed else residual.jvp
    return lax.custom_linear_solve(partial(product, y), rhs, solver(transposed), solver(not transposed))


def _linearisation_point(outputs: Outputs) -> Array:
    """Return the root, differentiable; where there is none, a point with finite derivatives: none of its concern."""
    failed = _failed(outputs.status)
    regular = _implicit.regular_point(jnp, outputs.best, failed)
    return jnp.where(failed[..., None], lax.stop_gradient(regular), outputs.y)


def _failed(status: Array) -> Array:
    return status > int(Status.AT_PRECISION)


def _zero_tangent(value: Any) -> Any:
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.inexact):
        return jnp.zeros_like(array)
    return np.zeros(array.shape, dtype=jax.dtypes.float0)
