"""``check=True``: a residual that couples the systems of a batch is named before the first step."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from tests.harness import HARNESSES

A = np.linspace(1.0, 2.0, 15).reshape(5, 3)
Y0 = np.ones((5, 3))


def alone(y, a):
    return y + y**3 / 10 - a * (1 + y[..., :1] / 5)


def normalised(y, a):
    """As a batch norm does it."""
    return y - a * (1 + (y - y.mean(0)) / 5)


def neighbour(y, a, mask):
    """Only the system in the mask depends on another one, system 1."""
    return y - a + 1e-3 * mask * y[1]


@pytest.fixture(params=[name for name in HARNESSES if name != "jax-jit"])  # values are traced there
def backend(request):
    return HARNESSES[request.param]()


@pytest.mark.parametrize("entry", ["root", "fixed_point"])
def test_independent_systems_pass(backend, entry):
    cell = alone if entry == "root" else (lambda z, a: z * 0.3 + a)
    options = {"entry": entry, "batch_ndim": 1, "solver": "newton"}
    with_check = backend.solve(cell, Y0, A, check=True, **options)
    without = backend.solve(cell, Y0, A, **options)
    assert np.array_equal(with_check.y, without.y)


@pytest.mark.parametrize("entry", ["root", "fixed_point"])
def test_a_batch_norm_is_found(backend, entry):
    with pytest.raises(rootdiff.ArgumentError, match="batch_ndim: got 1, but the residual couples systems"):
        backend.solve(normalised, Y0, A, entry=entry, batch_ndim=1, check=True)


def test_one_coupled_pair_is_found(backend):
    with pytest.raises(rootdiff.ArgumentError, match="changes in system 3 when"):
        backend.solve(neighbour, Y0, A, np.eye(5)[:, 3:4], batch_ndim=1, check=True)


def test_one_system_may_couple_everything(backend):
    out = backend.solve(normalised, Y0, A, batch_ndim=0, check=True, solver="newton")
    np.testing.assert_allclose(out.y, A * (1 + (out.y - out.y.mean(0)) / 5), rtol=1e-9)


def test_a_coupling_that_spoils_others_is_found():
    def f(y, a):
        return y - a + 0 * np.log(1.000001 - y.max())

    with pytest.raises(rootdiff.ArgumentError, match="couples systems"):
        rootdiff.root(f, Y0, A, batch_ndim=1, check=True)


def test_a_traced_solve_cannot_check():
    jax = pytest.importorskip("jax")
    import rootdiff_jax

    solve = jax.jit(lambda a: rootdiff_jax.root(alone, jax.numpy.ones((5, 3)), a, batch_ndim=1, check=True).y)
    with pytest.raises(rootdiff.ArgumentError, match="check: it needs concrete arrays"):
        solve(jax.numpy.asarray(A))


def test_a_transformed_solve_cannot_check():
    torch = pytest.importorskip("torch")
    import rootdiff_torch

    y0 = torch.ones(3, dtype=torch.float64)
    solve = torch.func.vmap(lambda a: rootdiff_torch.root(alone, y0, a, batch_ndim=0, check=True).y)
    with pytest.raises(rootdiff.ArgumentError, match="check: it needs concrete arrays"):
        solve(torch.as_tensor(A))
