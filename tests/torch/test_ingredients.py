"""What a residual is made of: gradients of energies, operators of one's own, sparse tensors, numbers of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd

START = torch.tensor([1.5, 2.5], dtype=torch.float64)
#: y^3 = a, so that dy/da = 1 / (3 y^2) and its derivative -2 / (9 y^5).
A = torch.tensor([8.0, 27.0], dtype=torch.float64)
ROOT = torch.tensor([2.0, 3.0], dtype=torch.float64)


def energy(y: Tensor, a: Tensor) -> Tensor:
    return (y**4 / 4 - a * y).sum()


def of_a_copy(y: Tensor, a: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y if y.requires_grad else y.detach().requires_grad_()
        return torch.autograd.grad(energy(x, a), x, create_graph=True)[0]


def of_a_sum(y: Tensor, a: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y + torch.zeros_like(y).requires_grad_()
        return torch.autograd.grad(energy(x, a), x, create_graph=True)[0]


def in_place(y: Tensor, a: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y if y.requires_grad else y.requires_grad_()
        return torch.autograd.grad(energy(x, a), x, create_graph=True)[0]


def as_outside(y: Tensor, a: Tensor) -> Tensor:
    y.requires_grad_()
    return torch.autograd.grad(energy(y, a), y, create_graph=True)[0]


def without_a_word(y: Tensor, a: Tensor) -> Tensor:
    return torch.autograd.grad(energy(y, a), y, create_graph=True)[0]


@pytest.mark.transform("torch.autograd.grad inside the residual")
@pytest.mark.parametrize("force", [of_a_copy, of_a_sum, in_place, as_outside, without_a_word])
@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize(("solver", "adjoint"), [("newton", "lu"), ("newton_krylov", "gmres")])
def test_a_gradient_of_an_energy(force: Callable[..., Tensor], closed: bool, solver: str, adjoint: str) -> None:
    a = A.clone().requires_grad_()
    residual, args = (lambda y: force(y, a), ()) if closed else (force, (a,))
    y = rd.root(residual, START, *args, solver=solver, adjoint=adjoint).y
    torch.testing.assert_close(y, ROOT)
    (first,) = torch.autograd.grad(y.sum(), a, create_graph=True)
    torch.testing.assert_close(first, 1 / (3 * ROOT**2))
    torch.testing.assert_close(torch.autograd.grad(first.sum(), a)[0], -2 / (9 * ROOT**5))


def test_a_gradient_of_an_energy_of_nothing_differentiated() -> None:
    y = rd.root(in_place, START, A).y
    torch.testing.assert_close(y, ROOT)
    assert not y.requires_grad


@torch.library.custom_op("rootdiff_tests::solve", mutates_args=())
def solve(a: Tensor) -> Tensor:
    return rd.root(lambda y, a: y**3 - a, START, a).y.clone()


@torch.library.custom_op("rootdiff_tests::pull_back", mutates_args=())
def pull_back(a: Tensor, cotangent: Tensor) -> Tensor:
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        return torch.autograd.grad(rd.root(lambda y, a: y**3 - a, START, a).y, a, cotangent)[0].clone()


solve.register_fake(torch.empty_like)
pull_back.register_fake(lambda a, cotangent: torch.empty_like(a))
solve.register_autograd(
    lambda ctx, cotangent: pull_back(*ctx.saved_tensors, cotangent),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@pytest.mark.transform("inside torch.library.custom_op, compiled or not")
@pytest.mark.parametrize("compiled", [False, True])
def test_a_root_inside_a_custom_operator(compiled: bool) -> None:
    function: Any = torch.compile(solve, fullgraph=True, backend="aot_eager") if compiled else solve
    a = A.clone().requires_grad_()
    y = function(a)
    torch.testing.assert_close(y, ROOT)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), a)[0], 1 / (3 * ROOT**2))


@torch.library.custom_op("rootdiff_tests::force", mutates_args=())
def force_in_operator(y: Tensor, a: Tensor) -> Tensor:
    return of_a_copy(y, a).detach().clone()


@torch.library.custom_op("rootdiff_tests::without_formula", mutates_args=())
def without_formula(y: Tensor, a: Tensor) -> Tensor:
    return torch.func.grad(energy)(y, a).clone()


@torch.library.custom_op("rootdiff_tests::least_energy", mutates_args=())
def least_energy(a: Tensor) -> Tensor:
    return rd.root(without_a_word, START, a).y.clone()


@pytest.mark.transform(
    "torch.autograd.grad inside a residual that is a torch.library.custom_op", refused="ArgumentError"
)
@pytest.mark.parametrize("solver", ["auto", "newton_krylov", "df_sane", "scipy:hybr"])
def test_a_gradient_inside_an_operator_is_refused(solver: str) -> None:
    for a in (A, A.clone().requires_grad_()):
        with pytest.raises(rd.ArgumentError, match=r"residual: a gradient that it takes itself.*custom_op.*func\.grad"):
            rd.root(force_in_operator, START, a, solver=solver)


@pytest.mark.transform("torch.autograd.grad inside a residual, in torch.inference_mode", refused="ArgumentError")
def test_a_gradient_of_an_energy_in_inference_mode_is_refused() -> None:
    with torch.inference_mode(), pytest.raises(rd.ArgumentError, match=r"inference_mode.*torch\.no_grad"):
        rd.root(without_a_word, START, A)
    with torch.no_grad():
        torch.testing.assert_close(rd.root(without_a_word, START, A).y, ROOT)


def test_a_gradient_of_an_energy_at_a_root_inside_an_operator() -> None:
    torch.testing.assert_close(least_energy(A), ROOT)


@pytest.mark.parametrize("solver", ["df_sane", "anderson"])
def test_an_operator_without_a_formula_for_its_derivative_has_a_root(solver: str) -> None:
    cell = lambda y, a: y - without_formula(y, a) / 20
    torch.testing.assert_close(rd.root(lambda y, a: y - cell(y, a), START, A, solver=solver).y, ROOT)
    with pytest.raises(RuntimeError, match="register_autograd"):
        rd.root(without_formula, START, A, solver="newton")


MATRIX = torch.tensor([[2.0, 1.0], [0.0, 4.0]], dtype=torch.float64)


@pytest.mark.transform("a sparse matrix among args or closed over")
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
@pytest.mark.parametrize("closed", [False, True])
def test_a_sparse_matrix(layout: str, closed: bool) -> None:
    matrix, b = getattr(MATRIX, layout)(), torch.tensor([3.0, 8.0], dtype=torch.float64, requires_grad=True)
    if closed:
        y = rd.root(lambda y, b: torch.mv(matrix, y) - b, torch.zeros_like(A), b).y
    else:
        y = rd.root(lambda y, b, matrix: torch.mv(matrix, y) - b, torch.zeros_like(A), b, matrix).y
    inverse = torch.tensor([[0.5, -0.125], [0.0, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(y, inverse @ b)
    torch.testing.assert_close(torch.autograd.grad(y[0], b)[0], inverse[0])


@pytest.mark.transform("a sparse tensor that is differentiated", refused="ArgumentError")
def test_a_sparse_matrix_that_is_differentiated_is_refused() -> None:
    matrix = MATRIX.to_sparse().requires_grad_()
    with pytest.raises(rd.ArgumentError, match=r"args\[0\]: .*sparse"):
        rd.root(lambda y, matrix: torch.mv(matrix, y) - A, A, matrix)
    with pytest.raises(rd.ArgumentError, match=r"residual: .*sparse"):
        rd.root(lambda y: torch.mv(matrix, y) - A, A)
    with pytest.raises(rd.ArgumentError, match="y0: it is a sparse tensor"):
        rd.root(lambda y: y, MATRIX.to_sparse())


@pytest.mark.transform("nn.Embedding with sparse gradients")
@pytest.mark.parametrize("closed", [False, True])
def test_an_embedding_with_sparse_gradients(closed: bool) -> None:
    table, rows = nn.Embedding(4, 2, sparse=True, dtype=torch.float64), torch.tensor([1])
    if closed:
        y = rd.root(lambda y: 2 * y - table(rows)[0], torch.zeros_like(A)).y
    else:
        y = rd.root(lambda y, w: 2 * y - w(rows)[0], torch.zeros_like(A), table).y
    y.sum().backward()
    expected = torch.zeros(4, 2, dtype=torch.float64)
    expected[1] = 0.5
    torch.testing.assert_close(table.weight.grad, expected)


@pytest.mark.parametrize("number", [np.float64(8.0), np.float32(8.0), np.int64(8)])
def test_a_number_of_numpy_is_a_number(number: Any) -> None:
    seen = []

    def residual(y: Tensor, options: dict[str, Any]) -> Tensor:
        seen.append(type(options["a"]))
        return y**3 - options["a"]

    torch.testing.assert_close(rd.root(residual, START, {"a": number}).y, torch.full_like(START, 2.0))
    assert set(seen) <= {int, float}


def of_detached(y: Tensor) -> Tensor:
    with torch.enable_grad():
        x = y.detach().requires_grad_()
        return torch.autograd.grad(energy(x, A), x, create_graph=True)[0]


def in_numpy(y: Tensor) -> Tensor:
    return torch.from_numpy((y.detach() ** 3).numpy()) - A


@pytest.mark.parametrize("residual", [of_detached, in_numpy])
@pytest.mark.parametrize("solver", ["auto", "newton", "newton_krylov", "broyden"])
def test_a_residual_that_autograd_cannot_follow_is_refused(residual: Callable[..., Tensor], solver: str) -> None:
    with pytest.raises(rd.ArgumentError, match="autograd finds no way from y to its value"):
        rd.root(residual, START, solver=solver)


@pytest.mark.parametrize("residual", [of_detached, in_numpy])
@pytest.mark.parametrize("solver", ["df_sane", "anderson", "scipy:krylov", "scipy:hybr"])
def test_a_residual_that_autograd_cannot_follow_has_a_root(residual: Callable[..., Tensor], solver: str) -> None:
    cell = lambda y: y - residual(y) / 20
    torch.testing.assert_close(rd.root(residual, START, solver=solver).y, ROOT)
    if solver == "anderson":
        torch.testing.assert_close(rd.fixed_point(cell, START, solver=solver).y, ROOT)
