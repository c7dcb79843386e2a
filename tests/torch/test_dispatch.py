"""How many operations PyTorch dispatches: counts, which no load of a machine changes."""

import pytest
import torch

import rootdiff_torch
from benchmarks.compiled import dispatched

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
