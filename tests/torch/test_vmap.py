"""torch.func.vmap over everything, alone and composed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import rootdiff_torch as rd
from tests.torch.problem import KINDS, THETA, THETAS, TOL, WEIGHTS, W, close, loss, residual, solve, unrolled
from tests.torch.test_closures import Cell, Model, iterated

ZERO = torch.zeros(3, dtype=torch.float64)
WS = torch.stack([W, -W, W.mT, 0.5 * W])


def each(function: object, *batches: Tensor) -> Tensor:
    """Return what vmap should: the function of each entry by itself."""
    return torch.stack([function(*entries) for entries in zip(*batches, strict=True)])  # type: ignore[operator]


@pytest.mark.transform("torch.func.vmap over an argument")
@KINDS
def test_argument(solver: str, adjoint: str) -> None:
    close(vmap(lambda theta: solve(theta, solver=solver, adjoint=adjoint))(THETAS), each(unrolled, THETAS))


@pytest.mark.transform("torch.func.vmap over several arguments, in_dims and out_dims")
def test_in_dims() -> None:
    close(vmap(solve)(THETAS, WS), each(unrolled, THETAS, WS))
    close(vmap(solve, in_dims=(None, 0))(THETA, WS), each(lambda w: unrolled(THETA, w), WS))
    swapped = vmap(solve, in_dims=(1, None), out_dims=1)(THETAS.mT, W)
    close(swapped, each(unrolled, THETAS).mT)


@pytest.mark.transform("torch.func.vmap over y0 alone")
def test_y0() -> None:
    starts = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    close(vmap(lambda y0: rd.root(residual, y0, THETA, W).y)(starts), unrolled(THETA).expand(4, 3))


@pytest.mark.transform("torch.func.vmap over an integer argument")
def test_integer() -> None:
    rows = torch.tensor([2, 0, 1])

    def picked(theta: Tensor, row: Tensor) -> Tensor:
        pick = lambda y, theta, row: residual(y, theta * (1 + row), W)
        return rd.root(pick, ZERO, theta, row).y

    close(vmap(picked, in_dims=(None, 0))(THETA, rows), each(lambda row: unrolled(THETA * (1 + row)), rows))


@pytest.mark.transform("torch.func.vmap over a captured tensor")
def test_closure() -> None:
    actual = vmap(lambda theta, w: rd.root(lambda y: residual(y, theta, w), ZERO).y)(THETAS, WS)
    close(actual, each(unrolled, THETAS, WS))


@pytest.mark.transform("torch.func.vmap, nested")
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_nested(adjoint: str) -> None:
    function = lambda theta, w: solve(theta, w, adjoint=adjoint)
    actual = vmap(vmap(function, in_dims=(0, None)), in_dims=(None, 0))(THETAS, WS)
    close(actual, torch.stack([each(lambda theta, w=w: unrolled(theta, w), THETAS) for w in WS]))


@pytest.mark.transform("torch.func.vmap of a batched root (batch_ndim=1)")
def test_batched_root() -> None:
    def batched(w: Tensor) -> Tensor:
        return rd.root(residual, torch.zeros(4, 3, dtype=torch.float64), THETAS, w, batch_ndim=1).y

    expected = torch.stack([each(lambda theta, w=w: unrolled(theta, w), THETAS) for w in WS])
    close(vmap(batched)(WS), expected)
    gradients = vmap(grad(lambda w: loss(batched(w))))(WS)
    oracle = lambda w: sum(loss(unrolled(theta, w)) for theta in THETAS)
    close(gradients, each(grad(oracle), WS))


@pytest.mark.transform("torch.func.vmap(grad)")
@KINDS
def test_vmap_grad(solver: str, adjoint: str) -> None:
    ours = grad(lambda theta, w: loss(solve(theta, w, solver=solver, adjoint=adjoint)), (0, 1))
    actual = vmap(ours)(THETAS, WS)
    oracle = grad(lambda theta, w: loss(unrolled(theta, w)), (0, 1))
    for place in (0, 1):
        close(actual[place], each(lambda *inputs, place=place: oracle(*inputs)[place], THETAS, WS))


@pytest.mark.transform("torch.func.grad(vmap)")
@KINDS
def test_grad_vmap(solver: str, adjoint: str) -> None:
    ours = lambda w: loss(vmap(lambda theta: solve(theta, w, solver=solver, adjoint=adjoint))(THETAS) * WEIGHTS)
    oracle = lambda w: loss(each(lambda theta: unrolled(theta, w), THETAS) * WEIGHTS)
    close(grad(ours)(W), grad(oracle)(W))


@pytest.mark.transform("torch.func.vmap(hessian)")
@KINDS
def test_vmap_hessian(solver: str, adjoint: str) -> None:
    actual = vmap(hessian(lambda theta: loss(solve(theta, solver=solver, adjoint=adjoint))))(THETAS)
    close(actual, each(hessian(lambda theta: loss(unrolled(theta))), THETAS))


@pytest.mark.transform("torch.func.hessian(vmap), jacrev(vmap(jacrev))")
@pytest.mark.parametrize("adjoint", ["lu", "gmres"])
def test_outside_of_vmap(adjoint: str) -> None:
    ours = lambda w: loss(vmap(lambda theta: solve(theta, w, adjoint=adjoint))(THETAS))
    oracle = lambda w: loss(each(lambda theta: unrolled(theta, w), THETAS))
    close(hessian(ours)(W), hessian(oracle)(W))
    mixed = jacrev(lambda w: vmap(jacrev(lambda theta: solve(theta, w, adjoint=adjoint)))(THETAS))(W)
    close(mixed, jacrev(lambda w: each(jacrev(lambda theta: unrolled(theta, w)), THETAS))(W))


@pytest.mark.transform("autograd outside, torch.func.vmap inside")
@KINDS
def test_autograd_outside(solver: str, adjoint: str) -> None:
    theta, w = THETAS.clone().requires_grad_(), W.clone().requires_grad_()
    ours = loss(vmap(lambda theta: solve(theta, w, solver=solver, adjoint=adjoint))(theta))
    oracle = loss(each(lambda theta: unrolled(theta, w), theta))
    first = torch.autograd.grad(ours, (theta, w), create_graph=True)
    expected = torch.autograd.grad(oracle, (theta, w), create_graph=True)
    close(first, expected)
    second = torch.autograd.grad((first[0] ** 2).sum() + first[1].sum(), w)
    close(second, torch.autograd.grad((expected[0] ** 2).sum() + expected[1].sum(), w))


@pytest.mark.transform("per-sample gradients: vmap(grad) of functional_call")
def test_per_sample() -> None:
    model = Model()
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    cell = {name.removeprefix("cell."): value for name, value in parameters.items()}
    ours = lambda p, x: loss(functional_call(model, p, (x,)))
    actual = vmap(grad(ours), in_dims=(None, 0))(parameters, THETAS)
    template = Cell()
    oracle = lambda p, x: loss(iterated(lambda z, x: functional_call(template, p, (z, x)), x))
    for index, x in enumerate(THETAS):
        expected = grad(oracle)(cell, x)
        for name, value in expected.items():
            close(actual[f"cell.{name}"][index], value)


@pytest.mark.transform("a Solution through torch.func.vmap")
def test_solution() -> None:
    solution = vmap(lambda theta: rd.root(residual, ZERO, theta, W))(THETAS)
    assert solution.status.shape == solution.steps.shape == (4,)
    assert bool(solution.converged.all())
    assert float(solution.residual_norm.max()) < TOL


@pytest.mark.transform("on_failure under torch.func.vmap, per system")
def test_failure() -> None:
    def parabola(a: Tensor, policy: str) -> Tensor:
        return rd.root(lambda y, a: y**2 - a, torch.ones(1, dtype=torch.float64), a, on_failure=policy).y

    a = torch.tensor([[4.0], [-1.0], [9.0]], dtype=torch.float64)  # the middle one has no real root
    with pytest.raises(rd.ConvergenceError, match="1 of 3"):
        vmap(lambda a: parabola(a, "raise"))(a)
    expected = torch.tensor([[2.0], [torch.nan], [3.0]], dtype=torch.float64)
    torch.testing.assert_close(vmap(lambda a: parabola(a, "nan"))(a), expected, equal_nan=True)
    slopes = vmap(grad(lambda a: parabola(a, "nan").sum()))(a)
    torch.testing.assert_close(slopes, 1 / (2 * expected), equal_nan=True)


@pytest.mark.transform("torch.func.vmap of a residual that branches on values", refused="TransformError")
def test_branching() -> None:
    def branching(y: Tensor, theta: Tensor) -> Tensor:
        return residual(y, theta, W) if y.sum() < 100 else y

    with pytest.raises(rd.TransformError, match=r"residual: it branches on the values .*vmap.* Write torch\.where"):
        vmap(lambda theta: rd.root(branching, ZERO, theta).y)(THETAS)
    close(rd.root(branching, ZERO, THETA).y, unrolled(THETA))


def test_cotangents_share_the_factors_of_the_solve() -> None:
    n, sizes = 90, []

    class Counted(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "lu_factor" in str(function):
                sizes.append(args[0].shape[-1])
            return function(*args, **(kwargs or {}))

    matrix = 4 * torch.eye(n, dtype=torch.float64) + torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    cell = lambda p: rd.root(lambda y, p: matrix @ y + y**3 - p[0] - p[1] * y.cos(), torch.zeros(n).double(), p).y
    cotangents = torch.linspace(-1, 1, 12 * n, dtype=torch.float64).reshape(12, n)
    with Counted():
        _, pull = torch.func.vjp(cell, THETA)
        (found,) = vmap(pull)(cotangents)
    assert sizes.count(n) == 1  # that of the certificate
    close(found, torch.stack([pull(w)[0] for w in cotangents]))
