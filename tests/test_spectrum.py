"""The spectral radius and the Jacobian penalty of a cell, against dense nonsymmetric Jacobians."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402

import rootdiff_jax  # noqa: E402
import rootdiff_torch  # noqa: E402

jax.config.update("jax_enable_x64", True)

N = 6
RNG = np.random.default_rng(3)
#: Nonsymmetric, with a complex pair of largest modulus.
ROTATION = 0.8 * np.array([[np.cos(1.0), -np.sin(1.0)], [np.sin(1.0), np.cos(1.0)]])
BASIS = np.eye(N) + 0.3 * RNG.standard_normal((N, N))
W = BASIS @ np.block([[ROTATION, np.zeros((2, 4))], [np.zeros((4, 2)), np.diag([0.3, -0.5, 0.1, 0.0])]])
W = W @ np.linalg.inv(BASIS)
Z = RNG.standard_normal((4, N))


def torch_cell(z, w):
    return torch.tanh(z @ w.T)


def jax_cell(z, w):
    return jnp.tanh(z @ w.T)


def jacobians(w=W, z=Z):
    return (1 - np.tanh(z @ w.T) ** 2)[..., None] * w


def test_spectral_radius():
    exact = np.abs(np.linalg.eigvals(jacobians())).max(axis=-1)
    of_torch = rootdiff_torch.nn.spectral_radius(
        torch_cell, torch.tensor(Z), torch.tensor(W, requires_grad=True), batch_ndim=1, steps=200
    )
    of_jax = jax.jit(lambda z, w: rootdiff_jax.nn.spectral_radius(jax_cell, z, w, batch_ndim=1, steps=200))(Z, W)
    assert not of_torch.requires_grad
    # growth of a complex pair swings by the condition of its eigenvectors, a factor of a few over 100 steps
    np.testing.assert_allclose(of_torch, exact, rtol=0.02)
    np.testing.assert_allclose(of_jax, of_torch, rtol=1e-9)


def test_spectral_radius_of_a_nilpotent_cell_is_zero():
    shift = torch.diag(torch.ones(N - 1, dtype=torch.float64), 1)
    assert float(rootdiff_torch.nn.spectral_radius(lambda z: z @ shift, torch.ones(N, dtype=torch.float64))) == 0


def test_jacobian_penalty():
    exact = (jacobians() ** 2).sum(axis=(-1, -2)).mean() / N
    of_torch = rootdiff_torch.nn.jacobian_penalty(
        torch_cell,
        torch.tensor(Z),
        torch.tensor(W),
        batch_ndim=1,
        samples=4000,
        generator=torch.Generator().manual_seed(0),
    )
    of_jax = rootdiff_jax.nn.jacobian_penalty(
        jax_cell, jnp.asarray(Z), jnp.asarray(W), key=jax.random.key(0), batch_ndim=1, samples=4000
    )
    # the standard error of 16000 samples whose own is about that of their mean
    np.testing.assert_allclose([float(of_torch.detach()), float(of_jax)], exact, rtol=0.03)


def test_jacobian_penalty_is_differentiable():
    """Its derivative in the weights is that of the dense sum of squares with the same signs, by central differences."""

    def of_torch(w, z):
        generator = torch.Generator().manual_seed(1)
        return rootdiff_torch.nn.jacobian_penalty(torch_cell, z, w, batch_ndim=1, generator=generator)

    w, z = torch.tensor(W, requires_grad=True), torch.tensor(Z, requires_grad=True)
    assert torch.autograd.gradcheck(of_torch, (w, z))
    assert of_torch(w, z) == of_torch(w, z)

    def of_jax(w, z):
        return rootdiff_jax.nn.jacobian_penalty(jax_cell, z, w, key=jax.random.key(1), batch_ndim=1)

    from jax.test_util import check_grads

    check_grads(jax.jit(of_jax), (jnp.asarray(W), jnp.asarray(Z)), order=1, modes=["rev"])


def test_penalised_training_shrinks_the_radius():
    w = torch.tensor(W, requires_grad=True)
    optimiser = torch.optim.SGD([w], lr=0.5)
    generator = torch.Generator().manual_seed(2)
    before = rootdiff_torch.nn.spectral_radius(torch_cell, torch.tensor(Z), w, batch_ndim=1).max()
    for _ in range(30):
        optimiser.zero_grad()
        z = rootdiff_torch.fixed_point(torch_cell, torch.tensor(Z), w, batch_ndim=1).y
        rootdiff_torch.nn.jacobian_penalty(torch_cell, z, w, batch_ndim=1, generator=generator).backward()
        optimiser.step()
    assert rootdiff_torch.nn.spectral_radius(torch_cell, z.detach(), w, batch_ndim=1).max() < 0.5 * before


@pytest.mark.parametrize("module", [rootdiff_torch.nn, rootdiff_jax.nn])
def test_examples(module):
    results = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert results.attempted
    assert not results.failed
