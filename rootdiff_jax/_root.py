"""The entry points for JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from rootdiff._compaction import batched_leaves
from rootdiff._coupling import check_independent, require_concrete
from rootdiff._empty import Nothing
from rootdiff._errors import ArgumentError
from rootdiff._failure import OnFailure, check_policy, report
from rootdiff._hooks import History, Hooks
from rootdiff._iterate import Solver, StepInfo
from rootdiff._numbers import as_unknown
from rootdiff._problems import continuation_start, scalar_problem, with_path
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual
from rootdiff._solution import Solution
from rootdiff._structure import Structure, check_args, describe, fixed_point_residual, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto, Continuation
from rootdiff_jax._backend import JaxBackend, SteppingBackend
from rootdiff_jax._precision import in_full_precision, in_own_settings, without_nan_checks
from rootdiff_jax._rule import Inputs, Problem, solve, solve_watched
from rootdiff_jax._settings import split
from rootdiff_jax._trace import Traced, partition, trace, vary, varying_axes


@dataclass(frozen=True)
class _Options:
    """The keyword arguments that `root` and `fixed_point` share."""

    solver: str | Solver
    adjoint: str | LinearSolver
    batch_ndim: int
    on_failure: OnFailure
    hooks: Hooks = field(default_factory=Hooks)
    batched_args: Any = None


def root(
    residual: Callable[..., Any],
    y0: Any,
    *args: Any,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    batched_args: Any = None,
    on_failure: OnFailure = "raise",
    correct: Callable[[Any, Any], Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    callback: Callable[[StepInfo], None] | None = None,
    verbose: bool = False,
    history: bool = False,
    check: bool = False,
) -> Solution:
    """Find y with ``residual(y, *args) = 0``, differentiable in `args` and in what the residual closes over.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a pytree like `y0`: one value per unknown, in any units. It is traced, as under
        ``jax.jit``, and must treat the systems of a batch independently. One with a `custom_vjp` in it is
        differentiable in reverse mode only.
    y0 : array, float or pytree of them, (*batch, ...), floating
        Initial guess, in the units of the unknown; all leaves of one precision. Not differentiated.
    *args : pytrees
        Parameters. Floating arrays and floats are differentiated; integer and boolean arrays are traced; everything
        else (None, int, bool, str, ...) is passed on as it is.
    solver, adjoint : str or object
        A registered name (see `available_solvers`, `available_adjoints`) or a value such as ``Newton(rtol=1e-8)``.
        "auto" takes `Newton` (`NewtonKrylov` for one system of more than 64) and `LU` for at most 1024 unknowns, else a
        matrix-free Newton and `GMRES`.
    batch_ndim : int
        Number of leading axes of every leaf of `y0` that index independent systems.
    batched_args : tuple, optional
        Which of `args` carry the batch axes too: one entry each, 0 or None or a container of these, as the ``in_axes``
        of `jax.vmap`. With it the systems that still run are solved as a smaller batch, of a few fixed sizes, so that
        finished ones cost next to nothing, and on a CPU a large batch of small systems in blocks that stay in its
        cache; the residual is then traced for one system, and everything that differs between systems must come
        through `args`. Native solvers without `correct`, `bounds`, `callback`, `verbose` and `history`; ignored
        otherwise.
    on_failure : {"raise", "warn", "keep", "nan", "ignore"}
        What to do when a system fails: raise `ConvergenceError`; warn and return NaN for that system; warn and return
        its best iterate, whose derivatives are NaN; return NaN; or return the best iterate without a word, whose
        derivatives are meaningless. A traced program, under ``jax.jit`` for instance, can neither raise nor warn:
        there "raise" and "warn" mean "nan". So they do for the linear solve of a derivative, everywhere.
    correct : callable, optional
        ``correct(trial, y)`` returns the point to try in place of `trial`, a step away from the iterate `y`: a limit
        on the step, a projection. It must leave alone what needs no correction; the root itself is not corrected.
        It is traced; what it closes over is not differentiated.
    bounds : tuple (lo, hi), optional
        Numbers, None, or pytrees like `y0`: trial points are projected onto the box; roots on its border are found.
    callback : callable, optional
        Called with a `StepInfo` after each step. This, `verbose` and `history` run the steps one by one, not compiled,
        and only outside of a trace.
    verbose : bool
        Whether to print a line per step.
    history : bool
        Whether to return the norms of residual and step, and the method, of each step as ``sol.history``.
    check : bool
        Whether to check first that the systems of a batch are independent, at 2 log2(systems) evaluations: for
        debugging, and only outside of a trace.

    Returns
    -------
    Solution
        With `y`, `status`, `steps`, `residual_norm` and `method`; of these `y` alone has a derivative.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If a system fails and ``on_failure="raise"``, outside of a trace.

    Notes
    -----
    By the implicit function theorem ``dy/dargs = -(df/dy)^-1 (df/dargs)`` at the root, whatever solver found it: one
    linear solve per derivative. A program is compiled once for all residuals with the same jaxpr, all values of
    their constants and all tolerances and step limits.

    On a GPU or TPU JAX rounds the factors of float32 matrix products to ten or eight bits; inside a solve and its
    derivatives they are computed in full, unless ``jax_default_matmul_precision`` says otherwise: then ask for no more
    than it gives, ``rtol=1e-3`` for ``"tensorfloat32"``.

    An eager call traces the residual once, so that it sees what has changed in the objects it reads; wrap it in
    ``jax.jit`` to save that, or the whole call. In reverse mode, a parameter that several systems share gets NaN if
    one of them failed, unless the loss masks that one out by `converged` and the residual has a finite derivative
    there, or `batched_args` are given. A ``scan`` around a root that is
    differentiated more than once needs forward mode first, ``jacrev(jacfwd(...))``: JAX forgets derivative rules in
    the reverse mode of a scan.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rootdiff_jax as rd
    >>> gradient = jax.jacobian(lambda a: rd.root(lambda y, a: y**2 - a, jnp.array([1.0]), a).y)(jnp.array([4.0]))
    >>> gradient.round(4).tolist()
    [[0.25]]
    """
    hooks = Hooks(correct, bounds, callback, verbose, history, check)
    return _solve(
        residual, y0, args, _Options(solver, adjoint, batch_ndim, on_failure, hooks, batched_args), fixed_point=False
    )


def fixed_point(
    cell: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    batched_args: Any = None,
    on_failure: OnFailure = "raise",
    check: bool = False,
) -> Solution:
    """Find z with ``z = cell(z, *args)``, the root of ``cell(z, *args) - z``, differentiable as by `root`.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z0`.
    z0 : array, float or pytree of them, (*batch, ...), floating
        Initial guess. Not differentiated.
    *args, adjoint, batch_ndim, batched_args, on_failure, check
        As for `root`.
    solver : str or Solver
        "auto" takes `Newton` for at most 64 unknowns, else `Anderson`.

    Returns
    -------
    Solution

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If a system fails and ``on_failure="raise"``, outside of a trace.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rootdiff_jax as rd
    >>> rd.fixed_point(lambda z, a: jnp.cos(a * z), jnp.array([1.0]), jnp.array([1.0])).converged.tolist()
    True
    """
    hooks = Hooks(check=check)
    return _solve(
        cell, z0, args, _Options(solver, adjoint, batch_ndim, on_failure, hooks, batched_args), fixed_point=True
    )


def root_scalar(
    residual: Callable[..., Any],
    bracket: Any,
    *args: Any,
    solver: str | Solver = "chandrupatla",
    adjoint: str | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find y between two points with ``residual(y, *args) = 0``, for each element of an array by itself.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` works elementwise: it returns an array shaped like y, or y broadcast against `args`.
    bracket : tuple or list (lo, hi), or float or array
        Two points (floats or arrays, of any order) where the residual has opposite signs; an infinite end is searched
        for, from the other end or from zero, in growing steps. Or one point, from which both ends are searched for.
        Not differentiated.
    *args, adjoint, on_failure
        As for `root`: in a traced program an element without a valid bracket is NaN.
    solver : str or BracketSolver
        "chandrupatla", "itp", "bisection", or "bracketed_newton" where derivatives are cheap.

    Returns
    -------
    Solution
        `y` has the shape that the bracket and the residual broadcast to, and so have `status` and the other fields.
        An element without a change of sign has the status INVALID_BRACKET, one with NaN at an end NONFINITE_START, one
        with a pole or a jump STALLED.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If an element fails and ``on_failure="raise"``, outside of a trace.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rootdiff_jax as rd
    >>> slope = jax.grad(lambda a: rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), a).y)(8.0)
    >>> round(float(slope), 4)
    0.0833
    """
    bracket, args = jax.tree.map(_as_jax, (bracket, args))
    backend = JaxBackend()
    check_args(backend, args)
    y0, chosen = scalar_problem(backend, residual, bracket, args, get_solver(solver, "jax"))
    return _solve(residual, y0, args, _Options(chosen, adjoint, y0.ndim, on_failure), fixed_point=False)


def continuation(
    residual: Callable[..., Any],
    y0: Any,
    args0: Any,
    args1: Any,
    *,
    method: Literal["arclength", "natural"] = "arclength",
    first_step: float = 0.1,
    max_step: float | None = None,
    max_steps: int = 500,
    history: bool = False,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find y with ``residual(y, *args1) = 0`` by following the root from the easier parameters `args0`.

    Parameters
    ----------
    residual, y0, adjoint, on_failure
        As for `root`; `y0` is a guess of the root at `args0`. One system, no batch; `jax.vmap` works.
    args0, args1 : tuple of pytrees, or one pytree
        Parameters at the start and at the end; what is floating in them is joined by a straight line, everything
        else is that of `args1`.
    method : {"arclength", "natural"}
        By pseudo-arclength, which passes folds (the parameter turns back there, on the way to its end), or by the
        parameter itself, which ends at a fold. To start at a fold takes the first.
    first_step : float
        First step, as a fraction of the way, in (0, 1]; the steps adapt.
    max_step : float, optional
        Longest step, in the same unit; default: none. Shorter ones resolve a path of which `history` is to tell.
    max_steps : int
        Steps along the path.
    history : bool
        Whether to return the path as ``sol.history``, a `Path`: the parts of the way and y there. The steps then run
        one by one, not compiled, and only outside of a trace.
    solver : str or Solver
        Finds the root at the end of the path.

    Returns
    -------
    Solution
        At `args1`, and differentiable in them: the path has no derivative, nor need of one.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If the path ends before `args1`, or no root is found there, and ``on_failure="raise"``, outside of a trace.

    Notes
    -----
    The steps are as long as the corrector's contraction and the angle between tangents allow. Where Jacobian and
    tangent change their orientation within a step, the corrector has jumped to another branch: the step is taken
    again, shorter. What is left of that at the shortest steps is a bifurcation, which is crossed.

    Examples
    --------
    >>> import jax.numpy as jnp, rootdiff_jax as rd
    >>> sol = rd.continuation(lambda y, a: y**3 + y - a, jnp.array([0.0]), jnp.array([0.0]), jnp.array([10.0]))
    >>> sol.y.round(4).tolist()
    [2.0]
    """
    backend = JaxBackend()
    args0, args1 = jax.tree.map(_as_jax, (args0, args1))
    start, args = continuation_start(backend, args0, args1, _is_floating)
    path = Continuation(
        start=start,
        solver=get_solver(solver, "jax"),
        method=method,
        first_step=first_step,
        max_step=max_step,
        max_steps=max_steps,
    )
    leaves, rebuild = split_args(backend, args, _is_floating)

    def of_floating(y: Any, *leaves: Any) -> Any:
        return residual(y, *rebuild(*leaves))

    hooks = Hooks(history=history)
    sol = _solve(of_floating, y0, tuple(leaves), _Options(path, adjoint, 0, on_failure, hooks), fixed_point=False)
    return with_path(backend, hooks, sol)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, float) or (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating))


