"""`gradient_report` for NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rootdiff._numbers import as_unknown
from rootdiff._numpy import NumpyBackend
from rootdiff._registry import get_adjoint
from rootdiff._report import GradientReport, measure
from rootdiff._root import Derivatives, Options, bind
from rootdiff._structure import flat_cotangent
from rootdiff.linear import LinearSolver


def gradient_report(
    residual: Callable[..., Any],
    y: Any,
    *args: Any,
    cotangent: Any = None,
    adjoint: str | LinearSolver = "auto",
    batch_ndim: int = 0,
    jac: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    vjp: Callable[..., Any] | None = None,
    derivatives: Derivatives = "finite-difference",
) -> GradientReport:
    """Return how far a gradient through the root `y` can be trusted, and what limits it.

    Parameters
    ----------
    residual, *args, adjoint, batch_ndim, jac, jvp, vjp, derivatives
        As for `root`.
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
        If an argument cannot be used; the message names it.

    Notes
    -----
    The errors are estimates, not bounds: on random problems with conditions up to 1e10 within a factor of ten of the
    true ones. The accuracy of differences, and the rounding of the residual, are measured. What cannot be seen is an
    error of the residual that is smooth around the root, as that of an inner ``brentq(xtol=1e-7)`` may be: its values
    are those of another function, whose gradient is the one that is judged. Solve inner problems to rounding. The cost
    is that of some ten Newton steps and gradients.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> report = rootdiff.gradient_report(lambda y, a: y**2 - a, np.array([1.414]), 2.0, derivatives="complex-step")
    >>> print(report.verdict)
    about 3 digits of the gradient can be trusted; the error comes from the root
    """
    options = Options("auto", adjoint, batch_ndim, "ignore", derivatives, jac, jvp, vjp)
    y = as_unknown(NumpyBackend(), y, args)
    problem, structure, _ = bind(residual, y, args, options, fixed_point=False)
    flat = structure.ravel(y)
    w = np.ones_like(flat) if cotangent is None else flat_cotangent("gradient_report", structure, cotangent, flat)
    with np.errstate(all="ignore"):
        return measure(problem, get_adjoint(adjoint, "numpy"), flat, w)
