"""The root as a differentiable JAX operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.sharding import PartitionSpec

from rootdiff import _implicit
from rootdiff._backend import Array, Pick
from rootdiff._compaction import taken, with_scale
from rootdiff._failure import KEEP
from rootdiff._loop import StepInfo
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns, is_dense
from rootdiff._solution import Status
from rootdiff._solver import run
from rootdiff._sparsity import Pattern
from rootdiff.linear import AutoLinear
from rootdiff_jax._backend import JaxBackend, SteppingBackend, settled
from rootdiff_jax._precision import in_full_precision, in_own_settings
from rootdiff_jax._regular import regular_point
from rootdiff_jax._settings import Template
from rootdiff_jax._trace import Traced, alike, has_explicit_axes, partition, vary, varying_axes
from rootdiff_jax.xla import in_blocks, on_mesh


@dataclass(frozen=True)
class Problem:
    """What a solve is compiled for: the residual, both solvers, the failure policy, the correction of the steps.

    `fixed_point` tells that the residual is ``cell(y) - y``. Where it is known which of the operands carry the batch
    axes, `batched`, the residual is traced for one system. So many of the batch axes as `mapped` are those of vmap. The
    `pattern` is that of the Jacobian of each system, if it is known.
    """

    function: Traced
    solver: Template
    adjoint: Template
    on_failure: str
    correct: Traced | None = None
    fixed_point: bool = False
    batched: tuple[bool, ...] | None = None
    batch_ndim: int = 0
    mapped: int = 0
    pattern: Pattern | None = None

    def call(self, y: Array, *operands: Array) -> Array:
        """Return the residual of all systems, (*batch, n)."""
        if self.batched is None:
            return self.function(y, *operands)
        lead = self.batch_ndim

        def split(array: Array) -> Array:
            return jnp.reshape(array, (-1, *(1,) * (lead - self.mapped), *array.shape[lead:]))

        parts = [split(part) if flag else part for part, flag in zip(operands, self.batched, strict=True)]
        axes = [0 if flag else None for flag in self.batched]
        return jnp.reshape(jax.vmap(self.function, in_axes=(0, *axes))(split(y), *parts), y.shape)

    def residual(self, operands: tuple[Any, ...]) -> Residual:
        """Return the residual with its parameters bound."""
        backend = JaxBackend(self.function.reverse_only, self.function.differentiable)
        residual = Residual(self.call, operands, backend, fixed_point=self.fixed_point, pattern=self.pattern)
        return residual if self.batched is None else replace(residual, take=partial(self._take, operands))

    def _take(self, operands: tuple[Any, ...], pick: Pick, _: int) -> Residual:
        assert self.batched is not None
        pairs = zip(operands, self.batched, strict=True)
        return self.residual(tuple(taken(jnp, part, pick, self.batch_ndim) if flag else part for part, flag in pairs))


class Inputs(NamedTuple):
    """Start, runtime settings of solver and adjoint, what the correction and what the residual depends on.

    `scale` is the size of the unknowns, like `y0`, if the user has told.
    """

    y0: Array
    solver: tuple[Any, ...]
    adjoint: tuple[Any, ...]
    correct: tuple[Any, ...]
    scale: Array | None
    operands: tuple[Any, ...]


class Outputs(NamedTuple):
    """What a solve returns: `y` is `best`, the best iterate, but NaN in failed systems unless that is to be kept.

    Only `y` has a derivative.
    """

    y: Array
    best: Array
    status: Array
    steps: Array
    residual_norm: Array
    method: Array | None
    factors: Any
    error: Any


@partial(jax.jit, static_argnums=0)
def solve(problem: Problem, inputs: Inputs) -> Outputs:
    """Return the root; a JAX operation that every transform may be applied to."""
    rule = _reverse_rule if problem.function.reverse_only else _rule
    return _left_to_xla(lambda inputs: rule(problem, *jax.tree.map(on_mesh, inputs)), inputs)


def solve_watched(problem: Problem, inputs: Inputs, observe: Callable[[StepInfo], None]) -> Outputs:
    """Return the root of concrete arrays, not compiled and without derivative; `observe` is called after each step."""
    backend = SteppingBackend(problem.function.reverse_only, problem.function.differentiable)

    def watched(inputs: Inputs) -> Outputs:
        return _run(problem, inputs, replace(problem.residual(inputs.operands), backend=backend, observe=observe))

    return _left_to_xla(watched, inputs)


def _left_to_xla(solve: Callable[[Inputs], Outputs], inputs: Inputs) -> Outputs:
    """Return what `solve` does; unknowns of one system that explicit axes of a mesh spread are left to XLA in it.

    The types of a solver's arrays do not tell then how they are spread, and only the residual sees types that do.
    """
    spread = partition(inputs.y0)
    if spread[-1] is None:
        return solve(inputs)
    y, each = spread, PartitionSpec(*spread[:-1])  # type: ignore[no-untyped-call]

    def plain(*inputs: Any) -> Outputs:
        return solve(Inputs(*inputs))._replace(factors=None)

    found = Outputs(y, y, each, each, each, each, None, y)
    return jax.sharding.auto_axes(plain, out_sharding=found)(*inputs)  # type: ignore[no-any-return]


@in_full_precision
@in_own_settings
def _forward(problem: Problem, *inputs: Any) -> Outputs:
    # so JAX knows the trace of the value again where a derivative is traced
    with jax.sharding.use_abstract_mesh(jax.sharding.get_abstract_mesh()):
        return _by_system(problem)(*inputs)


@partial(jax.jit, static_argnums=0, inline=True)
def _traced_once(problem: Problem, *inputs: Any) -> Outputs:
    return _run(problem, Inputs(*inputs), problem.residual(inputs[-1]))


def _by_system(problem: Problem) -> Callable[..., Outputs]:
    """Return the solve, of which vmap makes that of a batch, in which finished systems cost nothing."""
    plain = partial(_traced_once, problem)
    if has_explicit_axes():  # a batch that is spread over them stays together
        return plain
    solve = custom_vmap(plain)

    @solve.def_vmap
    @in_full_precision
    @in_own_settings
    def rule(size: int, batched: list[Any], *values: Any) -> tuple[Outputs, Any]:
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
def _run(problem: Problem, inputs: Inputs, residual: Residual) -> Outputs:
    if problem.correct is not None:
        correct = problem.correct
        residual = replace(residual, correct=lambda trial, y: correct(trial, y, *inputs.correct))
    residual = with_scale(residual, inputs.scale)
    raw = in_blocks(partial(run, problem.solver.fill(inputs.solver)), residual, inputs.y0, inputs.y0, inputs.solver)
    y = raw.y
    if problem.on_failure not in KEEP:
        y = jnp.where(_failed(raw.status)[..., None], jnp.nan, y)
    return Outputs(y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.method, raw.factors, raw.error)


_rule = jax.custom_jvp(_forward, nondiff_argnums=(0,))
_reverse_rule = jax.custom_vjp(_forward, nondiff_argnums=(0,))


@in_full_precision
@in_own_settings
def _rule_jvp(problem: Problem, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Outputs, Outputs]:
    outputs = _rule(problem, *primals)
    _, _, adjoint, *_, operands = primals
    y = _linearisation_point(outputs)
    moving = [place for place, tangent in enumerate(tangents[-1]) if not isinstance(tangent, SymbolicZero)]
    tangent = jnp.zeros_like(y)
    if moving:
        y, operands = _regular(problem, outputs, y, operands)
        of_moving, values = _in_some_operands(problem, y, operands, moving)
        _, rhs = jax.jvp(of_moving, values, tuple(tangents[-1][place] for place in moving))
        tangent = -_linear_solve(problem, adjoint, operands, y, outputs, rhs, transposed=False)
        tangent = _marked(problem, outputs, tangent)
    return outputs, jax.tree.map(SymbolicZero.from_primal_value, outputs)._replace(y=tangent)


def _reverse_forward(problem: Problem, *inputs: Any) -> tuple[Outputs, Any]:
    values = jax.tree.map(lambda leaf: leaf.value, inputs)
    moving = [place for place, operand in enumerate(inputs[-1]) if operand.perturbed]
    outputs = _reverse_rule(problem, *values)
    return outputs, (values, outputs, dict.fromkeys(moving))  # keys are part of the structure, so known in a trace


@in_full_precision
@in_own_settings
def _reverse_backward(problem: Problem, saved: Any, cotangents: Outputs) -> tuple[Any, ...]:
    inputs, outputs, moving = saved
    _, _, adjoint, *_, operands = inputs
    if not moving or isinstance(cotangents.y, SymbolicZero):
        return (None,) * len(inputs)
    y, operands = _regular(problem, outputs, _linearisation_point(outputs), operands)
    cotangent = _marked(problem, outputs, cotangents.y)
    u = _linear_solve(problem, adjoint, operands, y, outputs, cotangent, transposed=True)
    of_moving, values = _in_some_operands(problem, y, operands, list(moving))
    found = dict(zip(moving, jax.vjp(of_moving, *values)[1](-u), strict=True))
    return *(None,) * (len(inputs) - 1), tuple(found.get(place) for place in range(len(operands)))


# Operands that are not differentiated stay out of it: a custom rule in the residual may close over them.
_rule.defjvp(_rule_jvp, symbolic_zeros=True)
_reverse_rule.defvjp(_reverse_forward, _reverse_backward, symbolic_zeros=True)


def _in_some_operands(
    problem: Problem, y: Array, operands: tuple[Any, ...], places: list[int]
) -> tuple[Callable[..., Array], tuple[Any, ...]]:
    """Return the residual at `y` as a function of the operands at `places`, and these operands."""

    def function(*values: Any) -> Array:
        merged = list(operands)
        for place, value in zip(places, values, strict=True):
            merged[place] = value
        return problem.call(y, *merged)

    return function, tuple(operands[place] for place in places)


def _regular(problem: Problem, outputs: Outputs, y: Array, operands: tuple[Any, ...]) -> tuple[Array, tuple[Any, ...]]:
    """Return the root and the operands at which the residual is differentiated: those of good systems."""
    if problem.on_failure == "ignore":
        return y, operands
    backend = problem.residual(operands).backend
    return regular_point(problem.call, backend, _failed(outputs.status), y, operands, problem.batched)


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

    A failed system of a batch has the identity for its Jacobian, so that nothing but `_marked` makes it NaN. A failed
    solve gives NaN, but for a zero cotangent zero: a loss that does not read the system stays clear of it.
    """
    # inside shard_map everything that `custom_linear_solve` takes varies over the mesh alike
    summed = frozenset[Any]().union(*map(varying_axes, operands)) - varying_axes(y)
    settings = tuple(vary(value, varying_axes(y)) for value in settings)

    def solver(of_transpose: bool) -> Callable[[Any, Array], Array]:
        @in_full_precision
        @in_own_settings
        def solve(several: int | None, b: Array, values: Any) -> Array:
            settings, y, factors, operands, status, error = values
            adjoint = problem.adjoint.fill(settings)
            if several is None and isinstance(adjoint, AutoLinear):
                adjoint = replace(adjoint, few=False)

            def part(residual: Residual, arrays: Any) -> Array:
                b, y, factors, status, error = arrays
                # no status is negative, but the compiler does not know: it makes nothing of the right-hand sides, which
                # would take memory through the whole forward solve, before the root is found
                b = settled(jnp.where(status[..., None] >= 0, b, jnp.zeros_like(b)))

                def at(y: Array) -> LinearOperator:
                    operator = _for_several(residual.operator(y), several or 0)
                    return operator.T if of_transpose else operator

                beside = None if error is None else _implicit.Beside(y, error, at)
                failed = None if problem.on_failure == "ignore" else _failed(status)
                alone = failed if status.ndim == 0 else None  # it shares no parameter, and to keep `b` takes memory
                known = adjoint.starting_from(factors)
                x, _ = _implicit.solve(at(y), known, b, problem.on_failure, alone, beside)
                if of_transpose:
                    x = jnp.where(jnp.all(b == 0, axis=-1, keepdims=True), jnp.zeros_like(x), x)
                return x if failed is None or status.ndim == 0 else jnp.where(failed[..., None], b, x)

            residual, arrays = problem.residual(operands), (b, y, factors, status, error)
            return part(residual, arrays) if several else in_blocks(part, residual, y, arrays, settings)

        error = None if outputs.error is None else lax.stop_gradient(outputs.error)
        values, inside = _varied((settings, y, outputs.factors, operands, outputs.status, error), summed)
        by_number = _by_number(solve) if problem.adjoint.solver.direct else partial(solve, 0)
        return lambda _, b: vary(by_number(alike(b, summed), inside(values)), summed)

    known, known_inside = _varied((y, operands), summed)

    def product_of(known: Any, vector: Array) -> Array:
        y, operands = known_inside(known)
        residual = problem.residual(operands)
        of_residual = residual.vjp if transposed else residual.jvp
        return vary(of_residual(y, alike(vector, summed)) * _one(y), summed)

    # what the transposed product takes must vary too: all it makes of `known` it makes inside, where it is the same
    product = partial(jax.checkpoint(product_of, prevent_cse=False) if summed else product_of, known)

    rhs = vary(rhs, summed)
    try:
        x = lax.custom_linear_solve(product, rhs, solver(transposed), solver(not transposed))
    except ValueError:  # a while_loop in the residual has no transpose: forward mode only
        x = lax.custom_linear_solve(product, rhs, solver(transposed))
    return alike(x, summed)


