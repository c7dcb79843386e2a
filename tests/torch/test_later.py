"""A derivative taken late is that of the residual as it was solved, or an error that says what has changed."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd
from rootdiff_torch.nn import ImplicitLayer

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


@pytest.mark.transform(
    "a dict, a list, an object, an array or a function out of sight changed before the backward pass"
)
@pytest.mark.parametrize("kind", ["dict", "keyword", "growing dict", "self", "argument", "array", "compiled", "list"])
@pytest.mark.parametrize("higher", [False, True])
def test_containers_and_objects_are_those_of_the_solve(kind: str, higher: bool) -> None:
    residual, args, change = changed(kind)
    w = number(2.0, True)
    y = rd.root(residual, ZERO, w, *args).y
    change()
    assert torch.autograd.grad(y.sum(), w, create_graph=higher)[0].item() == pytest.approx(3.0)
    assert rd.root(residual, ZERO, w, *args).y.item() == pytest.approx(8.0)  # the change has come to stay


class Gain(nn.Module):
    __slots__ = ("slot",)
    k = 3.0

    def forward(self) -> Tensor:
        return ZERO + self.k


def reader(kind: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return a function that reads a 3, and one that makes a 4 of it."""
    array, large, numbers, options, thing = np.array([3.0]), np.full(200_000, 3.0), [3.0], {"k": 3.0}, Thing()
    tensor, tracked, layer, holder = number(3.0), number(3.0, True), nn.Linear(1, 1, dtype=torch.float64), nn.Module()
    layer.bias.data.fill_(3.0)
    Gain.k, queue, gain, many = 3.0, deque([3.0]), Gain(), dict.fromkeys(range(5000), 3.0)
    gain.slot = 3.0
    tensors, holder.array, rows = [tensor], array, torch.full((3, 1), 3.0, dtype=torch.float64)

    @torch.no_grad()
    def grow(tensor: Tensor) -> None:
        tensor.add_(1.0)

    pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "dict": (lambda: options["k"], lambda: options.update(k=4.0)),
        "object": (lambda: thing.h, lambda: setattr(thing, "h", 4.0)),
        "list": (lambda: numbers[0], lambda: numbers.__setitem__(0, 4.0)),
        "class attribute": (lambda: Gain.k, lambda: setattr(Gain, "k", 4.0)),
        "class attribute of a module": (lambda: gain().item(), lambda: setattr(Gain, "k", 4.0)),
        "slot of a module": (lambda: gain.slot, lambda: setattr(gain, "slot", 4.0)),
        "deque": (lambda: queue[0], lambda: queue.__setitem__(0, 4.0)),
        "large dict": (lambda: many[4000], lambda: many.update({4000: 4.0})),
        "emptied list": (lambda: numbers[0] if numbers else 4.0, lambda: numbers.clear()),
        "array": (lambda: float(array[0]), lambda: array.fill(4.0)),
        "shared memory": (lambda: torch.from_numpy(array), lambda: array.fill(4.0)),
        "array of a module": (lambda: float(holder.array[0]), lambda: array.fill(4.0)),
        "tensor": (lambda: tensor, lambda: grow(tensor)),
        "tensor in a list": (lambda: tensors[0], lambda: grow(tensors[0])),
        "rows": (lambda: torch.maximum(rows[1], rows[2]), lambda: grow(rows[1])),
        "data": (lambda: tensor, lambda: tensor.data.fill_(4.0)),
        "parameter": (lambda: tracked, lambda: grow(tracked)),
        "data of a parameter": (lambda: layer(ZERO), lambda: layer.bias.data.fill_(4.0)),
        "large array": (lambda: float(large[7]), lambda: large.fill(4.0)),
    }
    return pairs[kind]


def solved(entry: str, read: Callable[[], Any], w: Tensor) -> Tensor:
    """Return the root of (y - 2) - (w - 2) (read() - 2): at w = 2 it is 2 whatever is read, its slope is not."""

    def law(y: Tensor, w: Tensor, b: Any = 0.0) -> Tensor:
        return (y - 2) - (w - 2) * (read() - 2) + 0 * b

    if entry == "fixed_point":
        return rd.fixed_point(lambda z: z - law(z, w) / 2, ZERO).y
    if entry == "root_scalar":
        return rd.root_scalar(law, (-9.0 + ZERO, 9.0 + ZERO), w).y
    if entry == "continuation":
        return rd.continuation(lambda y, b: law(y, w, b), ZERO, ZERO, ZERO + 1).y
    if entry == "layer":
        return ImplicitLayer(law, batch_ndim=0, shape=(1,))(w)
    return rd.root(law, ZERO, w).y if entry == "args" else rd.root(lambda y: law(y, w), ZERO).y


ENTRIES = ["root", "args", "fixed_point", "root_scalar", "continuation", "layer"]
KEPT = ["dict", "object", "list", "emptied list", "array", "shared memory", "array of a module", "class attribute"]
KEPT += ["class attribute of a module", "slot of a module", "deque", "large dict"]
REFUSED = {
    "tensor": "tensor",
    "tensor in a list": "tensors",
    "rows": "rows",
    "data": "tensor",
    "parameter": "tracked",
    "data of a parameter": r"layer\.bias",
    "large array": "large",
}


@pytest.mark.parametrize(
    ("entry", "kind"), [*(("root", kind) for kind in KEPT), *((entry, "array") for entry in ENTRIES)]
)
@pytest.mark.parametrize("higher", [False, True])
def test_a_derivative_that_moves_where_the_residual_does_not(entry: str, kind: str, higher: bool) -> None:
    read, change = reader(kind)
    w = number(2.0, True)
    y = solved(entry, read, w)
    change()
    assert torch.autograd.grad(y.sum(), w, create_graph=higher)[0].item() == pytest.approx(1.0)
    assert read() == 4.0  # the change has come to stay


