"""Bracketed roots in PyTorch: by autograd, under torch.func and vmap, with brackets that are transformed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import lambertw
from torch import func

import rootdiff_torch as rd
from tests.torch.problem import close

METHODS = ("chandrupatla", "itp", "bisection", "bracketed_newton")
A = torch.tensor([0.5, 2.0, 30.0], dtype=torch.float64)
#: y exp(y) = a: W(a), with W' = W / (a (1 + W)).
W = torch.from_numpy(lambertw(A.numpy()).real)
SLOPE = W / (A * (1 + W))
CURVATURE = -(SLOPE**2) * (2 + W) / (1 + W)


def lambert(y, a):
    return y * torch.exp(y) - a


def solve(a, lo=0.0, hi=10.0):
    return rd.root_scalar(lambert, (lo, hi), a).y


@pytest.mark.parametrize("method", METHODS)
def test_roots_and_gradients(method):
    a = A.clone().requires_grad_()
    hi = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    sol = rd.root_scalar(lambert, (0.0, hi), a, solver=method)
    close(sol.y, W)
    of_a, of_hi = torch.autograd.grad(sol.y.sum(), [a, hi], allow_unused=True)
    close(of_a, SLOPE)
    assert of_hi is None or of_hi == 0
    assert sol.status.shape == (3,)


def test_second_derivative_forward_mode_and_closures():
    close(func.vmap(func.grad(func.grad(solve)))(A), CURVATURE)
    y, tangent = func.jvp(lambda a: rd.root_scalar(lambda y: lambert(y, a), 1.0).y, (A,), (torch.ones_like(A),))
    close((y, tangent), (W, SLOPE))


@pytest.mark.parametrize("batched", ["args", "bracket", "both"])
def test_vmap_over_args_and_bracket(batched):
    his = torch.tensor([5.0, 10.0, 20.0], dtype=torch.float64)
    axes = {"args": (0, None), "bracket": (None, 0), "both": (0, 0)}[batched]
    inputs = (A if axes[0] == 0 else A[1], his if axes[1] == 0 else his[0])
    found = func.vmap(func.grad(lambda a, hi: solve(a, hi, 0.0)), in_dims=axes)(*inputs)
    close(found, SLOPE if axes[0] == 0 else SLOPE[1].expand(3))


def test_nested_vmap_with_a_bracket_that_only_one_maps():
    his = torch.tensor([5.0, 20.0], dtype=torch.float64)
    inner = func.vmap(lambda a, hi: solve(a, hi=hi), in_dims=(0, None))
    close(func.vmap(inner, in_dims=(None, 0))(A, his), W.expand(2, 3))


def test_an_invalid_bracket_fails_by_policy_in_its_element():
    a = torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True)  # y exp(y) = -3 has no root
    with pytest.raises(rd.ConvergenceError, match="INVALID_BRACKET"):
        rd.root_scalar(lambert, (0.0, 10.0), a)
    sol = rd.root_scalar(lambert, (0.0, 10.0), a, on_failure="nan")
    np.testing.assert_allclose(sol.y.detach(), [W[1], np.nan])
    (gradient,) = torch.autograd.grad(sol.y.sum(), a)
    np.testing.assert_allclose(gradient, [SLOPE[1], np.nan])
