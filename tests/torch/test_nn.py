"""Layers: ImplicitLayer and FixedPointLayer in models, and models copied, stored and trained."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETAS, TOL, W, close, loss
from tests.torch.test_closures import Cell


class Residual(nn.Module):
    """The residual of `Cell`."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = Cell()

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.cell(y, x) - y


def iterated(cell: nn.Module, x: Tensor) -> Tensor:
    z = torch.zeros(len(x), 3, dtype=torch.float64)
    for _ in range(60):
        z = cell(z, x)
    return z


def gradients(output: Tensor, module: nn.Module) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(output), list(module.parameters()))


@pytest.mark.transform("rootdiff_torch.nn.FixedPointLayer")
@KINDS
def test_fixed_point_layer(solver: str, adjoint: str) -> None:
    cell = Cell()
    layer = rd.nn.FixedPointLayer(cell, shape=(3,), solver=solver, adjoint=adjoint)
    close(gradients(layer(THETAS), layer), gradients(iterated(cell, THETAS), cell))
    assert layer.last is not None
    assert bool(layer.last.converged.all())
    assert not layer.last.y.requires_grad


@pytest.mark.transform("rootdiff_torch.nn.ImplicitLayer")
@KINDS
def test_implicit_layer(solver: str, adjoint: str) -> None:
    residual = Residual()
    layer = rd.nn.ImplicitLayer(residual, shape=(3,), solver=solver, adjoint=adjoint)
    close(gradients(layer(THETAS), layer), gradients(iterated(residual.cell, THETAS), residual))


@pytest.mark.transform("layers in nn.Sequential")
def test_sequential() -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(2, 2, dtype=torch.float64), nn.Linear(3, 3, dtype=torch.float64)
    cell = Cell()
    model = nn.Sequential(first, rd.nn.FixedPointLayer(cell, shape=(3,)), last)
    expected = nn.ModuleList([first, cell, last])
    close(gradients(model(THETAS), model), gradients(last(iterated(cell, first(THETAS))), expected))


@pytest.mark.transform("the same layer twice before backward")
def test_twice() -> None:
    cell = Cell()
    layer = rd.nn.FixedPointLayer(cell, shape=(3,))
    ours = layer(THETAS) + layer(layer(THETAS)[:, :2])
    expected = iterated(cell, THETAS) + iterated(cell, iterated(cell, THETAS)[:, :2])
    close(gradients(ours, layer), gradients(expected, cell))


@pytest.mark.transform("warm start from the last root")
def test_warm_start() -> None:
    layer = rd.nn.FixedPointLayer(Cell(), shape=(3,), solver="fixed_point", warm_start=True)
    cold = layer(THETAS)
    cold_steps = int(layer.last.steps.max())
    warm = layer(THETAS)
    assert int(layer.last.steps.max()) < cold_steps
    close(warm, cold)
    close(gradients(warm, layer), gradients(cold, layer))
    assert layer(THETAS[:2]).shape == (2, 3)  # another batch starts from zero again


#: A counter that nothing puts back for a derivative, as it does what lists, objects and classes hold.
PRODUCTS = itertools.count()


