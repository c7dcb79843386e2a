"""For deep equilibrium models in JAX: how strongly a cell contracts, and a penalty that keeps it contracting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rootdiff._residual import Residual
from rootdiff._spectrum import growth_rate
from rootdiff._structure import describe, flat_residual
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._precision import in_own_settings

__all__ = ["jacobian_penalty", "spectral_radius"]


def spectral_radius(cell: Callable[..., Any], z: Any, *args: Any, batch_ndim: int = 0, steps: int = 50) -> jax.Array:
    """Return an estimate of the spectral radius of the Jacobian of `cell` at `z`: below one, iterations converge.

    Parameters
    ----------
    cell : callable
        ``cell(z, *args)`` returns a pytree like `z`.
    z : jax.Array or pytree of them, (*batch, ...), floating
        Where the Jacobian is taken, as a rule the fixed point.
    *args : pytrees
    batch_ndim : int
        Number of leading axes of every leaf of `z` that index independent systems.
    steps : int
        Products with the transposed Jacobian; the relative error is about ``1 / steps``.

    Returns
    -------
    jax.Array, (*batch)
        Dimensionless, without derivative.

    Examples
    --------
    >>> import jax.numpy as jnp, rootdiff_jax
    >>> rootdiff_jax.nn.spectral_radius(lambda z, w: w * z, jnp.ones(3), jnp.array([0.5, -0.9, 0.1])).round(2).tolist()
    0.9...
    """
    flat, y = _flat(cell, z, args, batch_ndim)
    residual = Residual(flat, (), JaxBackend())
    return in_own_settings(growth_rate)(residual, jax.lax.stop_gradient(y), steps)  # type: ignore[no-any-return]


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
    flat, y = _flat(cell, z, args, batch_ndim)
    value, pullback = jax.vjp(flat, y)
    signs = jax.random.rademacher(key, (samples, *value.shape), value.dtype)
    (products,) = jax.vmap(pullback)(signs)
    return jnp.mean(products**2)


def _flat(cell: Callable[..., Any], z: Any, args: tuple[Any, ...], batch_ndim: int) -> tuple[Any, Any]:
    structure = describe(JaxBackend(), z, batch_ndim)
    return flat_residual(cell, structure, lambda: args), structure.ravel(z)
