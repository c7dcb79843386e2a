"""Steady state of the Brusselator on a square grid: two unknowns a point, five entries a row, from NumPy alone.

The mean of u is B plus the mean of the source exactly, whatever the grid: its derivative is one in B, zero in A.

    python examples/brusselator.py --points 128 --output docs/figures
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

import rootdiff

mpl.use("Agg")
import matplotlib.pyplot as plt

DIFFUSION = 10.0
TOLERANCE = 1e-8


def source(points: int) -> Any:
    """Return the source, (points, points): 5 in a disc, else zero."""
    x = np.arange(points) / (points - 1)
    return 5.0 * ((x[:, None] - 0.3) ** 2 + (x[None, :] - 0.6) ** 2 <= 0.01)


def rates(y: dict[str, Any], a: float, b: float) -> dict[str, Any]:
    """Return du/dt and dv/dt, (points, points) each, with periodic borders."""
    u, v = y["u"], y["v"]
    scale = DIFFUSION * (len(u) - 1) ** 2

    def spread(z: Any) -> Any:
        return scale * (np.roll(z, 1, 0) + np.roll(z, -1, 0) + np.roll(z, 1, 1) + np.roll(z, -1, 1) - 4 * z)

    return {"u": b + u**2 * v - (a + 1) * u + spread(u) + source(len(u)), "v": a * u - u**2 * v + spread(v)}


def draw(y: dict[str, Any], folder: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, (name, values) in zip(axes, y.items(), strict=True):
        figure.colorbar(ax.imshow(values.T, origin="lower", extent=(0, 1, 0, 1)), ax=ax)
        ax.set_title(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "brusselator.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=64, help="points of each side (default: 64)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    x = np.arange(options.points) / (options.points - 1)
    bump = (x * (1 - x)) ** 1.5
    start = {"u": 22 * bump[None, :] + 0 * x[:, None], "v": 27 * bump[:, None] + 0 * x[None, :]}

    begin = time.perf_counter()
    sol = rootdiff.root(rates, start, 3.4, 1.0, jac_sparsity="detect", derivatives="complex-step")
    middle = time.perf_counter()
    mean = np.full_like(sol.y["u"], 1 / sol.y["u"].size)
    gradient = sol.vjp({"u": mean, "v": 0 * mean})
    end = time.perf_counter()
    off = [
        np.mean(sol.y["u"]) - 1 - np.mean(source(options.points)),
        gradient[0],
        gradient[1] - 1,
    ]
    print(f"{2 * mean.size} unknowns, {sol.steps} steps, {middle - begin:.2f} s, gradient {end - middle:.2f} s")
    print("off the exact mean of u, and its derivatives in A and B:", *(f"{float(part):.1e}" for part in off))
    print(f"figure: {draw(sol.y, options.output)}")
    return 0 if np.max(np.abs(off)) < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
