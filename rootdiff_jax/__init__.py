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
from rootdiff_jax._adapter import conditions as conditions
from rootdiff_jax._adapter import continuation as continuation
from rootdiff_jax._adapter import detect_sparsity as detect_sparsity
from rootdiff_jax._adapter import fixed_point as fixed_point
from rootdiff_jax._adapter import gradient_report as gradient_report
from rootdiff_jax._adapter import implicit as implicit
from rootdiff_jax._adapter import least_squares as least_squares
from rootdiff_jax._adapter import minimize as minimize
from rootdiff_jax._adapter import ode as ode
from rootdiff_jax._adapter import root as root
from rootdiff_jax._adapter import root_scalar as root_scalar
from rootdiff_jax._optax import Optax
from rootdiff_jax._optimistix import Optimistix

__all__ = [*_names_of_rootdiff, "Optax", "Optimistix"]
