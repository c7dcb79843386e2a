"""The portfolio of least risk for a demanded return: by Clarabel, and differentiated by the conditions of its optimum.

Clarabel knows nothing of derivatives. `implicit.wrap` gives them to its answer: with the multipliers it is a root of
the conditions of Karush, Kuhn and Tucker. They are compared with central differences of Clarabel's answers, with
`minimize`, and with the multiplier of the demanded return, which is the derivative of the least risk.

    pip install '.[torch,examples,qp]'
    python examples/quadratic_program.py --output docs/figures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import clarabel
import matplotlib as mpl
import numpy as np
import scipy.sparse as sp
import torch
from torch.autograd.functional import jacobian  # Clarabel sees no values within torch.func

import rootdiff_torch as rd

mpl.use("Agg")
import matplotlib.pyplot as plt

ASSETS, GOAL, STEP, TOLERANCE = 8, 0.08, 1e-5, 1e-6


def market() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the expected returns, (ASSETS,), per year, and their covariance: three factors, and noise of each."""
    rng = np.random.default_rng(3)
    factors, own = rng.normal(0, 0.1, (ASSETS, 3)), np.diag(rng.uniform(0.05, 0.2, ASSETS) ** 2)
    return torch.tensor(rng.uniform(0.02, 0.12, ASSETS)), torch.tensor(factors @ factors.T + own)


def risk(y: Any, returns: Any, covariance: Any, goal: Any) -> Any:
    """Return half the variance, per year squared, of the weights y, (*batch, ASSETS)."""
    return (y @ covariance * y).sum(-1) / 2


def budget(y: Any, returns: Any, covariance: Any, goal: Any) -> Any:
    return y.sum(-1, keepdim=True) - 1


def limits(y: Any, returns: Any, covariance: Any, goal: Any) -> Any:
    """Return what is at most zero: the return is at least the goal, and no weight is negative."""
    return torch.cat([(goal - y @ returns)[..., None], -y], -1)


def solve_one(returns: Any, covariance: Any, goal: float) -> Any:
    """Return the answer of a program: half y^T P y is least where A y + s = b, s in cones, and the multipliers."""
    rows = np.vstack([np.ones(ASSETS), -returns, -np.eye(ASSETS)])
    cones = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(ASSETS + 1)]
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    # at 1e-12 weights are off by up to 1e-7 next to a goal at which one becomes zero: `implicit` refuses them
    settings.tol_feas = settings.tol_gap_abs = settings.tol_gap_rel = 1e-14
    right, upper = np.array([1, -goal, *np.zeros(ASSETS)]), sp.csc_matrix(np.triu(covariance))
    found = clarabel.DefaultSolver(upper, np.zeros(ASSETS), sp.csc_matrix(rows), right, cones, settings).solve()
    return [*found.x, *found.z]


@rd.implicit.wrap(rd.conditions.kkt(risk, budget, limits), batch_ndim=1, rtol=1e-6, atol=1e-8)
def solve(_: Any, returns: Any, covariance: Any, goals: Any) -> Any:
    """Return the weights of each goal, and the multipliers of the budget and of the limits, (goals, number)."""
    found = [solve_one(returns.numpy(), covariance.numpy(), float(goal)) for goal in goals]
    return torch.tensor(found, dtype=torch.float64).split([ASSETS, 1, ASSETS + 1], -1)


def answer(returns: Any, covariance: Any, goals: Any) -> Any:
    """Return weights, and the multipliers of the budget, the return and each weight, (goals, 2 * ASSETS + 2)."""
    return torch.cat(solve(None, returns, covariance, goals).y, -1)


def along(returns: Any, covariance: Any, goals: Any) -> Any:
    """Return d answer / d goal, (goals, 2 * ASSETS + 2): each answer has a goal of its own, so that they are summed."""
    return jacobian(lambda goals: answer(returns, covariance, goals).sum(0), goals).T


def minimised(returns: Any, covariance: Any, goal: Any) -> Any:
    start, constraints = torch.full_like(returns, 1 / ASSETS), rd.Constraints(equality=budget, inequality=limits)
    return rd.minimize(risk, start, returns, covariance, goal, constraints=constraints).y


def compare(returns: Any, covariance: Any, goal: Any) -> tuple[Any, bool]:
    """Print what should agree; return d weights / d returns, and whether they do, to TOLERANCE of the largest."""

    def program(returns: Any) -> Any:
        return answer(returns, covariance, goal[None])[0]

    def theirs(returns: Any) -> Any:
        return minimised(returns, covariance, goal)

    found, of_returns = program(returns), jacobian(program, returns)
    steps = STEP * torch.eye(ASSETS).double()
    differences = torch.stack([(program(returns + h) - program(returns - h)) / (2 * STEP) for h in steps], -1)
    y, slopes, multiplier = found[:ASSETS], of_returns[:ASSETS], found[ASSETS + 1 : ASSETS + 2]
    of_goal = along(returns, covariance, goal[None])[:, :ASSETS]
    pairs = {
        "d weights / d returns, by differences": (slopes, differences[:ASSETS]),
        "d multipliers / d returns, by differences": (of_returns[ASSETS:], differences[ASSETS:]),
        "d least risk / d goal, the multiplier": (of_goal @ covariance @ y, multiplier),
        "weights, by minimize": (y, theirs(returns)),
        "d weights / d returns, by minimize": (slopes, jacobian(theirs, returns)),
    }
    print(f"weights, %: {np.round(100 * y.numpy(), 2)}")
    agree = True
    for name, (ours, other) in pairs.items():
        place = ours.abs().argmax()
        off = float((ours - other).abs().max() / other.abs().max())
        print(f"{name:42} {ours.flatten()[place]:16.9f} {other.flatten()[place]:16.9f}   {off:.1e}")
        agree &= off < TOLERANCE
    return slopes, agree


def draw(goals: Any, path: Any, slopes: Any, gradient: Any, folder: Path) -> Path:
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for k in range(ASSETS):
        axes[0].plot(100 * goals, 100 * path[:, k], label=f"asset {k}")
        axes[1].plot(100 * goals, slopes[:, k])
    axes[0].set(title="weights of least risk, %", xlabel="demanded return, % a year")
    axes[0].legend(fontsize="x-small")
    axes[1].set(title="d weight / d demanded return", xlabel="demanded return, % a year")
    largest = np.abs(gradient).max()
    figure.colorbar(axes[2].imshow(gradient, cmap="RdBu", vmin=-largest, vmax=largest), ax=axes[2])
    axes[2].set(
        title="d weight / d expected return", xlabel="return of asset", ylabel="weight of asset", xticks=range(ASSETS)
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "quadratic_program.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=120, help="demanded returns of the figure (default: 120)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    returns, covariance = market()
    gradient, agree = compare(returns, covariance, torch.tensor(GOAL).double())
    goals = torch.linspace(0.06, float(returns.max()) - 0.002, options.points).double()
    lines = (part(returns, covariance, goals).numpy() for part in (answer, along))
    print(f"figure: {draw(goals.numpy(), *lines, gradient.numpy(), options.output)}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
