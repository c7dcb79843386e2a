"""What the backends add to the array-API standard, beside what solves show."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rootdiff._numpy import NumpyBackend
from rootdiff_jax._backend import JaxBackend
from rootdiff_torch import _backend
from rootdiff_torch._backend import TorchBackend
from tests.strict import STRICT, inside, outside

BACKENDS: dict[str, tuple[Any, Any]] = {
    "numpy": (NumpyBackend(), np.array),
    "torch": (TorchBackend(), torch.tensor),
    "torch, on a device": (TorchBackend(), torch.tensor),
    "jax": (JaxBackend(), jnp.array),
    "by the standard alone": (STRICT.backend(), outside),
}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_row_is_put_in_its_place(name: str, batch: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, array = BACKENDS[name]
    if name == "torch, on a device":
        monkeypatch.setattr(_backend, "is_on_cpu", lambda tensor: False)
    rng = np.random.default_rng(0)
    stack, row = (rng.random(shape, dtype=np.float32) for shape in ((*batch, 4, 5), (*batch, 5)))
    where = rng.random(batch) < 0.5
    expected = stack.copy()
    expected[..., 2, :] = row
    place = array(np.array(2, dtype=np.int32))
    np.testing.assert_array_equal(inside(backend.put(array(stack), place, array(row))), expected)
    some = inside(backend.put(array(stack), place, array(row), array(np.array(where))))
    np.testing.assert_array_equal(some, np.where(where[..., None, None] if batch else where, expected, stack))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3), (80, 4)])
@pytest.mark.parametrize("name", BACKENDS)
def test_factors_solve_for_several_right_hand_sides(name: str, shape: tuple[int, ...], transpose: bool) -> None:
    backend, array = BACKENDS[name]
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((*shape, shape[-1])) + 4 * np.eye(shape[-1])
    several = rng.standard_normal((2, *shape))
    solved = np.asarray(inside(backend.lu_solve(backend.lu_factor(array(matrix)), array(several), transpose)))
    used = matrix.swapaxes(-2, -1) if transpose else matrix
    tolerance = 1e3 * np.finfo(solved.dtype).eps  # JAX's arrays may be of float32 here
    np.testing.assert_allclose((used @ solved[..., None])[..., 0], several, rtol=tolerance, atol=tolerance)
