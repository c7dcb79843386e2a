"""Stability constants of copper-glycine complexes, fitted to a titration through its chemical equilibria, in NumPy.

Acidic solutions of copper (M) and glycine (L) are titrated with a strong base. At each point the free concentrations of
H, L and M are the root of three mass balances; all points are one batch. The derivative of the pH in the logarithms of
the four stability constants, `sol.jacobian()`, serves Gauss and Newton's method. The data are synthetic: true constants
near those of the literature, and noise of the electrode.

    python examples/equilibrium_fit.py --points 40 --noise 0.02
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rootdiff as rd

# species, how many H, L and M it holds, log10 of its overall stability constant (25 C, 0.1 mol/l), a first guess
COMPLEXES = (
    ("HL", (1, 1, 0), 9.57, 9.0),
    ("H2L", (2, 1, 0), 11.93, 11.0),
    ("ML", (0, 1, 1), 8.15, 7.5),
    ("ML2", (0, 2, 1), 15.03, 14.0),
)
PARTS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), *(parts for _, parts, _, _ in COMPLEXES)])
TRUE, GUESS = np.array([constants for _, _, *constants in COMPLEXES]).T
LOG_WATER = -13.78  # ion product of water, log10
METAL, BASE = 2e-3, 0.1  # mol/l: copper at the start, base in the burette
RATIOS = (2.2, 5.0)  # glycine per copper, one titration each
STEPS = 20
LIMIT = 4  # standard errors; less than one fit in a thousand is off by more


@dataclass(frozen=True)
class Titration:
    """The points of all titrations: `base` in volumes of the sample, `totals` of H, L and M, (points, 3), in mol/l."""

    base: Any
    totals: Any

    @classmethod
    def make(cls, points: int) -> Titration:
        """Return two titrations of `points` points each: H is twice the glycine at first, and neutralised."""
        ends = [(ratio * 2 + 0.6) * METAL / BASE for ratio in RATIOS]
        base = np.concatenate([np.linspace(0, end, points) for end in ends])
        ligand = METAL * np.repeat(RATIOS, points)
        hydrogen = 2 * ligand - BASE * base
        return cls(base, np.stack([hydrogen, ligand, np.full_like(ligand, METAL)], axis=-1) / (1 + base)[:, None])

    def balances(self, logs: Any, constants: Any) -> Any:
        """Return the residual, (points, 3), relative to the copper; `logs` are ln of free H, L and M in mol/l."""
        formation = np.concatenate([np.zeros(3), [LOG_WATER], constants]) * np.log(10)
        species = np.exp(logs @ PARTS.T + formation)  # (points, 8): H, L, M, OH and the complexes
        return (species @ PARTS - self.totals) / METAL

    def equilibrium(self, constants: Any, start: Any) -> rd.Solution:
        """Return the Solution of all points; the balances are analytic, so complex steps are exact to rounding."""
        return rd.root(self.balances, start, constants, batch_ndim=1, derivatives="complex-step")

    def start(self) -> Any:
        """Return a first guess of the logarithms, (points, 3), the same for all points."""
        return np.log(np.full_like(self.totals, 1.0) * [1e-4, 1e-8, 1e-6])


def ph(logs: Any) -> Any:
    return -logs[:, 0] / np.log(10)


def fit(titration: Titration, measured: Any) -> tuple[Any, Any, list[float]]:
    """Return the constants that fit best, (4), their covariance, and the root mean squares, by Gauss and Newton."""
    constants, logs, history = GUESS, titration.start(), []
    for _ in range(STEPS):
        sol = titration.equilibrium(constants, logs)
        logs = sol.y  # the next solve starts here
        jacobian = -sol.jacobian()[0][:, 0, :] / np.log(10)  # d pH / d log10 constants, (points, 4)
        apart = measured - ph(logs)
        history.append(float(np.sqrt(np.mean(apart**2))))
        change = np.linalg.lstsq(jacobian, apart)[0]
        constants = constants + change
        if np.max(np.abs(change)) < 1e-8:  # far below what the noise leaves open
            break
    freedom = len(measured) - len(constants)
    covariance = np.sum(apart**2) / freedom * np.linalg.inv(jacobian.T @ jacobian)
    return constants, covariance, history


def table(constants: Any, errors: Any) -> float:
    """Print the constants and return the largest deviation from the true ones, in standard errors."""
    print("complex  log10: guess   fitted   standard error    true   deviation (standard errors)")
    deviations = (constants - TRUE) / errors
    rows = zip(COMPLEXES, constants, errors, deviations, strict=True)
    for (name, _, true, guess), constant, error, deviation in rows:
        print(f"{name:7s}  {guess:12.2f}  {constant:7.3f}  {error:15.3f}  {true:6.2f}  {deviation:10.1f}")
    return float(np.max(np.abs(deviations)))


def draw(titration: Titration, measured: Any, constants: Any, folder: Path) -> Path:
    """Save the data, the first guess and the fit, and return the path of the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    guess, fitted = (ph(titration.equilibrium(values, titration.start()).y) for values in (GUESS, constants))
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    groups = np.split(np.arange(len(measured)), len(RATIOS))
    for ratio, group, color in zip(RATIOS, groups, ("#1b9e77", "#7570b3"), strict=True):
        volume = 100 * titration.base[group]  # ml of base in 100 ml
        axes.plot(volume, measured[group], "o", color=color, markersize=4, label=f"data, L : M = {ratio}")
        axes.plot(volume, guess[group], ":", color=color, linewidth=1.2, label="first guess")
        axes.plot(volume, fitted[group], "-", color=color, linewidth=1.2, label="fit")
    axes.set(xlabel="base added to 100 ml of sample (ml)", ylabel="pH")
    axes.set_title("Titrations of copper and glycine: constants fitted through the equilibria", fontsize=11)
    axes.grid(linewidth=0.4)
    axes.legend(fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "equilibrium_fit.png", dpi=100)
    plt.close(figure)
    return folder / "equilibrium_fit.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=40, help="points of each of the two titrations (default: 40)")
    parser.add_argument("--noise", type=float, default=0.02, help="standard deviation of a pH (default: 0.02)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    titration = Titration.make(options.points)
    exact = ph(titration.equilibrium(TRUE, titration.start()).y)
    measured = exact + options.noise * np.random.default_rng(options.seed).standard_normal(len(exact))
    constants, covariance, history = fit(titration, measured)
    deviation = table(constants, np.sqrt(np.diag(covariance)))
    print(f"root mean square of pH: {', '.join(f'{value:.3g}' for value in history)}")
    print(f"figure: {draw(titration, measured, constants, options.output)}")
    if not deviation < LIMIT:
        print(f"FAILED: a constant is {LIMIT} standard errors or more from the true one.", file=sys.stderr)
    return 0 if deviation < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