def _marked(problem: Problem, outputs: Outputs, tangent: Array) -> Array:
    """Return a tangent or cotangent of the root, (*batch, n), NaN in failed systems, but where it is zero there.

    As JAX sees it, this is linear, and its own transpose. In derivatives of derivatives it is the only place where a
    failed system becomes NaN: at the root itself, where a loss that does not read the system masks it out.
    """
    if problem.on_failure == "ignore":
        return tangent
    failed = _failed(outputs.status)[..., None]

    def mark(_: Any, tangent: Array) -> Array:
        return jnp.where(failed & jnp.any(tangent != 0, axis=-1, keepdims=True), jnp.nan, tangent)

    return lax.custom_linear_solve(lambda tangent: tangent, tangent, mark, mark)


def _varied(values: Any, axes: frozenset[Any]) -> tuple[Any, Callable[[Any], Any]]:
    """Return nested arrays typed as varying over `axes` too, and what gives them the types that they have."""

    def inside(varied: Any) -> Any:
        return jax.tree.map(lambda value, old: alike(value, axes - varying_axes(old)), varied, values)

    return jax.tree.map(lambda value: vary(value, axes), values), inside


def _one(y: Array) -> Array:
    """Return ones, which depend on `y` as far as JAX knows.

    `lax.custom_linear_solve` has no derivative where that of its product is known to be zero, as it is where the
    Jacobian is constant.
    """
    return jnp.where(jnp.zeros_like(y, dtype=bool), y, jnp.ones_like(y))