@pytest.mark.parametrize(
    ("entry", "kind"), [*(("root", kind) for kind in REFUSED), *((entry, "tensor") for entry in ENTRIES)]
)
@pytest.mark.parametrize("higher", [False, True])
def test_a_derivative_that_moves_alone_is_refused(entry: str, kind: str, higher: bool) -> None:
    read, change = reader(kind)
    w = number(2.0, True)
    y = solved(entry, read, w)
    change()
    with pytest.raises(rd.ArgumentError, match=f"modified by an inplace operation.* changed since: {REFUSED[kind]}"):
        torch.autograd.grad(y.sum(), w, create_graph=higher)


@pytest.mark.parametrize("change", ["add", "data"])
@pytest.mark.parametrize("kind", ["tensor", "dict", "object"])
def test_an_argument_changed_in_place_is_named(change: str, kind: str) -> None:
    w, c, thing = number(2.0, True), number(0.0), Thing()
    thing.c = c  # type: ignore[attr-defined]
    arg = {"tensor": c, "dict": {"c": c}, "object": thing}[kind]

    def law(y: Tensor, w: Tensor, arg: Any) -> Tensor:
        gain = arg["c"] if kind == "dict" else arg.c if kind == "object" else arg
        return (y - 2) - (w - 2) * (1 + gain)

    y = rd.root(law, ZERO, w, arg).y
    c.add_(1.0) if change == "add" else c.data.add_(1.0)
    with pytest.raises(rd.ArgumentError, match=r"changed since: args\[1\]"):
        y.sum().backward()


def test_a_pullback_that_waits_while_a_tensor_changes() -> None:
    c = number(0.0)
    _, pull = torch.func.vjp(lambda w: rd.root(lambda y: (y - 2) - (w - 2) * (1 + c), ZERO).y, number(2.0))
    c.add_(5.0)
    with pytest.raises(rd.ArgumentError, match="changed since: c"):
        pull(ZERO + 1)


@pytest.mark.transform(
    "a tensor or an array changed between the first and the second derivative", refused="ArgumentError"
)
@pytest.mark.parametrize("kind", ["tensor", "shared memory"])
def test_a_change_before_the_second_derivative_is_named(kind: str) -> None:
    read, change = reader(kind)
    w = number(2.0, True)
    y = rd.root(lambda y: y**3 - w * read(), ZERO + 1).y
    (slope,) = torch.autograd.grad(y.sum(), w, create_graph=True)
    change()
    with pytest.raises(rd.ArgumentError, match=f"changed since: {'tensor' if kind == 'tensor' else 'array'}"):
        torch.autograd.grad(slope, w)


class Keeper(nn.Module):
    """A cell that counts and averages, and of some of its buffers reads the shape alone, of some nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.log = nn.Parameter(ZERO + 2), np.zeros(5)
        for name in ("calls", "mean", "like", "unread"):
            self.register_buffer(name, ZERO.clone())

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        self.mean.lerp_(z.detach(), 0.1)
        self.log[0] += 1
        return 0.5 * z + self.w * torch.ones_like(self.like) * self.like.shape[0]


def test_buffers_on_whose_values_nothing_depends_may_change() -> None:
    cell = Keeper()
    z = rd.fixed_point(cell, ZERO).y
    for buffer in cell.buffers():
        buffer.add_(1.0)
    cell.log[1] = 7.0
    z.sum().backward()
    assert cell.w.grad.item() == pytest.approx(2.0)


def test_another_part_of_a_tensor_may_change() -> None:
    """A trajectory in one tensor: each step reads a row, and writes the next."""
    w, rows, total = number(0.5, True), torch.zeros(4, 1, dtype=torch.float64), ZERO
    rows[0] = 1.0
    for k in range(3):
        y = rd.root(lambda y: y - w * rows[k], ZERO).y
        rows[k + 1] = y.detach()
        total = total + y
    assert torch.autograd.grad(total.sum(), w)[0].item() == pytest.approx(1.75)  # 1 + w + w^2


def test_constants_may_be_infinite() -> None:
    w, mask = number(2.0, True), torch.tensor([0.0, -torch.inf], dtype=torch.float64)
    y = rd.root(lambda y: y - w * torch.softmax(mask, 0)[0], ZERO).y
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(1.0)


@pytest.mark.parametrize("setting", ["bracket", "y_scale"])
def test_settings_may_be_written_into_after_the_solve(setting: str) -> None:
    w, given = number(2.0, True), ZERO + 9
    if setting == "bracket":
        y = rd.root_scalar(lambda y, w: y - w, (ZERO - 9, given), w).y
    else:
        y = rd.root(lambda y, w: y - w, ZERO, w, y_scale=given).y
    given.fill_(1.0)
    assert torch.autograd.grad(y.sum(), w)[0].item() == pytest.approx(1.0)


def test_what_the_residual_writes_itself_is_left_alone() -> None:
    w, seen = number(2.0, True), {"last": 0.0}

    def residual(y: Tensor) -> Tensor:
        seen["last"] = float(y.detach())
        return y - w

    y = rd.root(residual, ZERO).y
    y.sum().backward()
    assert seen["last"] == pytest.approx(2.0)


@pytest.mark.transform("a tensor changed in place before the backward pass", refused="ArgumentError")
@pytest.mark.parametrize(("kind", "name"), [("tensor", "x"), ("module", r"cell\.b")])
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
