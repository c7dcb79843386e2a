"""A minimum under constraints by SciPy, and the multipliers there."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import optimize

#: How many roundings SciPy may end beside a bound that it has reached.
_ROUNDINGS = 16


def constrained(
    evaluate: Callable[[Any], Any],
    slopes: Callable[[Any], Any],
    start: Any,
    bounds: tuple[Any, Any],
    options: dict[str, Any],
) -> Any:
    """Return SciPy's result for one system, in which `x` are the unknowns followed by the multipliers.

    Parameters
    ----------
    evaluate, slopes : callables
        Of the unknowns and the multipliers: the objective f, followed by the constraints h = 0, then g <= 0, (1 + m),
        and their Jacobian.
    start : array, (n + m). Unknowns, and multipliers, of which there are m.
    bounds : pair of arrays, (n + m). Those of the multipliers of g are zero below.
    options : dict. For `scipy.optimize.minimize`.

    References
    ----------
    Nocedal & Wright (2006), "Numerical Optimization", eq. 18.21: the multipliers of least squares.
    """
    m = len(evaluate(start)) - 1
    n = len(start) - m
    (lo, below), (hi, _) = ((limit[:n], limit[n:]) for limit in bounds)
    equal = np.isinf(below)

    def values(y: Any) -> Any:
        return evaluate(np.concat([y, start[n:]]))

    def jacobian(y: Any) -> Any:
        return np.ascontiguousarray(slopes(np.concat([y, start[n:]]))[:, :n])  # SLSQP reads no strides

    constraints = [
        {
            "type": kind,
            "fun": lambda y, of=of, sign=sign: sign * values(y)[1:][of],
            "jac": lambda y, of=of, sign=sign: sign * jacobian(y)[1:][of],
        }
        for kind, of, sign in (("eq", equal, 1), ("ineq", ~equal, -1))
        if of.any()
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a function looks linear
        found = optimize.minimize(
            lambda y: float(values(y)[0]),
            start[:n],
            jac=lambda y: jacobian(y)[0],
            bounds=optimize.Bounds(lo, hi),
            constraints=constraints,
            **options,
        )
    y, multipliers = found.x, np.zeros(m)
    for bound in (lo, hi):
        y = np.where(np.abs(y - bound) <= _ROUNDINGS * np.finfo(start.dtype).eps * np.maximum(1, np.abs(y)), bound, y)
    (_, *reached), (gradient, *rows) = values(y), jacobian(y)
    if np.isfinite([gradient, *rows]).all() and np.isfinite(reached).all():
        # the gradient of the Lagrangian is least along unknowns that no bound holds; v g is to be small too
        free, g = (lo < y) & (y < hi), np.array(reached)
        slopes_of_g, slack = np.array(rows)[:, free], np.diag(np.where(equal, 0, g))[~equal]
        matrix, rhs = np.concat([slopes_of_g.T, slack]), np.concat([-gradient[free], np.zeros(len(slack))])
        multipliers = optimize.lsq_linear(matrix, rhs, (np.where(equal, -np.inf, 0), np.inf), method="bvls").x
        held = equal | (multipliers > -g)
        y[free] -= np.linalg.lstsq(slopes_of_g[held], g[held])[0]  # onto the constraints, to rounding
    found.x = np.concat([np.clip(y, lo, hi), multipliers])
    return found
