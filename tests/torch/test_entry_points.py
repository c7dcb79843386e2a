"""root_scalar, gradient_report and the hooks of root, on tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd
from tests.torch.problem import THETA, W, close, residual, solve, unrolled

CUBES = torch.tensor([8.0, 27.0], dtype=torch.float64)
ZERO = torch.zeros(3, dtype=torch.float64)


@pytest.mark.transform("root_scalar: backward, second derivative and torch.func.vmap")
@pytest.mark.parametrize("solver", ["chandrupatla", "itp", "bisection", "bracketed_newton"])
def test_root_scalar(solver: str) -> None:
    def cube_root(a: Tensor) -> Tensor:
        return rd.root_scalar(lambda y, a: y**3 - a, (0.0, 10.0), a, solver=solver).y

    a = CUBES.clone().requires_grad_()
    (first,) = torch.autograd.grad(cube_root(a).sum(), a, create_graph=True)
    close(first, CUBES ** (-2 / 3) / 3)
    close(torch.autograd.grad(first.sum(), a)[0], -2 / 9 * CUBES ** (-5 / 3))
    close(torch.vmap(torch.func.grad(cube_root))(CUBES), CUBES ** (-2 / 3) / 3)


def test_root_scalar_with_captured_bracket_and_parameter() -> None:
    shift = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    y = rd.root_scalar(lambda y: (y - shift) ** 3 - CUBES, (torch.zeros(2, dtype=torch.float64), 2 * CUBES)).y
    y.sum().backward()
    close(shift.grad, torch.tensor(2.0, dtype=torch.float64))


def test_hooks_see_and_steer_the_steps() -> None:
    seen: list[rd.StepInfo] = []
    solution = rd.root(
        residual, ZERO, THETA, W, solver="newton", bounds=(-1.0, 1.0), callback=seen.append, history=True
    )
    assert len(seen) == int(solution.steps) == len(solution.history.method)
    close(solution.y, unrolled(THETA))
    steered = rd.root(
        residual, ZERO, THETA, W, solver="newton", correct=lambda trial, y: y + (trial - y).clip(-0.1, 0.1)
    )
    assert int(steered.steps) > int(solution.steps)
    close(steered.y, unrolled(THETA))


def test_method_of_a_chain_and_approximate_adjoints() -> None:
    chain = rd.Chain([rd.Newton(max_steps=1), rd.TrustRegion()])
    solution = rd.root(residual, ZERO, THETA, W, solver=chain)
    assert int(solution.method) == rd.Method.TRUST_REGION
    assert not bool(solution.approximate)
    assert bool(rd.root(residual, ZERO, THETA, W, adjoint="one_step").approximate)


def test_gradient_report_counts_what_is_closed_over() -> None:
    y = solve(THETA)
    explicit = rd.gradient_report(residual, y, THETA, W)
    w = W.clone().requires_grad_()
    captured = rd.gradient_report(lambda y, theta: residual(y, theta, w), y, THETA)
    assert captured.gradient_error == pytest.approx(explicit.gradient_error, rel=1e-6)
    assert explicit.gradient_error < 1e-8
