"""How large the programs of value and gradient may become: counts, which no load of a machine changes."""

import pytest

from benchmarks.compiled import rootdiff_solve, size

#: Copies of the residual and equations, at ten unknowns: what was counted, and a few more for another version of JAX.
CEILINGS = {"newton": (6, 3450), "auto": (8, 6000), "newton_krylov": (5, 4300), "anderson": (8, 4100)}


@pytest.mark.parametrize("solver", CEILINGS)
def test_a_program_holds_few_copies_of_the_residual(solver):
    found = size(rootdiff_solve(solver), (10,), compiled=False)
    copies, equations = CEILINGS[solver]
    assert found.copies <= copies
    assert found.equations <= equations


def test_rare_branches_of_a_batch_are_small():
    """Elimination, an operation of its own for each entry, is left to what runs in each solve."""
    found = size(rootdiff_solve("newton", batch_ndim=1, batched_args=(0,)), (64, 8), compiled=False)
    assert found.copies <= 12
    assert found.equations <= 11500


def test_copies_do_not_grow_with_the_unknowns():
    few, many = (size(rootdiff_solve("newton"), (n,), compiled=False) for n in (10, 100))
    assert many.copies <= few.copies + 1
