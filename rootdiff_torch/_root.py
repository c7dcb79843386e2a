"""The entry points for PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import TransformType

from rootdiff._compaction import batched_leaves, compactable
from rootdiff._coupling import check_independent, require_concrete
from rootdiff._empty import Nothing
from rootdiff._errors import ArgumentError
from rootdiff._failure import OnFailure, check_policy
from rootdiff._hooks import Hooks
from rootdiff._iterate import Solver, StepInfo
from rootdiff._numbers import as_unknown
from rootdiff._problems import continuation_start, scalar_problem, with_path
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual
from rootdiff._solution import Solution
from rootdiff._structure import Structure, check_args, describe, fixed_point_residual, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto, Continuation, InBracket
from rootdiff_torch._backend import BACKEND, TorchBackend
from rootdiff_torch._capture import (
    SPARSE,
    State,
    capture,
    forward_active,
    is_followed,
    modules_of,
    needs_capture,
    refuse_batch_norm,
    used,
    with_captured,
)
from rootdiff_torch._derivatives import in_full_precision, is_wrapped, levels, refuse_vectorized, tensors, uncompiled
from rootdiff_torch._freezing import Freezer
from rootdiff_torch._recording import check_device
from rootdiff_torch._rule import Problem, Root, apply
from rootdiff_torch._watching import Watched


@uncompiled
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
    cuda_graph: bool = False,
) -> Solution:
    """Find y with ``residual(y, *args) = 0``; y is differentiable in `args` and in what the residual closes over.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` returns a pytree like `y0`: one value per unknown, in any units. It must not change
        its inputs, and must treat the systems of a batch independently. Tensors and module parameters that it closes
        over are found and differentiated; passing them through `args` is faster.
    y0 : tensor or pytree of tensors, (*batch, ...), floating
        Initial guess, in the units of the unknown; all leaves of one precision, on one device.
    *args : pytrees
        Parameters, on the device of `y0`. Tensors are differentiated; everything else is passed on as it is.
    solver, adjoint : str or object
        A registered name (see `available_solvers`, `available_adjoints`) or a value such as ``Newton(rtol=1e-8)``.
        "auto" takes `Newton` (`NewtonKrylov` for one system of more than 64) and `LU` for at most 1024 unknowns, else a
        matrix-free Newton and `GMRES`.
    batch_ndim : int
        Number of leading axes of every leaf of `y0` that index independent systems.
    batched_args : tuple, optional
        Which of `args` carry the batch axes too: one entry each, 0 or None or a container of these, as the ``in_dims``
        of `torch.vmap`. With it the systems that still run are solved as a smaller batch, so that finished ones cost
        nothing; everything that differs between systems must then come through `args`. Native solvers without
        `correct`, `bounds`, `callback`, `verbose` and `history`, and no transform of torch.func; ignored otherwise.
    on_failure : {"raise", "warn", "keep", "nan", "ignore"}
        What to do when a system, or the linear solve of its derivative, fails: raise `ConvergenceError`; warn and
        return NaN for that system; warn and return its best iterate, whose derivatives are NaN; return NaN; or return
        the best iterate without a word, whose derivatives are meaningless.
    correct : callable, optional
        ``correct(trial, y)`` returns the point to try in place of `trial`, a step away from the iterate `y`: a limit
        on the step, a projection. It must leave alone what needs no correction; the root itself is not corrected.
        What it closes over is not differentiated.
    bounds : tuple (lo, hi), optional
        Numbers, None, or pytrees like `y0`: trial points are projected onto the box; roots on its border are found.
    callback : callable, optional
        Called with a `StepInfo` after each step; under `torch.func.vmap` its tensors have the mapped axes in front.
    verbose : bool
        Whether to print a line per step.
    history : bool
        Whether to return the norms of residual and step, and the method, of each step as ``sol.history``; not under
        `torch.func.vmap`.
    check : bool
        Whether to check first that the systems of a batch are independent, at 2 log2(systems) evaluations: for
        debugging, and not under torch.func.
    cuda_graph : bool
        Whether to record a step of the solver, and of an iterative linear solve, as a CUDA graph, and to replay it:
        several times faster where the kernels are short. Python runs the residual only for the first steps then, so
        that it must be a function of tensors alone, and must not wait for the device. Not with `callback`, `verbose`
        or `history`.

    Returns
    -------
    Solution
        With `y`, which is differentiable, and `status`, `steps` and `residual_norm`, which are not.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If a system fails and ``on_failure="raise"``.
    TransformError
        If an argument is batched by autograd's own vmap; `torch.func.vmap` works.

    Notes
    -----
    By the implicit function theorem ``dy/dargs = -(df/dy)^-1 (df/dargs)`` at the root, whatever solver found it: one
    linear solve per derivative, of any order, in reverse and forward mode. The initial guess is not differentiated.
    Under autocast the solve runs in the dtype of `y0`, and `args` of lower precision are converted to it; TF32 is off
    for convolutions. It is not for matrix products if you have asked for it, ``set_float32_matmul_precision("high")``:
    then no more than ``rtol=1e-3`` can be reached.

    Examples
    --------
    >>> import torch, rootdiff_torch as rd
    >>> a = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    >>> y = rd.root(lambda y, a: y**2 - a, torch.ones_like(a), a).y
    >>> y.sum().backward()
    >>> a.grad
    tensor([0.3536], dtype=torch.float64)
    """
    hooks = Hooks(correct, bounds, callback, verbose, history, check)
    return _solve(residual, y0, args, solver, adjoint, batch_ndim, on_failure, hooks, False, batched_args, cuda_graph)


@uncompiled
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
    cuda_graph: bool = False,
) -> Solution:
    """Find z with ``z = cell(z, *args)``, the root of ``cell(z, *args) - z``; differentiable as `root` is.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z0`; an `nn.Module` will do.
    z0 : tensor or pytree of tensors, (*batch, ...), floating
        Initial guess.
    *args, adjoint, batch_ndim, batched_args, on_failure, check, cuda_graph
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
    TransformError
        If an argument is batched by autograd's own vmap; `torch.func.vmap` works.

    Examples
    --------
    >>> import torch, rootdiff_torch as rd
    >>> rd.fixed_point(torch.cos, torch.ones(1, dtype=torch.float64)).y
    tensor([0.7391], dtype=torch.float64)
    """
    hooks = Hooks(check=check)
    return _solve(cell, z0, args, solver, adjoint, batch_ndim, on_failure, hooks, True, batched_args, cuda_graph)


@uncompiled
def root_scalar(
    residual: Callable[..., Any],
    bracket: Any,
    *args: Any,
    solver: str | Solver = "chandrupatla",
    adjoint: str | LinearSolver = "auto",
    on_failure: OnFailure = "raise",
) -> Solution:
    """Find y between two points with ``residual(y, *args) = 0``, for each element of a tensor by itself.

    Parameters
    ----------
    residual : callable
        ``residual(y, *args)`` acts elementwise: each value depends on the same element of `y` alone.
    bracket : tuple or list (lo, hi), or float or tensor
        Two points (floats or tensors, of any order) where the residual has opposite signs; an infinite end is searched
        for, from the other end or from zero, in growing steps. Or one point, from which both ends are searched for.
    *args, adjoint, on_failure
        As for `root`.
    solver : str or BracketSolver
        One that keeps a bracket: "chandrupatla", "itp", "bisection" or "bracketed_newton".

    Returns
    -------
    Solution
        Differentiable as that of `root`, with a status per element: INVALID_BRACKET without a change of sign,
        NONFINITE_START with NaN at an end, STALLED at a pole or a jump.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used; the message names it.
    ConvergenceError
        If an element fails and ``on_failure="raise"``.

    Examples
    --------
    >>> import torch, rootdiff_torch as rd
    >>> rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), torch.tensor([8.0, 27.0], dtype=torch.float64)).y
    tensor([2., 3.], dtype=torch.float64)
    """
    check_args(BACKEND, args)
    with torch.no_grad():
        y0, chosen = scalar_problem(BACKEND, residual, bracket, args, get_solver(solver, "torch"))
    return _solve(residual, y0.detach(), args, chosen, adjoint, y0.ndim, on_failure, Hooks(), fixed_point=False)


@uncompiled
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
        As for `root`; `y0` is a guess of the root at `args0`. One system, no batch.
    args0, args1 : tuple of pytrees, or one pytree
        Parameters at the start and at the end; floating tensors in them are joined by a straight line, everything
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
    >>> import torch, rootdiff_torch as rd
    >>> zero, ten = torch.zeros(1, dtype=torch.float64), torch.tensor([10.0], dtype=torch.float64)
    >>> rd.continuation(lambda y, a: y**3 + y - a, zero, zero, ten).y
    tensor([2.], dtype=torch.float64)
    """
    start, args = continuation_start(BACKEND, args0, args1, _is_floating)
    path = Continuation(
        start=start,
        solver=get_solver(solver, "torch"),
        method=method,
        first_step=first_step,
        max_step=max_step,
        max_steps=max_steps,
    )
    leaves, rebuild = split_args(BACKEND, args, _is_floating)

    def of_floating(y: Any, *leaves: Tensor) -> Any:
        return residual(y, *rebuild(*leaves))

    hooks = Hooks(history=history)
    sol = _solve(of_floating, y0, tuple(leaves), path, adjoint, 0, on_failure, hooks, fixed_point=False)
    return with_path(BACKEND, hooks, sol)


