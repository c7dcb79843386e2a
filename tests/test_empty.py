"""A batch of no systems has an empty answer, and derivatives that are zero or of no size."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
import rootdiff_torch

ADAPTERS = pytest.mark.parametrize(
    ("rd", "zeros"), [(rootdiff, np.zeros), (rootdiff_torch, torch.zeros), (rootdiff_jax, jnp.zeros)]
)


def residual(y: Any, a: Any, k: Any) -> Any:
    return y**3 - a * k


@ADAPTERS
@pytest.mark.parametrize("options", [{}, {"batched_args": (0, None)}, {"check": True}, {"bounds": (0.0, None)}])
def test_solve(rd: ModuleType, zeros: Any, options: dict[str, Any]) -> None:
    sol = rd.root(residual, zeros((0, 2)), zeros((0, 2)), 2.0, batch_ndim=1, **options)
    assert sol.y.shape == (0, 2)
    assert all(field.shape == (0,) for field in (sol.status, sol.steps, sol.residual_norm, sol.converged))
    assert rd.root_scalar(lambda y, a: y - a, (0.0, 1.0), zeros((3, 0))).y.shape == (3, 0)
    assert rd.fixed_point(lambda z: z / 2, zeros((0, 2)), batch_ndim=1).y.shape == (0, 2)


@ADAPTERS
def test_the_residual_is_checked(rd: ModuleType, zeros: Any) -> None:
    with pytest.raises(rootdiff.ArgumentError, match="returned shape"):
        rd.root(lambda y: y[..., 0], zeros((0, 2)), batch_ndim=1)


def test_derivatives_numpy() -> None:
    sol = rootdiff.root(residual, np.zeros((0, 2)), np.zeros((0, 2)), 2.0, batch_ndim=1)
    of_a, of_k = sol.vjp(np.zeros((0, 2)))
    assert of_a.shape == (0, 2)
    assert of_k == 0
    assert sol.jvp(np.zeros((0, 2)), 1.0).shape == (0, 2)
    assert [block.shape for block in sol.jacobian()] == [(0, 2, 0, 2), (0, 2)]


def test_derivatives_torch() -> None:
    a, k = torch.zeros(0, 2, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    y = rootdiff_torch.root(residual, torch.zeros(0, 2), a, k, batch_ndim=1).y
    of_a, of_k = torch.autograd.grad(y.sum(), (a, k))
    assert of_a.shape == (0, 2)
    assert of_k == 0
    roots = lambda k: rootdiff_torch.root(residual, torch.zeros(0, 2), a.detach(), k, batch_ndim=1).y
    assert torch.func.jvp(roots, (k.detach(),), (torch.ones(()),))[1].shape == (0, 2)


def test_derivatives_jax() -> None:
    roots = lambda a, k: rootdiff_jax.root(residual, jnp.zeros((0, 2)), a, k, batch_ndim=1).y
    of_a, of_k = jax.jit(jax.grad(lambda a, k: roots(a, k).sum(), argnums=(0, 1)))(jnp.zeros((0, 2)), 2.0)
    assert of_a.shape == (0, 2)
    assert of_k == 0