@in_full_precision
@without_nan_checks
def _solve(
    function: Callable[..., Any], y0: Any, args: tuple[Any, ...], options: _Options, fixed_point: bool
) -> Solution:
    check_policy(options.on_failure)
    backend = JaxBackend()
    y0 = jax.tree.map(_with_own_dtype, in_own_settings(as_unknown)(backend, y0, args))
    structure = describe(backend, y0, options.batch_ndim)
    _check_known_shape(structure)
    args = jax.tree.map(_as_jax, args)
    check_args(backend, args)
    given = get_solver(options.solver, "jax") if options.solver != "auto" else Auto(fixed_point=fixed_point)
    solver, solver_values = split(given)
    linear = get_adjoint(options.adjoint, "jax")
    adjoint, adjoint_values = split(linear)
    bind = fixed_point_residual if fixed_point else flat_residual
    y = jax.lax.stop_gradient(structure.ravel(y0))
    if options.hooks.check:
        parameters, rebuild = split_args(backend, args, _is_operand)
        require_concrete(_is_concrete((y + 0, parameters)))
        flat = bind(function, structure, rebuild)
        in_own_settings(check_independent)(Residual(flat, tuple(parameters), SteppingBackend()), y)
    if structure.is_empty:
        parameters, rebuild = split_args(backend, args, _is_operand)
        none = Nothing().solve(Residual(bind(function, structure, rebuild), tuple(parameters), backend), y)
        approximate = none.status > 0
        return Solution(structure.unravel(y), none.status, none.steps, none.residual_norm, approximate=approximate)
    y = vary(y, frozenset[Any]().union(*map(varying_axes, jax.tree.leaves(solver_values))))
    for _ in range(2):  # again, where a start that is the same on all devices leads to iterates that are not
        traced, operands, batched = _traced(bind, function, structure, y, args, options.batched_args)
        correct, observe, of_correct = _attach(options.hooks, structure, traced, y, operands)
        axes = traced.axes if correct is None else traced.axes | correct.axes
        settled = batched is not None or traced.spec == partition(y)
        if axes <= varying_axes(y) and settled:
            break
        y = vary(y if settled else _spread(y, traced.spec), axes)
    _check_collectives(traced, correct, y)
    _check_spread(y)
    problem = Problem(traced, solver, adjoint, options.on_failure, correct, fixed_point, batched, options.batch_ndim)
    inputs = Inputs(y, solver_values, adjoint_values, of_correct, operands)
    out = solve(problem, inputs) if observe is None else solve_watched(problem, inputs, observe)
    approximate = jnp.full_like(out.status, not linear.exact, dtype=bool)
    y = structure.unravel(out.y)
    found = options.hooks.recorded(jnp)
    error = None if out.error is None else structure.unravel(out.error)
    solution = Solution(
        y, out.status, out.steps, out.residual_norm, out.method, found, approximate=approximate, error=error
    )
    if not isinstance(out.status, Tracer):
        best = solution._replace(y=structure.unravel(out.best))
        report(backend, best, options.on_failure, given, (y0, *args))
    return solution


