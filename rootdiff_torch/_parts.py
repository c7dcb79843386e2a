"""One system whose unknowns lie in parts on several processes: the residual sees the whole, solvers see the parts.

What is asked of all unknowns at once is reduced over the processes, so that all of them take the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from typing import Any, NamedTuple

import optree
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import wrap_torch_function

from rootdiff._backend import Function
from rootdiff._errors import ArgumentError
from rootdiff._sizes import DENSE_UNKNOWNS
from rootdiff._solution import Solution
from rootdiff._task import Options, Task
from rootdiff.linear import CG, GMRES, LSMR, AutoLinear, BiCGStab
from rootdiff.solvers import Anderson, Auto, DFSane, FixedPoint, Given, NewtonKrylov
from rootdiff_torch._backend import BACKEND, Linearization, TorchBackend
from rootdiff_torch._derivatives import custom_in, tensors
from rootdiff_torch._namespace import Namespace
from rootdiff_torch._transforms import TransformError, levels

#: Solvers and adjoints that ask in no other way than by reductions and products.
_FREE = (Auto, NewtonKrylov, Anderson, DFSane, FixedPoint, Given), (AutoLinear, GMRES, BiCGStab, CG, LSMR)
_INSTEAD = "Or gather the unknowns, y0.redistribute(placements=[Replicate()]): then each process solves the whole."


class _Reductions(Namespace):
    """The space of vectors in parts; `groups` are the processes along each axis of a mesh that has parts."""

    def __init__(self, groups: Sequence[dist.ProcessGroup], offset: int) -> None:
        self.groups, self.offset = groups, offset

    def _over(self, reduced: Callable[[Tensor], Tensor], part: Tensor) -> Tensor:
        for group in self.groups:  # gathered, since a maximum of gloo's loses NaN
            parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, part.contiguous(), group)
            part = reduced(torch.stack(parts))
        return part

    def max_norm(self, x: Tensor, _: Any, /) -> Tensor:  # type: ignore[override]
        return self._over(lambda parts: parts.amax(0), x.abs().amax(-1))

    def norm2(self, x: Tensor, careful: Callable[[Tensor], Tensor], /) -> Tensor:  # type: ignore[override]
        largest = self.max_norm(x, None)
        scale = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)
        return scale * self._over(lambda parts: parts.sum(0), (x / scale[..., None]).square().sum(-1)).sqrt()

    def inner_product(self, x1: Tensor, x2: Tensor, /) -> Tensor:  # type: ignore[override]
        return self._over(lambda parts: parts.sum(0), (x1 * x2).sum(-1))

    def projections(self, vectors: Tensor, vector: Tensor, /) -> Tensor:
        return self._over(lambda parts: parts.sum(0), (vectors @ vector[..., None])[..., 0])

    def every(self, mask: Tensor, /) -> Tensor:
        return self._over(lambda parts: parts.amin(0), mask.all(-1).to(torch.uint8)).bool()

    def is_within(self, x: Tensor, allowed: Tensor, /) -> Tensor:
        return self.every(x.abs() <= allowed)

    def first_of(self, x: Tensor, /) -> Tensor:
        return self._over(lambda parts: parts[0], x[..., 0])

    # of all entries: what Python branches on

    def any(self, x: Tensor, /, *, axis: int | None = None) -> Tensor:
        return self._over(lambda parts: parts.amax(0), x.any().to(torch.uint8)).bool() if axis is None else x.any(axis)

    def all(self, x: Tensor, /, *, axis: int | None = None) -> Tensor:
        return self._over(lambda parts: parts.amin(0), x.all().to(torch.uint8)).bool() if axis is None else x.all(axis)

    def fewest(self, x: Tensor, /) -> int:
        """Return the least number of unknowns that a process has."""
        return int(self._over(lambda parts: parts.amin(0), torch.tensor(x.shape[-1], device=x.device)))


class _Products(Linearization):
    """One without a matrix, of which each process would have a part of the rows."""

    @property
    def matrix(self) -> Tensor:
        inside = ", ".join(sorted(custom_in(self.f)))
        raise ArgumentError(
            f"residual: autograd cannot differentiate twice what {inside} does in it (.redistribute(), .to_local() or "
            f"another custom autograd.Function), as products with a Jacobian in parts ask for. Write it in operations "
            f"of DTensors alone, or take 'anderson' or 'df_sane' and adjoint='gmres'. {_INSTEAD}"
        )

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor] | None:
        return None if custom_in(self.f) else super().transposed


@dataclass(frozen=True)
class PartBackend(TorchBackend):
    """PyTorch, with a part of the unknowns in this process."""

    predicts: bool = False
    groups: tuple[dist.ProcessGroup, ...] = ()
    offset: int = 0

    spread = True

    @cached_property
    def xp(self) -> Any:
        return _Reductions(self.groups, self.offset)

    def surely_all(self, mask: Tensor | Callable[[], Tensor]) -> bool:
        return bool(self.xp.all(mask() if callable(mask) else mask))

    def graph(self, function: Function, y: Tensor) -> Linearization:
        return _Products(function, y)


#: The backend of the entry point that is called.
IN_USE: ContextVar[TorchBackend] = ContextVar("IN_USE", default=BACKEND)


@contextmanager
def in_use(backend: TorchBackend) -> Iterator[None]:
    """Let entry points run on a backend; in a solve they are those of a residual, which have none of it."""
    token = IN_USE.set(backend)
    try:
        yield
    finally:
        IN_USE.reset(token)


class _Place(NamedTuple):
    """Where the parts of a DTensor are."""

    mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    @classmethod
    def of(cls, leaf: Any) -> _Place | None:
        from torch.distributed.tensor import DTensor

        return cls(leaf.device_mesh, leaf.placements, leaf.shape, leaf.stride()) if isinstance(leaf, DTensor) else None


# DTensor's own ways from parts to the whole and back can be differentiated once


class _Whole(torch.autograd.Function):
    """``(part, place) -> DTensor``."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, place: _Place) -> Any:
        from torch.distributed.tensor import DTensor

        ctx.place = place
        return DTensor.from_local(part, *place[:2], run_check=False, shape=place.shape, stride=place.stride)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return part_of(gradient, ctx.place), None


