"""Nothing stays behind: counts of live tensors with the garbage collector off."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import rootdiff_torch as rd
from tests.harness import THOROUGH
from tests.torch.problem import THETA, W, loss, residual
from tests.torch.test_closures import Cell

ZERO = torch.zeros(3, dtype=torch.float64)


def live() -> int:
    return sum(issubclass(type(thing), Tensor) for thing in gc.get_objects())


def grows(call: Callable[[], object], times: int = 1000 if THOROUGH else 30) -> int:
    """Return by how many the live tensors grow over so many calls."""
    for _ in range(3):
        call()
    gc.collect()
    gc.disable()
    try:
        before = live()
        for _ in range(times):
            call()
        return live() - before
    finally:
        gc.enable()


@pytest.mark.transform("1000 forward calls leave no tensor behind")
@pytest.mark.parametrize("solver", ["newton", "anderson"])
def test_forward(solver: str) -> None:
    w = W.clone().requires_grad_()
    assert grows(lambda: rd.root(residual, ZERO, THETA, w, solver=solver)) == 0


@pytest.mark.transform("1000 forward and backward calls leave no tensor behind")
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_backward(adjoint: str) -> None:
    w = W.clone().requires_grad_()
    call = lambda: loss(rd.root(residual, ZERO, THETA, w, solver="newton", adjoint=adjoint).y).backward()
    assert grows(call) == 0


@pytest.mark.transform("calls under hooks on saved tensors leave no tensor behind")
def test_under_hooks() -> None:
    w = W.clone().requires_grad_()

    def call() -> None:
        with torch.autograd.graph.saved_tensors_hooks(Tensor.clone, lambda tensor: tensor):
            y = rd.root(residual, ZERO, THETA, w, solver="newton").y
        loss(y).backward()

    assert grows(call, 30) == 0


@pytest.mark.transform("closures, modules and double backward leave no tensor behind")
def test_closure() -> None:
    cell = Cell()

    def call() -> None:
        z = rd.fixed_point(lambda z: cell(z, THETA), ZERO).y
        gradients = torch.autograd.grad(loss(z), list(cell.parameters()), create_graph=True)
        torch.autograd.grad(sum((g**2).sum() for g in gradients), list(cell.parameters()))

    assert grows(call, 30) == 0


@pytest.mark.transform("what is kept for backward does not grow with the steps of the solver")
def test_saved() -> None:
    def saved(max_steps: int) -> int:
        sizes: list[int] = []
        pack = lambda tensor: sizes.append(tensor.numel()) or tensor
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            w = W.clone().requires_grad_()
            solver = rd.FixedPoint(max_steps=max_steps)
            solution = rd.root(residual, ZERO, THETA, w, solver=solver, on_failure="ignore")
        assert int(solution.steps) == max_steps
        return sum(sizes)

    assert saved(2) == saved(12)
