"""The implicit function theorem as two operations that differentiate into each other.

`Root` is y(args) with f(y, args) = 0, `LinearSolve` is x with J x = b or J^T x = b, J = df/dy. The derivatives of
each are made of the other and of pullbacks of f, so that they can be differentiated any number of times, in any mode.
Solvers run inside `forward`, where every tensor is plain, whatever transforms are around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff._failure import report
from rootdiff._iterate import Solver
from rootdiff._residual import Residual
from rootdiff._solution import Solution
from rootdiff._structure import Structure
from rootdiff.linear import LinearSolver
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._capture import State, check_followed
from rootdiff_torch._derivatives import (
    TransformError,
    devectorized,
    is_differentiable,
    is_vectorized,
    pullback,
    pushforward,
    uncompiled,
)


@dataclass(frozen=True)
class Problem:
    """A residual on flat vectors, ``function(y, *parameters)``, and how to solve it.

    Attributes
    ----------
    arguments : callable
        Returns the user's args from the parameters, for messages.
    state : State
        Of the modules that the residual calls.
    checked : bool
        Whether the residual is known to depend on its inputs alone.
    """

    function: Callable[..., Tensor]
    structure: Structure
    solver: Solver
    adjoint: LinearSolver
    on_failure: str
    arguments: Callable[..., tuple[Any, ...]]
    state: State
    checked: bool

    def batched(self, dims: Sequence[int | None], randomness: str) -> Problem:
        """Return the problem with one more leading batch axis on y, and on the parameters with a dimension."""
        return replace(self, function=torch.vmap(self.function, in_dims=(0, *dims), randomness=randomness))


class Root(torch.autograd.Function):
    """``(problem, y0, *parameters) -> (y, status, steps, residual_norm, *factors)`` on flat vectors."""

    @staticmethod
    def forward(problem: Problem, y0: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        with _plain(y0):
            start, *plain = [_normal(tensor) for tensor in (y0, *parameters)]
            if not problem.checked:
                with torch.enable_grad():
                    check_followed(problem.function(start, *plain))
            raw = problem.solver.solve(Residual(problem.function, tuple(plain), BACKEND), start)
            unravel = problem.structure.unravel
            solution = Solution(unravel(raw.y), raw.status, raw.steps, raw.residual_norm, ())
            context = (unravel(start), *problem.arguments(*plain))
            report(BACKEND, solution, problem.on_failure, problem.solver, context)
            y = raw.y
            if problem.on_failure != "ignore":
                y = torch.where(solution.converged[..., None], y, torch.nan)
            fresh = [part.clone() if part is start else part for part in (y, raw.residual_norm)]
            return (fresh[0], raw.status, raw.steps, fresh[1], *(raw.factors or ()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, _, *parameters = inputs
        y, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.count = problem, len(parameters)
        saved = (y, *parameters, *others[3:])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Any, ...]:
        nothing: tuple[Any, ...] = (None,) * (2 + ctx.count)
        if cotangent is None:
            return nothing
        y, parameters, factors = _saved(ctx)
        with _settled(ctx.problem, y):
            u = _solve(ctx.problem, True, cotangent, y, factors, parameters)
            wanted = [
                place
                for place, parameter in enumerate(parameters, 1)
                if ctx.needs_input_grad[place + 1] and is_differentiable(parameter)
            ]
            found = pullback(ctx.problem.function, (y, *parameters), wanted, -u)
        gradients = dict(zip(wanted, found, strict=True))
        return None, None, *(gradients.get(place) for place in range(1, 1 + ctx.count))

    @staticmethod
    @uncompiled
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        y, parameters, factors = _saved(ctx)
        with _settled(ctx.problem, y):
            directions = _directions(parameters, tangents)
            rhs = pushforward(partial(ctx.problem.function, y), parameters, directions, y)
            t = _solve(ctx.problem, False, rhs, y, factors, parameters)
        return -t, None, None, None, *(None,) * len(factors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: Problem, y0: Tensor, *parameters: Tensor) -> Any:
        y0 = _leading(y0, in_dims[1], info.batch_size)
        parameters = tuple(_front(p, dim) for p, dim in zip(parameters, in_dims[2:], strict=True))
        dims = [None if dim is None else 0 for dim in in_dims[2:]]
        output = apply(Root, problem.batched(dims, info.randomness), y0, *parameters)
        return output, (0,) * len(output)


class LinearSolve(torch.autograd.Function):
    """``(problem, transpose, rhs, y, count, *factors, *parameters) -> x`` with J x = rhs, or J^T x = rhs.

    `rhs` may have more leading axes than `y`: several right-hand sides for one matrix.
    """

    @staticmethod
    def forward(problem: Problem, transpose: bool, rhs: Tensor, y: Tensor, count: int, *others: Tensor) -> Tensor:
        with _settled(problem, y), _plain(y):
            b, point, *plain = [_normal(tensor) for tensor in (rhs, y, *others)]
            factors = tuple(plain[:count]) or None
            operator = Residual(problem.function, tuple(plain[count:]), BACKEND).operator(point, factors)  # type: ignore[arg-type]
            x, _ = _implicit.solve(operator.T if transpose else operator, problem.adjoint, b, problem.on_failure)
            return x.clone() if x is b else x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        problem, transpose, rhs, y, factors, *others = inputs
        ctx.problem, ctx.transpose, ctx.factors, ctx.extra = problem, transpose, factors, rhs.ndim - y.ndim
        saved = (output, y, *others)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @uncompiled
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, y, *others = ctx.saved_tensors
        factors, parameters = others[: ctx.factors], others[ctx.factors :]
        primals = (y, *parameters)
        with _settled(ctx.problem, y):
            u = _solve(ctx.problem, not ctx.transpose, cotangent, y, factors, parameters)
            # A x = b: the cotangent of A is -u x^T, so that of what A depends on is the pullback of -u^T A x
            left, right = (x, u) if ctx.transpose else (u, x)
            needed = ctx.needs_input_grad[3], *ctx.needs_input_grad[5 + ctx.factors :]
            wanted = [place for place, primal in enumerate(primals) if needed[place] and is_differentiable(primal)]
            found = pullback(_transposed_product(ctx, left), primals, wanted, -right)
        gradients = dict(zip(wanted, found, strict=True))
        return (
            None,
            None,
            u,
            gradients.get(0),
            None,
            *(None,) * ctx.factors,
            *(gradients.get(place) for place in range(1, len(primals))),
        )

    @staticmethod
    @uncompiled
    def jvp(ctx: Any, _: Any, __: Any, rhs: Tensor | None, *tangents: Any) -> Tensor:
        x, y, *others = ctx.saved_tensors
        factors, parameters = others[: ctx.factors], others[ctx.factors :]
        primals = (y, *parameters)
        with _settled(ctx.problem, y):
            # A dx = db - dA x
            directions = _directions(primals, (tangents[0], *tangents[2 + ctx.factors :]))
            product = _transposed_product(ctx, x) if ctx.transpose else _product(ctx, x)
            change = pushforward(product, primals, directions, x)
            b = -change if rhs is None else rhs - change
            return _solve(ctx.problem, ctx.transpose, b, y, factors, parameters)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: Problem,
        transpose: bool,
        rhs: Tensor,
        y: Tensor,
        count: int,
        *others: Tensor,
    ) -> Any:
        if in_dims[3] is None and all(dim is None for dim in in_dims[5:]):
            return apply(LinearSolve, problem, transpose, rhs.movedim(in_dims[2], 0), y, count, *others), 0
        batch = info.batch_size
        extra = rhs.ndim - y.ndim - (in_dims[2] is not None) + (in_dims[3] is not None)
        rhs = _leading(rhs, in_dims[2], batch).movedim(0, extra)
        y = _leading(y, in_dims[3], batch)
        factors = [_leading(part, dim, batch) for part, dim in zip(others[:count], in_dims[5:], strict=False)]
        dims = in_dims[5 + count :]
        parameters = [_front(part, dim) for part, dim in zip(others[count:], dims, strict=True)]
        problem = problem.batched([None if dim is None else 0 for dim in dims], info.randomness)
        return apply(LinearSolve, problem, transpose, rhs, y, count, *factors, *parameters), extra


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return ``function.apply(*inputs)``, which torch leaves untyped."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


def _solve(
    problem: Problem,
    transpose: bool,
    rhs: Tensor,
    y: Tensor,
    factors: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    def solve(b: Tensor) -> Tensor:
        return apply(LinearSolve, problem, transpose, b, y, len(factors), *factors, *parameters)  # type: ignore[no-any-return]

    return devectorized(solve, rhs)


def _transposed_product(ctx: Any, u: Tensor) -> Callable[..., Tensor]:
    """Return J^T u as a function of y and the parameters, for one or more vectors u."""

    def product(y: Tensor, *parameters: Tensor) -> Tensor:
        def one(vector: Tensor) -> Tensor:
            return pullback(ctx.problem.function, (y, *parameters), [0], vector)[0]

        return _mapped(one, ctx.extra)(u)

    return product


def _product(ctx: Any, v: Tensor) -> Callable[..., Tensor]:
    """Return J v as a function of y and the parameters, for one or more vectors v."""

    def product(y: Tensor, *parameters: Tensor) -> Tensor:
        def of_y(point: Tensor) -> Tensor:
            return ctx.problem.function(point, *parameters)  # type: ignore[no-any-return]

        return _mapped(lambda vector: pushforward(of_y, (y,), (vector,), y), ctx.extra)(v)

    return product


def _mapped(function: Callable[..., Tensor], times: int) -> Callable[..., Tensor]:
    for _ in range(times):
        function = torch.vmap(function)
    return function


def _saved(ctx: Any) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    y, *others = ctx.saved_tensors
    return y, tuple(others[: ctx.count]), tuple(others[ctx.count :])


def _directions(primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        torch.zeros_like(primal) if tangent is None else tangent
        for primal, tangent in zip(primals, tangents, strict=True)
    ]


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _normal(tensor: Tensor) -> Tensor:
    """Return `tensor` without history; a copy of one made in inference mode, with which autograd does not work."""
    if is_vectorized(tensor):
        raise TransformError(
            "root: an argument is batched by autograd's own vmap (torch._vmap_internals). Use torch.func.vmap."
        )
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@contextmanager
def _settled(problem: Problem, y: Tensor) -> Iterator[None]:
    """Bring back the state of the modules and keep autocast away: in half precision no solve converges."""
    with problem.state.restored(), torch.autocast(y.device.type, enabled=False):
        yield


@contextmanager
def _plain(y: Tensor) -> Iterator[None]:
    """Work on plain tensors, without a graph and apart from the user's contexts."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(y.device.type, enabled=False))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        # hooks on saved tensors, such as those of a checkpoint, are not for the solver's own graphs
        if torch._C._autograd._top_saved_tensors_default_hooks(False) is not None:
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor))
        stack.enter_context(torch.no_grad())
        yield