def _is_parameter(leaf: Any) -> bool:
    """Return whether a leaf of args is handed to the rule; a sparse tensor is passed on as it is."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided


def _plain_number(leaf: Any) -> Any:
    """Return a scalar of NumPy as the number that it is."""
    return leaf.item() if isinstance(leaf, np.generic) else leaf


def _check_sparse(y0: Any, args: tuple[Any, ...]) -> None:
    if not all(map(_is_parameter, tensors(y0))):
        raise ArgumentError("y0: it is a sparse tensor. Make it dense with .to_dense().")
    for index, arg in enumerate(args):
        if any(not _is_parameter(leaf) and is_followed(leaf) for leaf in tensors(arg)):
            raise ArgumentError(f"args[{index}]: {SPARSE}")


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _solve(
    function: Callable[..., Any],
    y0: Any,
    args: tuple[Any, ...],
    solver: str | Solver,
    adjoint: str | LinearSolver,
    batch_ndim: int,
    on_failure: OnFailure,
    hooks: Hooks,
    fixed_point: bool,
    batched_args: Any = None,
    cuda_graph: bool = False,
) -> Solution:
    check_policy(on_failure)
    y0 = as_unknown(BACKEND, y0, args)
    structure = describe(BACKEND, y0, batch_ndim)
    leaves, tree = BACKEND.flatten(args)
    args = BACKEND.unflatten(tree, [*map(_plain_number, leaves)])
    check_args(BACKEND, args)
    _check_sparse(y0, args)
    if cuda_graph:
        _check_recordable(BACKEND.flatten(y0)[0][0].device, hooks)
    _check_devices(BACKEND.flatten(y0)[0], args)
    chosen = get_solver(solver, "torch") if solver != "auto" else Auto(fixed_point=fixed_point)
    if structure.is_empty:
        chosen = Nothing()
    chosen_adjoint = get_adjoint(adjoint, "torch")
    start = structure.ravel(y0)
    leaves, rebuild = split_args(BACKEND, args, _is_parameter)
    autocast = torch.is_autocast_enabled(start.device.type)
    with in_full_precision(start):
        parameters = [_explicit(leaf, start.dtype if autocast else None) for leaf in leaves]
        bind = fixed_point_residual if fixed_point else flat_residual
        flat = bind(function, structure, rebuild)
        if math.prod(structure.batch) > 1:
            refuse_batch_norm(function, args, lambda: flat(start, *parameters))
        if hooks.check:
            require_concrete(not levels())
            with torch.no_grad():
                check_independent(Residual(flat, tuple(parameters), BACKEND), start)
        captured: Sequence[Tensor] = ()
        first = None
        state = State(())
        follows = needs_capture()
        if follows:
            before = State.of(modules_of(function, args))
            captured, first = capture(flat, start, parameters)
            state = before.lasting()
        count = len(parameters)
        hidden = bool(levels()) or torch.is_inference_mode_enabled()
        differentiated = hidden or forward_active() or any(tensor.requires_grad for tensor in (*parameters, *captured))
        frozen, watched = flat, Watched(())
        if follows and differentiated:
            freezer = Freezer()
            parts, tree = BACKEND.flatten(args)
            _, as_now = split_args(BACKEND, BACKEND.unflatten(tree, [*map(freezer.freeze, parts)]), _is_parameter)
            frozen = bind(freezer.freeze(function), structure, as_now)
            watched = Watched.of(function, args, freezer.made)
        hooked, of_correct = _attach(hooks, structure, flat, start)
        settings = _settings(chosen)
        inputs = [*parameters, *map(_explicit, captured)]
        shown, known = len(inputs), len(inputs) + len(of_correct)
        inputs += [tensor.detach() for tensor in (*of_correct, *settings)]
        flags = None if batched_args is None else batched_leaves(BACKEND, args, batched_args, structure.batch)

        def make(structure: Structure, args: tuple[Any, ...]) -> Residual:
            leaves, rebuild = split_args(BACKEND, args, _is_parameter)
            flat = bind(function, structure, rebuild)
            return Residual(flat, tuple(leaves), BACKEND, fixed_point=fixed_point)

        problem = Problem(
            original=_of_parameters(with_captured(frozen, captured, 1 + count), 0, shown),
            direct=None if hidden else _of_parameters(flat, 0, count),
            take=None if flags is None else (lambda *args: compactable(make, structure, args, flags).take),
            structure=structure,
            solver=chosen,
            adjoint=chosen_adjoint,
            on_failure=on_failure,
            arguments=lambda *parameters: rebuild(*parameters[:count]),
            state=state,
            watched=watched,
            follows=follows,
            checked=bool(captured) or hidden or forward_active() or not any(tensor.requires_grad for tensor in inputs),
            first=first,
            fixed_point=fixed_point,
            correct=hooked.correct and _of_parameters(with_captured(hooked.correct, of_correct, 2), shown, known, 2),
            observe=hooked.observe,
            settings=len(settings),
            cuda_graph=cuda_graph,
        )
        y, status, steps, norm, method, _, error, *_ = apply(Root, problem, start, *inputs)
    approximate = torch.full_like(status, not chosen_adjoint.exact, dtype=torch.bool)
    # empty tuples stand for nothing: None would be a leaf that vmap does not return
    record = hooks.recorded(torch) or ()
    return Solution(
        structure.unravel(y), status, steps, norm, method, record, (), approximate, structure.unravel(error)
    )


def _of_parameters(function: Callable[..., Tensor], first: int, last: int, points: int = 1) -> Callable[..., Tensor]:
    """Return `function` of its points and the parameters from `first` to `last`, as one of all parameters."""
    return lambda *inputs: function(*inputs[:points], *inputs[points + first : points + last])


def _settings(solver: Any) -> tuple[Tensor, ...]:
    """Return the tensors in a solver's settings, which a transform may track like any argument."""
    if isinstance(solver, InBracket):
        return solver.lo, solver.hi
    return solver.start if isinstance(solver, Continuation) else ()


