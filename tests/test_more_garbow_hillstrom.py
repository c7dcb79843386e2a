"""The 35 sums of squares of Moré, Garbow & Hillstrom (1981): the minima of the paper, or what is none says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rootdiff import Status
from tests.harness import HARNESSES
from tests.more_garbow_hillstrom import SQUARES

#: What costs differences least, and compilers; the others by `make test-all`.
FEW = (
    "5 Beale",
    "10 Meyer",
    "15 Kowalik and Osborne",
    "19 Osborne 2",
    "20 Watson 12",
    "33 linear rank 1",
)
#: Hundreds of steps, and what is there in another size too: by `make test-all`.
LONG = ("16 Brown and Dennis", "22 extended Powell singular", "23 penalty I 10", "24 penalty II 4")
#: Accuracy of differences is not enough to tell its Hessian from a singular one.
TOO_FLAT_FOR_DIFFERENCES = ("20 Watson 12",)


def _each(few: tuple[str, ...]) -> Any:
    names = [name if name in few else pytest.param(name, marks=pytest.mark.exhaustive) for name in SQUARES]
    return pytest.mark.parametrize("name", names)


def _is_published(name: str, total: float) -> bool:
    """Return whether a sum of squares is one of the paper's, to its six digits."""
    return any(abs(total - least) <= 1e-5 * least + 1e-16 for least in SQUARES[name].sums)


def _check(backend: str, name: str, regular: bool) -> None:
    problem, start = SQUARES[name], np.array(SQUARES[name].start, dtype=float)
    found = HARNESSES[backend]().solve(problem.residual, start, entry="least_squares", on_failure="keep")
    assert _is_published(name, float(np.sum(problem.residual(np.asarray(found.y)) ** 2)))
    assert (found.status <= Status.AT_PRECISION) if regular else (found.status == Status.SINGULAR)


@pytest.mark.filterwarnings("ignore:least_squares")
@_each(tuple(name for name in SQUARES if name not in LONG))
def test_published_minima_from_the_standard_start(name: str) -> None:
    _check("torch", name, SQUARES[name].regular)


@pytest.mark.filterwarnings("ignore:least_squares")
@_each(FEW)
def test_published_minima_by_differences(name: str) -> None:
    _check("numpy", name, SQUARES[name].regular and name not in TOO_FLAT_FOR_DIFFERENCES)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:least_squares")
@_each(())
def test_published_minima_in_jax(name: str) -> None:
    _check("jax", name, SQUARES[name].regular)


@pytest.mark.exhaustive
def test_scipy_solves_no_more() -> None:
    """The tests above ask for all; SciPy's own best method finds the paper's minima too, so that these are right."""
    from scipy.optimize import least_squares

    starts = {name: np.array(problem.start, dtype=float) for name, problem in SQUARES.items()}
    found = {
        name: least_squares(SQUARES[name].residual, y0, method="lm", max_nfev=20_000) for name, y0 in starts.items()
    }
    solved = [name for name, fit in found.items() if fit.success and _is_published(name, 2 * fit.cost)]
    assert len(solved) == len(SQUARES)
