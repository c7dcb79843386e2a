"""The settings of JAX for precision, promotion and NaN checks that the solvers are written for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import wraps
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp

F = TypeVar("F", bound=Callable[..., Any])


def under_users_settings(function: F) -> F:
    """Return `function`, in which products of float32 matrices are rounded to float32, unless the user has chosen.

    By default JAX computes them on a GPU or TPU from factors of ten or eight bits: of such a residual no root is found
    to the accuracy of float32, as none is under autocast. ``jax_debug_nans`` is off: a solve reports NaN by a status.
    """
    return _within(function, _full_precision, lambda: jax.debug_nans(False))


def in_own_settings(function: F) -> F:
    """Return `function`, run in full precision and under JAX's default rules of promotion, as solvers are written for.

    The user's ``jax_numpy_rank_promotion`` and ``jax_numpy_dtype_promotion`` hold where a residual is traced: not here,
    where it is a jaxpr already.
    """
    ranks, dtypes = jax.numpy_rank_promotion, jax.numpy_dtype_promotion
    return _within(function, _full_precision, lambda: ranks("allow"), lambda: dtypes("standard"))


def _full_precision() -> AbstractContextManager[Any]:
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return nullcontext() if chosen is not None else jax.default_matmul_precision("highest")


def _within(function: F, *contexts: Callable[[], AbstractContextManager[Any]]) -> F:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            return function(*args, **kwargs)

    return cast(F, run)


def for_lapack(array: jax.Array) -> jax.Array:
    """Return an array in float32 where it is of half precision, which LAPACK does not have."""
    return array.astype(jnp.float32) if array.dtype.itemsize == 2 else array
