"""The implicit function theorem as two operations that differentiate into each other.

`Root` is y(args) with f(y, args) = 0, `LinearSolve` is x with J x = b or J^T x = b, J = df/dy. The derivatives of
each are made of the other and of pullbacks of f, so that they can be differentiated any number of times, in any mode.
Solvers run inside `forward`, where every tensor is plain, whatever transforms are around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff._residual import Residual
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._derivatives import (
    FirstOnly,
    FirstOnlyError,
    differentiable,
    in_forward_mode,
    pullback,
    pushforward,
)
from rootdiff_torch._failed import Missing, regular, without_masked
from rootdiff_torch._plain import Point, find, pull_back_once, solve
from rootdiff_torch._private import is_wrapped
from rootdiff_torch._problem import Problem
from rootdiff_torch._transforms import hidden, lasting, outer_forward_mode, rule, without_tangents


class Root(torch.autograd.Function):
    """``(problem, y0, *parameters) -> (y, status, steps, residual_norm, method, allowed, error, *byproduct)``.

    Flat vectors. `allowed` is the norm that f may have at the root when that is differentiated, infinite where a system
    failed.
    """

    @staticmethod
    def forward(problem: Problem, y0: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return problem.alone(y0, lambda: find(problem, y0, parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, _, *parameters = inputs
        y, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.count = problem, len(parameters)
        saved = (y, *parameters, *others[4:])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @rule
    def backward(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Any, ...]:
        if cotangent is None:
            return None, *[None] * (1 + ctx.count)
        point = _at_root(ctx, _saved(ctx))
        problem, y, parameters = point.problem, point.y, point.parameters
        wanted = [place for place in differentiable((y, *parameters)) if place and ctx.needs_input_grad[place + 1]]
        with problem.restored(y):
            if torch.is_grad_enabled() or hidden((y, cotangent, *parameters)):
                found = _pull_back(point, cotangent, wanted)
                for part in found:
                    if part.requires_grad and not is_wrapped(part):  # its graph has saved what the residual reads
                        part.register_hook(lambda _: problem.check(whole=True))  # type: ignore[no-untyped-call]
            else:
                found = problem.alone(y, lambda: pull_back_once(point, cotangent, wanted))
        return None, *_placed(found, wanted, 1 + ctx.count)

    @staticmethod
    @rule
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        with outer_forward_mode():
            point = _at_root(ctx, without_tangents(_saved(ctx)))
            problem, y, known, parameters = point
            directions = _directions(parameters, tangents)
            with problem.restored(y):
                of_parameters = partial(problem.function, y)
                rhs = pushforward(of_parameters, parameters, directions, y)
                t = _solve(point, False, rhs)
                if problem.outcome.broken and hidden((rhs, *parameters)):  # only the solve can find that out
                    t = _solve(point, False, in_forward_mode(of_parameters, parameters, directions))
            return -t, None, None, None, None, *(None,) * len(known)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: Problem, y0: Tensor, *parameters: Tensor) -> Any:
        y0 = _leading(y0, in_dims[1], info.batch_size)
        first = len(parameters) - problem.settings
        moved = [
            _front(p, dim) if place < first else _leading(p, dim, info.batch_size)
            for place, (p, dim) in enumerate(zip(parameters, in_dims[2:], strict=True))
        ]
        dims = [None if dim is None and place < first else 0 for place, dim in enumerate(in_dims[2:])]
        output = apply(Root, problem.batched(dims, info.randomness), y0, *moved)
        return output, (0,) * len(output)


class LinearSolve(torch.autograd.Function):
    """``(problem, transpose, rhs, y, count, *known, *parameters) -> x`` with J x = rhs, or J^T x = rhs.

    `known` are the norm of f allowed at the root, the error of the root and, flat, what the solver knows of the inverse
    Jacobian. `rhs` may have more leading axes than `y`: several right-hand sides for one matrix.
    """

    @staticmethod
    def forward(problem: Problem, transpose: bool, rhs: Tensor, y: Tensor, count: int, *others: Tensor) -> Tensor:
        return problem.alone(y, lambda: solve(problem, transpose, rhs, y, count, others))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        problem, transpose, rhs, y, count, *others = inputs
        ctx.problem, ctx.transpose, ctx.count, ctx.extra = problem, transpose, count, rhs.ndim - y.ndim
        saved = (output, y, *others)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @rule
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, y, *others = _saved(ctx)
        problem, count = ctx.problem, ctx.count
        point = Point(problem, y, others[:count], others[count:])
        primals = (y, *point.parameters)
        with problem.restored(y):
            u = _solve(point, not ctx.transpose, cotangent)
            if problem.outcome.any_failed:
                x, u = without_masked(x, cotangent), without_masked(u, cotangent)
            # A x = b: the cotangent of A is -u x^T, so that of what A depends on is the pullback of -u^T A x
            left, right = (x, u) if ctx.transpose else (u, x)
            needed = (ctx.needs_input_grad[3], *ctx.needs_input_grad[5 + count :])
            wanted = [place for place in differentiable(primals) if needed[place]]
            found = pullback(_product(ctx, True, left), primals, wanted, -right)
        of_y, *of_parameters = _placed(found, wanted, len(primals))
        return None, None, u, of_y, None, *(None,) * count, *of_parameters

    @staticmethod
    @rule
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Any) -> Tensor:
        with outer_forward_mode():
            x, y, *others = without_tangents(_saved(ctx))
            rhs, of_y, __, *of_others = tangents
            point = Point(ctx.problem, y, others[: ctx.count], others[ctx.count :])
            primals = (y, *point.parameters)
            with ctx.problem.restored(y):
                # A dx = db - dA x
                directions = _directions(primals, (of_y, *of_others[ctx.count :]))
                change = pushforward(_product(ctx, ctx.transpose, x), primals, directions, x)
                return _solve(point, ctx.transpose, -change if rhs is None else rhs - change)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> Any:
        problem, transpose, rhs, y, count, *others = inputs
        if in_dims[3] is None and all(dim is None for dim in in_dims[5:]):
            return apply(LinearSolve, problem, transpose, rhs.movedim(in_dims[2], 0), y, count, *others), 0
        batch = info.batch_size
        extra = rhs.ndim - y.ndim - (in_dims[2] is not None) + (in_dims[3] is not None)
        rhs = _leading(rhs, in_dims[2], batch).movedim(0, extra)
        y = _leading(y, in_dims[3], batch)
        known = [_leading(part, dim, batch) for part, dim in zip(others[:count], in_dims[5:], strict=False)]
        dims = in_dims[5 + count :]
        parameters = [_front(part, dim) for part, dim in zip(others[count:], dims, strict=True)]
        problem = problem.batched([None if dim is None else 0 for dim in dims], info.randomness)
        return apply(LinearSolve, problem, transpose, rhs, y, count, *known, *parameters), extra


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return ``function.apply(*inputs)``, which torch leaves untyped."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


def _solve(point: Point, transpose: bool, rhs: Tensor) -> Tensor:
    """Return x with J x = rhs, or J^T x = rhs, for J at a root."""
    problem, y, known, parameters = point
    return apply(LinearSolve, problem, transpose, rhs, y, len(known), *known, *parameters)  # type: ignore[no-any-return]


def _saved(ctx: Any) -> Sequence[Tensor]:
    """Return what a rule has saved, once it is known that it is what it was: PyTorch's error would not name it."""
    ctx.problem.check()
    return [lasting(tensor) for tensor in ctx.saved_tensors]


