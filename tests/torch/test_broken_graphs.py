"""A custom autograd.Function whose backward cannot be differentiated: right once, and refused a second time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

import rootdiff_torch as rd


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(ctx: Any, cotangent: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return 3 * x**2 * cotangent


def in_numpy(ctx: Any, cotangent: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.from_numpy(3 * x.detach().numpy() ** 2 * cotangent.detach().numpy())


def of_a_detached(ctx: Any, cotangent: Tensor) -> Tensor:
    """Linear in a cotangent that is in the graph, while the tensor that was saved is not."""
    (x,) = ctx.saved_tensors
    return 3 * x.detach() ** 2 * cotangent


def of_an_array(ctx: Any, cotangent: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.from_numpy(3 * x.detach().numpy() ** 2) * cotangent


def cube(rule: Callable[..., Any]) -> Callable[[Tensor], Tensor]:
    """Return x -> x^3 with this backward rule."""

    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        backward = staticmethod(rule)

    return Cube.apply


RULES = pytest.mark.parametrize(
    "rule",
    [once_differentiable(slope), in_numpy, torch.no_grad()(slope), of_a_detached, of_an_array],
    ids=["once_differentiable", "numpy", "no_grad", "detached", "array"],
)
START = tensor(1.5)
#: y^3 + y = a^3 at y = 2, where dy/da = 3 a^2 / 13.
A = 10 ** (1 / 3)


@pytest.mark.transform("forward mode, of a custom Function whose backward cannot be differentiated")
@RULES
def test_forward_mode(rule: Callable[..., Any]) -> None:
    power = cube(rule)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensor(A), tensor(1.0))
        y = rd.root(lambda y, a: power(y) + y - power(a), START, dual).y
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    assert tangent.item() == pytest.approx(3 * A**2 / 13)


@RULES
@pytest.mark.parametrize("part", [0.0, 1.0])
def test_krylov_solvers(rule: Callable[..., Any], part: float) -> None:
    """With `part` of the Jacobian in operations that can be differentiated."""
    power = cube(rule)
    y = rd.root(lambda y: power(y) + part * y - 8 - 2 * part, START.expand(5), solver="newton_krylov").y
    torch.testing.assert_close(y, tensor(2.0).expand(5))


@pytest.mark.transform(
    "second derivatives of a custom Function whose backward cannot be differentiated", refused="ArgumentError"
)
@RULES
@pytest.mark.parametrize("entry", ["y", "a"])
def test_second_derivatives_are_refused(rule: Callable[..., Any], entry: str) -> None:
    power, a = cube(rule), tensor(A if entry == "a" else 10.0).requires_grad_()
    residuals = {"y": lambda y, a: power(y) + y - a, "a": lambda y, a: y**3 + y - power(a)}
    y = rd.root(residuals[entry], START, a).y
    (first,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    assert first.item() == pytest.approx(1 / 13 if entry == "y" else 3 * A**2 / 13)
    with pytest.raises(rd.ArgumentError, match="cannot be differentiated"):
        torch.autograd.grad(first.sum(), a)


def test_second_derivatives_of_a_backward_that_can_be_differentiated() -> None:
    power, a = cube(slope), tensor(10.0).requires_grad_()
    (first,) = torch.autograd.grad(rd.root(lambda y, a: power(y) + y - a, START, a).y, a, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first, a)[0], tensor(-12 / 13**3))


def test_second_derivatives_of_a_backward_that_is_meant_to_differ() -> None:
    """The straight-through derivative of a rounding is no derivative, and differences of it tell nothing."""

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.round()

        @staticmethod
        def backward(ctx: Any, cotangent: Tensor) -> Tensor:
            return cotangent

    k = tensor(1.0).requires_grad_()
    y = rd.root(lambda y, k: y - k * Rounded.apply(k * 3.3), START, k).y  # dy/dk = 3 + 3.3 k
    (first,) = torch.autograd.grad(y, k, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(first, k)[0], tensor(6.6))


@RULES
def test_a_root_inside_a_residual(rule: Callable[..., Any]) -> None:
    """Whose own residual has no second derivative: y + z = a with z^3 + z = y, at z = 1, y = 2, a = 3."""
    power = cube(rule)

    def outer(y: Tensor, a: Tensor) -> Tensor:
        return rd.root(lambda z, y: power(z) + z - y, START, y).y + y - a

    torch.testing.assert_close(rd.root(outer, START, tensor(3.0), solver="newton_krylov").y, tensor(2.0))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(tensor(3.0), tensor(1.0))
        tangent = torch.autograd.forward_ad.unpack_dual(rd.root(outer, START, dual).y).tangent
    torch.testing.assert_close(tangent, tensor(0.8))
    a = tensor(3.0).requires_grad_()
    (first,) = torch.autograd.grad(rd.root(outer, START, a).y, a, create_graph=True)
    torch.testing.assert_close(first, tensor(0.8))
    with pytest.raises(rd.ArgumentError, match="cannot be differentiated"):
        torch.autograd.grad(first, a)


def test_second_derivatives_under_torch_func_are_refused() -> None:
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x**3

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        backward = staticmethod(torch.no_grad()(slope))

    def root(a: Tensor) -> Tensor:
        return rd.root(lambda y, a: Cube.apply(y) + y - a, START, a).y.sum()

    first = torch.func.grad(root)
    assert first(tensor(10.0)).item() == pytest.approx(1 / 13)
    torch.testing.assert_close(torch.func.vmap(first)(tensor(10.0, 10.0)[:, None]), tensor(1 / 13, 1 / 13)[:, None])
    with pytest.raises(rd.ArgumentError, match="cannot be differentiated"):
        torch.func.grad(lambda a: first(a).sum())(tensor(10.0))
