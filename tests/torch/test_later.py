"""A derivative taken late is that of the residual as it was solved, or an error that says what has changed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd

ZERO = torch.zeros(1, dtype=torch.float64)
#: Read, and bound anew, by a test that tells what happens to global names.
factor = 1.0


def number(value: float, tracked: bool = False) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=tracked)


@pytest.mark.transform("a loop variable that the residual reads, backward after the loop")
@pytest.mark.parametrize("entry", ["root", "fixed_point", "root_scalar", "continuation"])
def test_a_loop_variable_is_that_of_its_pass(entry: str) -> None:
    w, total = number(2.0, True), number(0.0)
    for x in (number(1.0), number(3.0)):
        if entry == "root":
            total = total + rd.root(lambda y: y - w * x, ZERO).y
        elif entry == "fixed_point":
            total = total + rd.fixed_point(lambda z: w * x + 0 * z, ZERO).y
        elif entry == "root_scalar":
            total = total + rd.root_scalar(lambda y: y - w * x, (-9.0 + ZERO, 9.0 + ZERO)).y
        else:
            total = total + rd.continuation(lambda y, b: y - w * x + 0 * b, ZERO, ZERO, ZERO + 1).y
    assert torch.autograd.grad(total.sum(), w)[0].item() == pytest.approx(4.0)


def euler_exact(k: float) -> float:
    """Three steps of z - y + h k z^2 = 0, each by the quadratic formula."""
    y, h = 1.0, 0.1
    for _ in range(3):
        y, h = ((1 + 4 * h * k * y) ** 0.5 - 1) / (2 * h * k), 1.7 * h
    return y


@pytest.mark.parametrize("higher", [False, True])
def test_a_captured_step_size_that_grows(higher: bool) -> None:
    k, y, h = number(1.0, True), ZERO + 1, 0.1
    for _ in range(3):
        before = y
        y = rd.root(lambda z: z - before + h * k * z**2, before.detach()).y
        h *= 1.7
    (slope,) = torch.autograd.grad(y.sum(), k, create_graph=higher)
    step = 1e-5  # central differences: error of order step^2 and of rounding / step, 1e-10
    expected = (euler_exact(1 + step) - euler_exact(1 - step)) / (2 * step)
    assert slope.item() == pytest.approx(expected, rel=1e-8)
    if higher:
        step = 1e-3
        second = (euler_exact(1 + step) - 2 * euler_exact(1) + euler_exact(1 - step)) / step**2
        assert torch.autograd.grad(slope, k)[0].item() == pytest.approx(second, rel=1e-5)


@pytest.mark.transform("torch.func.vjp, pulled back after a captured number has changed")
def test_a_pullback_that_waits() -> None:
    h = 3.0
    _, pull = torch.func.vjp(lambda w: rd.root(lambda y: y - w * h, ZERO).y, number(2.0))
    h = 5.0
    assert pull(ZERO + 1)[0].item() == pytest.approx(3.0)


def test_a_variable_inside_a_transform_of_the_residual() -> None:
    w, h = number(2.0, True), 3.0
    y = rd.root(torch.func.grad(lambda y, w: (y**2 / 2 - w * h * y).sum()), ZERO, w).y
    h = 5.0
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(3.0)


def test_nested_functions_share_their_variables() -> None:
    w, scale = number(2.0, True), 3.0

    def helper(y: Tensor) -> Tensor:
        return scale * w * y**0

    y = rd.root(functools.partial(lambda c, y, d=1.0: y - c * d * helper(y), 1.0), ZERO).y
    w_before, w, scale = w, number(7.0, True), 5.0
    assert torch.autograd.grad(y.sum(), w_before)[0].item() == pytest.approx(3.0)


@pytest.mark.transform("a global name bound anew before the backward pass")
def test_a_global_name_that_is_bound_anew() -> None:
    global factor
    factor, w = 3.0, number(2.0, True)
    y = rd.root(lambda y: y - w * factor, ZERO).y
    factor = 5.0
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(3.0)


def test_a_counter_of_the_residual_goes_on_counting() -> None:
    calls, w = 0, number(2.0, True)

    def residual(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return y - w

    y = rd.root(residual, ZERO).y
    before = calls
    y.sum().backward()
    assert calls == before + 1


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(ZERO + 2)
        self.register_buffer("b", number(1.0))
        self.factor, self.calls = 3.0, 0

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return 0.1 * torch.tanh(z) + self.w * self.b * (self.factor if self.training else 1.0)


@pytest.mark.transform("eval(), an attribute or a buffer of a module changed before the backward pass")
@pytest.mark.parametrize("change", ["factor", "eval", "buffer"])
def test_the_state_of_a_module_is_that_of_the_solve(change: str) -> None:
    def slope(change: Callable[[Cell], Any]) -> float:
        cell = Cell()
        z = rd.fixed_point(cell, ZERO).y
        change(cell)
        calls = cell.calls
        z.sum().backward()
        assert cell.calls > calls
        return float(cell.w.grad)

    changes: dict[str, Callable[[Cell], Any]] = {
        "factor": lambda cell: setattr(cell, "factor", 9.0),
        "eval": lambda cell: cell.eval(),
        "buffer": lambda cell: setattr(cell, "b", number(7.0)),
    }
    root = 6.0  # z = 6 + tanh(z) / 10
    for _ in range(30):
        root = 6.0 + 0.1 * float(np.tanh(root))
    assert slope(changes[change]) == pytest.approx(3.0 / (1 - 0.1 / np.cosh(root) ** 2))


class Thing:
    def __init__(self) -> None:
        self.h = 3.0

    def residual(self, y: Tensor, w: Tensor) -> Tensor:
        return y - w * self.h


def changed(kind: str) -> tuple[Callable[..., Tensor], tuple[Any, ...], Callable[[], Any]]:
    """Return a residual, what it is given after w, and what changes something that it reads."""
    if kind == "dict":
        options = {"k": 3.0}
        return lambda y, w: y - w * options["k"], (), lambda: options.update(k=4.0)
    if kind == "keyword":
        options = {"k": 3.0}

        def with_default(y: Tensor, w: Tensor, *, o: dict[str, float] = options) -> Tensor:
            return y - w * o["k"]

        return with_default, (), lambda: options.update(k=4.0)
    if kind == "growing dict":
        table = dict.fromkeys(range(199), 3.0)
        return lambda y, w: y - w * table[0], (), lambda: table.update({0: 4.0, 199: 4.0})
    if kind == "array":
        array = np.array([3.0])
        return lambda y, w: y - w * float(array[0]), (), lambda: array.put(0, 4.0)
    if kind == "tensor":
        x = number(3.0)
        return lambda y, w: y - w * x, (), lambda: x.mul_(2.0)
    if kind == "module":
        cell = Cell()
        return lambda y, w: y - w - cell(y), (), lambda: cell.b.mul_(2.0)
    if kind in ("compiled", "list"):
        k = 3.0

        def inner(y: Tensor, w: Tensor) -> Tensor:
            return y - w * k

        def rebind() -> None:
            nonlocal k
            k = 4.0

        hidden = torch.compile(inner, backend="eager") if kind == "compiled" else [inner]
        return hidden if kind == "compiled" else lambda y, w: hidden[0](y, w), (), rebind
    thing = Thing()
    if kind == "self":
        return thing.residual, (), lambda: setattr(thing, "h", 4.0)
    return lambda y, w, thing: thing.residual(y, w), (thing,), lambda: setattr(thing, "h", 4.0)


@pytest.mark.transform("a dict or an object changed before the backward pass")
@pytest.mark.parametrize("kind", ["dict", "keyword", "growing dict", "self", "argument"])
@pytest.mark.parametrize("higher", [False, True])
def test_dicts_and_objects_are_those_of_the_solve(kind: str, higher: bool) -> None:
    residual, args, change = changed(kind)
    w = number(2.0, True)
    y = rd.root(residual, ZERO, w, *args).y
    change()
    assert torch.autograd.grad(y.sum(), w, create_graph=higher)[0].item() == pytest.approx(3.0)
    assert rd.root(residual, ZERO, w, *args).y.item() == pytest.approx(8.0)  # the change has come to stay


@pytest.mark.parametrize("kind", ["dict", "object"])
def test_a_derivative_that_moves_where_the_residual_does_not(kind: str) -> None:
    """At the root of y - w + gain (y - 2), for w = 2, the residual is zero whatever the gain."""
    w, options, thing = number(2.0, True), {"gain": 0.0}, Thing()
    thing.h = 0.0
    if kind == "dict":
        y = rd.root(lambda y: y - w + options["gain"] * (y - 2), ZERO).y
    else:
        y = rd.root(lambda y: y - w + thing.h * (y - 2), ZERO).y
    options["gain"] = thing.h = 1.0
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(1.0)


def test_what_the_residual_writes_itself_is_left_alone() -> None:
    w, seen = number(2.0, True), {"last": 0.0}

    def residual(y: Tensor) -> Tensor:
        seen["last"] = float(y.detach())
        return y - w

    y = rd.root(residual, ZERO).y
    y.sum().backward()
    assert seen["last"] == pytest.approx(2.0)


@pytest.mark.transform(
    "an array, a tensor or a function out of sight changed before the backward pass", refused="ArgumentError"
)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("array", "array"),
        ("tensor", "x"),
        ("module", r"cell\.b"),
        ("compiled", "k"),
        ("list", "k"),
    ],
)
@pytest.mark.parametrize("higher", [False, True])
def test_what_cannot_be_kept_is_named(kind: str, name: str, higher: bool) -> None:
    residual, args, change = changed(kind)
    w = number(2.0, True)
    y = rd.root(residual, ZERO, w, *args).y
    change()
    with pytest.raises(rd.ArgumentError, match=f"changed since: .*{name}"):
        torch.autograd.grad(y.sum(), w, create_graph=higher)


def test_rounding_is_no_change() -> None:
    """A residual that rounds differently each time it is called, as kernels may with and without a graph."""
    w, calls = number(2.0, True), []

    def residual(y: Tensor) -> Tensor:
        calls.append(1)
        return torch.exp(y) - w * (1 + 3e-16 * (len(calls) % 2)) - 1e3

    y = rd.root(residual, ZERO + 6).y
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(1 / 1002)
