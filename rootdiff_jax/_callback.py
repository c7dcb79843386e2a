"""NumPy code inside a compiled JAX program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rootdiff._backend import Array, HostFunction


def on_host(function: HostFunction, residual: Any, y: Array, *values: Any) -> tuple[Array, Array]:
    """Return ``function(evaluate, jacobian, y, *values)``, run by NumPy in a callback."""
    evaluate = jax.jit(lambda y, *operands: residual.with_parameters(*operands)(y))
    jacobian = jax.jit(lambda y, *operands: residual.with_parameters(*operands).jacobian(y))

    def run(y: Any, values: Any, *operands: Any) -> tuple[Any, Any]:
        evaluated, formed = (lambda v: evaluate(v, *operands)), (lambda v: jacobian(v, *operands))
        root, steps = function(evaluated, formed, np.asarray(y), *(np.asarray(value).item() for value in values))
        return np.asarray(root, dtype=y.dtype), np.asarray(steps, dtype=np.int32)

    result = jax.eval_shape(lambda y: (y, jnp.zeros_like(y[..., 0], dtype=jnp.int32)), y)
    roots, steps = jax.pure_callback(run, result, y, values, *residual.parameters, vmap_method="sequential")
    return roots, steps
