"""Products in the precision of their dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import jax

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