class _Part(torch.autograd.Function):
    """``(DTensor, place) -> part``, that of this process once the parts are at their place."""

    @staticmethod
    def forward(ctx: Any, whole: Any, place: _Place) -> Any:
        ctx.place = place
        return whole.redistribute(place.mesh, place.placements).to_local().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return whole_of(gradient, ctx.place), None


@wrap_torch_function(lambda part, place: (part,))
def whole_of(part: Any, place: _Place | None) -> Any:
    """Return the DTensor of a part; what has no place is itself.

    What looks for tensors that a residual closes over sees this call, and that of `part_of`, too.
    """
    return part if place is None else _Whole.apply(part, place)  # type: ignore[no-untyped-call]


@wrap_torch_function(lambda whole, place: (whole,))
def part_of(whole: Any, place: _Place | None) -> Any:
    """Return the part of a DTensor that this process has; what has no place is itself."""
    return whole if place is None else _Part.apply(whole, place)  # type: ignore[no-untyped-call]


def solve_in_parts(entry: Function, function: Function, trees: Sequence[Any], options: dict[str, Any]) -> Any:
    """Return what an entry point does for a start, and arguments, of DTensors: as one system."""
    if levels():
        raise TransformError("y0: torch.func cannot follow one system in DTensors. Take torch.autograd.grad.")
    given: Any = tuple(trees)
    leaves, structure = optree.tree_flatten(given)
    places = [_Place.of(leaf) for leaf in leaves]
    of_y = places[: len(tensors(trees[0]))]
    first = of_y[0]
    if first is None or any(place is None or place[:2] != first[:2] for place in of_y):
        raise ArgumentError(f"y0: its leaves must be DTensors that are sharded alike. {_INSTEAD}")

    def each(convert: Function, leaves: Sequence[Any], places: Sequence[_Place | None]) -> list[Any]:
        return [convert(leaf, place) for leaf, place in zip(leaves, places, strict=True)]

    def in_parts(*inputs: Any) -> Any:
        given: Any = inputs
        wholes = each(whole_of, optree.tree_leaves(given), places)
        values, tree = optree.tree_flatten(function(*optree.tree_unflatten(structure, wholes)))
        if len(values) != len(of_y) or None in map(_Place.of, values):
            raise ArgumentError("residual: of a start of DTensors it must return DTensors, as many.")
        return optree.tree_unflatten(tree, each(part_of, values, of_y))

    local = optree.tree_unflatten(structure, each(part_of, leaves, places))
    axes = [axis for axis, placement in enumerate(first.placements) if placement.is_shard()]
    sizes, at = first.mesh.shape, first.mesh.get_coordinate()
    number = reduce(lambda number, axis: number * sizes[axis] + at[axis], axes, 0)
    backend = PartBackend(
        groups=tuple(first.mesh.get_group(axis) for axis in axes), offset=number * sum(leaf.numel() for leaf in leaves)
    )
    with in_use(backend):
        found = entry(in_parts, *local, **options)
    if not isinstance(found, Solution):
        return found

    def spread(tree: Any) -> Any:
        parts, tree = optree.tree_flatten(tree)
        return optree.tree_unflatten(tree, each(whole_of, parts, of_y))

    return found._replace(y=spread(found.y), error=spread(found.error))


def check_in_parts(task: Task) -> None:
    """Raise if a task of one system in parts asks for what is not carried out so."""
    backend, options, solvers = task.backend, task.options, (task.solver, task.adjoint)
    assert isinstance(backend, PartBackend)
    if backend.xp.fewest(task.start) <= DENSE_UNKNOWNS:
        raise ArgumentError(
            f"y0: it is one system in parts, of which a process has {DENSE_UNKNOWNS} unknowns or fewer. Of so few a "
            f"matrix costs less, which is not formed of parts. {_INSTEAD}"
        )
    for role, solver, kinds in zip(("solver", "adjoint"), solvers, _FREE, strict=True):
        if type(solver) not in kinds:
            raise ArgumentError(
                f"{role}: {solver} is not for one system in parts; "
                f"{', '.join(kind.__name__ for kind in kinds)} are. {_INSTEAD}"
            )
    scale = options.y_scale if isinstance(options.y_scale, int | float) else None
    plain = Options(options.solver, options.adjoint, on_failure=options.on_failure, y_scale=scale)
    for name in (entry.name for entry in fields(Options)):
        if getattr(options, name) != getattr(plain, name):
            given = "bounds, callback, history or check" if name == "hooks" else name
            raise ArgumentError(f"{given}: it is not for one system in parts. Leave it out. {_INSTEAD}")