def _check_known_shape(structure: Structure) -> None:
    """Raise if the number of systems or unknowns is a symbol of `jax.export`: much is decided by these numbers."""
    unknown = [str(size) for size in (*structure.batch, structure.size) if jax.export.is_symbolic_dim(size)]
    if unknown:
        raise ArgumentError(
            f"y0: its shape has the symbolic dimension {', '.join(unknown)}, of which a solve must know the value. For "
            "a batch of any size use jax.vmap over the solve of one system, instead of batch_ndim."
        )


def _traced(
    bind: Callable[..., Any], function: Callable[..., Any], structure: Structure, y: Any, args: Any, batched_args: Any
) -> tuple[Traced, tuple[Any, ...], tuple[bool, ...] | None]:
    """Return the residual, of one system if `batched_args` are given, its operands, and which of these are batched."""
    backend = structure.backend
    parameters, rebuild = split_args(backend, args, _is_operand)
    if batched_args is None:
        return *trace(bind(function, structure, rebuild), y, parameters), None
    leaves = zip(backend.flatten(args)[0], batched_leaves(backend, args, batched_args, structure.batch), strict=True)
    flags = [flag for leaf, flag in leaves if _is_operand(leaf)]
    lead = len(structure.batch)
    by_system = [y, *(part for part, flag in zip(parameters, flags, strict=True) if flag)]
    if any(any(partition(part)[:lead]) for part in by_system):  # a batch over explicit axes stays together
        return *trace(bind(function, structure, rebuild), y, parameters), None
    first = (slice(0, 1),) * lead
    of_one = [part[first] if flag else part for part, flag in zip(parameters, flags, strict=True)]
    single = replace(structure, batch=(1,) * lead)
    traced, operands = trace(bind(function, single, rebuild), y[first], of_one, flags)
    further = operands[len(parameters) :]
    return traced, (*parameters, *further), (*flags, *(False for _ in further))


