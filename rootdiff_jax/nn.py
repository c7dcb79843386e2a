"""For deep equilibrium models in JAX: how strongly a cell contracts, and a penalty that keeps it contracting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rootdiff import _spectrum
from rootdiff._arguments import describe
from rootdiff._bound import bound
from rootdiff._residual import flat_residual
from rootdiff_jax._adapter import JAX

__all__ = ["jacobian_penalty", "spectral_radius"]


spectral_radius = bound(_spectrum.spectral_radius, JAX)


def jacobian_penalty(
    cell: Callable[..., Any], z: Any, *args: Any, key: jax.Array, batch_ndim: int = 0, samples: int = 1
) -> jax.Array:
    """Return an unbiased estimate of ``norm(J)**2 / n``, the mean over the batch, with J the Jacobian of `cell` at `z`.

    Added to a loss with a small weight it keeps a deep equilibrium model stable (Frobenius norm, n unknowns a system).

    Parameters
    ----------
    cell, z, *args, batch_ndim
        As for `spectral_radius`.
    key : jax.Array
        Of `jax.random`: the same key, the same estimate.
    samples : int
        Random signs per system, one product each.

    Returns
    -------
    jax.Array, ()
        Dimensionless; differentiable in `z`, `args` and what the cell closes over.

    References
    ----------
    Bai, Koltun & Kolter (2021), "Stabilizing equilibrium models by Jacobian regularization", eq. 5. Hutchinson (1990).

    Examples
    --------
    >>> import jax, jax.numpy as jnp, rootdiff_jax
    >>> penalty = rootdiff_jax.nn.jacobian_penalty(lambda z: 0.5 * z, jnp.ones(4), key=jax.random.key(0))
    >>> penalty.tolist()
    0.25
    """
    structure = describe(JAX.backend(), z, batch_ndim)
    flat, y = flat_residual(cell, structure, lambda: args), structure.ravel(z)
    value, pullback = jax.vjp(flat, y)
    signs = jax.random.rademacher(key, (samples, *value.shape), value.dtype)
    (products,) = jax.vmap(pullback)(signs)
    return jnp.mean(products**2)
