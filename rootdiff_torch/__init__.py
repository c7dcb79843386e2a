"""Differentiable root finding for PyTorch: the names of `rootdiff`, for tensors, with roots that autograd follows."""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "rootdiff_torch: PyTorch is not installed. Install rootdiff with it: pip install 'rootdiff[torch]'.",
        name="torch",
    ) from error

from rootdiff import *  # noqa: F403
from rootdiff import __all__ as _core
from rootdiff import __version__ as __version__
from rootdiff_torch import nn as nn
from rootdiff_torch._adapter import conditions as conditions
from rootdiff_torch._adapter import continuation as continuation
from rootdiff_torch._adapter import detect_sparsity as detect_sparsity
from rootdiff_torch._adapter import fixed_point as fixed_point
from rootdiff_torch._adapter import gradient_report as gradient_report
from rootdiff_torch._adapter import implicit as implicit
from rootdiff_torch._adapter import least_squares as least_squares
from rootdiff_torch._adapter import minimize as minimize
from rootdiff_torch._adapter import ode as ode
from rootdiff_torch._adapter import root as root
from rootdiff_torch._adapter import root_scalar as root_scalar
from rootdiff_torch._optim import TorchLBFGS as TorchLBFGS
from rootdiff_torch._transforms import TransformError as TransformError

__all__ = sorted({*_core, "TorchLBFGS", "TransformError"})
