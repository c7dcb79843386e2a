"""Plots show the numbers that they are of."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import rootdiff
import rootdiff_torch
from rootdiff import plot

mpl.use("Agg")


def test_history_shows_each_step_of_each_system() -> None:
    a = torch.tensor([[4.0], [9.0]], dtype=torch.float64, requires_grad=True)
    sol = rootdiff_torch.root(lambda y, a: y**2 - a, torch.ones_like(a), a, batch_ndim=1, history=True)
    axes = plot.history(sol, Figure().subplots())
    residuals = [line.get_ydata() for line in axes.lines if line.get_color() == "C0"]
    np.testing.assert_array_equal(np.stack(residuals, axis=1), sol.history.residual_norm.detach().numpy())


def test_certificate_shows_the_parts_of_the_error() -> None:
    report = rootdiff.gradient_report(lambda y, a: y**2 - a, np.array([1.41421]), np.array([2.0]))
    axes = plot.certificate(report, Figure().subplots())
    widths = [bar.get_width() for bar in axes.patches]
    assert widths[0] == report.root_error
    assert widths[-1] == report.gradient_error
    assert axes.get_title() == report.verdict


def test_branch_shows_the_fold() -> None:
    sol = rootdiff.continuation(lambda y, load: y**3 - 3 * y - load, -2.1, -3.0, 3.0, history=True)
    (line,) = plot.branch(sol, Figure().subplots()).lines
    assert (np.diff(line.get_xdata()) < 0).any()
    np.testing.assert_array_equal(line.get_ydata(), sol.history.y)


@pytest.mark.parametrize(("draw", "told"), [(plot.history, "root"), (plot.branch, "continuation")])
def test_a_solution_without_a_history_is_named(draw, told) -> None:
    sol = rootdiff.root(lambda y: y - 1, 0.0)
    with pytest.raises(rootdiff.ArgumentError, match=f"^history: .*{told}"):
        draw(sol)
