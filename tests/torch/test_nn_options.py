"""Layers take what root takes, any inputs and states, and are trained with failures, budgets and losses on the way."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd
from tests.torch.problem import THETAS, close
from tests.torch.test_closures import Cell

X = torch.tensor([[1.0, 2.0], [0.5, 3.0], [1.5, 1.0]], dtype=torch.float64)


def loss(*parts: Tensor) -> Tensor:
    return sum((part.sin() * torch.arange(part.numel()).reshape(part.shape)).sum() for part in parts)  # type: ignore


def cube(y: Tensor, x: Tensor) -> Tensor:
    return y**3 + y - x


@pytest.mark.transform("a layer with options of root: bounds, callback, history, tolerances, batched_args")
def test_options_of_root_reach_it() -> None:
    seen: list[int] = []
    layer = rd.nn.ImplicitLayer(cube, rtol=1e-3, callback=lambda info: seen.append(1), history=True, y_scale=2.0)
    layer(X)
    assert layer.last is not None
    assert len(layer.last.history.method) == len(seen) > 0
    steps = int(layer.last.steps.max())
    layer.rtol = 1e-12  # a schedule sets attributes
    layer(X)
    assert int(layer.last.steps.max()) > steps
    bounded = rd.nn.FixedPointLayer(
        lambda z, x: (z + x / z) / 2, start=lambda x: x, bounds=(0.5, None), solver="newton"
    )
    close(bounded(X), X.sqrt())
    batched = rd.nn.FixedPointLayer(lambda z, x: torch.cos(z) * x / 4, solver="anderson", batched_args=(0,))
    close(batched(X), rd.fixed_point(lambda z, x: torch.cos(z) * x / 4, torch.zeros_like(X), X, batch_ndim=1).y)
    y, aux = rd.nn.ImplicitLayer(lambda y, x: (cube(y, x), {"square": y**2}), has_aux=True)(X)
    close(aux["square"], y**2)


class Multiscale(nn.Module):
    """Two states of another resolution each, which feed each other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fine = nn.Conv2d(2, 2, 3, padding=1, dtype=torch.float64)
        self.coarse = nn.Conv2d(3, 3, 1, dtype=torch.float64)
        self.down = nn.Conv2d(2, 3, 2, stride=2, dtype=torch.float64)
        self.up = nn.ConvTranspose2d(3, 2, 2, stride=2, dtype=torch.float64)

    def forward(self, z: tuple[Tensor, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        fine, coarse = z
        return torch.tanh((self.fine(fine) + self.up(coarse)) / 4 + x), torch.tanh(
            (self.coarse(coarse) + self.down(fine)) / 4
        )


@pytest.mark.transform("a layer with a pytree of states, multiscale equilibria")
def test_states_of_several_shapes() -> None:
    cell, x = Multiscale(), torch.linspace(-1, 1, 96, dtype=torch.float64).reshape(3, 2, 4, 4)
    layer = rd.nn.FixedPointLayer(cell, shape=((2, 4, 4), (3, 2, 2)), solver="anderson", warm_start=True)
    fine, coarse = layer(x)
    expected = x.new_zeros(3, 2, 4, 4), x.new_zeros(3, 3, 2, 2)
    for _ in range(60):
        expected = cell(expected, x)
    close((fine, coarse), expected)
    parameters = list(cell.parameters())
    wanted = torch.autograd.grad(loss(*expected), parameters)
    close(torch.autograd.grad(loss(fine, coarse), parameters), wanted)
    cold = int(layer.last.steps.max())
    layer(x)
    assert int(layer.last.steps.max()) < cold


@pytest.mark.transform("a layer with keyword inputs, dicts, and a function cell with named parameters")
@pytest.mark.parametrize("compiled", [False, True])
def test_keywords_dicts_and_named_parameters(compiled: bool) -> None:
    weight = torch.tensor([[0.2, 0.1], [-0.3, 0.1]], dtype=torch.float64)

    def cell(z: Tensor, inputs: dict[str, Tensor], *, weight: Tensor, shift: Tensor) -> Tensor:
        return z @ weight.mT + inputs["x"] + shift

    layer = rd.nn.FixedPointLayer(cell, parameters={"weight": weight})
    assert [name for name, _ in layer.named_parameters()] == ["named.weight"]
    call: Any = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    shift = X.clone().requires_grad_()
    z = call({"x": 2 * X}, shift=shift)
    w = weight.clone().requires_grad_()
    expected = (2 * X + shift) @ torch.linalg.inv(torch.eye(2) - w).mT
    close(z, expected)
    found = torch.autograd.grad(loss(z), [*layer.parameters(), shift])
    close(found, torch.autograd.grad(loss(expected), [w, shift]))
    twin = copy.deepcopy(layer)
    assert twin.named["weight"] is not layer.named["weight"]
    if not compiled:
        with pytest.raises(TypeError, match="multiple values for keyword argument 'weight'"):
            layer({"x": X}, shift=X, weight=weight)


@pytest.mark.transform("a layer called on an empty batch")
@pytest.mark.parametrize("shape", [(3,), ((3,), (2, 2))])
def test_an_empty_batch(shape: Any) -> None:
    cell = Cell()
    layer = rd.nn.FixedPointLayer(cell if shape == (3,) else lambda z, x: (cell(z[0], x), z[1] / 2), shape=shape)
    layer.cell = cell
    x = THETAS[:0].clone().requires_grad_()
    z = layer(x)
    first = z if shape == (3,) else z[0]
    assert first.shape == (0, 3)
    first.sum().backward()
    assert x.grad.shape == x.shape
    assert int(layer.failures) == 0


def test_what_is_misspelt_fails_in_the_constructor() -> None:
    for options, error, match in [
        ({"solver": "newtn"}, rd.UnknownNameError, "newton"),
        ({"adjoint": "gmress"}, rd.UnknownNameError, "gmres"),
        ({"on_failure": "explode"}, rd.ArgumentError, "on_failure.*'raise'"),
        ({"rtoll": 1e-3}, rd.ArgumentTypeError, r"no option 'rtoll'\. Did you mean 'rtol'\? Those of root are .*rtol"),
    ]:
        with pytest.raises(error, match=match):
            rd.nn.ImplicitLayer(cube, **options)
    with pytest.raises(rd.ArgumentTypeError, match="no tensor among its inputs"):
        rd.nn.ImplicitLayer(cube)(2.0)
    layer = rd.nn.ImplicitLayer(cube)
    for name, meant in [("slover", "solver"), ("max_step", "max_steps"), ("tol", "rtol"), ("shapes", "shape")]:
        with pytest.raises(rd.ArgumentTypeError, match=f"no attribute '{name}'. Did you mean '.?{meant[1:]}'?"):
            setattr(layer, name, 1e-3)
    layer.note, layer.extra, layer.solver = "mine", nn.Linear(2, 2), "newton"  # as of any module
    assert "extra" in dict(layer.named_children())
    assert copy.deepcopy(layer).note == "mine"


@pytest.mark.parametrize("start", [torch.zeros(5), lambda x: torch.zeros(5), (torch.zeros(3, 5), torch.zeros(2))])
def test_a_start_without_the_batch_is_named(start: Any) -> None:
    class Recurrent(nn.RNNCell):
        def forward(self, z: Any, x: Any) -> Any:
            return super().forward(x, z)

    layer = rd.nn.FixedPointLayer(Recurrent(2, 5), start=start)
    with pytest.raises(rd.ArgumentError, match=r"start: it has shape \(\d,\), but must begin with .* batch, \(3,\)"):
        layer(X.float())
    layer.start = lambda x: torch.zeros(5).expand(len(x), -1)
    assert layer(X.float()).shape == (3, 5)


def test_the_repr_tells_every_option_that_is_set() -> None:
    layer = rd.nn.FixedPointLayer(
        Cell(), shape=((3,), (2,)), solver=rd.Newton(rtol=1e-3), on_failure="warn", max_steps=7, bounds=(0, 1)
    )
    layer.max_steps = 9
    shown = repr(layer)
    for part in (
        "shape=((3,), (2,))",
        "Newton(rtol=0.001",
        "on_failure='warn'",
        "max_steps=9",
        "bounds=(0, 1)",
        "Cell(",
    ):
        assert part in shown
    assert "cube" in repr(rd.nn.ImplicitLayer(cube))


def test_warn_keeps_the_best_iterate_and_counts_failures() -> None:
    """Training goes on: the third system, y^2 = -1, has no root, the others keep their gradients."""
    layer = rd.nn.ImplicitLayer(lambda y, x: y**2 - x, start=lambda x: x * 0 + 1, solver="newton", on_failure="warn")
    x = torch.tensor([[4.0], [9.0], [-1.0]], requires_grad=True)
    with pytest.warns(rd.ConvergenceWarning, match="1 of 3 systems"):
        y = layer(x)
    close(y[:2].flatten(), torch.tensor([2.0, 3.0]))
    assert abs(y[2].item()) < 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Jacobian at a minimum of |f| may be singular
        (found,) = torch.autograd.grad(y[:2].sum(), x)
        layer(x)
    close(found[:2].flatten(), torch.tensor([1 / 4, 1 / 6]))
    assert int(layer.failures) == 2
    layer.failures = 0
    layer(x[:2])
    assert layer.failures == 0


@pytest.mark.parametrize("budget", [{"budget": 3}, {"max_steps": 3, "on_failure": "ignore"}])
def test_a_budget_without_failure(budget: dict[str, Any]) -> None:
    """Three steps of the iteration, without a word, and the derivative by the theorem at where they lead."""
    calls: list[Tensor] = []

    def cell(z: Tensor, x: Tensor) -> Tensor:
        calls.append(z)
        return (z**2 + x) / 4

    layer = rd.nn.FixedPointLayer(cell, solver="fixed_point", adjoint="lu", **budget)
    x = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    z = layer(x)
    if "budget" in budget:  # the start, each step, and a look at what the cell closes over; nothing judges the last
        assert len(calls) == 5
    expected = 0.0
    for _ in range(3):
        expected = (expected**2 + 1) / 4
    assert z.item() == pytest.approx(expected, rel=1e-12)
    assert float(torch.autograd.grad(z.sum(), x)[0]) == pytest.approx(0.25 / (1 - expected / 2), rel=1e-12)
    assert layer.failures == ("budget" not in budget)


@pytest.mark.parametrize("adjoint", ["lu", "one_step"])
def test_states_on_the_way_have_the_derivative_of_a_root(adjoint: str) -> None:
    torch.manual_seed(0)
    drop = nn.Dropout(0.5)
    layer = rd.nn.FixedPointLayer(
        lambda z, x: (drop(torch.ones_like(z)) * z**2 + x) / 8,
        solver="fixed_point",
        adjoint=adjoint,
        intermediate=(1, 3, 99),
    )
    x = torch.full((1, 4), 1.0, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    z = layer(x)
    torch.manual_seed(1)
    mask = drop(torch.ones_like(x))
    iterates = [torch.zeros_like(x)]
    for _ in range(3):
        iterates.append(((mask * iterates[-1] ** 2 + x) / 8).detach())
    for state, expected in zip(layer.states, (iterates[1], iterates[3], z), strict=True):
        close(state, expected)
        slope = 1 / 8 / (1 - mask * expected / 4) if adjoint == "lu" else torch.full_like(x, 1 / 8)
        close(torch.autograd.grad(state.sum(), x)[0], slope.detach())
    layer.eval()
    layer(x)
    assert layer.states == []


def test_a_layer_with_states_is_copied() -> None:
    layer = rd.nn.FixedPointLayer(lambda z, x, w: w * z / 4 + x, parameters={"w": nn.Parameter(torch.ones(4))})
    layer.intermediate = (1,)
    layer(torch.ones(1, 4))
    copied = copy.deepcopy(layer)
    assert copied.states == []
    assert len(layer.states) == 1
    close(copied(torch.ones(1, 4)).detach(), layer(torch.ones(1, 4)).detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": 3}, "shape: got 3"),
        ({"shape": (-3,)}, r"shape: got \(-3,\)"),
        ({"intermediate": 3}, "intermediate: got 3"),
        ({"intermediate": (0, -1)}, "intermediate: got"),
        ({"parameters": [torch.ones(1)]}, "parameters: got list"),
        ({"parameters": {"w": 3}}, "parameters: 'w' is of type int"),
        ({"parameters": {"a.b": nn.Parameter(torch.ones(1))}}, "parameters: .* the name 'a.b'"),
    ],
)
def test_bad_options_of_a_layer_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises((rd.ArgumentError, rd.ArgumentTypeError), match=message):
        rd.nn.FixedPointLayer(lambda z, x: z / 2 + x, **options)
