"""Failed systems of a batch: their derivatives are not used and may be infinite, and must not reach other systems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._capture import tensors_used, with_captured
from rootdiff_torch._derivatives import is_differentiable, waves
from rootdiff_torch._problem import Problem
from rootdiff_torch._transforms import outer_forward_mode, rule


def note_system_data(problem: Problem, y: Tensor, parameters: Sequence[Tensor], failed: Tensor) -> None:
    """Note which parameters and constants hold data of each system, where some systems `failed`, (*batch).

    Such an array starts with the batch axes, and its entries of a failed system do not change the residual of a good
    one, at the roots and beside them. The data of a failed system may make its derivative infinite or NaN; zero times
    that is NaN in a gradient that systems share. So it is replaced by the data of a good system.
    """
    if failed.ndim == 0 or bool(failed.all()):
        return
    y = _implicit.regular_point(BACKEND.xp, y, failed)
    closed_over = tensors_used(problem.original, (y, *parameters), failed.shape)
    function = with_captured(problem.original, closed_over, 1 + len(parameters))
    values, found = [*parameters, *closed_over], list[int]()

    def of_good() -> list[Tensor]:
        # also beside the point: at a root of zero, or with a parameter of zero, a factor has no effect
        points = ([y, *values], [*map(_nudged, (y, *values))])
        return [torch.where(failed[..., None], 0, function(*point)) for point in points]

    before = of_good()
    for place, value in enumerate(values):
        if value.shape[: failed.ndim] == failed.shape and is_differentiable(value):
            values[place] = regular(value, failed)
            if all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(of_good(), before, strict=True)):
                found.append(place)
            else:
                values[place] = value
    count = len(parameters)
    problem.outcome.system_data = tuple(place for place in found if place < count)
    places = [place for place in found if place >= count]
    problem.outcome.constants = tuple(closed_over[p - count] for p in places), tuple(values[p] for p in places)


def regular(parameter: Tensor, failed: Tensor) -> Tensor:
    """Return data of each system, with the data of a good system where a system failed."""
    rows = parameter.reshape(*failed.shape, -1)
    return _implicit.regular_point(BACKEND.xp, rows, failed).reshape(parameter.shape)  # type: ignore[no-any-return]


def _nudged(tensor: Tensor) -> Tensor:
    """Return a point near `tensor`, where no entry is zero."""
    if not is_differentiable(tensor):
        return tensor
    step: Tensor = torch.finfo(tensor.dtype).eps ** 0.25 * (1 + tensor.abs()) * waves(tensor)
    return tensor + step


class Missing(torch.autograd.Function):
    """``(gradient, missing) -> gradient``, NaN where it is `missing`, as are the derivatives that are made of that."""

    @staticmethod
    def forward(gradient: Tensor, missing: Tensor) -> Tensor:
        return torch.where(missing, torch.nan, gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    @rule
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, None]:
        return _missing(cotangent, *ctx.saved_tensors), None

    @staticmethod
    @rule
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        with outer_forward_mode():
            return _missing(tangent, *ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *inputs: Tensor) -> tuple[Tensor, int]:
        moved = (part if dim is None else part.movedim(dim, 0) for part, dim in zip(inputs, in_dims, strict=True))
        return Missing.apply(*torch.broadcast_tensors(*moved)), 0  # type: ignore[no-untyped-call]


def _missing(derivative: Tensor, missing: Tensor) -> Tensor:
    """Return a derivative along what is `missing`: NaN, but where it is not asked for."""
    return Missing.apply(derivative, missing & (derivative != 0))  # type: ignore[no-any-return, no-untyped-call]


def without_masked(u: Tensor, cotangent: Tensor) -> Tensor:
    """Return `u` with zeros for the systems that a loss masks out: their cotangent is zero, they may have failed."""
    return torch.where((cotangent == 0).all(-1, keepdim=True), torch.zeros_like(u), u)
