"""Autocast, single precision, complex numbers, and tensors with unusual memory."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import rootdiff_torch as rd
from tests.harness import covering
from tests.torch.problem import KINDS, THETA, THETAS, B, W, close, loss, residual, solve, unrolled

ZERO = torch.zeros(3, dtype=torch.float64)


@pytest.mark.transform("autocast to bfloat16 and float16: the solve runs in the dtype of y0")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("inside", [False, True])
def test_autocast(dtype: torch.dtype, inside: bool) -> None:
    torch.manual_seed(0)
    encoder = nn.Linear(2, 3)
    w = W.float().requires_grad_()
    x = THETAS.float()

    def cell(z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(z @ w.mT + x)

    with torch.autocast("cpu", dtype=dtype):
        encoded = encoder(x)
        assert encoded.dtype is dtype
        z = rd.fixed_point(cell, torch.zeros(4, 3), encoded, batch_ndim=1).y
        if inside:
            z.sum().backward()
    if not inside:
        z.sum().backward()
    assert z.dtype is torch.float32
    expected_w = W.float().requires_grad_()
    weight = encoder.weight.detach().clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        encoded = nn.functional.linear(x, weight, encoder.bias).float()
    expected = torch.zeros(4, 3)
    for _ in range(40):
        expected = torch.tanh(expected @ expected_w.mT + encoded)
    expected.sum().backward()
    # float32 resolves the root to 6e-6 (eps^(3/4)); the encoder's own backward rounds to 8 or 11 bits
    close(z, expected, 1e-4)
    close(w.grad, expected_w.grad, 1e-4)
    close(encoder.weight.grad, weight.grad, 2e-2)


@pytest.mark.transform("float32 state")
@KINDS
def test_float32(solver: str, adjoint: str) -> None:
    theta = THETA.float().requires_grad_()
    cell = lambda y, theta: torch.tanh(W.float() @ y + B.float() @ theta) - y
    y = rd.root(cell, torch.zeros(3), theta, solver=solver, adjoint=adjoint).y
    assert y.dtype is torch.float32
    reference = THETA.clone().requires_grad_()
    expected = unrolled(reference)
    close(y.double(), expected, 1e-4)  # eps^(3/4) = 6e-6 is the default tolerance in float32
    actual = torch.autograd.grad(y.sum(), theta)[0]
    close(actual.double(), torch.autograd.grad(expected.sum(), reference)[0], 1e-4)


HALVES = [
    *product(
        (torch.bfloat16, torch.float16),
        ("df_sane", "levenberg_marquardt", "pseudo_transient", "newton_krylov", "auto"),
    )
]


@pytest.mark.transform("half precision state without autocast")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype: torch.dtype) -> None:
    a = torch.tensor([4.0, 9.0], dtype=dtype, requires_grad=True)
    y = rd.root(lambda y, a: y**2 - a, torch.full((2,), 2.5, dtype=dtype), a).y
    y.sum().backward()
    assert y.dtype is dtype
    # eps is 8e-3 and 1e-3, and the tolerance eps^(3/4) = 3e-2 for bfloat16
    close(y.float(), torch.tensor([2.0, 3.0]), 5e-2)
    close(a.grad.float(), torch.tensor([1 / 4, 1 / 6]), 5e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_minima_of_half_precision(dtype: torch.dtype) -> None:
    for entry, function in ((rd.minimize, lambda y: ((y - 2) ** 2).sum()), (rd.least_squares, lambda y: y - 2)):
        close(entry(function, torch.zeros(2, dtype=dtype)).y.float(), torch.full((2,), 2.0), 5e-2)


@pytest.mark.parametrize(("dtype_and_solver", "adjoint"), covering(HALVES, ["lstsq", "gmres", "lsmr"], together=1))
def test_half_precision_by_other_methods(dtype_and_solver: tuple[torch.dtype, str], adjoint: str) -> None:
    dtype, solver = dtype_and_solver

    def run(w: Tensor, b: Tensor, **options: str) -> tuple[Tensor, Tensor]:
        b = b.clone().requires_grad_()
        y = rd.root(lambda y, b: y - 0.2 * torch.tanh(y @ w.mT) - b, torch.zeros_like(b), b, batch_ndim=1, **options).y
        return y.detach().double(), torch.autograd.grad(y.sum(), b)[0].double()

    w, b = W.to(dtype), THETAS.repeat(1, 2)[:, :3].to(dtype)
    # eps is 8e-3 and 1e-3; a condition below 2
    close(run(w, b, solver=solver, adjoint=adjoint), run(w.double(), b.double()), 5e-2)


@pytest.mark.transform("complex state, holomorphic or not")
@KINDS
def test_complex(solver: str, adjoint: str) -> None:
    def cell(z: Tensor, theta: Tensor) -> Tensor:
        return 0.3 * torch.conj(z) ** 2 + 0.2j * z.flip(0) + theta

    theta = torch.tensor([0.3 + 0.2j, -0.1 + 0.4j], dtype=torch.complex128, requires_grad=True)
    z = rd.fixed_point(cell, torch.zeros_like(theta), theta, solver=solver, adjoint=adjoint).y
    expected = torch.zeros_like(theta)
    for _ in range(120):  # the slope is at most 0.2 + 0.6 |z| < 0.8, and 0.8^120 = 2e-12
        expected = cell(expected, theta)
    close(z, expected)
    weights = torch.tensor([1.0 - 2.0j, 0.5 + 1.0j], dtype=torch.complex128)
    ours = torch.autograd.grad((weights * z).real.sum(), theta)
    close(ours, torch.autograd.grad((weights * expected).real.sum(), theta))
    jvps = [
        torch.func.jvp(
            lambda t: rd.fixed_point(cell, torch.zeros_like(t), t, adjoint=adjoint).y, (theta.detach(),), (weights,)
        )[1],
        _pushed(cell, theta.detach(), weights),
    ]
    close(*jvps)


def _pushed(cell: object, theta: Tensor, tangent: Tensor) -> Tensor:
    def iterate(theta: Tensor) -> Tensor:
        z = torch.zeros_like(theta)
        for _ in range(120):
            z = cell(z, theta)  # type: ignore[operator]
        return z

    return torch.func.jvp(iterate, (theta,), (tangent,))[1]


@pytest.mark.transform("pytree y and args, with None, integers and strings among the args")
def test_pytrees() -> None:
    def coupled(y: dict[str, Tensor], args: dict[str, object]) -> dict[str, Tensor]:
        a, k = args["a"], args["k"]
        return {"u": y["u"] ** k - a[0], "v": (y["v"] + y["u"].sum()) - a[1]}  # type: ignore[index, operator]

    a = torch.tensor([4.0, 5.0], dtype=torch.float64, requires_grad=True)
    start = {"u": torch.ones(1, dtype=torch.float64), "v": torch.zeros(1, 1, dtype=torch.float64)}
    solution = rd.root(coupled, start, {"a": a, "k": 2, "none": None, "name": "square"})
    close(solution.y["u"], torch.tensor([2.0], dtype=torch.float64))
    close(solution.y["v"], torch.tensor([[3.0]], dtype=torch.float64))
    (gradient,) = torch.autograd.grad(solution.y["v"].sum(), a)
    close(gradient, torch.tensor([-0.25, 1.0], dtype=torch.float64))  # v = a1 - sqrt(a0)


@pytest.mark.transform("non-contiguous and expanded inputs")
@KINDS
def test_strides(solver: str, adjoint: str) -> None:
    def run(function: object, base: Tensor) -> tuple[Tensor, Tensor]:
        theta = base[::2]  # stride 2
        w = base[:1].reshape(1, 1).expand(3, 3) * W.mT  # transposed product of an expanded tensor
        y = function(theta, w)  # type: ignore[operator]
        return y, torch.autograd.grad(loss(y), base)[0]

    base = torch.tensor([0.7, 9.0, -0.4, 9.0], dtype=torch.float64, requires_grad=True)
    close(run(lambda *a: solve(*a, solver=solver, adjoint=adjoint), base), run(unrolled, base))
    start = torch.zeros(1, dtype=torch.float64).expand(3)
    close(rd.root(residual, start, THETA, W.mT, solver=solver).y, unrolled(THETA, W.mT))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [64, 200])
@pytest.mark.parametrize("solver", ["anderson", "fixed_point"])
def test_the_default_tolerance_costs_few_evaluations_more_than_steps(solver: str, n: int, dtype: torch.dtype) -> None:
    generator, calls = torch.Generator().manual_seed(1), 0
    w, x = torch.randn(n, n, generator=generator), torch.randn(8, n, generator=generator)
    w = (0.9 / torch.linalg.matrix_norm(w, 2) * w).to(dtype)

    def cell(z: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(z @ w.mT + x)

    sol = rd.fixed_point(cell, torch.zeros(8, n, dtype=dtype), x.to(dtype), batch_ndim=1, solver=solver)
    expected = torch.zeros(8, n, dtype=torch.float64)
    for _ in range(300):
        expected = torch.tanh(expected @ w.double().mT + x.to(dtype).double())
    assert float((sol.y - expected).abs().max()) < torch.finfo(dtype).eps ** 0.75
    assert calls <= int(sol.steps.max()) + 24