def _at_root(ctx: Any, saved: Sequence[Tensor]) -> Point:
    """Return the root from what `Root` saved; where a system failed, with the values of a good one."""
    y, *others = saved
    parameters, known = others[: ctx.count], others[ctx.count :]
    if ctx.problem.outcome.any_failed:
        failed = known[0].isinf()
        y = _implicit.regular_point(BACKEND.xp, y, failed)
        for place in ctx.problem.outcome.system_data:
            parameters[place] = regular(parameters[place], failed)
    return Point(ctx.problem, y, known, parameters)


def _pull_back(point: Point, cotangent: Tensor, wanted: Sequence[int]) -> tuple[Tensor, ...]:
    """Return what `pull_back_once` does, by differentiable operations."""
    problem, y, known, parameters = point
    u = _solve(point, True, cotangent)
    residual = _Rule(problem.function, tuple(parameters), problem.backend, tuple(wanted))
    if problem.outcome.any_failed:
        u = without_masked(u, cotangent)
        found, missing = _implicit.pullback_of_good(residual, y, u, known[0].isinf())
        found = tuple(apply(Missing, *pair) for pair in zip(found, missing, strict=True))
    else:
        found = residual.parameter_vjp(y, -u)
    if problem.outcome.first_only:
        return apply(FirstOnly, len(found), *found, cotangent, y, *parameters)  # type: ignore[no-any-return]
    return found


@dataclass(frozen=True)
class _Rule(Residual):
    """A residual whose pullback is differentiable, to the `wanted` parameters, counted from 1."""

    wanted: tuple[int, ...]

    def parameter_vjps(self, y: Tensor, *cotangents: Tensor) -> list[tuple[Tensor, ...]]:
        return [pullback(self.function, (y, *self.parameters), self.wanted, cotangent) for cotangent in cotangents]


def _product(ctx: Any, transpose: bool, vector: Tensor) -> Callable[..., Tensor]:
    """Return J v, or J^T v, as a function of y and the parameters, for one or more vectors v."""
    function = ctx.problem.function
    if ctx.problem.outcome.first_only:
        raise FirstOnlyError

    def product(y: Tensor, *parameters: Tensor) -> Tensor:
        def one(v: Tensor) -> Tensor:
            if transpose:
                return pullback(function, (y, *parameters), [0], v)[0]
            return pushforward(lambda point: function(point, *parameters), (y,), (v,), y)

        mapped = one
        for _ in range(ctx.extra):
            mapped = torch.vmap(mapped)
        return mapped(vector)

    return product


def _placed(found: Sequence[Tensor], wanted: Sequence[int], count: int) -> list[Tensor | None]:
    """Return what was found for the `wanted` ones among so many primals, None for the others."""
    gradients = dict(zip(wanted, found, strict=True))
    return [gradients.get(place) for place in range(count)]


def _directions(primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        torch.zeros_like(primal) if tangent is None else tangent
        for primal, tangent in zip(primals, tangents, strict=True)
    ]


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
