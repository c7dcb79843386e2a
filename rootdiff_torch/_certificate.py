"""`gradient_report` for PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rootdiff._errors import ArgumentTypeError
from rootdiff._numbers import as_unknown
from rootdiff._registry import get_adjoint
from rootdiff._report import GradientReport, measure
from rootdiff._residual import Residual
from rootdiff._structure import check_args, describe, flat_cotangent, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._capture import capture, with_captured
from rootdiff_torch._derivatives import is_differentiable, levels


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
        As for `root`. The gradient is that with respect to all floating tensors of `args` and those that the residual
        captures.
    y : tensor or pytree of tensors, (*batch, ...), floating
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
        If an argument cannot be used, or under a transform of `torch.func`, where values are not known.

    Examples
    --------
    >>> import torch, rootdiff_torch
    >>> y = torch.tensor([1.414], dtype=torch.float64)
    >>> print(rootdiff_torch.gradient_report(lambda y, a: y**2 - a, y, torch.tensor(2.0, dtype=torch.float64)).verdict)
    about 3 digits of the gradient can be trusted; the error comes from the root
    """
    if levels():
        raise ArgumentTypeError("gradient_report: it needs concrete values; call it outside of torch.func transforms.")
    y = as_unknown(BACKEND, y, args)
    structure = describe(BACKEND, y, batch_ndim)
    check_args(BACKEND, args)
    flat_y = structure.ravel(y).detach()
    leaves, rebuild = split_args(BACKEND, args, is_differentiable)
    flat = flat_residual(residual, structure, rebuild)
    captured, _ = capture(flat, flat_y, leaves)
    parameters = tuple(tensor.detach() for tensor in (*leaves, *captured))
    problem = Residual(with_captured(flat, captured, 1 + len(leaves)), parameters, BACKEND)
    w = torch.ones_like(flat_y)
    if cotangent is not None:
        w = flat_cotangent("gradient_report", structure, cotangent, flat_y).detach()
    with torch.no_grad():
        return measure(problem, get_adjoint(adjoint, "torch"), flat_y, w)
