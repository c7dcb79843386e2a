"""The transforms of torch.func, one by one and composed, but for vmap."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETA, WEIGHTS, W, close, loss, residual, solve, unrolled

TANGENT = torch.tensor([0.5, -1.0], dtype=torch.float64)


def scalars(solver: str, adjoint: str) -> tuple[object, object]:
    def ours(theta: Tensor) -> Tensor:
        return loss(solve(theta, solver=solver, adjoint=adjoint))

    return ours, lambda theta: loss(unrolled(theta))


@pytest.mark.transform("torch.func.grad")
@KINDS
def test_grad(solver: str, adjoint: str) -> None:
    ours, oracle = scalars(solver, adjoint)
    close(grad(ours)(THETA), grad(oracle)(THETA))


@pytest.mark.transform("torch.func.grad of a residual that closes over the input")
def test_grad_closure() -> None:
    def ours(theta: Tensor, w: Tensor) -> Tensor:
        return loss(rd.root(lambda y: residual(y, theta, w), torch.zeros(3, dtype=torch.float64)).y)

    close(grad(ours, (0, 1))(THETA, W), grad(lambda t, w: loss(unrolled(t, w)), (0, 1))(THETA, W))


@pytest.mark.transform("torch.func.grad(has_aux=True) with a Solution as aux")
def test_aux() -> None:
    def ours(theta: Tensor) -> tuple[Tensor, rd.Solution]:
        solution = rd.root(residual, torch.zeros(3, dtype=torch.float64), theta, W)
        return loss(solution.y), solution

    gradient, solution = grad(ours, has_aux=True)(THETA)
    close(gradient, grad(lambda theta: loss(unrolled(theta)))(THETA))
    assert bool(solution.converged)
    assert solution.steps > 0


@pytest.mark.transform("torch.func.vjp")
@KINDS
def test_vjp(solver: str, adjoint: str) -> None:
    y, pull = vjp(lambda theta, w: solve(theta, w, solver=solver, adjoint=adjoint), THETA, W)
    expected_y, expected = vjp(unrolled, THETA, W)
    close(y, expected_y)
    close(pull(WEIGHTS), expected(WEIGHTS))


@pytest.mark.transform("torch.func.jvp")
@KINDS
def test_jvp(solver: str, adjoint: str) -> None:
    pushed = jvp(lambda theta: solve(theta, solver=solver, adjoint=adjoint), (THETA,), (TANGENT,))
    close(pushed, jvp(unrolled, (THETA,), (TANGENT,)))


@pytest.mark.transform("torch.func.jacrev")
@KINDS
def test_jacrev(solver: str, adjoint: str) -> None:
    close(
        jacrev(lambda *inputs: solve(*inputs, solver=solver, adjoint=adjoint), (0, 1))(THETA, W),
        jacrev(unrolled, (0, 1))(THETA, W),
    )


@pytest.mark.transform("torch.func.jacrev with every exact adjoint")
@pytest.mark.parametrize(
    "adjoint", [n for n in rd.available_adjoints("torch") if rd.get_adjoint(n).exact and n != "cg"]
)
def test_jacrev_adjoints(adjoint: str) -> None:
    # cg is for symmetric Jacobians; several right-hand sides share one matrix here
    close(jacrev(lambda w: solve(THETA, w, adjoint=adjoint))(W), jacrev(lambda w: unrolled(THETA, w))(W))


@pytest.mark.transform("torch.func.jacrev of minimize and least_squares, of a gradient in the residual, and twice")
@pytest.mark.parametrize("mode", [jacrev, lambda f: jacrev(jacrev(f)), lambda f: jacrev(jacfwd(jacrev(f)))])
def test_jacrev_of_a_minimum(mode: object) -> None:
    """The minimum of y.A y - b.y is (A + A^T)^-1 b; torch.linalg.solve is wrong in jacfwd of a derivative."""
    a, b = W + 2 * torch.eye(3, dtype=torch.float64), WEIGHTS
    start = torch.zeros(3, dtype=torch.float64)
    oracle = mode(lambda a: torch.linalg.inv(a + a.mT) @ b)(a)  # type: ignore[operator]
    pulled = lambda y, a: vjp(lambda y: y @ a @ y - b @ y, y)[1](torch.ones((), dtype=torch.float64))[0]
    for ours in (
        lambda a: rd.minimize(lambda y, a: y @ a @ y - b @ y, start, a).y,
        lambda a: rd.least_squares(lambda y, a: (a + a.mT) @ y - b, start, a).y,
        lambda a: rd.root(pulled, start, a).y,
    ):
        close(mode(ours)(a), oracle, 1e-8)  # type: ignore[operator]


@pytest.mark.transform("torch.func.jacfwd")
@KINDS
def test_jacfwd(solver: str, adjoint: str) -> None:
    close(
        jacfwd(lambda *inputs: solve(*inputs, solver=solver, adjoint=adjoint), (0, 1))(THETA, W),
        jacrev(unrolled, (0, 1))(THETA, W),
    )


@pytest.mark.transform("torch.func.hessian")
@KINDS
def test_hessian(solver: str, adjoint: str) -> None:
    ours, oracle = scalars(solver, adjoint)
    close(hessian(ours)(THETA), hessian(oracle)(THETA))


@pytest.mark.transform("torch.func: jacrev over jacfwd, jacrev over jacrev, jacfwd over jacfwd")
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
@pytest.mark.parametrize(("outer", "inner"), [(jacrev, jacfwd), (jacrev, jacrev), (jacfwd, jacfwd)])
def test_second_order(outer: object, inner: object, adjoint: str) -> None:
    ours, oracle = scalars("newton", adjoint)
    close(outer(inner(ours))(THETA), hessian(oracle)(THETA))  # type: ignore[operator]


@pytest.mark.transform("torch.func: third order, every mixture")
@pytest.mark.parametrize(
    "modes", [(a, b, c) for a in (jacrev, jacfwd) for b in (jacrev, jacfwd) for c in (jacrev, jacfwd)]
)
def test_third_order(modes: tuple[object, ...]) -> None:
    ours, oracle = scalars("newton", "lu")
    for mode in modes:
        ours = mode(ours)  # type: ignore[operator]
    close(ours(THETA), jacrev(hessian(oracle))(THETA))  # type: ignore[operator]


@pytest.mark.transform("torch.func.jvp of jvp, another direction each")
def test_jvp_of_jvp() -> None:
    other = torch.tensor([2.0, 0.7], dtype=torch.float64)

    def second(function: object) -> Tensor:
        inner = lambda theta: jvp(function, (theta,), (TANGENT,))[1]
        return jvp(inner, (THETA,), (other,))[1]

    close(second(solve), second(unrolled))


@pytest.mark.transform("torch.func outside of autograd: grad of a loss that used autograd.grad", refused="RuntimeError")
def test_autograd_inside_func() -> None:
    def inner(theta: Tensor) -> Tensor:
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(loss(solve(theta)), theta, create_graph=True)[0].sum()

    def oracle(theta: Tensor) -> Tensor:
        theta = theta.clone().requires_grad_()
        return torch.autograd.grad(loss(unrolled(theta)), theta, create_graph=True)[0].sum()

    # torch itself refuses this, with or without a root
    for function in (inner, oracle):
        with pytest.raises(RuntimeError):
            grad(function)(THETA)
