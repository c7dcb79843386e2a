"""The entry points for NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from rootdiff._compaction import batched_leaves, compactable
from rootdiff._coupling import check_independent
from rootdiff._derivatives import DerivativeRules, GivenResidual
from rootdiff._empty import Nothing
from rootdiff._errors import ArgumentError
from rootdiff._failure import KEEP, OnFailure, check_policy, report
from rootdiff._hooks import Hooks
from rootdiff._iterate import Solver, StepInfo, run
from rootdiff._numbers import as_unknown
from rootdiff._numpy import NumpyBackend
from rootdiff._parameters import check_meaning, check_rule, frozen, is_parameter
from rootdiff._problems import continuation_start, scalar_problem, with_path
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual
from rootdiff._rules import check_rules
from rootdiff._sensitivities import Binding, Sensitivities
from rootdiff._solution import Solution
from rootdiff._structure import Structure, check_args, describe, fixed_point_residual, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto, Continuation

Derivatives = Literal["finite-difference", "complex-step"]
_DERIVATIVES = ("finite-difference", "complex-step")


@dataclass(frozen=True)
class Options:
    """The keyword arguments that `root` and `fixed_point` share."""

    solver: str | Solver
    adjoint: str | LinearSolver
    batch_ndim: int
    on_failure: OnFailure
    derivatives: Derivatives
    jac: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    hooks: Hooks | None = None
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
    jac: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    correct: Callable[[Any, Any], Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    callback: Callable[[StepInfo], None] | None = None,
    verbose: bool = False,
    history: bool = False,
    check: bool = False,
) -> Solution:
    """Find y with ``residual(y, *args) = 0``, and its derivatives with respect to `args`.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a pytree like `y0`: one value per unknown, in any units. It must not change
        its inputs, and must treat the systems of a batch independently.
    y0 : array or pytree of arrays, (*batch, ...), floating
        Initial guess, in the units of the unknown; all leaves of one precision.
    *args : pytrees
        Parameters. Real floating arrays and floats are differentiated; everything else is passed on as it is. Arrays
        are copied, so that what is written into them later does not change a derivative.
    solver, adjoint : str or object
        A registered name (see `available_solvers`, `available_adjoints`) or a value such as ``Newton(rtol=1e-8)``.
        "auto" takes `Newton` (`Chord` for one system of more than 64) and `LU` for at most 1024 unknowns, else a
        matrix-free Newton and `GMRES`.
    batch_ndim : int
        Number of leading axes of every leaf of `y0` that index independent systems.
    batched_args : tuple, optional
        Which of `args` carry the batch axes too: one entry each, 0 or None or a container of these, as the ``in_axes``
        of `jax.vmap`. With it the systems that still run are solved as a smaller batch, so that finished ones cost
        nothing; everything that differs between systems must then come through `args`. Native solvers without
        `correct`, `bounds`, `callback`, `verbose` and `history`; ignored otherwise.
    on_failure : {"raise", "warn", "keep", "nan", "ignore"}
        What to do when a system, or the linear solve of its derivative, fails: raise `ConvergenceError`; warn and
        return NaN for that system; warn and return its best iterate, whose derivatives are NaN; return NaN; or return
        the best iterate without a word, whose derivatives are meaningless.
        In reverse mode NaN goes to those entries of a parameter that only failed systems depend on; one that others
        share gets the sum over the good systems. `converged`, and `GradientReport.status`, tell which failed.
    jac : callable, optional
        ``jac(y, *args)`` returns df/dy, (*batch, *shape, *shape), where `y0` is one array; a SciPy sparse matrix is
        made dense. Where derivatives are asked for, or a solve fails, one product tells whether a rule is right.
    jvp : callable, optional
        ``jvp((y, *args), (y_dot, *args_dot))`` returns the derivative of the residual; the tangent of a leaf that is
        not differentiated is None.
    vjp : callable, optional
        ``vjp((y, *args), cotangent)`` returns a tuple of cotangents of y and of each of `args`.
    derivatives : {"finite-difference", "complex-step"}
        How to get the derivatives that were not given: by central differences (relative error about eps^(2/3), where
        f is rounded to eps), or by complex steps, exact to rounding, for a residual that is analytic and takes complex
        numbers.
    correct : callable, optional
        ``correct(trial, y)`` returns the point to try in place of `trial`, a step away from the iterate `y`: a limit
        on the step, a projection. It must leave alone what needs no correction; the root itself is not corrected.
    bounds : tuple (lo, hi), optional
        Numbers, None, or pytrees like `y0`: trial points are projected onto the box, and no difference leaves it; roots
        on its border are found.
    callback : callable, optional
        Called with a `StepInfo` after each step.
    verbose : bool
        Whether to print a line per step.
    history : bool
        Whether to return the norms of residual and step, and the method, of each step as ``sol.history``.
    check : bool
        Whether to check first that the systems of a batch are independent, at 2 log2(systems) evaluations: for
        debugging.

    Returns
    -------
    Solution
        With `y`, `status`, `steps`, `residual_norm`, and the methods `vjp`, `jvp` and `jacobian`.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If a system fails and ``on_failure="raise"``.

    Notes
    -----
    By the implicit function theorem ``dy/dargs = -(df/dy)^-1 (df/dargs)`` at the root, whatever solver found it: one
    linear solve per derivative. The initial guess, and every field but `y`, is not differentiated.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([2.0]))
    >>> sol.y, sol.vjp(np.array([1.0]))
    (array([1.41421356]), (array([0.35355339]),))
    """
    hooks = Hooks(correct, bounds, callback, verbose, history, check)
    options = Options(solver, adjoint, batch_ndim, on_failure, derivatives, jac, jvp, vjp, hooks, batched_args)
    return _solve(residual, y0, args, options, fixed_point=False)


def fixed_point(
    cell: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    batched_args: Any = None,
    on_failure: OnFailure = "raise",
    derivatives: Derivatives = "finite-difference",
    check: bool = False,
) -> Solution:
    """Find z with ``z = cell(z, *args)``, the root of ``cell(z, *args) - z``, and its derivatives.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z0`.
    z0 : array or pytree of arrays, (*batch, ...), floating
        Initial guess.
    *args, adjoint, batch_ndim, batched_args, on_failure, derivatives, check
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
        If a system fails and ``on_failure="raise"``.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.fixed_point(lambda z, a: np.cos(a * z), np.array([1.0]), np.array([1.0]))
    >>> sol.y, sol.jacobian()
    (array([0.73908513]), (array([[-0.29747434]]),))
    """
    hooks = Hooks(check=check)
    options = Options(solver, adjoint, batch_ndim, on_failure, derivatives, hooks=hooks, batched_args=batched_args)
    return _solve(cell, z0, args, options, fixed_point=True)


def root_scalar(
    residual: Callable[..., Any],
    bracket: Any,
    *args: Any,
    solver: str | Solver = "chandrupatla",
    adjoint: str | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
    derivatives: Derivatives = "finite-difference",
) -> Solution:
    """Find y between two points with ``residual(y, *args) = 0``, for each element of an array by itself.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` works elementwise: it returns an array shaped like y, or y broadcast against `args`.
    bracket : tuple or list (lo, hi), or float or array
        Two points (floats or arrays, of any order) where the residual has opposite signs; an infinite end is searched
        for, from the other end or from zero, in growing steps. Or one point, from which both ends are searched for.
    *args, adjoint, on_failure, derivatives
        As for `root`.
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
        If an element fails and ``on_failure="raise"``.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), np.array([8.0, 27.0]))
    >>> sol.y, sol.vjp(np.array([1.0, 1.0]))
    (array([2., 3.]), (array([0.08333333, 0.03703704]),))
    """
    chosen = get_solver(solver, "numpy")
    with np.errstate(all="ignore"):
        y0, chosen = scalar_problem(NumpyBackend(), residual, bracket, args, chosen)
    options = Options(chosen, adjoint, y0.ndim, on_failure, derivatives)
    return _solve(residual, y0, args, options, fixed_point=False)


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
    derivatives: Derivatives = "finite-difference",
) -> Solution:
    """Find y with ``residual(y, *args1) = 0`` by following the root from the easier parameters `args0`.

    Parameters
    ----------
    residual, y0, adjoint, on_failure, derivatives
        As for `root`; `y0` is a guess of the root at `args0`. One system, no batch.
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
        Whether to return the path as ``sol.history``, a `Path`: the parts of the way and y there.
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
        If the path ends before `args1`, or no root is found there, and ``on_failure="raise"``.

    Notes
    -----
    The steps are as long as the corrector's contraction and the angle between tangents allow. Where Jacobian and
    tangent change their orientation within a step, the corrector has jumped to another branch: the step is taken
    again, shorter. What is left of that at the shortest steps is a bifurcation, which is crossed.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.continuation(lambda y, a: y**3 + y - a, np.array([0.0]), np.array([0.0]), np.array([10.0]))
    >>> sol.y, sol.jacobian()
    (array([2.]), (array([[0.07692308]]),))
    """
    start, args = continuation_start(NumpyBackend(), args0, args1, is_parameter)
    y0 = as_unknown(NumpyBackend(), y0, args)
    path = Continuation(
        start=frozen(describe(NumpyBackend(), y0, 0), start),
        solver=get_solver(solver, "numpy"),
        method=method,
        first_step=first_step,
        max_step=max_step,
        max_steps=max_steps,
    )
    hooks = Hooks(history=history)
    options = Options(path, adjoint, 0, on_failure, derivatives, hooks=hooks)
    return with_path(NumpyBackend(), hooks, _solve(residual, y0, args, options, fixed_point=False))


def bind(
    function: Callable[..., Any], y0: Any, args: tuple[Any, ...], options: Options, fixed_point: bool
) -> tuple[Residual, Structure, tuple[Any, ...]]:
    """Check the arguments; return the residual on flat vectors, the structure of the unknown, and copies of `args`."""
    check_policy(options.on_failure)
    if options.derivatives not in _DERIVATIVES:
        raise ArgumentError(
            f"derivatives: got {options.derivatives!r}; allowed are {', '.join(map(repr, _DERIVATIVES))}."
        )
    _check_functions(function, options)
    backend = NumpyBackend(options.derivatives)
    structure = describe(backend, y0, options.batch_ndim)
    check_meaning("y0", y0)
    check_args(backend, args)
    args = frozen(structure, args)

    def make(structure: Structure, args: tuple[Any, ...]) -> Residual:
        parameters, rebuild = split_args(backend, args, is_parameter)
        flat = fixed_point_residual if fixed_point else flat_residual
        problem = Residual(flat(function, structure, rebuild), tuple(parameters), backend, fixed_point=fixed_point)
        if not any((options.jac, options.jvp, options.vjp)):
            return problem
        rules = DerivativeRules(options.jac, options.jvp, options.vjp, structure, args, is_parameter)
        return GivenResidual(problem.function, problem.parameters, backend, rules)

    if options.batched_args is None:
        return make(structure, args), structure, args
    flags = batched_leaves(backend, args, options.batched_args, structure.batch)
    return compactable(make, structure, args, flags), structure, args


def _solve(
    function: Callable[..., Any], y0: Any, args: tuple[Any, ...], options: Options, fixed_point: bool
) -> Solution:
    check_args(NumpyBackend(), args)
    y0 = as_unknown(NumpyBackend(), y0, args)
    problem, structure, kept = bind(function, y0, args, options, fixed_point)
    solver = get_solver(options.solver, "numpy") if options.solver != "auto" else Auto(fixed_point=fixed_point)
    if structure.is_empty:
        solver = Nothing()
    adjoint = get_adjoint(options.adjoint, "numpy")
    start = structure.ravel(y0)
    hooks = options.hooks or Hooks()
    problem = replace(problem, backend=NumpyBackend(options.derivatives, hooks.box(structure, start)))
    with np.errstate(all="ignore"):
        if hooks.check:
            check_independent(problem, start)
        raw = run(solver, hooks.attach(problem, structure, start), start)
    raw = raw._replace(y=np.array(raw.y))  # after no step it is y0, which the user may change
    solution = Solution(
        structure.unravel(raw.y), raw.status, raw.steps, raw.residual_norm, raw.method, hooks.recorded(np)
    )
    failed = ~solution.converged & (options.on_failure != "ignore")
    if isinstance(problem, GivenResidual) and np.any(failed):  # a wrong rule explains more than a status
        with np.errstate(all="ignore"):
            check_rules(problem, raw.y, failed)
    report(problem.backend, solution, options.on_failure, solver, (y0, *args))
    sensitivities = Sensitivities(
        problem,
        structure,
        adjoint,
        raw.y,
        raw.factors,
        kept,
        options.on_failure,
        failed,
        raw.residual_norm,
        raw.error,
        Binding(bind, function, replace(options, solver="auto", hooks=None, batched_args=None), fixed_point),
    )
    y = raw.y if options.on_failure in KEEP else np.where(failed[..., None], np.nan, raw.y)
    approximate = np.full(failed.shape, not adjoint.exact)
    error = None if raw.error is None else structure.unravel(raw.error)
    return solution._replace(y=structure.unravel(y), sensitivities=sensitivities, approximate=approximate, error=error)


def _check_functions(function: Any, options: Options) -> None:
    check_rule("residual", function if function is not None else "None")
    advice = " Without it derivatives are those of derivatives='finite-difference', or of 'complex-step'."
    for name in ("jac", "jvp", "vjp"):
        check_rule(name, getattr(options, name), advice)
    if options.hooks is not None:
        check_rule("correct", options.hooks.correct)
        check_rule("callback", options.hooks.callback)
