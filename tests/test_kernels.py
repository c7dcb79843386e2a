"""What is promised where f is rounding holds under each of OpenBLAS' kernels; a process of about a second each."""

from __future__ import annotations

import pytest

from tests.kernels import KERNELS, under

#: A linear system takes one step, and further ones as long as the corrections shrink by chance: that depends on how a
#: kernel rounds. Seen are up to 10; without the look at the noise of f they are more than 50.
MOST_STEPS = 12


@pytest.mark.parametrize("kernel", KERNELS)
def test_ill_conditioned_systems_end_under_each_kernel(kernel):
    found = under(kernel)
    assert [name for name, (status, *_) in found.items() if status not in ("CONVERGED", "AT_PRECISION")] == []
    assert [(name, steps) for name, (_, steps, _) in found.items() if steps > MOST_STEPS] == []
    # the error of a solution by LU factors, in units of eps times the condition number
    assert [(name, error) for name, (*_, error) in found.items() if error > 100] == []
