"""The root as a differentiable JAX operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from rootdiff._adapter import Found
from rootdiff._backend import Array
from rootdiff._compaction import with_scale
from rootdiff._failure import GOES_ON, KEEP
from rootdiff._loop import StepInfo
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns, is_dense
from rootdiff._solver import run
from rootdiff_jax._backend import SteppingBackend
from rootdiff_jax._linear_solve import linear_solve, marked
from rootdiff_jax._mesh import has_explicit_axes, partition, vary, varying_axes
from rootdiff_jax._precision import in_own_settings
from rootdiff_jax._problem import Inputs, Problem, failed
from rootdiff_jax._regular import regular_point
from rootdiff_jax._trace import of_some
from rootdiff_jax.xla import in_blocks, on_mesh


@partial(jax.jit, static_argnums=0)
def solve(problem: Problem, inputs: Inputs) -> Found:
    """Return the root; a JAX operation that every transform may be applied to."""
    rule = _reverse_rule if problem.function.reverse_only else _rule
    return _left_to_xla(lambda inputs: rule(problem, *jax.tree.map(on_mesh, inputs)), inputs)


def solve_watched(problem: Problem, inputs: Inputs, observe: Callable[[StepInfo], bool]) -> Found:
    """Return the root of concrete arrays, not compiled and without derivative; `observe` is called after each step."""
    backend = SteppingBackend(problem.function.reverse_only, problem.function.differentiable, problem.spread)
    mesh, spread = jax.sharding.get_mesh(), partition(inputs.y0)[-1] is not None

    def told(info: StepInfo) -> bool:  # on the user's mesh, whose axes are explicit, unlike those of the solve
        if not spread:
            return observe(info)
        parts = [jax.device_put(part, NamedSharding(mesh, part.sharding.spec)) for part in info[1:]]
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return observe(StepInfo(info.method, *parts))

    def watched(inputs: Inputs) -> Found:
        return _run(problem, inputs, replace(problem.residual(inputs.operands), backend=backend, observe=told))

    return _left_to_xla(watched, inputs)


def _left_to_xla(solve: Callable[[Inputs], Found], inputs: Inputs) -> Found:
    """Return what `solve` does; unknowns of one system that explicit axes of a mesh spread are left to XLA in it.

    The types of a solver's arrays do not tell then how they are spread, and only the residual sees types that do.
    """
    spread = partition(inputs.y0)
    if spread[-1] is None:
        return solve(inputs)
    y, each = spread, PartitionSpec(*spread[:-1])  # type: ignore[no-untyped-call]

    def plain(*inputs: Any) -> Found:
        return solve(Inputs(*inputs))._replace(factors=None)

    found = Found(y, y, each, each, each, each, y)
    return jax.sharding.auto_axes(plain, out_sharding=found)(*inputs)  # type: ignore[no-any-return]


@in_own_settings
def _forward(problem: Problem, *inputs: Any) -> Found:
    # so JAX knows the trace of the value again where a derivative is traced
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _by_system(problem)(*inputs)


@partial(jax.jit, static_argnums=0, inline=True)
def _traced_once(problem: Problem, *inputs: Any) -> Found:
    return _run(problem, Inputs(*inputs), problem.residual(inputs[-1]))


def _by_system(problem: Problem) -> Callable[..., Found]:
    """Return the solve, of which vmap makes that of a batch, in which finished systems cost nothing."""
    plain = partial(_traced_once, problem)
    if has_explicit_axes():  # a batch that is spread over them stays together
        return plain
    solve = custom_vmap(plain)

    @solve.def_vmap
    @in_own_settings
    def rule(size: int, batched: list[Any], *values: Any) -> tuple[Found, Any]:
        inputs, flags = Inputs(*values), Inputs(*batched)
        shape = inputs.y0.shape if flags.y0 else (size, *inputs.y0.shape)
        wider = _of_batch(problem, shape, flags)
        if wider is None:
            axes = jax.tree.map(lambda flag: 0 if flag else None, flags)
            found = jax.vmap(plain, in_axes=tuple(axes))(*inputs)
            return found, jax.tree.map(lambda _: True, found)
        one = jax.tree.map(lambda value, flag: value[0] if flag else value, inputs, flags)
        kinds = jax.eval_shape(plain, *one)
        y0, scale = (
            value if value is None or flag else jnp.broadcast_to(value, (size, *value.shape))
            for value, flag in ((inputs.y0, flags.y0), (inputs.scale, flags.scale))
        )
        found = _by_system(wider)(*inputs._replace(y0=y0, scale=scale))
        if (found.factors is None) != (kinds.factors is None):  # small systems are eliminated all at once
            none = jax.tree.map(lambda kind: jnp.zeros((size, *kind.shape), kind.dtype), kinds.factors)
            found = found._replace(factors=jax.tree.map(lambda array: vary(array, varying_axes(found.y)), none))
        return found, jax.tree.map(lambda _: True, kinds)

    return solve


def _of_batch(problem: Problem, shape: tuple[int, ...], flags: Inputs) -> Problem | None:
    """Return the problem with one more batch axis; None where JAX is to add it, to each operation of the solve.

    `flags` tell what each of its systems has of its own, `shape` is that of the unknowns. Larger systems may be solved
    in other ways as a batch, and so to other roots.
    """
    own = tuple(flags.operands)
    alike = problem.batch_ndim == 0 or problem.batched == own
    shared = problem.correct is None and not any(jax.tree.leaves((flags.solver, flags.adjoint)))
    known = isinstance(shape[0], int) and shape[0] > 0  # not in a program that is exported for any size
    if not (alike and shared and known and has_few_unknowns(shape) and is_dense(shape)):
        return None
    return replace(problem, batched=own, batch_ndim=problem.batch_ndim + 1, mapped=problem.mapped + 1)


@in_own_settings
def _run(problem: Problem, inputs: Inputs, residual: Residual) -> Found:
    if problem.correct is not None:
        correct = problem.correct
        residual = replace(residual, correct=lambda trial, y: correct(trial, y, *inputs.correct))
    residual = with_scale(residual, inputs.scale)
    raw = in_blocks(partial(run, problem.solver.fill(inputs.solver)), residual, inputs.y0, inputs.y0, inputs.solver)
    y = raw.y
    if problem.on_failure not in KEEP:
        y = jnp.where(failed(raw.status)[..., None], jnp.nan, y)
    return Found(y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.method, raw.error, factors=raw.factors)


_rule = jax.custom_jvp(_forward, nondiff_argnums=(0,))
_reverse_rule = jax.custom_vjp(_forward, nondiff_argnums=(0,))


@in_own_settings
def _rule_jvp(problem: Problem, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Found, Found]:
    outputs = _rule(problem, *primals)
    _, _, adjoint, *_, operands = primals
    y = _linearisation_point(outputs)
    moving = [place for place, tangent in enumerate(tangents[-1]) if not isinstance(tangent, SymbolicZero)]
    tangent = jnp.zeros_like(y)
    if moving:
        y, operands = _regular(problem, outputs, y, operands)
        of_moving, values = of_some(partial(problem.call, y), operands, moving)
        _, rhs = jax.jvp(of_moving, values, tuple(tangents[-1][place] for place in moving))
        tangent = marked(problem, outputs, -linear_solve(problem, adjoint, operands, y, outputs, rhs, transposed=False))
    return outputs, jax.tree.map(SymbolicZero.from_primal_value, outputs)._replace(y=tangent)


def _reverse_forward(problem: Problem, *inputs: Any) -> tuple[Found, Any]:
    values = jax.tree.map(lambda leaf: leaf.value, inputs)
    moving = [place for place, operand in enumerate(inputs[-1]) if operand.perturbed]
    outputs = _reverse_rule(problem, *values)
    return outputs, (values, outputs, dict.fromkeys(moving))  # keys are part of the structure, so known in a trace


@in_own_settings
def _reverse_backward(problem: Problem, saved: Any, cotangents: Found) -> tuple[Any, ...]:
    inputs, outputs, moving = saved
    _, _, adjoint, *_, operands = inputs
    if not moving or isinstance(cotangents.y, SymbolicZero):
        return (None,) * len(inputs)
    y, operands = _regular(problem, outputs, _linearisation_point(outputs), operands)
    u = linear_solve(problem, adjoint, operands, y, outputs, marked(problem, outputs, cotangents.y), transposed=True)
    of_moving, values = of_some(partial(problem.call, y), operands, list(moving))
    found = dict(zip(moving, jax.vjp(of_moving, *values)[1](-u), strict=True))
    return *(None,) * (len(inputs) - 1), tuple(found.get(place) for place in range(len(operands)))


# Operands that are not differentiated stay out of it: a custom rule in the residual may close over them.
_rule.defjvp(_rule_jvp, symbolic_zeros=True)
_reverse_rule.defvjp(_reverse_forward, _reverse_backward, symbolic_zeros=True)


def _regular(problem: Problem, outputs: Found, y: Array, operands: tuple[Any, ...]) -> tuple[Array, tuple[Any, ...]]:
    """Return the root and the operands at which the residual is differentiated: those of good systems."""
    if problem.on_failure in GOES_ON:
        return y, operands
    backend = problem.residual(operands).backend
    return regular_point(problem.call, backend, failed(outputs.status), y, operands, problem.batched)


def _linearisation_point(outputs: Found) -> Array:
    """Return the root, differentiable, or the best iterate where there is none, so that a NaN stays in its system."""
    return jnp.where(failed(outputs.status)[..., None], lax.stop_gradient(outputs.best), outputs.y)