class Counted(torch.autograd.Function):
    """The identity, which counts the products with its transposed Jacobian."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, cotangent: Tensor) -> Tensor:
        next(PRODUCTS)
        return cotangent


def products(module: nn.Module, x: Tensor) -> tuple[int, tuple[Tensor, ...]]:
    before = next(PRODUCTS)
    found = gradients(module(x), module)
    return next(PRODUCTS) - before - 1, found


@pytest.mark.parametrize("adjoint", ["gmres", "bicgstab"])
def test_warm_adjoint(adjoint: str) -> None:
    cell = Cell()
    counting = lambda z, x: cell(Counted.apply(z), x)
    counting.cell = cell
    warm = rd.nn.FixedPointLayer(counting, shape=(3,), solver="anderson", adjoint=adjoint, warm_adjoint=True)
    cold = rd.nn.FixedPointLayer(counting, shape=(3,), solver="anderson", adjoint=adjoint)
    warm.cell = cold.cell = cell
    expected = gradients(iterated(cell, THETAS), cell)
    cold_count, found = products(cold, THETAS)
    close(found, expected)
    first_count, found = products(warm, THETAS)
    close(found, expected)
    assert first_count == cold_count
    again_count, found = products(warm, THETAS)
    close(found, expected)
    assert again_count == 1 < cold_count  # the product that checks the guess
    close(products(warm, THETAS[:2])[1], gradients(iterated(cell, THETAS[:2]), cell))  # another batch starts anew
    with torch.no_grad():
        cell.inner.weight.mul_(1.0 + 1e-6)
    cold_count, cold_found = products(cold, THETAS)
    close(products(warm, THETAS)[1], cold_found)  # the batch of two in between: it starts anew
    with torch.no_grad():
        cell.inner.weight.mul_(1.0 + 1e-6)
    near_count, found = products(warm, THETAS)
    close(found, products(cold, THETAS)[1])
    assert near_count < cold_count


def test_warm_adjoint_copies() -> None:
    layer = rd.nn.FixedPointLayer(Cell(), shape=(3,), adjoint="gmres", warm_adjoint=True)
    layer(THETAS).sum().backward()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(layer)))
    close(gradients(twin(THETAS), twin), gradients(layer(THETAS), layer))
    assert "warm_adjoint=True" in repr(twin)


@pytest.mark.transform("deepcopy and pickle of a module that holds a layer")
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies(clone: object) -> None:
    model = nn.Sequential(rd.nn.FixedPointLayer(Cell(), shape=(3,), solver=rd.Newton(rtol=1e-10), adjoint="gmres"))
    model(THETAS).sum().backward()
    twin = clone(model)  # type: ignore[operator]
    close(twin(THETAS), model(THETAS))
    assert twin[0].solver == model[0].solver
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in model.parameters()})
    close(gradients(twin(THETAS), twin), gradients(model(THETAS), model))


@pytest.mark.transform("state_dict, saved and loaded, with assign too")
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict(assign: bool) -> None:
    source = rd.nn.FixedPointLayer(Cell(), shape=(3,))
    with torch.no_grad():
        source.residual.inner.weight.copy_(W.mT)
    source(THETAS)
    assert set(source.state_dict()) == {"residual.scale", "residual.inner.weight", "residual.outer.weight"}
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target = rd.nn.FixedPointLayer(Cell(), shape=(3,))
    before = target(THETAS)
    expected = gradients(iterated(target.residual, THETAS), target)
    parameters = list(target.parameters())
    target.load_state_dict(torch.load(buffer), assign=assign)
    close(target(THETAS), source(THETAS))
    if assign:  # what was solved before still has the gradients of the state it was solved with
        close(torch.autograd.grad(loss(before), parameters), expected)


@pytest.mark.transform("training: optimiser steps over a layer with warm start")
def test_training() -> None:
    target = iterated(Cell(), THETAS).detach()
    layer = rd.nn.FixedPointLayer(Cell(), shape=(3,), solver="anderson", warm_start=True)
    with torch.no_grad():
        layer.residual.outer.weight.mul_(0.5)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        value = ((layer(THETAS) - target) ** 2).mean()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.transform("torch.func over a layer: functional_call, vmap")
def test_functional() -> None:
    layer = rd.nn.FixedPointLayer(Cell(), shape=(3,))
    state = {name: value.detach() for name, value in layer.named_parameters()}
    single = lambda state, x: loss(torch.func.functional_call(layer, state, (x[None],)))
    actual = torch.vmap(torch.func.grad(single), in_dims=(None, 0))(state, THETAS)
    assert layer.last is None  # nothing of a transform is kept
    for index, x in enumerate(THETAS):
        expected = gradients(iterated(layer.residual, x[None]), layer)
        close(tuple(value[index] for value in actual.values()), expected, TOL)


class Dropping(nn.Module):
    """A cell that drops entries of z, and adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout = nn.Linear(3, 3, dtype=torch.float64), nn.Dropout(0.5)
        with torch.no_grad():
            self.inner.weight.copy_(W)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.with_draws(self.dropout(torch.ones_like(z)), 0.1 * torch.randn_like(z), z, x)

    def with_draws(self, mask: Tensor, noise: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(z * mask) + x + noise)


