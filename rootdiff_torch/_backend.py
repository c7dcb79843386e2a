"""The PyTorch backend: loops in Python, derivatives by reverse mode, batched LAPACK factorisations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar, TypeVar

import optree
import torch
from torch import Tensor

from rootdiff._backend import Backend, Function, in_python, take_new
from rootdiff._errors import ArgumentError, RootdiffError
from rootdiff._inverse import Factors
from rootdiff_torch._derivatives import breaks_graph, differentiable, pullback, pullbacks, pushforward, tensors
from rootdiff_torch._namespace import HALF, Namespace
from rootdiff_torch._transforms import TransformError
from rootdiff_torch.cuda import (
    check_not_made_in_first_step,
    holds,
    is_on_cpu,
    records_first_step,
    surely_all,
    while_loop,
)

_T = TypeVar("_T")
#: PyTorch's words where the gradient of a tensor without a graph is asked for.
_NO_GRAPH = "does not require grad"
#: What a residual may meet, by PyTorch's words for it: our error, and what to do.
_TOLD: dict[str, tuple[type[RootdiffError], str]] = {
    _NO_GRAPH: (
        ArgumentError,
        "residual: a gradient that it takes itself (torch.autograd.grad, .backward()) finds no graph, since PyTorch "
        "keeps none in the body of a torch.library.custom_op, in torch.inference_mode, or of a tensor that is "
        "detached. Take torch.func.grad there, or the gradient outside of the operator; for inference_mode, "
        "torch.no_grad.",
    ),
    r"data-dependent control flow|calling \.item\(\)|_local_scalar_dense|aten\.nonzero": (
        TransformError,
        "residual: it branches on the values of a tensor (if, while, .item(), float()), and under torch.func.vmap, or "
        "of a FakeTensor, there is no one value. Write torch.where; a batch that is solved with batch_ndim, not with "
        "vmap, may branch.",
    ),
    r"to FakeTensors|\bdevice meta\b|\bon meta\b|[Mm]eta tensor": (
        ArgumentError,
        "residual: it mixes tensors that have values with such as have none (FakeTensors, or on the device meta). To "
        "solve, load the values, or module.to_empty(device=...); for shapes alone make all of them alike: .to('meta'), "
        "or a model and inputs that are made in one FakeTensorMode.",
    ),
}


@dataclass(frozen=True)
class TorchBackend(Backend):
    """PyTorch on plain tensors, under no transform: `rootdiff_torch._rule` sees to that.

    `predicts` tells whether a step on another device may be taken twice; not where a user watches the steps.
    """

    predicts: bool = True

    name = "torch"
    prefers_transpose = True
    xp: ClassVar[Any] = Namespace()

    def alike(self, solve: Callable[[], _T]) -> _T:
        """Return ``solve()``; where processes share a batch, what is raised on one is raised on all."""
        return solve()

    def is_array(self, value: Any) -> bool:
        return isinstance(value, Tensor)

    def call(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        inputs = tensors((y, args))
        before = [leaf._version for leaf in inputs if not leaf.is_inference()]
        try:
            try:
                output = function(y, *args)
            except RuntimeError as error:
                followed = torch.is_grad_enabled() and any(leaf.requires_grad for leaf in tensors(y))
                if followed or _NO_GRAPH not in str(error):
                    raise
                output = self._with_graph(function, y, args)
        except (RuntimeError, AssertionError) as error:
            for words, (kind, told) in _TOLD.items():
                if re.search(words, str(error)):
                    raise kind(told) from error
            raise
        if before != [leaf._version for leaf in inputs if not leaf.is_inference()]:
            raise ArgumentError(
                "residual: it changes y or args in place. Work on a clone, or write the result with torch.where and "
                "torch.cat."
            )
        return output

    def _with_graph(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        """Return the value of a function that takes a gradient itself, of an energy say, with respect to `y`."""
        followed = torch.is_grad_enabled()
        with torch.enable_grad():
            output = function(optree.tree_map(lambda leaf: leaf.detach().requires_grad_(), y), *args)
        return output if followed else optree.tree_map(lambda leaf: leaf.detach(), output)

    def while_loop(self, cond: Function, body: Function, state: Any, assess: Function = take_new) -> Any:
        loop = while_loop if self.predicts else in_python
        return loop(cond, body, state, assess)

    def when(
        self, needed: Tensor, function: Function, operands: tuple[Any, ...], otherwise: Any, often: bool = False
    ) -> Any:
        return function(*operands) if holds(needed) else otherwise

    def indices(self, mask: Tensor, count: int) -> Tensor:
        return torch.nonzero(mask)[:, 0]

    def put(self, stack: Tensor, place: Tensor, row: Tensor, where: Tensor | None = None) -> Tensor:
        if is_on_cpu(place):  # takes a third of the time of index_copy_
            old = stack[..., int(place), :]
            old.copy_(row if where is None else self.xp.where(where[..., None], row, old))
            return stack
        index = place.long().reshape(1)
        if where is not None:
            row = torch.where(where[..., None], row, stack.index_select(-2, index)[..., 0, :])
        return stack.index_copy_(-2, index, row[..., None, :])

    surely_all = staticmethod(surely_all)

    def jvp(self, function: Function, primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        value = function(*primals)
        return value, pushforward(function, primals, tangents, value)

    def vjp(
        self, function: Function, primals: Sequence[Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor, ...]]]:
        wanted = differentiable(primals)

        def pull(cotangent: Tensor) -> tuple[Tensor, ...]:
            found = dict(zip(wanted, pullback(function, primals, wanted, cotangent), strict=True))
            return tuple(found.get(place, torch.zeros_like(primal)) for place, primal in enumerate(primals))

        return function(*primals), pull

    def with_jacobian(self, function: Function, y: Tensor) -> tuple[Tensor, Tensor]:
        graph = self.graph(function, y)
        return graph.f.detach(), graph.matrix

    def graph(self, function: Function, y: Tensor) -> Linearization:
        """Return the graph of a function at `y`, (*batch, n)."""
        return Linearization(function, y)

    def linearize(self, function: Function, y: Tensor) -> tuple[Function, Function, Callable[[], Tensor]]:
        graph = _lasting(lambda: self.graph(function, y))
        return (lambda v: graph().matvec(v)), (lambda u: graph().rmatvec(u)), lambda: graph().matrix

    def products(
        self, function: Function, y: Tensor, vectors: Tensor, transpose: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        graph = self.graph(function, y)
        return (graph.rmatvec(vectors) if transpose else graph.matvec(vectors)), None

    def lu_factor(self, matrix: Tensor) -> Factors:
        wide = matrix.float() if matrix.dtype in HALF else matrix  # LAPACK has no half precision
        if matrix.shape[-1] == 1:
            return Factors(wide, torch.ones_like(wide[..., 0], dtype=torch.int32))
        copies = _copies(wide)
        if copies == 0:
            return Factors(*torch.linalg.lu_factor_ex(wide)[:2])
        factors, pivots, _ = torch.linalg.lu_factor_ex(wide[(0,) * copies])
        return Factors(factors.expand(wide.shape), pivots.expand(wide.shape[:-1]))

    def lu_solve(self, factors: Factors, rhs: Tensor, transpose: bool = False) -> Tensor:
        matrix, pivots = factors
        matrix = matrix.float() if matrix.dtype in HALF else matrix  # those that nothing has computed yet
        wide = rhs.to(matrix.dtype)
        if rhs.shape[-1] == 1:
            one: Tensor = wide / matrix[..., 0]
            return one.to(rhs.dtype)
        copies = min(_copies(matrix), _copies(pivots, 1))
        if copies:
            matrix, pivots = matrix[(0,) * copies], pivots[(0,) * copies]
        several = rhs.ndim + 1 - matrix.ndim  # leading axes of right-hand sides that share a matrix: its columns
        columns = wide.reshape(-1, *rhs.shape[several:]).movedim(0, -1) if several else wide[..., None]
        # the pivots of factors that a solver has not computed yet are zeros; valid ones begin at one
        x: Tensor = torch.linalg.lu_solve(matrix, pivots.clamp(min=1), columns, adjoint=transpose)
        return (x.movedim(-1, 0).reshape(rhs.shape) if several else x[..., 0]).to(rhs.dtype)

    def to_numpy(self, array: Tensor) -> Any:
        detached = array.detach()
        return (detached.float() if detached.dtype is torch.bfloat16 else detached).cpu().numpy()


class Linearization:
    """One evaluation of a function of y, (*batch, n), and the products of its Jacobian, each a backward pass.

    Vectors may have more leading axes than y: products with several vectors at one point.
    """

    def __init__(self, function: Function, y: Tensor) -> None:
        self._in_first_step, self._function = records_first_step(), function
        with torch.enable_grad():
            self.y = y.detach().requires_grad_()
            self.f = function(self.y)

    def rmatvec(self, u: Tensor) -> Tensor:
        """Return J^T u."""
        return pullbacks(self.f, self.y, u)

    def matvec(self, v: Tensor) -> Tensor:
        """Return J v."""
        try:
            if self.transposed is not None:
                return pullbacks(*self.transposed, v)
        except RuntimeError:  # a backward in the graph that cannot be differentiated
            pass
        return (self.matrix @ v[..., None])[..., 0]

    @cached_property
    def transposed(self) -> tuple[Tensor, Tensor] | None:
        """J^T u as a function of u, in which it is linear: pulling v back through it gives J v.

        None where a backward in the graph breaks the graph.
        """
        check_not_made_in_first_step(self._in_first_step)
        with torch.enable_grad():
            u = torch.zeros_like(self.f).requires_grad_()
            if not self.f.requires_grad:
                return torch.zeros_like(u), u
            if breaks_graph(self._function, (self.y,), (0,), self.f):
                return None
            return torch.autograd.grad(self.f, self.y, u, create_graph=True, materialize_grads=True)[0], u

    @cached_property
    def matrix(self) -> Tensor:
        """The Jacobian matrices, (*batch, m, n): by rows, or by columns where these are fewer."""
        check_not_made_in_first_step(self._in_first_step)
        if self.f.shape[-1] == 1:
            return self.rmatvec(torch.ones_like(self.f))[..., None, :]
        if self.y.shape[-1] < self.f.shape[-1] and self.transposed is not None:
            return pullbacks(*self.transposed, _units(self.y)).movedim(0, -1)
        return pullbacks(self.f, self.y, _units(self.f)).movedim(0, -2)


def _units(like: Tensor) -> Tensor:
    """Return the unit vectors, (n, *batch, n), of vectors (*batch, n)."""
    n = like.shape[-1]
    units = torch.eye(n, dtype=like.dtype, device=like.device)
    return units.reshape(n, *(1,) * (like.ndim - 1), n).expand(n, *like.shape)


def _lasting(make: Callable[[], _T]) -> Callable[[], _T]:
    """Return `make`, run once however often it is called."""
    in_first_step = records_first_step()

    @cache
    def made() -> _T:
        check_not_made_in_first_step(in_first_step)
        return make()

    return made


def _copies(matrix: Tensor, axes: int = 2) -> int:
    """Return how many leading axes only repeat the same matrices, or other arrays of so many axes."""
    count = 0
    while count < matrix.ndim - axes and matrix.stride(count) == 0:
        count += 1
    return count


BACKEND = TorchBackend()
