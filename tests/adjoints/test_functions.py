"""A user's own adjoint: a plain function, registered or passed by value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff._registry import ADJOINTS


def _solve(operator: rootdiff.LinearOperator, rhs: np.ndarray) -> np.ndarray:
    return np.linalg.solve(operator.dense(), rhs[..., None])[..., 0]


@pytest.fixture
def registered() -> Iterator[str]:
    rootdiff.register_adjoint("my-solve", _solve)
    yield "my-solve"
    del ADJOINTS._entries["my-solve"]


def test_plain_function_by_name(registered: str) -> None:
    sol = rootdiff.root(lambda y, a: y**2 - a, np.ones(1), np.array([2.0]), adjoint=registered)
    np.testing.assert_allclose(sol.vjp(np.ones(1))[0], 0.5**1.5, rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_its_result_is_checked(scale: float) -> None:
    def adjoint(operator: Any, rhs: Any) -> Any:
        return scale * _solve(operator, rhs)

    sol = rootdiff.root(lambda y, a: y**2 - a, np.ones(1), np.array([2.0]), adjoint=rootdiff.LinearFunction(adjoint))
    if scale == 1.0:
        np.testing.assert_allclose(sol.vjp(np.ones(1))[0], 0.5**1.5, rtol=1e-9)
    else:
        with pytest.raises(rootdiff.AdjointError, match=r"relative residual of the linear solve is 0\.1"):
            sol.vjp(np.ones(1))
