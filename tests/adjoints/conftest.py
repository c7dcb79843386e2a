"""The three backends on bare arrays, for linear solves apart from any root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import LinearInfo, LinearOperator, _implicit
from rootdiff._numpy import NumpyBackend
from tests.harness import THOROUGH


@dataclass(frozen=True)
class Arrays:
    """A backend and the way from NumPy to it."""

    backend: Any
    array: Callable[[Any], Any]
    compiled: Callable[[Any], Any] = lambda function: function
    programs: dict[Any, Any] = field(default_factory=dict)

    def operator(self, matrix: Any) -> LinearOperator:
        """Return dense matrices, (*batch, n, n), as an operator whose products are exact to rounding."""
        a = self.array(matrix) if isinstance(matrix, np.ndarray) else matrix
        transposed = self.backend.xp.matrix_transpose(a)
        return LinearOperator(
            self.backend,
            lambda v: (a @ v[..., None])[..., 0],
            lambda u: (transposed @ u[..., None])[..., 0],
            lambda: a,
            float(self.backend.xp.finfo(a.dtype).eps),
            tuple(a.shape),
        )

    def solve(
        self,
        matrix: Any,
        rhs: Any,
        adjoint: Any = None,
        transposed: bool = False,
        on_failure: str = "ignore",
        factors: Any = None,
        by: Any = None,
    ) -> tuple[np.ndarray, LinearInfo]:
        """Return x and what is known of it, where A x = b, or A^T x = b; JAX compiles each kind and shape once.

        `adjoint` is a name or a solver; or `by` solves, a function of an operator and a right-hand side.
        """
        adjoint = rootdiff.get_adjoint(adjoint) if isinstance(adjoint, str) else adjoint

        def run(matrix: Any, rhs: Any, factors: Any) -> Any:
            operator = self.operator(matrix)
            operator = operator.T if transposed else operator
            if by:
                return by(operator, rhs)
            return _implicit.solve(operator, adjoint.starting_from(factors), rhs, on_failure)

        program = self.programs.setdefault((adjoint, transposed, on_failure, by), self.compiled(run))
        with np.errstate(all="ignore"):
            x, info = program(self.array(np.asarray(matrix)), self.array(np.asarray(rhs)), factors)
        return self.numpy(x), info

    def seeds(self, count: int) -> range:
        """Return the seeds of random systems: few in JAX, which compiles a program for each, but for test-all."""
        return range(count if THOROUGH or self.backend.name != "jax" else 2)

    def numpy(self, value: Any) -> np.ndarray:
        return np.asarray(self.backend.to_numpy(value))


#: What JAX has compiled, of all tests.
_PROGRAMS: dict[Any, Any] = {}


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
    return Arrays(JaxBackend(), jax.numpy.asarray, jax.jit, _PROGRAMS)


@pytest.fixture(params=["numpy", "torch", "jax"])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    return {"numpy": _numpy, "torch": _torch, "jax": _jax}[request.param]()


@pytest.fixture
def numpy_arrays() -> Arrays:
    return _numpy()
