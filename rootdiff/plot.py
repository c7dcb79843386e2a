"""Plots of a solve, of the error of a gradient and of a path, by matplotlib (extra `plot`).

Each function draws into `axes`, or into new ones, and returns them.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import optree

from rootdiff._errors import ArgumentError
from rootdiff._problems import Path
from rootdiff._report import GradientReport
from rootdiff._solution import Solution

__all__ = ["branch", "certificate", "history"]


def history(solution: Solution, axes: Any = None) -> Any:
    """Draw the norms of residual and step over the steps of a solve that was made with ``history=True``.

    Parameters
    ----------
    solution : Solution
        Of a batch, each system is a line.
    axes : matplotlib.axes.Axes, optional
        Where to draw. Default: new ones.

    Raises
    ------
    ArgumentError
        If the solution has no history.
    """
    if not solution.history or isinstance(solution.history, Path):
        raise ArgumentError("history: the solution has none of its steps. Solve with root(..., history=True).")
    axes, steps = _axes(axes), np.arange(1, len(solution.history.method) + 1)
    for name, norms in (("residual", solution.history.residual_norm), ("step", solution.history.step_norm)):
        lines = axes.semilogy(steps, _numbers(norms).reshape(steps.size, -1), marker="o", markersize=4)
        for line in lines:
            line.set(color="C0" if name == "residual" else "C1", alpha=1 if len(lines) == 1 else 0.4)
        lines[0].set_label(f"largest {name}")
    first = 1
    for method, of_it in groupby(solution.history.method):
        axes.axvline(first - 0.5, color="0.8", linewidth=1, zorder=0)
        axes.annotate(method, (first - 0.4, 0.02), xycoords=("data", "axes fraction"), fontsize=8, color="0.4")
        first += len(list(of_it))
    axes.set(xlabel="step", xlim=(0.5, steps.size + 0.5))
    axes.legend()
    return axes


def certificate(report: GradientReport, axes: Any = None) -> Any:
    """Draw the estimated relative error of a gradient, and the parts that it is made of.

    Parameters
    ----------
    report : GradientReport
        Of `gradient_report`.
    axes : matplotlib.axes.Axes, optional
        Where to draw. Default: new ones.
    """
    axes = _axes(axes)
    names = ("root", "adjoint", "derivative", "rounding", "gradient")
    errors = [max(getattr(report, f"{name}_error"), np.finfo(float).tiny) for name in names]
    bars = axes.barh([*names[:-1], "together"], errors, color=["C0"] * 4 + ["C1"])
    axes.bar_label(bars, [f"{error:.0e}" for error in errors], padding=3)
    axes.set(xscale="log", xlim=(1e-18, 10), xlabel="relative error of the gradient", title=report.verdict)
    axes.invert_yaxis()
    return axes


def branch(solution: Solution, axes: Any = None) -> Any:
    """Draw the unknowns along the path of a `continuation` that was made with ``history=True``.

    Parameters
    ----------
    solution : Solution
        Of `continuation`.
    axes : matplotlib.axes.Axes, optional
        Where to draw. Default: new ones.

    Raises
    ------
    ArgumentError
        If the solution has no path.
    """
    if not isinstance(solution.history, Path):
        raise ArgumentError("history: the solution has no path. Call continuation(..., history=True).")
    axes, fraction = _axes(axes), _numbers(solution.history.fraction)
    leaves: list[Any] = optree.tree_leaves(solution.history.y)
    for leaf in leaves:
        axes.plot(fraction, _numbers(leaf).reshape(fraction.size, -1), marker=".")
    axes.set(xlabel="part of the way from args0 to args1", ylabel="y")
    return axes


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "rootdiff.plot: matplotlib is not installed. Install it: pip install 'rootdiff[plot]'.", name="matplotlib"
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def _numbers(values: Any) -> np.ndarray[Any, Any]:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
