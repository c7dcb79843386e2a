"""The linear solve of the derivative: a differentiable JAX operation, of one right-hand side or of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from rootdiff import _implicit
from rootdiff._adapter import Found
from rootdiff._backend import Array
from rootdiff._failure import GOES_ON
from rootdiff._operator import Dense, LinearOperator
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns, is_dense
from rootdiff.linear import AutoLinear
from rootdiff_jax._backend import computed_once
from rootdiff_jax._mesh import alike, made_of, vary, varying_axes
from rootdiff_jax._precision import in_own_settings
from rootdiff_jax._problem import Problem, failed
from rootdiff_jax.xla import in_blocks, is_cut


def linear_solve(
    problem: Problem,
    settings: tuple[Any, ...],
    operands: tuple[Any, ...],
    y: Array,
    outputs: Found,
    rhs: Array,
    transposed: bool,
) -> Array:
    """Solve with the Jacobian at `y`, or its transpose: itself a differentiable operation.

    Of a failed system the solution is a number, zero only where `rhs` is: nothing but `marked` makes it NaN, and no
    right-hand side is kept in memory. A failed solve gives NaN, but for a zero cotangent zero: a loss that does not
    read the system stays clear of it.
    """
    # inside shard_map everything that `custom_linear_solve` takes varies over the mesh alike
    summed = frozenset[Any]().union(*map(varying_axes, operands)) - varying_axes(y)
    settings = tuple(vary(value, varying_axes(y)) for value in settings)
    error = None if outputs.error is None else lax.stop_gradient(outputs.error)
    operator = None if summed else _linearised(problem, operands, y)
    matrices = None if operator is None else _matrices(problem, operands, y, error, operator)

    def solver(of_transpose: bool) -> Callable[[Any, Array], Array]:
        @in_own_settings
        def solve(several: int | None, b: Array, values: Any) -> Array:
            settings, y, factors, operands, status, error, matrices = values
            adjoint = problem.adjoint.fill(settings)
            if several is None and isinstance(adjoint, AutoLinear):
                adjoint = replace(adjoint, few=False)

            def part(residual: Residual, arrays: Any) -> Array:
                b, y, factors, status, error, matrices = arrays
                # no status is negative, but the compiler does not know: it makes nothing of the right-hand sides, which
                # would take memory through the whole forward solve, before the root is found
                b = computed_once(jnp.where(status[..., None] >= 0, b, jnp.zeros_like(b)))

                def at(point: Array) -> LinearOperator:
                    if matrices is None:
                        operator = _for_several(residual.operator(point), several or 0)
                    else:
                        matrix = matrices[0 if point is y else 1]
                        operator = Dense.of(residual.backend, matrix, residual.backend.precision(matrix.dtype))
                    return operator.T if of_transpose else operator

                beside = None if error is None else _implicit.Beside(y, error, at)
                largest = jnp.max(jnp.abs(b), axis=-1, keepdims=True)
                known = adjoint.starting_from(factors)
                x, _ = _implicit.solve(at(y), known, b, problem.on_failure, beside=beside)
                if of_transpose:
                    x = jnp.where(largest == 0, 0, x)
                return x if problem.on_failure in GOES_ON else jnp.where(failed(status)[..., None], largest, x)

            residual, arrays = problem.residual(operands), (b, y, factors, status, error, matrices)
            return part(residual, arrays) if several else in_blocks(part, residual, y, arrays, settings)

        values = (settings, y, outputs.factors, operands, outputs.status, error, matrices)
        values, inside = _varied(values, summed)
        by_number = _by_number(solve) if problem.adjoint.solver.direct else partial(solve, 0)
        return lambda _, b: vary(by_number(alike(b, summed), inside(values)), summed)

    known, known_inside = _varied((y, operands), summed)

    def product_of(known: Any, vector: Array) -> Array:
        y, operands = known_inside(known)
        if operator is None:
            residual = problem.residual(operands)
            of_residual = residual.vjp if transposed else residual.jvp
            found = of_residual(y, alike(vector, summed))
        else:
            found = (operator.rmatvec if transposed else operator.matvec)(vector)
        # the operation has no derivative where that of its product is known to be zero, as of a constant Jacobian
        return vary(found * made_of(y, jnp.ones_like(y)), summed)

    # what the transposed product takes must vary too: all it makes of `known` it makes inside, where it is the same
    product = partial(jax.checkpoint(product_of, prevent_cse=False) if summed else product_of, known)

    rhs = vary(rhs, summed)
    try:
        x = lax.custom_linear_solve(product, rhs, solver(transposed), solver(not transposed))
    except ValueError:  # a while_loop in the residual has no transpose: forward mode only
        x = lax.custom_linear_solve(product, rhs, solver(transposed))
    return alike(x, summed)


def _linearised(problem: Problem, operands: tuple[Any, ...], y: Array) -> LinearOperator | None:
    """Return the Jacobian at the root, linearised once for the product and for the matrices.

    None where neither is small: without a direct solver, and in so large a batch that the matrices would not stay in a
    processor's cache.
    """
    residual = problem.residual(operands)
    dense = problem.adjoint.solver.direct and is_dense(y.shape) and residual.pattern is None
    return residual.operator(y) if dense and not is_cut(residual, y) else None


def _matrices(
    problem: Problem, operands: tuple[Any, ...], y: Array, error: Array | None, operator: LinearOperator
) -> tuple[Array, Array | None] | None:
    """Return the Jacobians of few unknowns at the root, from the `operator`, and its error away from it, where far.

    The solve, and that of the transpose, have them as constants, where each would hold copies of the residual.
    """
    if not has_few_unknowns(y.shape):
        return None
    matrix = lax.stop_gradient(operator.dense())
    if error is None:
        return matrix, None
    residual = problem.residual(lax.stop_gradient(operands))
    beside = _implicit.Beside(lax.stop_gradient(y), error, residual.operator)
    far = residual.xp.any(beside.is_far(residual.xp))
    return matrix, residual.backend.when(far, residual.jacobian, (beside.point(residual.xp),), matrix)


def marked(problem: Problem, outputs: Found, tangent: Array) -> Array:
    """Return a tangent or cotangent of the root, (*batch, n), NaN in failed systems, but where it is zero there.

    As JAX sees it, this is linear, and its own transpose. In derivatives of derivatives it is the only place where a
    failed system becomes NaN: at the root itself, where a loss that does not read the system masks it out.
    """
    if problem.on_failure in GOES_ON:
        return tangent
    lost = failed(outputs.status)[..., None]

    def mark(_: Any, tangent: Array) -> Array:
        return jnp.where(lost & jnp.any(tangent != 0, axis=-1, keepdims=True), jnp.nan, tangent)

    return lax.custom_linear_solve(lambda tangent: tangent, tangent, mark, mark)


def _varied(values: Any, axes: frozenset[Any]) -> tuple[Any, Callable[[Any], Any]]:
    """Return nested arrays typed as varying over `axes` too, and what gives them the types that they have."""

    def inside(varied: Any) -> Any:
        return jax.tree.map(lambda value, old: alike(value, axes - varying_axes(old)), varied, values)

    return jax.tree.map(lambda value: vary(value, axes), values), inside


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
