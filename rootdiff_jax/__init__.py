"""Differentiable root finding for JAX: the names of `rootdiff`, with roots that every JAX transform understands."""

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
