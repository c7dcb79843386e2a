"""What is promised where f is rounding holds under each of OpenBLAS' kernels; a process of about a second each."""

from __future__ import annotations

import pytest

from tests.kernels import KERNELS, MOST_STEPS, under

#: Where five of seven digits are lost the smallest unknowns may have none left.
UNKNOWN = ("newton float32 5 near", "newton float32 5 far", "auto float32 5 near", "auto float32 5 far")


@pytest.mark.parametrize("kernel", KERNELS)
def test_ill_conditioned_systems_end_under_each_kernel(kernel):
    found = under(kernel)
    solved = {name: entry for name, entry in found.items() if entry[0] in ("CONVERGED", "AT_PRECISION")}
    failed = {name: status for name, (status, *_) in found.items() if name not in solved}
    assert set(failed) <= set(UNKNOWN)
    assert set(failed.values()) <= {"ILL_DETERMINED"}
    assert [(name, steps) for name, (_, steps, _) in solved.items() if steps > MOST_STEPS] == []
    # the error of a solution by LU factors, in units of eps times the condition number
    assert [(name, error) for name, (*_, error) in found.items() if error > 100] == []
