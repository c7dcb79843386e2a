"""Checkpoints and hooks on saved tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETA, W, close, loss, residual, solve, unrolled


def gradients(function: object) -> tuple[Tensor, ...]:
    inputs = THETA.clone().requires_grad_(), W.clone().requires_grad_()
    return torch.autograd.grad(loss(torch.sin(function(*inputs))), inputs)  # type: ignore[operator]


@pytest.mark.transform("torch.utils.checkpoint, not reentrant")
@KINDS
def test_checkpoint(solver: str, adjoint: str) -> None:
    inner = lambda theta, w: torch.exp(solve(torch.sin(theta), w, solver=solver, adjoint=adjoint))
    ours = lambda *inputs: checkpoint(inner, *inputs, use_reentrant=False)
    close(gradients(ours), gradients(lambda theta, w: torch.exp(unrolled(torch.sin(theta), w))))


@pytest.mark.transform("torch.utils.checkpoint, reentrant")
@KINDS
def test_reentrant(solver: str, adjoint: str) -> None:
    def ours(theta: Tensor, w: Tensor) -> list[Tensor]:
        theta, w = theta.clone().requires_grad_(), w.clone().requires_grad_()
        inner = lambda theta, w: torch.exp(solve(torch.sin(theta), w, solver=solver, adjoint=adjoint))
        loss(torch.sin(checkpoint(inner, theta, w, use_reentrant=True))).backward()
        return [theta.grad, w.grad]

    close(tuple(ours(THETA, W)), gradients(lambda theta, w: torch.exp(unrolled(torch.sin(theta), w))))


@pytest.mark.transform("torch.utils.checkpoint of a root that closes over its parameters")
def test_closure() -> None:
    def ours(theta: Tensor, w: Tensor) -> Tensor:
        inner = lambda: rd.root(lambda y: residual(y, theta, w), torch.zeros(3, dtype=torch.float64)).y
        return checkpoint(inner, use_reentrant=False)

    close(gradients(ours), gradients(unrolled))


@pytest.mark.transform("autograd.graph.save_on_cpu")
@KINDS
def test_save_on_cpu(solver: str, adjoint: str) -> None:
    with save_on_cpu():
        actual = gradients(lambda *inputs: solve(*inputs, solver=solver, adjoint=adjoint))
    close(actual, gradients(unrolled))


@pytest.mark.transform("autograd.graph.saved_tensors_hooks")
def test_hooks() -> None:
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor)
        return len(packed) - 1

    with saved_tensors_hooks(pack, lambda index: packed[index]):
        y = solve(theta := THETA.clone().requires_grad_())
    # the root, its arguments and errors, and what the adjoint solve starts from; nothing of the solver's own graphs
    assert len(packed) <= 7
    (gradient,) = torch.autograd.grad(loss(y), theta)
    close(gradient, torch.autograd.grad(loss(unrolled(theta)), theta)[0])
