"""`gradient_report` for JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rootdiff._errors import ArgumentTypeError
from rootdiff._numbers import as_unknown
from rootdiff._registry import get_adjoint
from rootdiff._report import GradientReport, measure
from rootdiff._residual import Residual
from rootdiff._structure import check_args, describe, flat_cotangent, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._precision import in_full_precision, in_own_settings


@in_full_precision
def gradient_report(
    residual: Callable[..., Any],
    y: Any,
    *args: Any,
    cotangent: Any = None,
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
) -> GradientReport:
    """Return how far a gradient through the root `y` can be trusted, and what limits it.

    Parameters
    ----------
    residual, *args, adjoint, batch_ndim
        As for `root`. The gradient is that with respect to all floating arrays of `args`.
    y : array or pytree of arrays, (*batch, ...), floating
        The root, wherever it came from, in the units of the unknown.
    cotangent : pytree like `y`, optional
        The derivative of the loss with respect to `y`; default ones, the gradient of the sum of `y`.

    Returns
    -------
    GradientReport
        A plain dataclass that prints as a table.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument cannot be used, or under a transform such as ``jit``, where values are not known.

    Examples
    --------
    >>> import jax.numpy as jnp, rootdiff_jax
    >>> print(rootdiff_jax.gradient_report(lambda y, a: y**2 - a, jnp.array([1.41]), jnp.array(2.0)).verdict)
    about 2 digits of the gradient can be trusted; the error comes from the root
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((y, args, cotangent))):
        raise ArgumentTypeError("gradient_report: it needs concrete values; call it outside of jit, vmap and grad.")
    backend = JaxBackend()
    y = as_unknown(backend, y, args)
    structure = describe(backend, y, batch_ndim)
    check_args(backend, args)
    leaves, rebuild = split_args(backend, args, _is_floating)
    parameters = tuple(map(jnp.asarray, leaves))
    problem = Residual(flat_residual(residual, structure, rebuild), parameters, backend)
    flat_y = structure.ravel(y)
    w = jnp.ones_like(flat_y) if cotangent is None else flat_cotangent("gradient_report", structure, cotangent, flat_y)
    return in_own_settings(measure)(problem, get_adjoint(adjoint, "jax"), flat_y, w)


def _is_floating(leaf: Any) -> bool:
    return isinstance(leaf, float) or (isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.inexact))
