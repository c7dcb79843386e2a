"""Batches that are spread over processes, as DTensors: each process solves the systems that it has."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar

import optree
import torch
import torch.distributed as dist
from torch import Tensor

from rootdiff._adapter import F
from rootdiff._errors import ArgumentError, ConvergenceError
from rootdiff._solution import Solution
from rootdiff_torch._backend import TorchBackend
from rootdiff_torch._capture import tensors_used
from rootdiff_torch._derivatives import tensors
from rootdiff_torch._parts import in_use, solve_in_parts

_T = TypeVar("_T")
_CAPTURED = (
    "residual: it closes over a DTensor, or over a tensor that is differentiated, and each process would see its part "
    "alone. Pass it through args; in a layer it may be a parameter of a module, on which distribute_module was called, "
    "or one that the layer has by name."
)
#: The fields of a `Solution` of which each system has its part.
_OF_SYSTEMS = ("y", "status", "steps", "residual_norm", "method", "approximate", "error")


def distributed(entry: F) -> F:
    """Return an entry point ``(function, y0, *args, **options)`` that solves DTensors by their local parts."""

    @wraps(entry)
    def called(*args: Any, **options: Any) -> Any:
        if not is_distributed(args[1:]):
            return entry(*args, **options)
        function, *others = args
        names = ["y0", *(f"args[{place}]" for place in range(len(args)))]
        batch_ndim = options.get("batch_ndim", 0)
        _check_spread(others, names)
        if batch_ndim == 0 and any(part.is_shard() for part in _first(others).placements):
            return solve_in_parts(entry, function, others, options)
        local, spread = localized(others, batch_ndim, names)

        def solve() -> Any:
            check_captured(function, local)
            return entry(function, *local, **options)

        found = raised_alike(solve, others)
        return spread(found) if isinstance(found, Solution) else found

    return called  # type: ignore[return-value]


def _check_spread(trees: Sequence[Any], names: Sequence[str]) -> None:
    """Raise if there are plain tensors in pytrees beside DTensors; a number may be one that is not differentiated."""
    for name, tree in zip(names, trees, strict=False):
        for leaf in tensors(tree):
            if (leaf.ndim or leaf.requires_grad) and not is_distributed(leaf):
                raise ArgumentError(
                    f"{name}: it is a plain tensor beside DTensors. Say how it is spread, with "
                    "torch.distributed.tensor.distribute_tensor(tensor, mesh, [Replicate()]), or of a module with "
                    "distribute_module."
                )


def check_captured(function: Callable[..., Any], local: Sequence[Any]) -> None:
    """Raise if a function, of local parts, closes over what is differentiated: the gradient would be one process's."""
    try:
        captured = tensors_used(lambda *_: function(*local), tensors(local))
    except RuntimeError as error:
        if "DTensor" not in str(error):
            raise
        raise ArgumentError(_CAPTURED) from error
    if captured:
        raise ArgumentError(_CAPTURED)


@dataclass(frozen=True)
class _BatchBackend(TorchBackend):
    """PyTorch, with a part of the systems in each process of a mesh."""

    mesh: Any = None

    def alike(self, solve: Callable[[], _T]) -> _T:
        results, error = list[_T](), None
        try:
            results.append(solve())
        except Exception as failure:
            if hasattr(failure, "raised_on_all"):  # by a part of this solve
                raise
            error = failure
        failed = torch.tensor(int(error is not None), device=self.mesh.device_type)
        for axis in range(self.mesh.ndim):
            dist.all_reduce(failed, dist.ReduceOp.MAX, group=self.mesh.get_group(axis))
        if failed:
            error = error or ConvergenceError(
                "root: systems of another process have no root or no derivative that can be vouched for, or the "
                "residual raised there; the error there tells which. Of the former on_failure='warn', 'keep', 'nan', "
                "'ignore' or 'approximate' returns what there is."
            )
            vars(error)["raised_on_all"] = True
            raise error
        return results[0]


def raised_alike(solve: Callable[[], _T], trees: Any) -> _T:
    """Return what a solve of local parts returns; a failure, of its derivatives too, is raised on all processes."""
    backend = _BatchBackend(mesh=_first(trees).device_mesh)
    with in_use(backend):
        return backend.alike(solve)


def _first(trees: Any) -> Any:
    from torch.distributed.tensor import DTensor

    return next(leaf for leaf in tensors(trees) if isinstance(leaf, DTensor))


def is_distributed(tree: Any) -> bool:
    """Return whether there are DTensors in a pytree."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and any(isinstance(leaf, kind) for leaf in tensors(tree))


def localized(trees: Sequence[Any], batch_ndim: int, names: Sequence[str]) -> tuple[list[Any], Callable[[Any], Any]]:
    """Return the local parts of pytrees of DTensors, and what makes DTensors of a local solution.

    The first one is sharded along axes of the batch, the others as it is, or replicated: the gradients of these are
    summed over the processes.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    _check_spread(trees, names)
    first = _first(trees)
    mesh, placements, batch = first.device_mesh, first.placements, tuple(first.shape[:batch_ndim])
    lead = [part.dim if isinstance(part, Shard) else None for part in placements]

    def part(name: str, leaf: Any) -> Any:
        if not isinstance(leaf, DTensor):
            return leaf
        fits = all(
            isinstance(one, Replicate) or (one == two and tuple(leaf.shape[:batch_ndim]) == batch)
            for one, two in zip(leaf.placements, placements, strict=False)
        )
        if leaf.device_mesh != mesh or not fits:
            raise ArgumentError(
                f"{name}: it has the placements {leaf.placements} on {leaf.device_mesh}, beside {placements} on "
                f"{mesh} of systems {batch}. It must have these, with the axes of the systems in front, or be "
                "replicated: call its .redistribute()."
            )
        sums = [
            Partial() if isinstance(one, Replicate) and not isinstance(two, Replicate) else one
            for one, two in zip(leaf.placements, placements, strict=True)
        ]
        # a redistribution that changes nothing sums the gradient
        return leaf.redistribute(mesh, leaf.placements).to_local(grad_placements=sums)

    if any(
        isinstance(one, Partial) or (dim is not None and dim >= batch_ndim)
        for one, dim in zip(placements, lead, strict=True)
    ):
        raise ArgumentError(
            f"{names[0]}: it has the placements {placements}, but only axes of the batch may be sharded: each process "
            f"solves whole systems (batch_ndim={batch_ndim}). Call its .redistribute()."
        )
    local = [
        optree.tree_map(lambda leaf, name=name: part(name, leaf), tree)
        for name, tree in zip(names, trees, strict=False)
    ]

    def whole(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        shape = torch.Size((*batch, *leaf.shape[batch_ndim:]))
        stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return DTensor.from_local(leaf, mesh, placements, run_check=False, shape=shape, stride=stride)

    def spread(found: Any) -> Any:
        if not isinstance(found, Solution):
            return optree.tree_map(whole, found)
        return found._replace(**{name: optree.tree_map(whole, getattr(found, name)) for name in _OF_SYSTEMS})

    return local, spread
