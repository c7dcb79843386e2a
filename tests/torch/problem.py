"""One residual for the tests of transforms, and its oracle: the unrolled iteration, differentiated by autograd.

The cell is a contraction with rate 0.4, so that 60 iterations from zero reach the fixed point and its derivatives to
1e-20; the parameters have another dimension than the unknown, and the Jacobian is not symmetric.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import rootdiff_torch as rd
from tests.harness import covering

_GENERATOR = torch.Generator().manual_seed(7)
_DRAWN = torch.randn(3, 3, generator=_GENERATOR, dtype=torch.float64)
W = 0.4 * _DRAWN / torch.linalg.matrix_norm(_DRAWN, 2)
B = torch.randn(3, 2, generator=_GENERATOR, dtype=torch.float64)
THETA = torch.randn(2, generator=_GENERATOR, dtype=torch.float64)
THETAS = torch.randn(4, 2, generator=_GENERATOR, dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)

#: Solvers stop at an error of eps^(3/4) = 2e-12; derivatives multiply that by a few.
TOL = 1e-9

KINDS = pytest.mark.parametrize(("solver", "adjoint"), covering(["newton", "scipy:hybr"], ["lu", "gmres"], together=1))


def residual(y: Tensor, theta: Tensor, w: Tensor) -> Tensor:
    return torch.tanh(y @ w.mT + theta @ B.mT) - y


def solve(theta: Tensor, w: Tensor = W, **options: Any) -> Tensor:
    """Return the root, (3)."""
    return rd.root(residual, torch.zeros(3, dtype=torch.float64), theta, w, **options).y


def unrolled(theta: Tensor, w: Tensor = W) -> Tensor:
    """Return the same root by iteration."""
    y = torch.zeros(3, dtype=torch.float64)
    for _ in range(60):
        y = torch.tanh(y @ w.mT + theta @ B.mT)
    return y


def loss(y: Tensor) -> Tensor:
    """Return a nonlinear scalar, so that second derivatives see the first ones too."""
    return (WEIGHTS * y + y**3).sum()


def close(actual: Any, expected: Any, tolerance: float = TOL) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
