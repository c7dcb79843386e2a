"""Reverse mode, double backward, forward mode and their mixtures through autograd itself."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETA, WEIGHTS, B, W, close, loss, residual, solve, unrolled


@pytest.mark.transform("autograd: backward")
@KINDS
def test_backward(solver: str, adjoint: str) -> None:
    inputs = THETA.clone().requires_grad_(), W.clone().requires_grad_()
    gradients = torch.autograd.grad(loss(solve(*inputs, solver=solver, adjoint=adjoint)), inputs)
    close(gradients, torch.autograd.grad(loss(unrolled(*inputs)), inputs))


@pytest.mark.transform("autograd.gradcheck, with forward mode and batched gradients")
@KINDS
def test_gradcheck(solver: str, adjoint: str) -> None:
    inputs = THETA.clone().requires_grad_(), W.clone().requires_grad_()
    assert gradcheck(
        lambda theta, w: solve(theta, w, solver=solver, adjoint=adjoint),
        inputs,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.transform("autograd.gradgradcheck: reverse over reverse, forward over reverse")
@KINDS
def test_gradgradcheck(solver: str, adjoint: str) -> None:
    inputs = THETA.clone().requires_grad_(), W.clone().requires_grad_()
    assert gradgradcheck(
        lambda theta, w: solve(theta, w, solver=solver, adjoint=adjoint),
        inputs,
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
    )


@pytest.mark.transform("autograd: third derivative")
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_third_derivative(adjoint: str) -> None:
    def third(function: object) -> torch.Tensor:
        theta = THETA.clone().requires_grad_()
        derivative = loss(function(theta))  # type: ignore[operator]
        for _ in range(3):
            (gradient,) = torch.autograd.grad(derivative, theta, create_graph=True)
            derivative = (gradient * torch.tensor([0.3, -1.7], dtype=torch.float64)).sum()
        return derivative.detach()

    close(third(lambda theta: solve(theta, adjoint=adjoint)), third(unrolled))


@pytest.mark.transform("autograd.grad(is_grads_batched=True)")
def test_batched_cotangents() -> None:
    w = W.clone().requires_grad_()
    rows = torch.eye(3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(solve(THETA, w), w, rows, is_grads_batched=True)
    y = unrolled(THETA, w)
    close(batched, torch.stack([torch.autograd.grad(y, w, row, retain_graph=True)[0] for row in rows]))


@pytest.mark.transform("autograd.functional.jacobian(vectorize=True), reverse and forward")
@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_vectorized_jacobian(strategy: str) -> None:
    jacobian = torch.autograd.functional.jacobian(solve, THETA, vectorize=True, strategy=strategy)
    close(jacobian, torch.autograd.functional.jacobian(unrolled, THETA))


@pytest.mark.transform("autograd's own vmap over an argument", refused="TransformError")
def test_vectorized_argument() -> None:
    def gradient(function: object) -> object:
        return torch.autograd.functional.jacobian(
            lambda theta: torch.autograd.grad(function(theta).sum(), theta, create_graph=True)[0],  # type: ignore[operator]
            THETA,
            vectorize=True,
        )

    # a Hessian by this way maps over cotangents alone, which works; an argument is another matter
    close(
        gradient(solve),
        torch.autograd.functional.jacobian(
            lambda theta: torch.autograd.grad(unrolled(theta).sum(), theta, create_graph=True)[0], THETA
        ),
    )
    with pytest.raises(rd.TransformError, match=r"torch\.func\.vmap"):
        torch._vmap_internals._vmap(solve, 0, 0)(torch.stack([THETA, 2 * THETA]))


@pytest.mark.transform("autograd.forward_ad.dual_level")
@KINDS
def test_dual_level(solver: str, adjoint: str) -> None:
    tangent = torch.tensor([0.5, -1.0], dtype=torch.float64)
    with forward_ad.dual_level():
        theta = forward_ad.make_dual(THETA, tangent)
        pushed = forward_ad.unpack_dual(solve(theta, solver=solver, adjoint=adjoint)).tangent
    jacobian = torch.autograd.functional.jacobian(unrolled, THETA)
    close(pushed, jacobian @ tangent)


@pytest.mark.transform("backward twice with retain_graph")
def test_retain_graph() -> None:
    theta = THETA.clone().requires_grad_()
    value = loss(solve(theta))
    (first,) = torch.autograd.grad(value, theta, retain_graph=True)
    (second,) = torch.autograd.grad(value, theta, retain_graph=True)
    assert torch.equal(first, second)
    close(first, torch.autograd.grad(loss(unrolled(theta)), theta)[0])


@pytest.mark.transform("no_grad")
def test_no_grad() -> None:
    with torch.no_grad():
        y = solve(THETA.clone().requires_grad_())
    assert not y.requires_grad
    close(y, unrolled(THETA))


@pytest.mark.transform("inference_mode, with inputs and closures made inside and outside")
@KINDS
def test_inference_mode(solver: str, adjoint: str) -> None:
    outside = W.clone().requires_grad_()
    with torch.inference_mode():
        inside = THETA.clone()
        y = rd.root(
            lambda y: residual(y, inside, outside) + 0 * inside.sum(),
            torch.zeros(3, dtype=torch.float64),
            solver=solver,
            adjoint=adjoint,
        ).y
        explicit = solve(inside, W.clone(), solver=solver, adjoint=adjoint)
    close(y.clone(), unrolled(THETA))
    close(explicit.clone(), unrolled(THETA))


@pytest.mark.transform("parameters changed in place before backward", refused="RuntimeError")
def test_changed_parameter() -> None:
    theta = THETA.clone().requires_grad_()
    w = W.clone()
    y = solve(theta, w)
    w.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.transform("a root inside the residual of a root")
def test_nested_root() -> None:
    def nested(theta: torch.Tensor, inner: object) -> torch.Tensor:
        def outer(z: torch.Tensor) -> torch.Tensor:
            return 0.3 * torch.sin(inner(theta * z[:2])) + 1.0 - z  # type: ignore[operator]

        if inner is solve:
            return rd.root(outer, torch.zeros(3, dtype=torch.float64)).y
        z = torch.zeros(3, dtype=torch.float64)
        for _ in range(60):
            z = outer(z) + z
        return z

    theta = THETA.clone().requires_grad_()
    expected = torch.autograd.grad(nested(theta, unrolled) @ WEIGHTS, theta)
    close(torch.autograd.grad(nested(theta, solve) @ WEIGHTS, theta), expected)


@pytest.mark.transform("a custom autograd.Function in the residual, without jvp and vmap")
@pytest.mark.parametrize("once", [False, True])
@KINDS
def test_custom_function(solver: str, adjoint: str, once: bool) -> None:
    class Tanh(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            ctx.save_for_backward(y)  # type: ignore[attr-defined]
            return y

        @staticmethod
        def backward(ctx: object, cotangent: torch.Tensor) -> torch.Tensor:
            (y,) = ctx.saved_tensors  # type: ignore[attr-defined]
            return cotangent * (1 - y**2)

    if once:
        Tanh.backward = staticmethod(torch.autograd.function.once_differentiable(Tanh.backward))
    theta = THETA.clone().requires_grad_()
    y = rd.root(
        lambda y, theta: Tanh.apply(W @ y + B @ theta) - y,
        torch.zeros(3, dtype=torch.float64),
        theta,
        solver=solver,
        adjoint=adjoint,
    ).y
    close(torch.autograd.grad(loss(y), theta), torch.autograd.grad(loss(unrolled(theta)), theta))
