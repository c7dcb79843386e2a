"""The settings of JAX for precision, promotion and NaN checks that the solvers are written for."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

F = TypeVar("F", bound=Callable[..., Any])


def in_full_precision(function: F) -> F:
    """Return `function`, in which products of float32 matrices are rounded to float32, unless the user has chosen.

    By default JAX computes them on a GPU or TPU from factors of ten or eight bits: of such a residual no root is found
    to the accuracy of float32, as none is under autocast.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if jax.config.jax_default_matmul_precision is not None:  # type: ignore[attr-defined]
            return function(*args, **kwargs)
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return cast(F, run)


def in_own_settings(function: F) -> F:
    """Return `function`, run under JAX's default rules of promotion, which the solvers are written for.

    The user's ``jax_numpy_rank_promotion`` and ``jax_numpy_dtype_promotion`` hold where a residual is traced: not here,
    where it is a jaxpr already.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **kwargs)

    return cast(F, run)


def without_nan_checks(function: F) -> F:
    """Return `function`, in which ``jax_debug_nans`` is off: a solve reports NaN by a status."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with jax.debug_nans(False):
            return function(*args, **kwargs)

    return cast(F, run)


def for_lapack(array: jax.Array) -> jax.Array:
    """Return an array in float32 where it is of half precision, which LAPACK does not have."""
    return array.astype(jnp.float32) if array.dtype.itemsize == 2 else array
