"""Curves fitted to data of NIST, and the uncertainty of their parameters from the derivative of the fit, in NumPy.

The data and the certified values are those of the Statistical Reference Datasets for nonlinear regression: Misra1a
(dental research, two parameters) and MGH09 (Kowalik and Osborne, four). A fit is the minimum of a sum of squares, and
`sol.jacobian()` its derivative with respect to each observation. If these have independent errors of one size, that
gives the covariance of the parameters, with the whole Hessian. NIST's deviations are those of the linearised model.

    python examples/curve_fit.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import rootdiff

TOLERANCE = 1e-9  # relative; certified to eleven digits


class Data(NamedTuple):
    model: Callable[[Any, Any], Any]
    x: Any
    y: Any
    start: Any
    parameters: Any
    deviations: Any


def misra1a(b: Any, x: Any) -> Any:
    """Return the volume at pressure `x`."""
    return b[0] * (1 - np.exp(-b[1] * x))


def mgh09(b: Any, x: Any) -> Any:
    """Return the rate of an enzyme's reaction at concentration `x`."""
    return b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3])


SETS = {
    "Misra1a": Data(
        misra1a,
        np.array([77.6, 114.9, 141.1, 190.8, 239.9, 289.0, 332.8, 378.4, 434.8, 477.3, 536.8, 593.1, 689.1, 760.0]),
        np.array([10.07, 14.73, 17.94, 23.93, 29.61, 35.18, 40.02, 44.82, 50.76, 55.05, 61.01, 66.40, 75.47, 81.78]),
        np.array([500.0, 0.0001]),
        np.array([2.3894212918e02, 5.5015643181e-04]),
        np.array([2.7070075241e00, 7.2668688436e-06]),
    ),
    "MGH09": Data(
        mgh09,
        np.array([4.0, 2.0, 1.0, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625]),
        np.array([0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246]),
        np.array([25.0, 39.0, 41.5, 39.0]),
        np.array([1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01]),
        np.array([1.1435312227e-02, 1.9633220911e-01, 8.0842031232e-02, 9.0025542308e-02]),
    ),
}


def fit(data: Data) -> tuple[Any, Any]:
    """Return the parameters, (n), and their standard deviations, (n)."""

    def residual(b: Any, y: Any) -> Any:
        return data.model(b, data.x) - y

    sol = rootdiff.least_squares(residual, data.start, data.y, derivatives="complex-step")
    (of_data,) = sol.jacobian()  # (n, m)
    variance = np.sum(residual(sol.y, data.y) ** 2) / (data.y.size - sol.y.size)
    return sol.y, np.sqrt(variance * np.sum(of_data**2, axis=-1))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    worst = 0.0
    print(f"{'':12s}{'parameter':>18s}{'off by':>10s}{'deviation':>14s}{'linearised (NIST)':>20s}")
    for name, data in SETS.items():
        found, deviations = fit(data)
        off = np.abs(found / data.parameters - 1)
        worst = max(worst, *off)
        for k, row in enumerate(zip(found, off, deviations, data.deviations, strict=True), start=1):
            print(f"{name:8s} b{k} {row[0]:18.10e}{row[1]:10.0e}{row[2]:14.4e}{row[3]:20.4e}")
    if worst > TOLERANCE:
        print(f"FAILED: a parameter is off by more than {TOLERANCE}.", file=sys.stderr)
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