class _Unchecked(TorchBackend):
    """For bounds that a transform tracks, on whose values Python cannot branch."""

    traced = True


def _attach(
    hooks: Hooks, structure: Structure, function: Callable[..., Tensor], start: Tensor
) -> tuple[Residual, Sequence[Tensor]]:
    """Return a residual with the hooks, and the tensors in its correction that a transform tracks."""
    if hooks.history and TransformType.Vmap in levels():
        raise ArgumentError("history: torch.func.vmap cannot return it. Use batch_ndim, or a callback.")
    if any(map(is_wrapped, tensors(hooks.bounds))):
        structure = replace(structure, backend=_Unchecked())
    with torch.inference_mode(False):
        plain = torch.zeros((*structure.batch, structure.size), dtype=start.dtype, device=start.device)
    hooked = hooks.attach(Residual(function, (), BACKEND), structure, plain)
    if hooked.correct is None or not levels():
        return hooked, ()
    return hooked, used(hooked.correct, (start, start))


def _explicit(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an alias of `tensor`, made by an operation that a root around this one can see.

    With a `dtype`, lower precisions are converted to it.
    """
    refuse_vectorized(tensor)
    lower = (
        dtype is not None and tensor.is_floating_point() and torch.finfo(tensor.dtype).bits < torch.finfo(dtype).bits
    )
    return tensor.to(dtype) if lower else tensor.view_as(tensor)


def _check_recordable(device: torch.device, hooks: Hooks) -> None:
    check_device(device)
    if hooks.callback is not None or hooks.verbose or hooks.history:
        raise ArgumentError(
            "cuda_graph: recorded steps are not seen by Python. Leave out cuda_graph, or callback, verbose and history."
        )


def _check_devices(unknowns: Sequence[Tensor], args: tuple[Any, ...]) -> None:
    device = unknowns[0].device
    if any(leaf.device != device for leaf in unknowns):
        raise ArgumentError("y0: its leaves are on different devices; move them to one.")
    for index, arg in enumerate(args):
        for leaf in BACKEND.flatten(arg)[0]:
            if (
                isinstance(leaf, Tensor)
                and leaf.device != device
                and not (leaf.device.type == "cpu" and leaf.ndim == 0)
            ):
                raise ArgumentError(
                    f"args[{index}]: it is on device {leaf.device}, but y0 is on {device}. Move one of them with .to()."
                )
