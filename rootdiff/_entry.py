"""The entry points, for every framework: `bound` makes those of a package of them.

In the docstrings ``$name`` stands for the words of an adapter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, Protocol, cast

from rootdiff._adapter import Adapter
from rootdiff._arguments import describe
from rootdiff._bound import P
from rootdiff._constraints import Constraints, Objective, nearest, with_constraints
from rootdiff._errors import ArgumentError, ArgumentTypeError, UnderdeterminedError, check_choice
from rootdiff._failure import OnFailure, report
from rootdiff._gradient_error import measure
from rootdiff._loop import StepInfo
from rootdiff._problems import continuation_start, scalar_problem, with_path
from rootdiff._registry import AdjointName, SolverName, get_minimizer, get_solver
from rootdiff._report import GradientReport
from rootdiff._solution import Solution, Y
from rootdiff._solver import Solver
from rootdiff._space import per_system, weights
from rootdiff._sparsity import Pattern
from rootdiff._squares import LOSSES, Loss
from rootdiff._structure import flat_cotangent
from rootdiff._task import (
    INEXACT,
    Derivatives,
    Options,
    Task,
    check_function,
    checked_args,
    detect,
    of_kind,
    solved,
    task,
)
from rootdiff.linear import LinearSolver
from rootdiff.solvers import (
    Auto,
    ConstrainedMinimum,
    Continuation,
    GaussNewton,
    Given,
    Minimum,
    MinimumOfObjective,
    Nearest,
    NewtonTrustRegion,
    SciPyMinimizer,
    adjusted,
)


def root(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    y0: Y,
    *args: Any,
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_ndim: int = 0,
    batched_args: Any = None,
    y_scale: Any = None,
    on_failure: OnFailure = "raise",
    jac_sparsity: Any = None,
    jac: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
    correct: Callable[[Any, Any], Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    max_evaluations: int | None = None,
    callback: Callable[[StepInfo], Any] | None = None,
    verbose: bool = False,
    progress: bool = False,
    history: bool = False,
    check: bool = False,
    has_aux: bool = False,
    cuda_graph: bool = False,
) -> Solution[Y]:
    """Find y with ``residual(y, *args) = 0``, $differentiable.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a pytree like `y0`, or one of another structure with as many numbers: one value
        per unknown, in any units. It must treat the systems of a batch independently.
        $residual
    y0 : $array, number or pytree of them, (*batch, ...), floating
        Initial guess, in the units of the unknown; all leaves of one precision$device. Not differentiated.
    *args : pytrees
        $args
    solver, adjoint : str or object
        A registered name (see `available_solvers`, `available_adjoints`) or a value such as ``Newton(rtol=1e-8)``.
        "auto" takes `Newton` (`$large` for one system of more than 64) and `LU` for at most 1024 unknowns, else a
        matrix-free Newton and `GMRES`.
    rtol, atol, max_steps : optional
        Settings of the solver, of each one of a chain such as "auto": a system has converged when the estimated error
        of each unknown is at most ``atol + rtol * abs(y)``, and has failed after so many steps. Default: what it has.
    batch_ndim : int
        Number of leading axes of every leaf of `y0` that index independent systems.
    batched_args : tuple, optional
        Which of `args` carry the batch axes too: one entry each, 0 or None or a container of these, as the
        $in_axes. With it the systems that still run are solved as a smaller batch, so that finished ones
        cost nothing; everything that differs between systems must then come through `args`. Native solvers without
        `correct`, `bounds`, `callback`, `verbose`, `progress` and `history`; ignored otherwise.
        $batched_args
    y_scale : number, $array or pytree of them, broadcast to `y0`, optional
        The size that each unknown may have, in its own units, positive: 1e-6 for microns in metres. It tells to which
        digit an unknown is looked for, where the solver has no `atol`, and which changes of it may be rounding.
        Default: what `y0` tells, at most one. Give it where a start far off, or at zero, tells the wrong size. Not
        differentiated.
        $y_scale
    on_failure : {"raise", "warn", "keep", "nan", "ignore", "approximate"}
        What to do when a system, or the linear solve of its derivative, fails: raise `ConvergenceError`; warn and
        return NaN for that system; warn and return its best iterate, whose derivatives are NaN; return NaN; return the
        best iterate without a word, with the derivatives at it, which mean little; or the same with a warning, and
        derivatives of zero where the linear solve fails.
        $on_failure
    jac_sparsity : "auto", "detect", tuple, sparse array or Pattern, optional
        Where df/dy of one system, (n, n) for the flattened `y0`, may have entries: a sparse array of SciPy, PyTorch or
        JAX that stores something there; ``("banded", (l, u))`` for so many diagonals below and above the main one; what
        `detect_sparsity` returns, or "detect" to ask it here, and again at iterates that have other entries; "auto"
        does so for more than 64 unknowns where values are known, and takes what it finds if that is sparse. With it a
        Jacobian costs as many products as a row has entries, or little more, and is solved with by `SparseLU`, in
        `Newton` and in the derivative of the root; one product more tells whether the Jacobian has entries elsewhere:
        then the status is WRONG_SPARSITY, or an ArgumentError where values are known. A pattern is made once for a
        residual and passed on: compiled programs are made for it. Solvers other than `Newton`, and systems of one
        unknown, do without.
    $derivatives
    correct : callable, optional
        ``correct(trial, y)`` returns the point to try in place of `trial`, a step away from the iterate `y`: a limit
        on the step, a projection. It must leave alone what needs no correction; the root itself is not corrected.
        $correct
    bounds : tuple (lo, hi), optional
        Numbers, None, or pytrees like `y0`: trial points are projected onto the box$bounds; roots on
        its border are found.
    $max_evaluations
    callback : callable, optional
        Called with a `StepInfo` after each step. Where it returns True the solve stops: systems that were running have
        the status STOPPED.
        $callback
    verbose : bool
        Whether to print a line per step.
    progress : bool
        Whether to show one line that moves with the steps, by tqdm, on standard error.
    history : bool
        Whether to return the norms of residual and step, and the method, of each step as ``sol.history``.
        $history
    check : bool
        Whether to check first that the systems of a batch are independent, at 2 log2(systems) evaluations: for
        debugging$check.
    has_aux : bool
        Whether `residual` returns a tuple ``(values, aux)``: a pytree `aux` of what else is wanted at the root, which
        is returned as ``sol.aux``. It is computed by one more call$aux.
    $cuda_graph

    Returns
    -------
    Solution
        $solution

    Raises
    ------
    $errors

    Notes
    -----
    By the implicit function theorem ``dy/dargs = -(df/dy)^-1 (df/dargs)`` at the root, whatever solver found it: one
    linear solve per derivative$orders. The initial guess, and every
    field but `y`, is not differentiated.

    $notes

    Examples
    --------
    >>> import $imports
    $root_example
    """
    return _solved(adapter, _task(adapter, residual, y0, args, _with_settings(adapter, locals())))


def fixed_point(
    adapter: Adapter,
    /,
    cell: Callable[..., Any],
    z0: Y,
    *args: Any,
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int | None = None,
    batch_ndim: int = 0,
    batched_args: Any = None,
    y_scale: Any = None,
    on_failure: OnFailure = "raise",
    jac_sparsity: Any = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
    correct: Callable[[Any, Any], Any] | None = None,
    bounds: tuple[Any, Any] | None = None,
    max_evaluations: int | None = None,
    callback: Callable[[StepInfo], Any] | None = None,
    verbose: bool = False,
    progress: bool = False,
    history: bool = False,
    check: bool = False,
    has_aux: bool = False,
    cuda_graph: bool = False,
) -> Solution[Y]:
    """Find z with ``z = cell(z, *args)``, $differentiable.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z0`$cell. The residual is ``cell(z, *args) - z``.
    z0 : $array, number or pytree of them, (*batch, ...), floating
        Initial guess. Not differentiated.
    *args, adjoint, rtol, atol, max_steps, batch_ndim, batched_args, y_scale, on_failure
        As for `root`.
    correct, bounds, callback, verbose, progress, history, check, has_aux$fixed_point_options
        As for `root`.
    jac_sparsity : "detect", tuple, sparse array or Pattern, optional
        As for `root`, of the derivative of the cell; "auto" then takes `Newton`, whatever the size.
    solver : str or Solver
        "auto" takes `Newton` for at most 64 unknowns, else `Anderson`.

    Returns
    -------
    Solution

    Raises
    ------
    $errors

    Examples
    --------
    >>> import $imports
    >>> sol = rd.fixed_point(lambda z, a: $xp.cos(a * z), $asarray([1.0]), $asarray([1.0]))
    >>> round(float(sol.y[0]), 4)
    0.7391
    """
    options = _with_settings(adapter, locals(), fixed_point=True)
    return _solved(adapter, _task(adapter, cell, z0, args, options, fixed_point=True))


def implicit(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    y: Y,
    *args: Any,
    adjoint: AdjointName | LinearSolver = "auto",
    batch_ndim: int = 0,
    rtol: float | None = None,
    atol: float | None = None,
    y_scale: Any = None,
    on_failure: OnFailure = "raise",
    has_aux: bool = False,
    jac: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
) -> Solution[Y]:
    """Return `y`, a root that was found elsewhere, $differentiable.

    By a solver of yours, a simulator, a table. Whether ``residual(y, *args) = 0`` is judged as at the end of `root`;
    `y` is returned as it is, to the bit.

    Parameters
    ----------
    residual, *args, adjoint, batch_ndim, on_failure, has_aux$rules
        As for `root`. A failure is a `y` that is no root to within tolerance.
    y : $array, number or pytree of them, (*batch, ...), floating
        The root, in the units of the unknown. How it was found is not differentiated, whatever it depends on.
    rtol, atol : float, optional
        `y` is a root where the estimated error of each unknown is at most ``atol + rtol * abs(y)``, or what rounding
        explains. Defaults: eps^(3/4) of the dtype of `y`, 1.8e-12 in float64, and that times `y_scale`, or without it
        eps times the size of the largest unknown, at most one. The error of `y` is one of its derivatives too.
    y_scale : number, $array or pytree of them, broadcast to `y`, optional
        As for `root`. Give it where all unknowns are zero to rounding, which tells no size.

    Returns
    -------
    Solution
        With ``steps`` of zero, and the estimate of the error of `y` as ``sol.error``.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If a system is at no root and ``on_failure="raise"``$untraced; the message tells how far off it is.
    $raises

    Notes
    -----
    ``implicit.wrap(residual, **options)`` makes of a solver ``y = solver(y0, *args)`` one whose root has derivatives:
    a decorator. The wrapped function returns a `Solution`; its keyword arguments go to the solver. What the solver does
    is not differentiated: it gets `y0` and `args` cut from what follows derivatives. So what is differentiated must
    come to it through `args`.

    Examples
    --------
    >>> import $imports
    $implicit_example
    """
    options = locals() | {"solver": Given(rtol=rtol, atol=atol)}
    return _solved(adapter, _task(adapter, residual, y, args, options))


def least_squares(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    y0: Y,
    *args: Any,
    loss: Loss = "linear",
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    bounds: Any = None,
    batch_ndim: int = 0,
    y_scale: Any = None,
    on_failure: OnFailure = "raise",
    jac_sparsity: Any = None,
    jac: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
    callback: Callable[[StepInfo], Any] | None = None,
    verbose: bool = False,
    progress: bool = False,
    history: bool = False,
    has_aux: bool = False,
) -> Solution[Y]:
    """Find y with the least squares of ``residual(y, *args)``, $differentiable.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a floating array, or a pytree of such: of a batch, the numbers of each system
        stand along the axes after those of the batch. Where they are fewer than the unknowns, see below.
        $residual
    callback, verbose, progress, history, has_aux
        As for `root`.
    y0, *args, adjoint, batch_ndim, y_scale, on_failure$options
        As for `root`. A failure is a `y` that is no minimum.
    loss : {"linear", "soft_l1", "huber", "cauchy", "arctan"}
        What is summed, as SciPy names it: rho(r^2), where "linear" is r^2. The others grow slower than that where r is
        larger than 1: divide a residual by the size that its errors may have.
    solver : str or Solver
        "auto" takes `GaussNewton`, which descends$large_squares. Others are
        "scipy:least_squares:trf", "...:dogbox", "...:lm"$ox_squares.
        Those of `root` look for a root of the gradient.
    bounds : tuple (lo, hi) or callable, optional
        Numbers, None, or pytrees like `y0`, that y lies between; or ``bounds(*args)``, which returns such a tuple. The
        minimum has derivatives in them$within.
    $sparse_squares
    $jac_of_equations

    Returns
    -------
    Solution
        As of `root`; `residual_norm` is the largest entry of the gradient of half the sum, J^T r.

    Raises
    ------
    $errors

    Notes
    -----
    The minimum is a root of the gradient J^T r, and its derivative is that of such a root, with the whole Hessian
    ``J^T J + sum r_i H_i`` of half the sum. Gauss-Newton's part alone, J^T J, is wrong as soon as r is not zero at the
    minimum. The residual is differentiated twice, for a second derivative of y three times.
    A success has a gradient of zero, as `root` judges a root, and a Hessian without a negative eigenvalue; with one the
    status is SADDLE. It is SINGULAR where the Hessian is, since the residual does not determine the unknowns.
    Within bounds the gradient is that of the unknowns between them, and an unknown on a bound has the derivative of the
    bound. Where the gradient along it is zero there, to within tolerance, the derivative has two sides: the status is
    DEGENERATE. Above 1024 unknowns a SADDLE is seen as far as 30 products with the Hessian show it, in PyTorch and JAX,
    and nothing else is looked at.
    With fewer equations than unknowns the answer is the root of the residual that is nearest to `y0`, as `minimize`
    finds it with the equations as constraints. In PyTorch and JAX it has a derivative in `y0`, too.
    $second

    Examples
    --------
    >>> import $imports
    >>> t = $asarray([0.0, 1.0, 2.0, 3.0])
    >>> data = $asarray([2.1, 1.2, 0.8, 0.4])
    >>> fit = rd.least_squares(lambda y, data: y[0] * $xp.exp(-y[1] * t) - data, $asarray([1.0, 1.0]), data)
    >>> [round(value, 3) for value in fit.y.tolist()]
    [2.092, 0.523]
    """
    check_choice("loss", loss, LOSSES)
    chosen = GaussNewton() if solver == "auto" else get_minimizer(solver, adapter.backend().name)
    options = locals()
    try:
        return _solved(adapter, _task(adapter, residual, y0, args, _within(adapter, options, Minimum(solver=chosen))))
    except UnderdeterminedError as error:
        for name, default in (("loss", "linear"), ("jac", None), ("jac_sparsity", None)):
            if not isinstance(options[name], type(default)) or options[name] != default:
                raise ArgumentError(f"{name}: {error} Then least_squares does not take it: leave it out.") from None
    backend, unknown = adapter.backend(derivatives), adapter.unknown(y0, args)
    structure = describe(backend, unknown, batch_ndim, derivatives == "complex-step")
    distance, equations = nearest(residual, structure, structure.ravel(adapter.lifted(y0)), has_aux)
    return _constrained(adapter, distance, options | {"constraints": equations}, Nearest)


def minimize(
    adapter: Adapter,
    /,
    objective: Callable[..., Any],
    y0: Y,
    *args: Any,
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    bounds: Any = None,
    constraints: Constraints | None = None,
    batch_ndim: int = 0,
    y_scale: Any = None,
    on_failure: OnFailure = "raise",
    jac: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
    callback: Callable[[StepInfo], Any] | None = None,
    verbose: bool = False,
    progress: bool = False,
    history: bool = False,
    has_aux: bool = False,
) -> Solution[Y]:
    """Find y where ``objective(y, *args)`` has a minimum, $differentiable.

    Parameters
    ----------
    objective : callable
        ``objective(y, *args)`` returns a real floating number: of a batch, one for each system, as an array with the
        batch axes alone. A minimum is a local one.
        $residual
    callback, verbose, progress, history, has_aux
        As for `root`.
    y0, *args, adjoint, batch_ndim, y_scale, on_failure$options
        As for `root`. A failure is a `y` that is no minimum.
    solver : str or Solver
        "auto" takes `NewtonTrustRegion`, which descends, and forms the Hessian. There are "scipy:minimize:BFGS",
        "...:L-BFGS-B" and the others of `SciPyMinimizer`$ox_minimize.
        Others are those of `root`, of the gradient, such as "newton_krylov" for many unknowns; they may end at a
        saddle, which is no success.
    bounds : tuple (lo, hi) or callable, optional
        Numbers, None, or pytrees like `y0`, that y lies between; or ``bounds(*args)``, which returns such a tuple. The
        minimum has derivatives in them$within.
    constraints : Constraints, optional
        ``Constraints(equality=..., inequality=...)``: functions ``(y, *args)`` of which the first is zero and the
        second at most zero at the minimum, (*batch, number). "auto" then takes SciPy's SLSQP, on the host, one system
        after the other; there is "scipy:minimize:trust-constr", too. The minimum has derivatives in what they read.
    $jac_of_objective

    Returns
    -------
    Solution
        As of `root`; `residual_norm` is the largest entry of the gradient.

    Raises
    ------
    $errors

    Notes
    -----
    The minimum is a root of the gradient, and its derivative is that of such a root, with the Hessian:
    ``dy/dargs = -H^-1 (dg/dargs)``. The objective is differentiated twice, for a second derivative of y three times.
    A success has a gradient of zero, as `root` judges a root, and a Hessian without a negative eigenvalue; with one the
    status is SADDLE. It is SINGULAR where the Hessian is, since the objective does not determine the unknowns.
    Within bounds the gradient is that of the unknowns between them, and an unknown on a bound has the derivative of the
    bound. Where the gradient along it is zero there, to within tolerance, the derivative has two sides: the status is
    DEGENERATE. Above 1024 unknowns a SADDLE is seen as far as 30 products with the Hessian show it, in PyTorch and JAX,
    and nothing else is looked at.
    Under constraints y and their multipliers, ``sol.multipliers``, are one root of the conditions of Karush, Kuhn and
    Tucker, found to rounding by Newton's method. A success has a Lagrangian without negative curvature along the
    constraints that hold with equality. It is SINGULAR where these depend on each other, DEGENERATE where the
    multiplier of one is zero, and INFEASIBLE where they are not met.
    $second

    Examples
    --------
    >>> import $imports
    >>> sol = rd.minimize(lambda y, a: $xp.exp(y[0]) - a[0] * y[0], $asarray([0.0]), $asarray([2.0]))
    >>> round(float(sol.y[0]), 4)
    0.6931
    """
    check_function("residual", objective)
    if constraints is not None:
        return _constrained(adapter, objective, locals(), ConstrainedMinimum)
    chosen = NewtonTrustRegion() if solver == "auto" else get_minimizer(solver, adapter.backend().name)
    options = _within(adapter, locals() | {"loss": Objective()}, MinimumOfObjective(solver=chosen))
    return _solved(adapter, _task(adapter, objective, y0, args, options))


class Implicit(Protocol[P]):
    """The entry point `implicit` of one framework, with its decorator."""

    def __call__(self, *args: P.args, **options: P.kwargs) -> Solution: ...

    def wrap(
        self, residual: Callable[..., Any], **options: Any
    ) -> Callable[[Callable[..., Any]], Callable[..., Solution]]: ...


def with_wrap(implicit: Callable[P, Solution], adapter: Adapter) -> Implicit[P]:
    """Return the entry point `implicit` with ``implicit.wrap``."""

    def wrap(residual: Callable[..., Any], **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Solution]]:
        """Return a decorator for solvers ``y = solver(y0, *args)``: what they find is handed to `implicit`."""
        entry: Callable[..., Solution] = implicit
        inspect.signature(entry).bind(residual, None, **options)  # a wrong option is told here

        def decorate(solver: Callable[..., Any]) -> Callable[..., Solution]:
            @wraps(solver)
            def solve(y0: Any, *args: Any, **settings: Any) -> Solution:
                return entry(residual, solver(*adapter.cut((y0, *args)), **settings), *args, **options)

            return solve

        return decorate

    entry: Any = implicit
    entry.wrap = wrap
    return cast(Implicit[P], entry)


def root_scalar(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    bracket: Any,
    *args: Any,
    solver: SolverName | Solver = "chandrupatla",
    adjoint: AdjointName | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
) -> Solution:
    """Find y between two points with ``residual(y, *args) = 0``, for each element by itself.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` works elementwise: it returns values shaped like y, or like y broadcast against
        `args`.
    bracket : tuple or list (lo, hi), or float or $array
        Two points, of any order, where the residual has opposite signs; an infinite end is searched for, from the other
        end or from zero, in growing steps. Or one point, from which both ends are searched for.
        Not differentiated.
    *args, adjoint, on_failure$options
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
    $errors

    Examples
    --------
    >>> import $imports
    >>> sol = rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), $asarray([8.0, 27.0]))
    >>> [round(y, 4) for y in sol.y.tolist()]
    [2.0, 3.0]
    """
    check_function("residual", residual)
    options = locals()
    args, bracket, residual = checked_args(adapter, args), adapter.lifted(bracket), adapter.counted(residual)
    backend = adapter.backend()
    chosen = get_solver(solver, backend.name)
    y0, chosen = adapter.aside(scalar_problem)(backend, residual, bracket, args, chosen)
    options |= {"solver": chosen, "batch_ndim": y0.ndim}
    return _solved(adapter, task(adapter, residual, adapter.unknown(y0, args), args, Options.of(options)))


def continuation(
    adapter: Adapter,
    /,
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
    progress: bool = False,
    solver: SolverName | Solver = "auto",
    adjoint: AdjointName | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
) -> Solution:
    """Find y with ``residual(y, *args1) = 0`` by following the root from the easier parameters `args0`.

    Parameters
    ----------
    residual, y0, adjoint, on_failure$options
        As for `root`; `y0` is a guess of the root at `args0`. One system, no batch$vmap.
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
    progress : bool
        Whether to show one line that moves along the path, by tqdm, on standard error.
    history : bool
        Whether to return the path as ``sol.history``, a `Path`: the parts of the way and y there.
        $path
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
        If the path ends before `args1`, or no root is found there, and ``on_failure="raise"``$untraced.

    Notes
    -----
    The steps are as long as the corrector's contraction and the angle between tangents allow. Where Jacobian and
    tangent change their orientation within a step, the corrector has jumped to another branch: the step is taken
    again, shorter. What is left of that at the shortest steps is a bifurcation, which is crossed.

    Examples
    --------
    >>> import $imports
    >>> sol = rd.continuation(lambda y, a: y**3 + y - a, $asarray([0.0]), $asarray([0.0]), $asarray([10.0]))
    >>> round(float(sol.y[0]), 4)
    2.0
    """
    options, is_parameter = locals(), of_kind(adapter, "real floating")
    args0, args1 = adapter.lifted(args0), adapter.lifted(args1)
    start, args1 = continuation_start(adapter.backend(), args0, args1, is_parameter)
    at_end = _task(adapter, residual, y0, args1, options, is_parameter=is_parameter)
    path = Continuation(
        start=adapter.kept(at_end.structure, start),
        solver=at_end.solver,
        method=method,
        first_step=first_step,
        max_step=max_step,
        max_steps=max_steps,
    )
    return with_path(at_end.backend, at_end.options.hooks, _solved(adapter, replace(at_end, solver=path)))


def detect_sparsity(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    y0: Any,
    *args: Any,
    batch_ndim: int = 0,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
) -> Pattern:
    """Return where the Jacobian of a residual near `y0` has entries, for `jac_sparsity` of `root`.

    Parameters
    ----------
    residual, *args, batch_ndim$options
        As for `root`. Of a batch it is where any system has entries.
    y0 : $array, number or pytree of them, (*batch, ...), floating
        The point; a thousandth beside it is where it is looked, since an entry may vanish at a special one.

    Returns
    -------
    Pattern
        The entries, and maybe a few more. Where they come and go with `y`, as those of an upwind difference, take the
        pattern of several points: ``a | b``.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used$concrete, or the Jacobian is not finite.

    Notes
    -----
    By products with the Jacobian, 100 to 400 for rows of up to 30 entries, whatever their number. An entry less than
    1e-9 of its row is not seen, nor one that is lost in the errors of differences. Rows of many entries are told by a
    product with the transpose each; where there is none they may have some entries too many.

    Examples
    --------
    >>> import $imports
    >>> rd.detect_sparsity(lambda y, a: y**3 - a * $xp.roll(y, 1), $xp.ones(100), 2.0)
    Pattern(100 x 100, 200 entries, 2 products)
    """
    return detect(adapter, _task(adapter, residual, y0, args, locals()))


def gradient_report(
    adapter: Adapter,
    /,
    residual: Callable[..., Any],
    y: Any,
    *args: Any,
    cotangent: Any = None,
    adjoint: AdjointName | LinearSolver = "auto",
    batch_ndim: int = 0,
    jac: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
    diff_step: float | None = None,
) -> GradientReport:
    """Return how far a gradient through the root `y` can be trusted, and what limits it.

    Parameters
    ----------
    residual, *args, adjoint, batch_ndim$rules
        As for `root`. The gradient is that with respect to what is floating in `args`.
        $captured
    y : $array, number or pytree of them, (*batch, ...), floating
        The root, wherever it came from, in the units of the unknown.
    cotangent : pytree like `y`, optional
        The derivative of the loss with respect to `y`; by default weights between 1/2 and 1 of no special relation:
        in the sum of `y` the errors of two unknowns may cancel.

    Returns
    -------
    GradientReport
        A plain dataclass that prints as a table.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used$concrete.

    Notes
    -----
    The errors are estimates, not bounds: on random problems with conditions up to 1e10 within a factor of ten of the
    true ones. The accuracy of differences, and the rounding of the residual, are measured. What an inner iteration
    leaves is seen where it changes within a half of each unknown and parameter, as that of ``brentq(xtol=1e-5)`` does.
    An error that is smooth over such a way is not: the values are those of another function, whose gradient is the one
    that is judged. Nor is one over a way from a parameter that is zero. ``scipy.integrate.solve_ivp``, and ``brentq``
    with a coarse `xtol`, may take the same steps all over it: the error is then told too low at single values, by any
    factor. Solve inner problems to rounding. The cost is that of some ten Newton steps and gradients.

    Examples
    --------
    >>> import $imports
    >>> print(rd.gradient_report(lambda y, a: y**2 - a, $asarray([1.41]), $asarray([2.0])).verdict)
    about 2 digits of the gradient can be trusted; the error comes from the root
    """
    options = locals() | {"on_failure": "ignore"}
    if not adapter.is_concrete((y, args, cotangent)):
        raise ArgumentTypeError(
            "gradient_report: it needs concrete values, but is traced or transformed (jit, grad, vmap or another). "
            "Call it outside of that."
        )
    at_root = _task(adapter, residual, y, args, options, is_parameter=of_kind(adapter, INEXACT))
    flat, xp = at_root.start, at_root.backend.xp
    w = weights(xp, flat, per_system(xp, flat, 0, xp.int32))
    if cotangent is not None:
        w = flat_cotangent("gradient_report", at_root.structure, cotangent, flat)
    return adapter.aside(measure)(adapter.measured(at_root), at_root.adjoint, flat, w)


def _with_settings(adapter: Adapter, variables: dict[str, Any], fixed_point: bool = False) -> dict[str, Any]:
    """Return the variables of an entry point, with the settings among them in its solver."""
    given = {name: variables[name] for name in ("rtol", "atol", "max_steps") if variables[name] is not None}
    if not given:
        return variables
    named, backend = variables["solver"], adapter.backend().name
    solver = Auto(fixed_point=fixed_point) if isinstance(named, str) and named == "auto" else get_solver(named, backend)
    return variables | {"solver": adjusted(solver, given)}


def _constrained(
    adapter: Adapter, objective: Callable[..., Any], variables: dict[str, Any], kind: type[ConstrainedMinimum]
) -> Solution:
    """Return the minimum of an objective under the constraints that are among the variables of an entry point."""
    if variables["jac"] is not None:
        raise ArgumentError("jac: under constraints minimize does not take it. Leave it out.")
    function = with_constraints(objective, variables["constraints"], variables["has_aux"])
    auto = SciPyMinimizer(method="SLSQP", max_steps=200)
    named = variables["solver"]
    chosen = auto if named == "auto" else get_minimizer(named, adapter.backend().name)
    options = _within(adapter, variables | {"loss": Objective()}, kind(solver=chosen))
    options |= {"within": options["within"] or (None, None)}
    return _solved(adapter, _task(adapter, function, variables["y0"], variables["args"], options))


def _within(adapter: Adapter, variables: dict[str, Any], solver: Solver) -> dict[str, Any]:
    """Return the variables of a minimum, with this solver, and with bounds that hold at the answer too."""
    bounds = variables["bounds"]
    within = bounds if callable(bounds) else adapter.lifted(bounds)
    return variables | {"solver": solver, "bounds": None, "within": within}


def _task(
    adapter: Adapter,
    function: Callable[..., Any],
    y0: Any,
    args: tuple[Any, ...],
    options: dict[str, Any],
    **kind: Any,
) -> Task:
    """Return the checked call of an entry point that has these variables, its options among them."""
    unknown = adapter.unknown(y0, args)
    args = checked_args(adapter, args)
    return task(adapter, adapter.counted(function), unknown, args, Options.of(options), **kind)


def _solved(adapter: Adapter, task: Task) -> Solution:
    """Return the root as the user gets it; raise or warn of failures that the rule has not reported."""
    found, structure = solved(adapter, task), task.structure
    xp, nothing = structure.backend.xp, adapter.nothing
    solution = Solution(
        structure.unravel(found.y),
        found.status,
        found.steps,
        found.residual_norm,
        nothing if found.method is None else found.method,
        task.options.hooks.recorded(xp) or nothing,
        found.sensitivities or nothing,
        xp.full_like(found.status, not task.adjoint.exact, dtype=xp.bool),
        None if found.error is None else structure.unravel(found.error),
        nothing,
        adapter.evaluations(task),
        nothing,
    )
    if isinstance(task.options.loss, Objective) and structure.multipliers:
        solution = solution._replace(multipliers=task.options.loss.parts(found.y))
    if found.best is not None:
        best = solution._replace(y=structure.unravel(found.best))
        report(structure.backend, best, task.options.on_failure, task.solver, (task.y0, *task.args))
    if task.options.has_aux:
        output = adapter.called(task.function, solution.y, task.args)
        aux = structure.with_aux("residual", output)[1]
        solution = solution._replace(aux=aux, evaluations=adapter.evaluations(task))
    return solution
