"""What a residual closes over is differentiated as if it were an argument, or refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETA, B, W, close, loss, residual, unrolled

ZERO = torch.zeros(3, dtype=torch.float64)


class Cell(nn.Module):
    """The cell of the problem, with weights as parameters and a buffer that scales its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, bias=False, dtype=torch.float64)
        self.outer = nn.Linear(2, 3, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.inner.weight.copy_(W)
            self.outer.weight.copy_(B)
        self.register_buffer("scale", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(z) + self.scale * self.outer(x))

    def residual(self, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.inner.weight.mT + self.scale * (THETA @ self.outer.weight.mT)) - z


def iterated(cell: Callable[..., Tensor], x: Tensor) -> Tensor:
    z = ZERO
    for _ in range(60):
        z = cell(z, x)
    return z


def same_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    close(torch.autograd.grad(loss(actual), inputs), torch.autograd.grad(loss(expected), inputs))


@pytest.mark.transform("captured leaf tensors")
@KINDS
def test_leaf(solver: str, adjoint: str) -> None:
    theta, w = THETA.clone().requires_grad_(), W.clone().requires_grad_()
    y = rd.root(lambda y: residual(y, theta, w), ZERO, solver=solver, adjoint=adjoint).y
    same_gradients(y, unrolled(theta, w), [theta, w])


@pytest.mark.transform("captured tensors with a history, second derivatives")
def test_history() -> None:
    def second(y: Tensor, theta: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(loss(y), theta, create_graph=True)
        return torch.autograd.grad(gradient[0] * gradient[1], theta)[0]

    theta = THETA.clone().requires_grad_()
    captured = torch.sin(theta)
    close(second(rd.root(lambda y: residual(y, captured, W), ZERO).y, theta), second(unrolled(torch.sin(theta)), theta))


@pytest.mark.transform("captured tensor that is an argument too")
def test_captured_argument() -> None:
    theta = THETA.clone().requires_grad_()
    y = rd.root(lambda y, t: residual(y, theta * t, W), ZERO, theta).y
    same_gradients(y, unrolled(theta * theta), [theta])


@pytest.mark.transform("nn.Module parameters and buffers")
@KINDS
def test_module(solver: str, adjoint: str) -> None:
    cell = Cell()
    cell.scale.requires_grad_()
    inputs = [*cell.parameters(), cell.scale]
    z = rd.fixed_point(cell, ZERO, THETA, solver=solver, adjoint=adjoint).y
    same_gradients(z, iterated(cell, THETA), inputs)


@pytest.mark.transform("functools.partial")
def test_partial() -> None:
    w = W.clone().requires_grad_()
    y = rd.root(functools.partial(residual, w=w), ZERO, THETA).y
    same_gradients(y, unrolled(THETA, w), [w])


@pytest.mark.transform("bound methods")
def test_bound_method() -> None:
    cell = Cell()
    same_gradients(rd.root(cell.residual, ZERO).y, iterated(cell, THETA), list(cell.parameters()))


class Model(nn.Module):
    """A model that holds a root of its own cell; `direct` uses the weights without calling the cell."""

    def __init__(self, direct: bool = False) -> None:
        super().__init__()
        self.cell, self.direct = Cell(), direct

    def forward(self, x: Tensor) -> Tensor:
        if self.direct:
            return rd.root(self.cell.residual, ZERO).y
        return rd.fixed_point(lambda z: self.cell(z, x), ZERO).y


@pytest.mark.transform("torch.func.functional_call, ended before backward")
@pytest.mark.parametrize("direct", [False, True])
def test_functional_call(direct: bool) -> None:
    model = Model(direct)
    state = {name: (0.8 * value).detach().requires_grad_() for name, value in model.named_parameters()}
    state["cell.scale"] = torch.tensor(1.5, dtype=torch.float64)  # no gradient, but the backward needs its value
    cell = copy.deepcopy(model.cell)
    scaled = {name.removeprefix("cell."): value for name, value in state.items()}
    actual = torch.func.functional_call(model, state, (THETA,))
    expected = iterated(lambda z, x: torch.func.functional_call(cell, scaled, (z, x)), THETA)
    same_gradients(actual, expected, [state["cell.inner.weight"], state["cell.outer.weight"]])


@pytest.mark.transform("parametrized modules")
def test_parametrized() -> None:
    class Skew(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.triu(1) - x.triu(1).mT

    cell = Cell()
    parametrize.register_parametrization(cell.inner, "weight", Skew())
    z = rd.fixed_point(cell, ZERO, THETA).y
    same_gradients(z, iterated(cell, THETA), list(cell.parameters()))


@pytest.mark.transform("weight-normed modules")
def test_weight_norm() -> None:
    cell = Cell()
    parametrizations.weight_norm(cell.inner)
    z = rd.fixed_point(cell, ZERO, THETA, solver="anderson", adjoint="gmres").y
    same_gradients(z, iterated(cell, THETA), list(cell.parameters()))


@pytest.mark.transform("tied parameters")
def test_tied() -> None:
    cell, other = Cell(), nn.Linear(3, 3, bias=False, dtype=torch.float64)
    other.weight = cell.inner.weight

    def tied(z: Tensor, x: Tensor) -> Tensor:
        return cell(z, x) + 0.1 * torch.sin(other(z))

    same_gradients(rd.fixed_point(tied, ZERO, THETA).y, iterated(tied, THETA), [other.weight, cell.outer.weight])


@pytest.mark.transform("a module among args")
def test_module_argument() -> None:
    cell = Cell()
    z = rd.fixed_point(lambda z, module, x: module(z, x), ZERO, cell, THETA).y
    same_gradients(z, iterated(cell, THETA), list(cell.parameters()))


@pytest.mark.transform("forward mode through captured tensors")
def test_forward_mode() -> None:
    tangent = torch.tensor([0.5, -1.0], dtype=torch.float64)

    def captured(theta: Tensor) -> Tensor:
        return rd.root(lambda y: residual(y, theta, W), ZERO).y

    _, pushed = torch.func.jvp(captured, (THETA,), (tangent,))
    close(pushed, torch.func.jvp(unrolled, (THETA,), (tangent,))[1])
    with torch.autograd.forward_ad.dual_level():
        dual = captured(torch.autograd.forward_ad.make_dual(THETA, tangent))
        close(torch.autograd.forward_ad.unpack_dual(dual).tangent, pushed)


@pytest.mark.transform("captured by torch.vmap inside the residual", refused="ArgumentError")
def test_vmap_inside() -> None:
    w = W.clone().requires_grad_()

    def rows(y: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(torch.vmap(lambda row: row @ y)(w) + B @ THETA) - y

    with pytest.raises(rd.ArgumentError, match="Pass it through args"):
        rd.root(lambda y: rows(y, w), ZERO)
    with pytest.raises(rd.ArgumentError, match="Pass it through args"):
        torch.func.grad(lambda w: rd.root(lambda y: rows(y, w), ZERO).y.sum())(W)
    same_gradients(rd.root(rows, ZERO, w).y, unrolled(THETA, w), [w])


@pytest.mark.transform("captured by a custom autograd.Function", refused="ArgumentError")
def test_custom_function() -> None:
    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, w: Tensor, y: Tensor) -> Tensor:
            ctx.save_for_backward(w, y)  # type: ignore[attr-defined]
            return w @ y

        @staticmethod
        def backward(ctx: object, cotangent: Tensor) -> tuple[Tensor, Tensor]:
            w, y = ctx.saved_tensors  # type: ignore[attr-defined]
            return torch.outer(cotangent, y), cotangent @ w

    w = W.clone().requires_grad_()
    with pytest.raises(rd.ArgumentError, match="Pass it through args"):
        rd.root(lambda y: torch.tanh(Product.apply(w, y) + B @ THETA) - y, ZERO)
    y = rd.root(lambda y, w: torch.tanh(Product.apply(w, y) + B @ THETA) - y, ZERO, w).y
    same_gradients(y, unrolled(THETA, w), [w])


@pytest.mark.transform("a captured tensor met only away from y0", refused="ArgumentError")
def test_tensor_met_only_at_the_root_is_refused():
    """At y0 the residual is on its other branch, where it uses nothing that is differentiated."""
    hidden = torch.tensor([4.0], dtype=torch.float64, requires_grad=True)

    def residual(y):
        return y**2 - hidden if bool(y > 1.5) else y - 3.0

    with pytest.raises(rd.ArgumentError, match="Pass it through args"):
        rd.root(residual, torch.tensor([1.0], dtype=torch.float64))