def _by_number(solve: Callable[[int | None, Array, Any], Array], several: int = 0) -> Callable[[Array, Any], Array]:
    """Return ``solve(several, b, values)``, of `b` with so many axes before those of the systems in `values`.

    Where vmap adds one to `b` alone, its systems are right-hand sides of the same matrices: one more such axis. Where
    it adds one to the `values` too, there are many matrices: None stands for that.
    """
    one = custom_vmap(partial(solve, several))

    @one.def_vmap
    def rule(_: int, batched: list[Any], b: Array, values: Any) -> tuple[Array, bool]:
        if not any(jax.tree.leaves(batched[1])):
            return _by_number(solve, several + 1)(b, values), True
        axes = jax.tree.map(lambda flag: 0 if flag else None, batched)
        return jax.vmap(partial(solve, several or None), in_axes=tuple(axes))(b, values), True

    return one


def _for_several(operator: LinearOperator, several: int) -> LinearOperator:
    """Return the operator for vectors with so many more axes before those of the systems."""
    matvec, rmatvec = operator.matvec, operator.rmatvec
    for _ in range(several):
        matvec, rmatvec = jax.vmap(matvec), jax.vmap(rmatvec)
    return replace(operator, matvec=matvec, rmatvec=rmatvec)


def _linearisation_point(outputs: Outputs) -> Array:
    """Return the root, differentiable, or the best iterate where there is none, so that a NaN stays in its system."""
    return jnp.where(_failed(outputs.status)[..., None], lax.stop_gradient(outputs.best), outputs.y)


def _failed(status: Array) -> Array:
    return status > int(Status.AT_PRECISION)
