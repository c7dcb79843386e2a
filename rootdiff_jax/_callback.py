"""NumPy code inside a compiled JAX program.

XLA may call it in a thread of its own, where a context of `jax.enable_x64` does not hold, and where JAX would make
float32 of its float64. So these travel as pairs of 32 bits.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rootdiff._backend import Array, Function, HostFunction
from rootdiff_jax._mesh import vary, varying_axes

_WIDE, _PAIR = ("float64", "int64", "uint64"), "complex128"


def on_host(function: HostFunction, residual: Any, y: Array, *values: Any) -> tuple[Array, Array]:
    """Return ``function(evaluate, jacobian, y, *values)``, run by NumPy in a callback."""
    evaluate = jax.jit(lambda y, *operands: residual.with_parameters(*operands)(y))
    jacobian = jax.jit(lambda y, *operands: residual.with_parameters(*operands).jacobian(y))
    wide = jnp.result_type(float) == jnp.float64
    arrays = [jnp.asarray(operand) for operand in (y, *values, *residual.parameters)]
    dtypes = [array.dtype for array in arrays]

    def run(halves: Any, _: Any) -> tuple[Any, Any]:
        given = [_joined(*pair) for pair in zip(halves, dtypes, strict=True)]
        start, settings, operands = np.asarray(given[0]), given[1 : len(values) + 1], given[len(values) + 1 :]
        with jax.enable_x64(wide):
            evaluated, formed = (lambda v: evaluate(v, *operands)), (lambda v: jacobian(v, *operands))
            root, steps = function(
                evaluated, formed, start, *(value if value.ndim else value.item() for value in settings)
            )
        root = np.ascontiguousarray(root, dtype=start.dtype)
        return root.view(halved.dtype).reshape(halved.shape), np.asarray(steps, dtype=np.int32)

    result = jax.eval_shape(lambda y: (_halved(y), jnp.zeros_like(y[..., 0], dtype=jnp.int32)), y)
    halved, _ = result
    # JAX refuses to differentiate a callback of floats, but takes one of integers, the halves here, for a constant:
    # the sums among its inputs make it refuse
    sums = [jnp.sum(array) for array in arrays if array.dtype.name in (*_WIDE, _PAIR)]
    found = jax.pure_callback(run, result, [*map(_halved, arrays)], sums, vmap_method="sequential")
    # JAX takes the results of a callback to be the same on all devices
    root, steps = (vary(part, varying_axes(y)) for part in found)
    return (root if halved.dtype == y.dtype else lax.bitcast_convert_type(root, y.dtype)), steps


def by_numpy(function: Function, like: Array, *arrays: Array) -> Array:
    """Return ``function(*arrays)``, an array like `like`, computed by NumPy in a callback."""
    dtype, dtypes = like.dtype, [array.dtype for array in arrays]
    result = jax.eval_shape(_halved, like)

    def run(halves: Any) -> Any:
        given = [_joined(np.asarray(part), kind) for part, kind in zip(halves, dtypes, strict=True)]
        found = np.ascontiguousarray(function(*given), dtype=dtype)
        return found if result.dtype == dtype else found.view(result.dtype).reshape(*found.shape, -1)

    found = jax.pure_callback(run, result, [*map(_halved, arrays)], vmap_method="expand_dims")
    found = found if result.dtype == dtype else lax.bitcast_convert_type(found, dtype)
    return vary(found, frozenset[Any]().union(*map(varying_axes, arrays)))


def _halved(array: Array) -> Array:
    """Return numbers of 64 bits as 32-bit ones along axes of their own, others as they are."""
    if array.dtype.name == _PAIR:
        array = jnp.stack([array.real, array.imag], axis=-1)
    return lax.bitcast_convert_type(array, jnp.uint32) if array.dtype.name in _WIDE else array


def _joined(halves: Any, dtype: Any) -> Any:
    """Return the array of a type whose numbers `_halved` took apart."""
    if dtype.name not in (*_WIDE, _PAIR):
        return halves
    own = 2 if dtype.name == _PAIR else 1
    return np.asarray(halves).reshape(*halves.shape[:-own], 2 * own).view(dtype)[..., 0]
