"""The entry points for JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rootdiff._failure import OnFailure, check_policy, report
from rootdiff._iterate import Solver
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._solution import Solution
from rootdiff._structure import check_args, describe, fixed_point_residual, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._rule import Inputs, Problem, solve
from rootdiff_jax._settings import split
from rootdiff_jax._trace import trace


@dataclass(frozen=True)
class _Options:
    """The keyword arguments that `root` and `fixed_point` share."""

    solver: str | Solver
    adjoint: str | LinearSolver
    batch_ndim: int
    on_failure: OnFailure


def root(
    residual: Callable[..., Any],
    y0: Any,
    *args: Any,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find y with ``residual(y, *args) = 0``, differentiable in `args` and in what the residual closes over.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a pytree like `y0`: one value per unknown, in any units. It is traced, as under
        ``jax.jit``, and must treat the systems of a batch independently. One with a `custom_vjp` in it is
        differentiable in reverse mode only.
    y0 : jax.Array or pytree of them, (*batch, ...), floating
        Initial guess, in the units of the unknown; all leaves of one precision. Not differentiated.
    *args : pytrees
        Parameters. Floating arrays and floats are differentiated; integer and boolean arrays are traced; everything
        else (None, int, bool, str, ...) is passed on as it is.
    solver, adjoint : str or object
        A registered name (see `available_solvers`, `available_adjoints`) or a value such as ``Newton(rtol=1e-8)``.
        "auto" takes `Newton` and `LU` for at most 1024 unknowns, else a matrix-free Newton and `GMRES`.
    batch_ndim : int
        Number of leading axes of every leaf of `y0` that index independent systems.
    on_failure : {"raise", "warn", "nan", "ignore"}
        What to do when a system fails: raise `ConvergenceError`; warn and return NaN for that system; return
        NaN; or return the best iterate (its derivatives are then meaningless). A traced program, under ``jax.jit`` for
        instance, can neither raise nor warn: there "raise" and "warn" mean "nan". So they do for the linear solve
        of a derivative, everywhere.

    Returns
    -------
    Solution
        With `y`, `status`, `steps` and `residual_norm`; of these `y` alone has a derivative.

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

    An eager call traces the residual once, so that it sees what has changed in the objects it reads; wrap it in
    ``jax.jit`` to save that, or the whole call. In reverse mode, a parameter that several systems share gets NaN if
    one of them failed, unless the loss masks that one out by `converged`. A ``scan`` around a root that is
    differentiated more than once needs forward mode first, ``jacrev(jacfwd(...))``: JAX forgets derivative rules in
    the reverse mode of a scan.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rootdiff_jax as rd
    >>> gradient = jax.jacobian(lambda a: rd.root(lambda y, a: y**2 - a, jnp.array([1.0]), a).y)(jnp.array([4.0]))
    >>> gradient.round(4).tolist()
    [[0.25]]
    """
    return _solve(residual, y0, args, _Options(solver, adjoint, batch_ndim, on_failure), fixed_point=False)


def fixed_point(
    cell: Callable[..., Any],
    z0: Any,
    *args: Any,
    solver: str | Solver = "auto",
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find z with ``z = cell(z, *args)``, the root of ``cell(z, *args) - z``, differentiable as by `root`.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z0`.
    z0 : jax.Array or pytree of them, (*batch, ...), floating
        Initial guess. Not differentiated.
    *args, adjoint, batch_ndim, on_failure
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
    return _solve(cell, z0, args, _Options(solver, adjoint, batch_ndim, on_failure), fixed_point=True)


def _solve(
    function: Callable[..., Any], y0: Any, args: tuple[Any, ...], options: _Options, fixed_point: bool
) -> Solution:
    check_policy(options.on_failure)
    backend = JaxBackend()
    structure = describe(backend, y0, options.batch_ndim)
    args = jax.tree.map(_as_jax, args)
    check_args(backend, args)
    given = get_solver(options.solver, "jax") if options.solver != "auto" else Auto(fixed_point=fixed_point)
    solver, solver_values = split(given)
    linear = get_adjoint(options.adjoint, "jax")
    adjoint, adjoint_values = split(linear)
    parameters, rebuild = split_args(backend, args, _is_operand)
    bind = fixed_point_residual if fixed_point else flat_residual
    y = jax.lax.stop_gradient(structure.ravel(y0))
    traced, operands = trace(bind(function, structure, rebuild), y, parameters)
    problem = Problem(traced, solver, adjoint, options.on_failure)
    out = solve(problem, Inputs(y, solver_values, adjoint_values, operands))
    approximate = jnp.full_like(out.status, not linear.exact, dtype=bool)
    solution = Solution(structure.unravel(out.y), out.status, out.steps, out.residual_norm, approximate=approximate)
    if not isinstance(out.status, jax.core.Tracer):
        best = solution._replace(y=structure.unravel(out.best))
        report(backend, best, options.on_failure, given, (y0, *args))
    return solution


def _as_jax(leaf: Any) -> Any:
    """Return NumPy's arrays as JAX's, as JAX itself does everywhere."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | np.generic) else leaf


def _is_operand(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | float | complex)
