"""What the types of arrays tell of a mesh: over which axes they vary, and how they are spread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding


def varying_axes(value: Any) -> frozenset[Any]:
    """Return the mesh axes of an enclosing ``shard_map`` that `value`, an array or its type, varies over."""
    kind: Any = value if isinstance(value, jax.core.ShapedArray) else jax.typeof(value)
    axes: frozenset[Any] = kind.manual_axis_type.varying if hasattr(kind, "manual_axis_type") else kind.vma
    return axes


def partition(value: Any) -> Any:
    """Return how `value`, an array or its type, is spread over the explicit axes of a mesh."""
    kind: Any = value if isinstance(value, jax.core.ShapedArray) else jax.typeof(value)
    return kind.sharding.spec


def is_spread(vector: Any) -> bool:
    """Return whether the last axis is known to be spread over devices: under jit, over explicit axes only."""
    if isinstance(vector, jax.core.Tracer) or not isinstance(vector.sharding, NamedSharding):
        return partition(vector)[-1] is not None
    return len(vector.sharding.spec) == vector.ndim and vector.sharding.spec[-1] is not None


def has_explicit_axes() -> bool:
    """Return whether the types of arrays tell how they are spread over a mesh."""
    return AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types


def vary(value: Any, axes: Iterable[Any]) -> Any:
    """Return `value`, typed as varying over `axes` too."""
    missing = tuple(set(axes) - varying_axes(value))
    return lax.pcast(value, missing, to="varying") if missing else value


def alike(value: Any, axes: Iterable[Any]) -> Any:
    """Return `value`, which is the same on all devices along `axes`, typed as such: what JAX knows of a sum alone."""
    axes = tuple(axes)
    if not axes or jnp.issubdtype(value.dtype, jax.dtypes.extended):  # a random key
        return value
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return lax.pmean(value, axes)  # type: ignore[no-untyped-call]
    largest = lax.pmax(value.astype(jnp.int32), axes)  # type: ignore[no-untyped-call]
    return largest.astype(value.dtype)


def made_of(y: Any, values: Any) -> Any:
    """Return values, typed as varying and as spread over a mesh as `y` is, on which they depend as far as JAX knows."""
    return jnp.where(jnp.zeros_like(y, dtype=bool), y, values)