def _check_collectives(function: Traced, correct: Traced | None, y: Any) -> None:
    """Raise if an evaluation communicates along an axis on which the unknowns differ, or may."""
    names = function.names if correct is None else function.names | correct.names
    # JAX knows what varies along the axes of a mesh, unless told not to care; of those that vmap has named it does not
    coupled = sorted(str(n) for n in names if n in varying_axes(y) or n not in varying_axes(jax.lax.axis_index(n)))
    if coupled:
        raise ArgumentError(
            f"residual: it communicates (psum, pmean, all_gather, ...) along the axis {', '.join(coupled)}, on which y "
            "differs, or may as far as JAX knows: the systems along it are not independent. Give what is coupled as "
            "one system, without vmap or shard_map over this axis; compute sums that do not depend on y before the "
            "solve, and pass them through args; in shard_map with check_vma=True, give a y0 that is the same on all "
            "devices, and let the residual return what is."
        )


def _spread(y: Any, spec: Any) -> Any:
    """Return the start, spread over the explicit axes of a mesh."""
    return jax.sharding.reshard(y, spec)  # type: ignore[no-untyped-call]


def _check_spread(y: Any) -> None:
    """Raise if the unknowns of one system are spread over an explicit axis: slices and products of them are not."""
    axis = partition(y)[-1]
    if axis is not None:
        raise ArgumentError(
            f"y0: the unknowns of one system are spread over the explicit axis {axis} of a mesh; only systems of a "
            "batch can be. Use a mesh with axes of the type AxisType.Auto, over which XLA spreads what is inside."
        )


def _attach(
    hooks: Hooks, structure: Structure, function: Traced, y: Any, operands: tuple[Any, ...]
) -> tuple[Traced | None, Callable[[StepInfo], None] | None, tuple[Any, ...]]:
    """Return the correction of the steps, what observes them, and the values that the correction depends on."""
    if _is_concrete((y + 0, operands, hooks.bounds)):
        structure = replace(structure, backend=SteppingBackend())  # which checks the values of the bounds
    else:
        for name in ("callback", "verbose", "history"):
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


def _is_concrete(tree: Any) -> bool:
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _as_jax(leaf: Any) -> Any:
    """Return NumPy's arrays as JAX's, as JAX itself does everywhere."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _with_own_dtype(leaf: Any) -> Any:
    """Return a leaf of y0 as an array that has a dtype of its own, unlike a number."""
    leaf = _as_jax(leaf)
    if isinstance(leaf, float | complex):
        return jnp.asarray(leaf, dtype=jnp.result_type(type(leaf)))
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf


def _is_operand(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | float | complex)


# so that a `Solution` can be what an exported program returns
for _tuple in (Solution, History):
    jax.export.register_namedtuple_serialization(_tuple, serialized_name=f"rootdiff.{_tuple.__name__}")
