"""JAX, seen by the entry points, and its entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rootdiff import _entry, _ode
from rootdiff._adapter import Adapter, F, Found
from rootdiff._bound import bound
from rootdiff._conditions import Conditions
from rootdiff._coupling import check_independent, require_concrete
from rootdiff._entry import with_wrap
from rootdiff._errors import ArgumentError
from rootdiff._hooks import History, Hooks
from rootdiff._loop import StepInfo
from rootdiff._ode import Ode
from rootdiff._residual import Residual
from rootdiff._solution import Solution
from rootdiff._structure import Structure
from rootdiff._task import Derivatives, Options, Task
from rootdiff_jax._backend import JaxBackend, SteppingBackend
from rootdiff_jax._mesh import is_spread, made_of, partition, vary, varying_axes
from rootdiff_jax._precision import in_own_settings, under_users_settings
from rootdiff_jax._problem import Inputs, Problem, split
from rootdiff_jax._rule import solve, solve_watched
from rootdiff_jax._trace import Traced, trace
from rootdiff_jax._words import WORDS


class JaxAdapter(Adapter):
    """JAX, all of whose transforms understand the root."""

    package = "rootdiff_jax"
    words: Mapping[str, str] = WORDS

    def entered(self, function: F) -> F:
        return under_users_settings(function)

    def aside(self, function: F) -> F:
        return in_own_settings(function)

    def backend(self, derivatives: Derivatives = "finite-difference") -> JaxBackend:
        return JaxBackend()

    def lifted(self, tree: Any) -> Any:
        return jax.tree.map(_as_jax, tree)

    def unknown(self, y0: Any, args: tuple[Any, ...]) -> Any:
        return jax.tree.map(_with_own_dtype, in_own_settings(super().unknown)(y0, args))

    def cut(self, tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if isinstance(leaf, Tracer) else leaf, tree)

    def along(self, step: Callable[..., Any], state: Any, columns: tuple[Any, ...]) -> Any:
        return jax.lax.scan(step, state, columns)[1]

    def is_parameter(self, leaf: Any) -> bool:
        return isinstance(leaf, jax.Array | float | complex)

    def is_concrete(self, tree: Any) -> bool:
        return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))

    def check(self, structure: Structure, y0: Any, args: tuple[Any, ...], options: Options) -> None:
        """Raise if a size is a symbol of `jax.export`, by which much is decided, or y0 is spread as no vector is."""
        unknown = [str(size) for size in (*structure.batch, structure.size) if jax.export.is_symbolic_dim(size)]
        if unknown:
            raise ArgumentError(
                f"y0: its shape has the symbolic dimension {', '.join(unknown)}, of which a solve must know the value. "
                "For a batch of any size use jax.vmap over the solve of one system, instead of batch_ndim."
            )
        lead, several = len(structure.batch), len(structure.shapes) + sum(structure.complex_leaves) > 1
        for leaf in jax.tree.leaves(y0):
            if any(partition(leaf)[lead if several else lead + 1 :]):
                raise ArgumentError(
                    f"y0: it is or holds {jax.typeof(leaf)}, spread over an explicit axis of a mesh. The unknowns of "
                    "one system can be that as one real array, along its first axis: arrange them so, or use a mesh "
                    "with axes of the type AxisType.Auto."
                )

    def measured(self, task: Task) -> Residual:
        parameters, rebuild = task.split()
        return Residual(task.flat(rebuild), tuple(map(jnp.asarray, parameters)), task.backend)

    def solve(self, task: Task) -> Found:
        options, y = task.options, jax.lax.stop_gradient(task.start)
        if options.hooks.check:
            residual = task.residual()
            require_concrete(self.is_concrete((y + 0, residual.parameters)))
            in_own_settings(check_independent)(replace(residual, backend=SteppingBackend()), y)
        if task.structure.is_empty:
            none = task.solver.solve(task.residual(), y)
            return Found(none.y, None, none.status, none.steps, none.residual_norm)
        solver, solver_values = split(task.solver)
        adjoint, adjoint_values = split(task.adjoint)
        y = vary(y, frozenset[Any]().union(*map(varying_axes, jax.tree.leaves((solver_values, task.scale)))))
        for _ in range(2):  # again, where a start that is the same on all devices leads to iterates that are not
            traced, operands, batched = _traced(task, y)
            correct, observe, of_correct = _attach(options.hooks, task.structure, traced, y, operands)
            axes = traced.axes if correct is None else traced.axes | correct.axes
            as_spread = batched is not None or traced.spec == partition(y)
            if axes <= varying_axes(y) and as_spread:
                break
            y = vary(y if as_spread else jax.sharding.reshard(y, traced.spec), axes)  # type: ignore[no-untyped-call]
        _check_collectives(traced, correct, y)
        _check_mesh(y)
        problem = Problem(
            traced,
            solver,
            adjoint,
            options.on_failure,
            correct,
            task.fixed_point,
            batched,
            options.batch_ndim,
            pattern=task.pattern,
            loss=options.loss,
            bounded=options.within is not None,
            spread=is_spread(y),
        )
        scale = None if task.scale is None else made_of(y, jax.lax.stop_gradient(task.scale))
        inputs = Inputs(y, solver_values, adjoint_values, of_correct, scale, operands)
        out = solve(problem, inputs) if observe is None else solve_watched(problem, inputs, observe)
        return out._replace(best=None) if isinstance(out.status, Tracer) else out


def _traced(task: Task, y: Any) -> tuple[Traced, tuple[Any, ...], tuple[bool, ...] | None]:
    """Return the residual, of one system if `batched_args` are given, its operands, and which of these are batched."""
    parameters, rebuild = task.split()
    if task.batched is None:
        return *trace(task.flat(rebuild), y, parameters), None
    leaves = zip(task.backend.flatten(task.args)[0], task.batched, strict=True)
    flags = [flag for leaf, flag in leaves if task.is_parameter(leaf)]
    lead = len(task.structure.batch)
    by_system = [y, *(part for part, flag in zip(parameters, flags, strict=True) if flag)]
    if any(any(partition(part)[:lead]) for part in by_system):  # a batch over explicit axes stays together
        return *trace(task.flat(rebuild), y, parameters), None
    first = (slice(0, 1),) * lead
    of_one = [part[first] if flag else part for part, flag in zip(parameters, flags, strict=True)]
    single = replace(task.structure, batch=(1,) * lead)
    traced, operands = trace(task.flat(rebuild, single), y[first], of_one, flags)
    further = operands[len(parameters) :]
    return traced, (*parameters, *further), (*flags, *(False for _ in further))


def _check_collectives(function: Traced, correct: Traced | None, y: Any) -> None:
    """Raise if an evaluation communicates along an axis on which the unknowns differ, or may."""
    names = function.names if correct is None else function.names | correct.names
    # JAX knows what varies along the axes of a mesh, unless told not to care; of those that vmap has named it does not
    of_vmap = {n for n in names | function.indexed if n not in varying_axes(jax.lax.axis_index(n))}
    coupled = sorted(str(n) for n in names if n in varying_axes(y) or n in of_vmap)
    if function.indexed & of_vmap:
        raise ArgumentError(
            f"residual: a function in it (jit, cond, scan, ...) takes jax.lax.axis_index of the axis "
            f"{', '.join(sorted(map(str, function.indexed & of_vmap)))} of vmap, which has no name inside the solve. "
            "Take the index before the solve, and pass it through args."
        )
    if coupled:
        raise ArgumentError(
            f"residual: it communicates (psum, pmean, all_gather, ...) along the axis {', '.join(coupled)}, on which y "
            "differs, or may as far as JAX knows: the systems along it are not independent. Give what is coupled as "
            "one system, without vmap or shard_map over this axis; compute sums that do not depend on y before the "
            "solve, and pass them through args; in shard_map with check_vma=True, give a y0 that is the same on all "
            "devices, and let the residual return what is."
        )


def _check_mesh(y: Any) -> None:
    """Raise if the unknowns of one system are spread over a mesh of which only their type tells."""
    if partition(y)[-1] is not None and jax.sharding.get_abstract_mesh().empty:
        raise ArgumentError(
            f"y0: the unknowns of one system, {jax.typeof(y)}, are spread over an explicit axis of a mesh that is not "
            "set. Solve, and differentiate, within `with jax.set_mesh(mesh):`."
        )


def _attach(
    hooks: Hooks, structure: Structure, function: Traced, y: Any, operands: tuple[Any, ...]
) -> tuple[Traced | None, Callable[[StepInfo], bool] | None, tuple[Any, ...]]:
    """Return the correction of the steps, what observes them, and the values that the correction depends on."""
    if JAX.is_concrete((y + 0, operands, hooks.bounds)):
        structure = replace(structure, backend=SteppingBackend())  # which checks the values of the bounds
    else:
        for name in ("callback", "verbose", "progress", "history"):
            if getattr(hooks, name):
                raise ArgumentError(
                    f"{name}: it needs concrete arrays, but this solve is traced (by jax.jit, grad, vmap or another "
                    "transform). Watch the steps of a solve outside of it."
                )
    residual = hooks.attach(Residual(function, (), structure.backend), structure, y)
    if residual.correct is None:
        return None, residual.observe, ()
    traced, (_, *values) = trace(residual.correct, y, (y,))
    return traced, residual.observe, tuple(values)


def _as_jax(leaf: Any) -> Any:
    """Return NumPy's arrays as JAX's, as JAX itself does everywhere."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _with_own_dtype(leaf: Any) -> Any:
    """Return a leaf of y0 as an array that has a dtype of its own, unlike a number."""
    leaf = _as_jax(leaf)
    if isinstance(leaf, float | complex):
        return jnp.asarray(leaf, dtype=jnp.result_type(type(leaf)))
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


# so that a `Solution` can be what an exported program returns
for _tuple in (Solution, History):
    jax.export.register_namedtuple_serialization(_tuple, serialized_name=f"rootdiff.{_tuple.__name__}")

JAX = JaxAdapter()
root = bound(_entry.root, JAX)
fixed_point = bound(_entry.fixed_point, JAX)
root_scalar = bound(_entry.root_scalar, JAX)
implicit = with_wrap(bound(_entry.implicit, JAX), JAX)
least_squares = bound(_entry.least_squares, JAX)
minimize = bound(_entry.minimize, JAX)
conditions = Conditions(JAX)
ode = Ode(bound(_ode.integrate, JAX), JAX)
continuation = bound(_entry.continuation, JAX)
gradient_report = bound(_entry.gradient_report, JAX)
detect_sparsity = bound(_entry.detect_sparsity, JAX)
