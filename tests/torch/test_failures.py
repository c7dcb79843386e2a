"""Failures of a solve and of its adjoint, and arguments that cannot be used, in PyTorch's own ways."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd
from tests.torch.problem import THETA, W, residual

#: y^2 = a has no real root where a < 0.
A = torch.tensor([[4.0], [-1.0], [9.0]], dtype=torch.float64)
ONES = torch.ones(3, 1, dtype=torch.float64)


def parabolas(a: Tensor, policy: str) -> rd.Solution:
    return rd.root(lambda y, a: y**2 - a, ONES, a, batch_ndim=1, on_failure=policy)


def test_raise_names_the_systems_and_carries_the_solution() -> None:
    with pytest.raises(rd.ConvergenceError, match="1 of 3 systems") as caught:
        parabolas(A.clone().requires_grad_(), "raise")
    solution = caught.value.solution
    assert solution.converged.tolist() == [True, False, True]
    assert torch.isfinite(solution.y).all()


def test_warn_and_nan_leave_the_other_systems_alone() -> None:
    for policy in ("warn", "nan"):
        a = A.clone().requires_grad_()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            solution = parabolas(a, policy)
            solution.y.sum().backward()
        assert len(caught) == (policy == "warn")
        expected = torch.tensor([[2.0], [torch.nan], [3.0]], dtype=torch.float64)
        torch.testing.assert_close(solution.y.detach(), expected, equal_nan=True)
        torch.testing.assert_close(a.grad, 1 / (2 * expected), equal_nan=True)


def test_shared_parameters_sum_over_the_good_systems() -> None:
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    y = rd.root(lambda y, a, s: y**2 - s * a, ONES, A, scale, batch_ndim=1, on_failure="nan").y
    y.sum().backward()
    torch.testing.assert_close(scale.grad, torch.tensor((2.0 + 3.0) / 2, dtype=torch.float64))


def test_a_masked_failure_takes_no_part() -> None:
    a = A.clone().requires_grad_()
    y = parabolas(a, "nan").y
    torch.where(torch.isnan(y), 0.0, y).sum().backward()
    expected = torch.tensor([[0.25], [0.0], [1 / 6]], dtype=torch.float64)
    torch.testing.assert_close(a.grad, expected)


def test_forward_mode_of_a_failed_system_is_nan() -> None:
    _, pushed = torch.func.jvp(lambda a: parabolas(a, "nan").y, (A,), (torch.ones_like(A),))
    expected = torch.tensor([[0.25], [torch.nan], [1 / 6]], dtype=torch.float64)
    torch.testing.assert_close(pushed, expected, equal_nan=True)


def test_ignore_returns_the_best_iterate() -> None:
    solution = parabolas(A, "ignore")
    assert torch.isfinite(solution.y).all()
    assert solution.converged.tolist() == [True, False, True]


def test_singular_jacobian_raises_in_backward() -> None:
    a = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    singular = lambda y, a: torch.stack([y.sum() - a.sum(), 2 * y.sum() - 2 * a.sum()])
    y = rd.root(singular, torch.zeros(2, dtype=torch.float64), a).y  # y0 is a root already
    with pytest.raises(rd.AdjointError, match="SINGULAR"):
        y.sum().backward()


def test_device_of_args() -> None:
    elsewhere = torch.ones(2, dtype=torch.float64, device="meta")
    with pytest.raises(rd.ArgumentError, match=r"args\[0\]: it is on device meta, but y0 is on cpu"):
        rd.root(residual, torch.zeros(3, dtype=torch.float64), elsewhere, W)
    with pytest.raises(rd.ArgumentError, match="leaves are on different devices"):
        rd.root(lambda y: y, (torch.zeros(3), torch.zeros(3, device="meta")))


def test_other_frameworks() -> None:
    with pytest.raises(rd.ArgumentTypeError, match=r"args\[1\]: it holds a numpy array"):
        rd.root(residual, torch.zeros(3, dtype=torch.float64), THETA, W.numpy())
    with pytest.raises(rd.ArgumentTypeError, match=r"y0: it is or holds an? ndarray.*Call rootdiff"):
        rd.root(residual, np.zeros(3), THETA, W)


def test_integer_y0() -> None:
    with pytest.raises(rd.ArgumentTypeError, match=r"y0: it has dtype torch\.int64"):
        rd.root(residual, torch.zeros(3, dtype=torch.int64), THETA, W)


def test_in_place_changes() -> None:
    def mutates_y(y: Tensor, theta: Tensor) -> Tensor:
        y += 1.0
        return y - theta[0]

    def mutates_args(y: Tensor, theta: Tensor) -> Tensor:
        theta.mul_(2.0)
        return y - theta[0]

    for mutating in (mutates_y, mutates_args):
        with pytest.raises(rd.ArgumentError, match="changes y or args in place"):
            rd.root(mutating, torch.zeros(3, dtype=torch.float64), THETA.clone())


def test_a_parameter_met_only_at_the_root() -> None:
    near, far = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (2.0, 3.0))

    def branching(y: Tensor) -> Tensor:
        return y - near if bool(y.sum() < 1) else y - far

    with pytest.raises(rd.ArgumentError, match="did not use at y0"):
        rd.root(branching, torch.zeros(1, dtype=torch.float64))


def test_user_errors_pass_through() -> None:
    def broken(y: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        rd.root(broken, torch.zeros(1, dtype=torch.float64))


#: Functions of one system's `a` and of the shared `k` that are NaN, or have no finite derivative, where a < 0.
UNREAL = {
    "elementwise": lambda a, k: torch.sqrt(a * k[0, 0]),
    "broadcast": lambda a, k: k[0, 0] * torch.sqrt(a),
    "matmul": lambda a, k: torch.log(a) @ k[:1, :1],
    "matrix": lambda a, k: torch.sqrt(a) * k.sum(),  # k has as many rows as there are systems
}


@pytest.mark.parametrize("name", UNREAL)
@pytest.mark.parametrize("way", ["args", "closure", "higher", "func"])
def test_a_failed_system_leaves_shared_gradients_alone(name: str, way: str) -> None:
    def roots(a: Tensor, k: Tensor) -> Tensor:
        start, options = torch.ones_like(a), {"batch_ndim": 1, "on_failure": "nan"}
        if way == "closure":
            return rd.root(lambda y: y + y**3 - UNREAL[name](a, k), start, **options).y
        return rd.root(lambda y, a, k: y + y**3 - UNREAL[name](a, k), start, a, k, **options).y

    def gradients(a: Tensor, good: list[int]) -> tuple[Tensor, ...]:
        k = torch.linspace(0.5, 1.5, 9, dtype=torch.float64).reshape(3, 3)
        loss = lambda a, k: (roots(a, k)[good] ** 2).sum()
        if way == "func":
            return torch.func.grad(loss, argnums=(0, 1))(a, k)
        inputs = (a.clone().requires_grad_(), k.requires_grad_())
        first = torch.autograd.grad(loss(*inputs), inputs, create_graph=way == "higher")
        return first if way != "higher" else (*first, *torch.autograd.grad(first[1].sum(), inputs))

    found, alone = gradients(A, [0, 2]), gradients(A[[0, 2]], [0, 1])
    for whole, part in zip(found, alone, strict=True):
        expected = part
        if len(part) == 2:
            expected = torch.stack([part[0], torch.zeros_like(part[0]), part[1]])
        torch.testing.assert_close(whole, expected)


def test_forward_mode_of_a_shared_parameter() -> None:
    k = torch.tensor(2.0, dtype=torch.float64)
    function = lambda k: rd.root(lambda y, a, k: y - torch.sqrt(a * k), ONES, A, k, batch_ndim=1, on_failure="nan").y
    _, pushed = torch.func.jvp(function, (k,), (torch.ones_like(k),))
    torch.testing.assert_close(pushed, torch.sqrt(A / k) / 2, equal_nan=True)


def test_what_a_failed_system_closes_over_leaves_shared_gradients_alone() -> None:
    data = torch.tensor([[4.0], [-1.0]], dtype=torch.float64)  # of each system; the derivative at -1 is NaN
    for shared in (torch.tensor([2.0], dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)):
        k = shared.requires_grad_()
        sol = rd.root(lambda y, k: y - torch.sqrt(data * k), ONES[:2], k, batch_ndim=1, on_failure="nan")
        sol.y[sol.converged].sum().backward()
        torch.testing.assert_close(k.grad, torch.full_like(k, 0.5**0.5))
        k.grad = None
        sol = rd.root(lambda y: y - torch.sqrt(data * k), ONES[:2], batch_ndim=1, on_failure="nan")
        (gradient,) = torch.autograd.grad(sol.y[sol.converged].sum(), k, create_graph=True)
        torch.testing.assert_close(gradient, torch.full_like(k, 0.5**0.5))
        (second,) = torch.autograd.grad(gradient.sum(), k)
        torch.testing.assert_close(second, torch.full_like(k, -(0.5**0.5) / 4))


def test_where_all_systems_failed_and_are_masked_out_the_gradient_is_zero() -> None:
    data = torch.tensor([[-4.0], [-1.0]], dtype=torch.float64)
    k = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    sol = rd.root(lambda y, k: y - torch.sqrt(data * k), ONES[:2], k, batch_ndim=1, on_failure="nan")
    torch.where(sol.converged[:, None], sol.y, 0.0).sum().backward()
    assert k.grad.item() == 0.0


@pytest.mark.parametrize("captured", [False, True], ids=["passed", "captured"])
def test_a_shared_matrix_with_as_many_rows_as_systems_stays_what_it_is(captured: bool) -> None:
    """At a root of zero, and with a parameter of zero, its rows have no effect on the value of the residual."""
    matrix = torch.tensor([[2.0, 1.0], [0.5, 3.0]], dtype=torch.float64)
    no_root = torch.tensor([[0.0], [1.0]], dtype=torch.float64)

    def f(y: Tensor, k: Tensor, matrix: Tensor = matrix) -> Tensor:
        product = y @ matrix.mT
        return product - k + no_root * (1e3 + product**2)

    k = torch.zeros((), dtype=torch.float64, requires_grad=True)
    args = (k,) if captured else (k, matrix)
    sol = rd.root(f, torch.ones(2, 2, dtype=torch.float64), *args, batch_ndim=1, on_failure="nan")
    assert sol.converged.tolist() == [True, False]
    sol.y[0].sum().backward()
    torch.testing.assert_close(k.grad, torch.linalg.solve(matrix, torch.ones_like(matrix[0])).sum())


@pytest.mark.parametrize("way", ["higher", "hessian", "jacrev", "jacfwd of jacfwd", "vmap"])
def test_second_derivatives_do_not_miss_a_root_without_derivative(way: str) -> None:
    """y = c by (y - c)^p = 0 with p = 1, 3, 1: it has converged, and to leave it out would not show."""
    triple = torch.tensor([[False], [True], [False]])
    f = lambda y, a, c: torch.where(triple, (y - c) ** 3, y - a * c**2)
    ones = torch.ones(3, 1, dtype=torch.float64)

    def loss(a: Tensor, c: Tensor, weights: Tensor = ones) -> Tensor:
        return (weights * rd.root(f, ones, a, c, batch_ndim=1, on_failure="nan", solver="newton").y).sum()

    def second(a: Tensor, c: Tensor, *weights: Tensor) -> Tensor:
        if way == "higher":
            c = c.clone().requires_grad_()
            (first,) = torch.autograd.grad(loss(a, c, *weights), c, create_graph=True)
            return torch.autograd.grad(first, c)[0]
        transforms = {
            "hessian": torch.func.hessian,
            "jacrev": lambda g, argnums: torch.func.jacrev(torch.func.jacrev(g, argnums), argnums),
            "jacfwd of jacfwd": lambda g, argnums: torch.func.jacfwd(torch.func.jacfwd(g, argnums), argnums),
            "vmap": lambda g, argnums: lambda *x: torch.func.vmap(torch.func.hessian(g, argnums), (None, 0, None))(*x),
        }
        if way == "vmap":
            return transforms[way](loss, 1)(a, c[None], *(weights or (ones,)))[0]
        return transforms[way](loss, 1)(a, c, *weights)

    c = torch.tensor(1.0, dtype=torch.float64)
    assert second(ones, c).isnan()
    if way in ("higher", "jacrev"):  # in forward mode nothing tells that a system is masked out
        masked = second(ones, c, torch.where(triple, 0.0, ones))
        torch.testing.assert_close(masked, torch.tensor(4.0, dtype=torch.float64))
