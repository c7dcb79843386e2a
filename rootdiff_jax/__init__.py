"""Differentiable root finding for JAX: the names of `rootdiff`, with roots that every JAX transform understands."""

try:
    import jax as _jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "rootdiff_jax: JAX is not installed. Install rootdiff with it: pip install 'rootdiff[jax]'.", name="jax"
    ) from error

from rootdiff import *  # noqa: F403
from rootdiff import __all__ as _names_of_rootdiff
from rootdiff_jax import nn as nn
from rootdiff_jax._certificate import gradient_report as gradient_report  # type: ignore[assignment]
from rootdiff_jax._optimistix import Optimistix
from rootdiff_jax._root import continuation as continuation  # type: ignore[assignment]
from rootdiff_jax._root import fixed_point as fixed_point  # type: ignore[assignment]
from rootdiff_jax._root import root as root  # type: ignore[assignment]
from rootdiff_jax._root import root_scalar as root_scalar  # type: ignore[assignment]

__all__ = [*_names_of_rootdiff, "Optimistix"]
