"""Draw the figures of the documentation that no script of `examples/` draws: python docs/make_figures.py."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np

import rootdiff
from rootdiff import plot

mpl.use("Agg")
from matplotlib import pyplot

FIGURES = Path(__file__).parent / "figures"
sys.path.append(str(FIGURES.parents[1]))


def fold(y, load):
    """Return a cubic law, whose branch turns back at y = -1 and y = 1."""
    return y**3 - 3 * y - load


def branch() -> pyplot.Figure:
    """Draw the branch of the cubic from -3 to 3, and the solve at its start from a guess far off."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    path = rootdiff.continuation(fold, -2.1, -3.0, 3.0, history=True)
    plot.branch(path, left).set_title("plot.branch: past two folds")
    plot.history(rootdiff.root(fold, -20.0, -3.0, history=True), right).set_title("plot.history: from a guess far off")
    return figure


def certificate() -> pyplot.Figure:
    """Draw the certificate of a gradient at a root that was found to nine digits."""

    def residual(y, theta):
        ellipse = (y[0] / theta[0]) ** 2 + (y[1] / theta[1]) ** 2 - 1
        return np.stack([ellipse, y[1] - theta[2] * y[0] ** 3])

    theta = np.array([2.0, 1.0, 0.5])
    y = rootdiff.root(residual, np.ones(2), theta).y
    figure, axes = pyplot.subplots(figsize=(7.5, 2.6), layout="constrained")
    plot.certificate(rootdiff.gradient_report(residual, y.round(9), theta), axes)
    return figure


def curve_fit() -> pyplot.Figure:
    """Draw the fits of `examples/curve_fit.py`, and their bands of one deviation at the data."""
    from examples.curve_fit import SETS

    figure, both = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, (name, data) in zip(both, SETS.items(), strict=True):
        sol = rootdiff.least_squares(
            lambda b, y, data=data: data.model(b, data.x) - y, data.start, data.y, derivatives="complex-step"
        )
        x = np.linspace(data.x.min(), data.x.max(), 200)
        slope = np.stack([np.imag(data.model(sol.y + 1e-30j * unit, x)) * 1e30 for unit in np.eye(sol.y.size)])
        noise = np.sum((data.model(sol.y, data.x) - data.y) ** 2) / (data.y.size - sol.y.size)
        width = np.sqrt(noise * np.sum((slope.T @ sol.jacobian()[0]) ** 2, axis=-1))
        fitted = data.model(sol.y, x)
        axes.fill_between(x, fitted - width, fitted + width, alpha=0.3, label="one deviation")
        axes.plot(x, fitted, label="fit")
        axes.plot(data.x, data.y, "k.", label="data of NIST")
        axes.set(title=name, xlabel="x", ylabel="y")
        axes.legend()
    return figure


if __name__ == "__main__":
    for draw in (branch, certificate, curve_fit):
        draw().savefig(FIGURES / f"{draw.__name__}.png", dpi=100)
