"""The three backends on bare arrays, for linear solves apart from any root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from rootdiff import LinearOperator
from rootdiff._numpy import NumpyBackend
from tests.harness import THOROUGH


@dataclass(frozen=True)
class Arrays:
    """A backend and the way from NumPy to it."""

    backend: Any
    array: Callable[[Any], Any]

    def operator(self, matrix: np.ndarray, factors: Any = None) -> LinearOperator:
        """Return dense matrices, (*batch, n, n), as an operator whose products are exact to rounding."""
        a = self.array(matrix)
        transposed = self.backend.xp.matrix_transpose(a)
        return LinearOperator(
            self.backend,
            lambda v: (a @ v[..., None])[..., 0],
            lambda u: (transposed @ u[..., None])[..., 0],
            lambda: a,
            float(np.finfo(matrix.dtype).eps),
            factors,
        )

    def seeds(self, count: int) -> range:
        """Return the seeds of random systems: few in JAX, which compiles a program for each, but for test-all."""
        return range(count if THOROUGH or self.backend.name != "jax" else 2)

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(self.backend.to_numpy(value))


def _numpy() -> Arrays:
    return Arrays(NumpyBackend(), np.asarray)


def _torch() -> Arrays:
    import torch

    from rootdiff_torch._backend import BACKEND

    return Arrays(BACKEND, lambda value: torch.tensor(np.asarray(value)))


def _jax() -> Arrays:
    import jax

    from rootdiff_jax._backend import JaxBackend

    jax.config.update("jax_enable_x64", True)
    return Arrays(JaxBackend(), jax.numpy.asarray)


@pytest.fixture(params=[_numpy, _torch, _jax], ids=["numpy", "torch", "jax"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return request.param()


@pytest.fixture
def numpy_arrays() -> Arrays:
    return _numpy()