@pytest.mark.transform("dropout in the cell of a layer: one mask per solve")
@pytest.mark.parametrize("solver", ["newton", "anderson"])
def test_a_random_cell_draws_once_per_solve(solver: str) -> None:
    torch.manual_seed(0)
    cell, x = Dropping(), torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    layer = rd.nn.FixedPointLayer(cell, solver=solver)
    torch.manual_seed(7)
    z = layer(x)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    draws = cell.dropout(torch.ones_like(x)), 0.1 * torch.randn_like(x)
    assert torch.equal(torch.get_rng_state(), after)  # the next call draws anew
    expected = torch.zeros_like(x)
    for _ in range(80):
        expected = cell.with_draws(*draws, expected, x)
    close(z, expected)
    torch.rand(5)  # what others draw before the backward pass does not matter
    close(gradients(z, cell), gradients(expected, cell))
    assert not torch.equal(layer(x), z)


@pytest.mark.transform("BatchNorm in training inside a batched solve", refused="ArgumentError")
def test_normalisation_over_the_batch_is_refused() -> None:
    class Normed(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.cell, self.norm = Cell(), norm

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            return self.norm(self.cell(z, x))

    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    layer = rd.nn.FixedPointLayer(Normed(norm), shape=(3,))
    with torch.no_grad(), pytest.raises(rd.ArgumentError, match="batch_norm in training mode takes statistics over"):
        layer(THETAS)
    assert not bool(norm.running_mean.any())
    layer.eval()
    assert bool(layer(THETAS).isfinite().all())
    untracked, zeros = (
        nn.BatchNorm1d(3, track_running_stats=False, dtype=torch.float64),
        torch.zeros_like(THETAS[:, :1]),
    )
    with pytest.raises(rd.ArgumentError, match="norm"):
        rd.root(Normed(untracked).eval(), zeros.expand(-1, 3), THETAS, batch_ndim=1)


MEAN, VARIANCE = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
NORMS: dict[str, Callable[..., Tensor]] = {
    "functional": lambda z, on: functional.batch_norm(z, MEAN, VARIANCE, training=on),
    "by position": lambda z, on: functional.batch_norm(z, MEAN, VARIANCE, None, None, on),
    "torch": lambda z, on: torch.batch_norm(z, None, None, MEAN, VARIANCE, on, 0.1, 1e-5, False),
    "native": lambda z, on: torch.native_batch_norm(z, None, None, MEAN, VARIANCE, on, 0.1, 1e-5)[0],
    "instance": lambda z, on: functional.instance_norm(torch.stack([z, 2 * z], -1), MEAN, VARIANCE, use_input_stats=on)[
        ..., 0
    ],
    "compiled": torch.compile(lambda z, on: functional.batch_norm(z, MEAN, VARIANCE, training=on), backend="eager"),
}


@pytest.mark.transform("functional batch_norm in training inside a batched solve", refused="ArgumentError")
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("tracked", [False, True])
def test_a_function_that_normalises_over_the_batch_is_refused(kind: str, tracked: bool) -> None:
    norm, theta = NORMS[kind], THETAS.clone().requires_grad_(tracked)
    start = torch.zeros(len(THETAS), 3, dtype=torch.float64)

    def solve(on: bool) -> Tensor:
        return rd.root(lambda z, x: z - 0.1 * norm(z, on) - x[:, :1], start, theta, batch_ndim=1).y

    with pytest.raises(rd.ArgumentError, match="norm in training mode takes statistics over the batch"):
        solve(True)
    assert not bool(MEAN.any())
    torch.testing.assert_close(solve(False), theta[:, :1].expand(-1, 3) / (1 - 0.1 / (1 + 1e-5) ** 0.5))


@pytest.mark.transform("dropout in one graph: the solve fails as RANDOM", refused="ConvergenceError")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_random_cell_in_one_graph_is_told(backend: str) -> None:
    cell, drop = Cell(), nn.Dropout(0.5)
    layer = rd.nn.FixedPointLayer(lambda z, x: cell(drop(z), x), shape=(3,))
    with pytest.raises(rd.ConvergenceError, match="RANDOM: the residual is random"):
        torch.compile(layer, backend=backend, fullgraph=True)(THETAS)


@pytest.mark.transform("BatchNorm in training, the batch as one system")
@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_per_solve_of_one_system(tracked: bool, momentum: float | None) -> None:
    """By those at the root, whatever the solve and its derivative evaluate beside."""
    norm = nn.BatchNorm1d(3, dtype=torch.float64, momentum=momentum)
    alone = copy.deepcopy(norm)
    x = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(4, 3).sin().requires_grad_(tracked)
    layer = rd.nn.FixedPointLayer(lambda z, x: 0.2 * norm(z) + x, batch_ndim=0)
    for _ in range(2):
        with torch.set_grad_enabled(tracked):
            z = layer(x)
        alone(z.detach())
        if tracked:
            (first,) = torch.autograd.grad((z**2).sum(), x, create_graph=True)
            torch.autograd.grad(first.sum(), x)
        for name, buffer in alone.named_buffers():
            torch.testing.assert_close(norm.get_buffer(name), buffer)
    torch.testing.assert_close(z, 0.2 * alone.train()(z) + x)


@pytest.mark.parametrize("kind", NORMS)
def test_statistics_of_a_function_move_once_per_solve_of_one_system(kind: str) -> None:
    start = torch.zeros(len(THETAS), 3, dtype=torch.float64)
    z = rd.root(lambda z, x: z - 0.1 * NORMS[kind](z, True) - x[:, :1], start, THETAS).y
    moved = MEAN.clone(), VARIANCE.clone()
    MEAN.zero_(), VARIANCE.fill_(1.0)
    NORMS[kind](z, True)
    torch.testing.assert_close(moved, (MEAN, VARIANCE))
    MEAN.zero_(), VARIANCE.fill_(1.0)


@pytest.mark.parametrize("measure", [rd.nn.spectral_radius, rd.nn.jacobian_penalty])
def test_a_look_at_the_jacobian_moves_no_statistics(measure: Callable[..., Tensor]) -> None:
    norm = nn.BatchNorm1d(3, dtype=torch.float64)
    assert bool(measure(lambda z: 0.1 * norm(z), THETAS @ THETAS.new_ones(THETAS.shape[-1], 3)).isfinite())
    assert int(norm.num_batches_tracked) == 0
    assert not bool(norm.running_mean.any())


def test_statistics_of_a_solve_that_fails_stay() -> None:
    norm = nn.BatchNorm1d(1, dtype=torch.float64)
    start = torch.zeros(3, 1, dtype=torch.float64)
    rd.root(lambda z: z**2 + 1 + 0 * norm(z), start, on_failure="nan")
    assert int(norm.num_batches_tracked) == 0
    assert not bool(norm.running_mean.any())


def test_a_norm_over_each_system_alone_is_no_batch_norm() -> None:
    def cell(z: Tensor, x: Tensor) -> Tensor:
        return 0.1 * functional.instance_norm(z, weight=x.new_ones(2), bias=x.new_ones(2)) + x

    x = torch.linspace(0, 1, 24, dtype=torch.float64).reshape(4, 2, 3)
    z = rd.fixed_point(cell, torch.zeros_like(x), x, batch_ndim=1).y
    torch.testing.assert_close(z[1], rd.fixed_point(cell, torch.zeros_like(x[:1]), x[1:2], batch_ndim=1).y[0])


def test_a_norm_beside_the_cell_is_no_matter_of_the_solve() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell = nn.BatchNorm1d(2, dtype=torch.float64), Cell()

        def step(self, z: Tensor, x: Tensor) -> Tensor:
            return self.cell(z, x)

        def forward(self, x: Tensor) -> Tensor:
            return rd.fixed_point(self.step, torch.zeros(4, 3, dtype=torch.float64), self.norm(x), batch_ndim=1).y

    model = Model()
    assert bool(model(THETAS).isfinite().all())
    assert int(model.norm.num_batches_tracked) == 1


def test_layers_check_that_systems_are_independent() -> None:
    layer = rd.nn.FixedPointLayer(lambda z, x: 0.1 * (z + z.mean(0)) + x, check=True)
    with pytest.raises(rd.ArgumentError, match="couples systems"):
        layer(THETAS)
