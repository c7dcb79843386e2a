"""PyTorch, seen by the entry points, and its entry points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, cast

import numpy as np
import optree
import torch
from torch import Tensor

from rootdiff import _entry, _ode
from rootdiff._adapter import Adapter, F, Found
from rootdiff._bound import P, T, bound
from rootdiff._compaction import compactable
from rootdiff._conditions import Conditions
from rootdiff._coupling import check_independent, require_concrete
from rootdiff._entry import with_wrap
from rootdiff._environment import Environment
from rootdiff._errors import ArgumentError
from rootdiff._freezing import Freezer
from rootdiff._hooks import Hooks
from rootdiff._ode import Ode
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff._structure import Structure
from rootdiff._task import Derivatives, Options, Task
from rootdiff.solvers import Continuation, InBracket
from rootdiff_torch._backend import BACKEND, TorchBackend
from rootdiff_torch._capture import (
    NESTED,
    SPARSE,
    Capture,
    Statistics,
    capture,
    is_followed,
    needs_capture,
    tensors_used,
    with_captured,
)
from rootdiff_torch._contexts import in_full_precision
from rootdiff_torch._derivatives import tensors
from rootdiff_torch._distributed import distributed
from rootdiff_torch._graph import graphed
from rootdiff_torch._parts import IN_USE, check_in_parts, in_use
from rootdiff_torch._private import TransformType, forward_active, is_wrapped
from rootdiff_torch._problem import Problem
from rootdiff_torch._rule import Root, apply
from rootdiff_torch._transforms import has_values, levels, refuse_vectorized, uncompiled
from rootdiff_torch._watching import TorchEnvironment, Watched
from rootdiff_torch._words import WORDS
from rootdiff_torch.cuda import check_device


class TorchAdapter(Adapter):
    """PyTorch, whose autograd and torch.func follow the root."""

    package = "rootdiff_torch"
    words: Mapping[str, str] = WORDS
    nothing: Any = ()  # None would be a leaf that vmap does not return

    def entered(self, function: F) -> F:
        return uncompiled(distributed(function))

    def aside(self, function: F) -> F:
        def run(*inputs: Any) -> Any:
            tree: Any = inputs
            with torch.no_grad():
                output: Any = function(*optree.tree_map(_detached, tree))
                return optree.tree_map(_detached, output)

        return cast(F, run)

    def backend(self, derivatives: Derivatives = "finite-difference") -> TorchBackend:
        return IN_USE.get()

    def lifted(self, tree: Any) -> Any:
        """Return a pytree in which the scalars of NumPy have become the numbers that they are."""
        leaves, structure = BACKEND.flatten(tree)
        plain = [leaf.item() if isinstance(leaf, np.generic) else leaf for leaf in leaves]
        return BACKEND.unflatten(structure, plain)

    def cut(self, tree: Any) -> Any:
        return optree.tree_map(_detached, tree)

    def called(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        kept = Statistics(batched=False).kept(lambda: BACKEND.call(function, y, args))
        return kept()

    def is_parameter(self, leaf: Any) -> bool:
        """Return whether a leaf of args is handed to the rule; a sparse or nested tensor is passed on as it is."""
        return isinstance(leaf, Tensor) and leaf.layout is torch.strided and not leaf.is_nested

    def unknown(self, y0: Any, args: tuple[Any, ...]) -> Any:
        if any(leaf.is_nested for leaf in tensors(y0)):
            raise ArgumentError(f"y0: {NESTED}")
        return super().unknown(y0, args)

    def is_concrete(self, tree: Any) -> bool:
        return not levels() and all(map(has_values, tensors(tree)))

    def check(self, structure: Structure, y0: Any, args: tuple[Any, ...], options: Options) -> None:
        unknowns = tensors(y0)
        if not all(map(self.is_parameter, unknowns)):
            raise ArgumentError("y0: it is a sparse tensor. Make it dense with .to_dense().")
        device = unknowns[0].device
        if options.cuda_graph:
            _check_recordable(device, options.hooks)
        if any(leaf.device != device for leaf in unknowns):
            raise ArgumentError("y0: its leaves are on different devices; move them to one.")
        for index, arg in enumerate(args):
            for leaf in tensors(arg):
                if not self.is_parameter(leaf) and is_followed(leaf):
                    raise ArgumentError(f"args[{index}]: {NESTED if leaf.is_nested else SPARSE}")
                if leaf.device != device and not (leaf.device.type == "cpu" and leaf.ndim == 0):
                    raise ArgumentError(
                        f"args[{index}]: it is on device {leaf.device}, but y0 is on {device}. Move one of them with "
                        ".to()."
                    )
                if has_values(unknowns[0]) and not has_values(leaf):
                    raise ArgumentError(
                        f"args[{index}]: it has no values (a FakeTensor), but y0 has. Make y0 in the same "
                        "FakeTensorMode, or give values."
                    )

    def measured(self, task: Task) -> Residual:
        if task.backend.spread:
            raise ArgumentError("y0: it is one system in parts. Gather it: y0.redistribute(placements=[Replicate()]).")
        if not has_values(task.start):
            raise ArgumentError("y0: it has no values (a FakeTensor, or on meta), which are needed here.")
        leaves, rebuild = task.split()
        flat = Statistics(batched=False).kept(task.flat(rebuild))
        captured = capture(flat, task.start.detach(), leaves).differentiated
        parameters = tuple(tensor.detach() for tensor in (*leaves, *captured))
        return Residual(with_captured(flat, captured, 1 + len(leaves)), parameters, BACKEND)

    def solve(self, task: Task) -> Found:
        start = task.start
        if task.backend.spread:
            check_in_parts(task)
        if not has_values(start):
            return _shapes(task)
        autocast = torch.is_autocast_enabled(start.device.type)
        with in_full_precision(start), in_use(BACKEND):
            return _solve(task, start.dtype if autocast else None)


def _solve(task: Task, widened: torch.dtype | None) -> Found:
    """Return the root; parameters of lower precision than `widened` are converted to it."""
    structure, start, options, hooks = task.structure, task.start, task.options, task.options.hooks
    leaves, rebuild = task.split()
    parameters = [_explicit(leaf, widened) for leaf in leaves]
    statistics = Statistics(batched=math.prod(structure.batch) > 1)
    moving = task.flat(rebuild)
    flat = statistics.kept(moving)
    if hooks.check:
        require_concrete(not levels())
        with torch.no_grad():
            check_independent(Residual(flat, tuple(parameters), BACKEND), start)
    count = len(parameters)
    follows, found, freezer = needs_capture(), Capture(), Freezer()
    parts, tree = BACKEND.flatten(task.args)
    roots = [("the residual", task.function), *task.leaves()]
    environment, frozen, watched = Environment(), flat, Watched()
    if follows:
        as_now = freezer.freeze(task.function), BACKEND.unflatten(tree, [*map(freezer.freeze, parts)])
        environment = TorchEnvironment.of(roots, freezer.made)
        found = capture(flat, start, parameters)
        environment = environment.lasting()
    captured = found.differentiated
    hidden = bool(levels()) or torch.is_inference_mode_enabled()
    differentiated = hidden or forward_active() or any(tensor.requires_grad for tensor in (*parameters, *captured))
    inputs = [*parameters, *map(_explicit, captured)]
    if follows and differentiated:
        frozen = statistics.kept(task.flat(task.split(as_now[1])[1], function=as_now[0]))
        watched = Watched.of(roots, [*zip((*leaves, *captured), inputs, strict=True)], found.constants)
    hooked, of_correct = _attach(hooks, structure, flat, start)
    settings = _settings(task)
    shown, known = len(inputs), len(inputs) + len(of_correct)
    inputs += [tensor.detach().clone() for tensor in (*of_correct, *settings)]  # a user may write into them later
    flags = task.batched
    problem = Problem(
        original=_of_parameters(with_captured(frozen, captured, 1 + count), 0, shown),
        direct=None if hidden else _of_parameters(flat, 0, count),
        take=None if flags is None else (lambda *args: compactable(task.residual, structure, args, flags).take),
        structure=structure,
        solver=task.solver,
        adjoint=task.adjoint,
        on_failure=options.on_failure,
        arguments=lambda *parameters: rebuild(*parameters[:count]),
        environment=environment,
        watched=watched,
        follows=follows,
        checked=bool(captured) or hidden or forward_active() or not any(tensor.requires_grad for tensor in inputs),
        first=found.value,
        fixed_point=task.fixed_point,
        pattern=task.pattern,
        correct=hooked.correct and _of_parameters(with_captured(hooked.correct, of_correct, 2), shown, known, 2),
        observe=hooked.observe,
        settings=len(settings),
        scaled=task.scale is not None,
        cuda_graph=options.cuda_graph,
        loss=options.loss,
        bounded=options.within is not None,
    )
    y, status, steps, norm, method, _, error, *_ = apply(Root, problem, start, *inputs)
    if statistics.count and not hidden and bool((status <= int(Status.AT_PRECISION)).all()):
        with torch.no_grad():
            moving(y, *parameters)
    return Found(y, None, status, steps, norm, method, error)


def _shapes(task: Task) -> Found:
    """Return a root without values, of fake tensors or such on the device "meta", after one call of the residual."""
    start = task.start.detach()
    like = start + 0 * task.residual()(start)
    norm, counts = like.detach().new_zeros(task.structure.batch), task.structure.batch
    status, steps, method = (norm.new_zeros(counts, dtype=torch.int32) for _ in range(3))
    return Found(like, None, status, steps, norm, method, like.detach())


def _detached(leaf: Any) -> Any:
    return leaf.detach() if isinstance(leaf, Tensor) else leaf


def _of_parameters(function: Callable[..., Tensor], first: int, last: int, points: int = 1) -> Callable[..., Tensor]:
    """Return `function` of its points and the parameters from `first` to `last`, as one of all parameters."""
    return lambda *inputs: function(*inputs[:points], *inputs[points + first : points + last])


def _settings(task: Task) -> tuple[Tensor, ...]:
    """Return the tensors in the settings of a solve, which a transform may track like any argument."""
    solver, scale = task.solver, () if task.scale is None else (task.scale,)
    if isinstance(solver, InBracket):
        return solver.lo, solver.hi, *scale
    return (*solver.start, *scale) if isinstance(solver, Continuation) else scale


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
    hooked = hooks.attach(Residual(function, (), structure.backend), structure, plain)
    if hooked.correct is None or not levels():
        return hooked, ()
    return hooked, tensors_used(hooked.correct, (start, start))


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
    if hooks.callback is not None or hooks.verbose or hooks.progress or hooks.history:
        raise ArgumentError(
            "cuda_graph: Python does not see recorded steps. Leave it out, or callback, verbose, progress and history."
        )


TORCH = TorchAdapter()


def _entry_point(function: Callable[Concatenate[Adapter, P], T]) -> Callable[P, T]:
    return graphed(bound(function, TORCH))


root = _entry_point(_entry.root)
fixed_point = _entry_point(_entry.fixed_point)
root_scalar = _entry_point(_entry.root_scalar)
implicit = with_wrap(_entry_point(_entry.implicit), TORCH)
least_squares = _entry_point(_entry.least_squares)
minimize = _entry_point(_entry.minimize)
conditions = Conditions(TORCH)
ode = Ode(_entry_point(_ode.integrate), TORCH)
continuation = _entry_point(_entry.continuation)
gradient_report = _entry_point(_entry.gradient_report)
detect_sparsity = _entry_point(_entry.detect_sparsity)
