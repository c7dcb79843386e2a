"""How many operations PyTorch dispatches: counts, which no load of a machine changes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import rootdiff_torch
from benchmarks.compiled import dispatched
from rootdiff_torch._backend import Linearization
from rootdiff_torch._private import TorchDispatchMode

#: Operations of a backward pass, each of which costs Python some microseconds; conversions of factors among them.
BACKWARD = {(8,): 60, (64, 8): 80}


@pytest.mark.parametrize("shape", BACKWARD)
@pytest.mark.parametrize("solver", ["newton", "auto"])
def test_a_small_solve_dispatches_little_more_than_newton_by_hand(solver: str, shape: tuple[int, ...]) -> None:
    by_hand, _, steps_by_hand = dispatched("by hand", shape)
    forward, backward, steps = dispatched(solver, shape)
    assert forward / steps <= 2.5 * by_hand / steps_by_hand
    assert backward <= BACKWARD[shape]


def test_a_sign_that_pytorch_leaves_for_later_is_no_error() -> None:
    def residual(y: torch.Tensor) -> torch.Tensor:  # the imaginary part of a conjugate is negative by a mark alone
        return torch.complex(torch.zeros_like(y), y**2 - 3).conj().imag

    y = rootdiff_torch.root(residual, torch.ones(1, dtype=torch.float64)).y
    torch.testing.assert_close(y, torch.full_like(y, 3**0.5))


class _Batched(TorchDispatchMode):
    """Counts the matrices that products of batches read."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.read += len(args[0]) if func is torch.ops.aten.bmm.default else 0
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize("of", ["W y", "y W", "V W y"])
def test_a_jacobian_reads_a_matrix_in_the_residual_once(of: str, batch: tuple[int, ...]) -> None:
    generator, n = torch.Generator().manual_seed(1), 80
    weight = torch.randn(n, n, generator=generator, dtype=torch.float64) / n
    several = torch.randn(2, n, n, generator=generator, dtype=torch.float64) / n
    products: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "W y": lambda y: (weight @ y[..., None])[..., 0],
        "y W": lambda y: torch.einsum("...k,kj->...j", y, weight) + torch.einsum("...k,jk->...j", y, weight),
        "V W y": lambda y: torch.einsum("sij,jk,...k->...i", several, weight, y),
    }

    def residual(y: torch.Tensor) -> torch.Tensor:
        return y + torch.tanh(products[of](y)) - 1

    y = torch.rand(*batch, n, generator=generator, dtype=torch.float64)
    with _Batched() as batched:
        found = Linearization(residual, y).matrix
    assert batched.read <= 2 * len(several)
    rows = [torch.autograd.functional.jacobian(residual, row) for row in y.reshape(-1, n)]
    torch.testing.assert_close(found.reshape(-1, n, n), torch.stack(rows), rtol=1e-13, atol=1e-15)
