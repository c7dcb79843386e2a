"""NumPy code inside a compiled JAX program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rootdiff._backend import Array, HostFunction


def on_host(function: HostFunction, residual: Any, y: Array) -> tuple[Array, Array]:
    """Return ``function(evaluate, jacobian, y)``, run by NumPy in a callback."""
    evaluate = jax.jit(lambda y, *operands: residual.with_parameters(*operands)(y))
    jacobian = jax.jit(lambda y, *operands: residual.with_parameters(*operands).jacobian(y))

    def run(y: Any, *operands: Any) -> tuple[Any, Any]:
        root, steps = function(lambda v: evaluate(v, *operands), lambda v: jacobian(v, *operands), np.asarray(y))
        return np.asarray(root, dtype=y.dtype), np.asarray(steps, dtype=np.int32)

    result = jax.eval_shape(lambda y: (y, jnp.zeros_like(y[..., 0], dtype=jnp.int32)), y)
    roots, steps = jax.pure_callback(run, result, y, *residual.parameters, vmap_method="sequential")
    return roots, steps
