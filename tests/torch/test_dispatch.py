"""How many operations PyTorch dispatches: counts, which no load of a machine changes."""

import pytest

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
