"""A grid of resistors with a diode at each node, solved from 0 V, and one current differentiated by all resistances.

Each node has a diode to ground; a source feeds the left side through a resistor a node.

    python examples/circuit.py --side 316 --output docs/figures
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

SOURCE, SATURATION, THERMAL = 5.0, 1e-12, 0.02585  # V, A, V
TOLERANCE = 1e-6


def leaving(v: Any, right: Any, down: Any, supply: Any) -> Any:
    """Return the sum of the currents that leave each node, (side, side), in A: zero by Kirchhoff's law.

    `right` and `down` are the resistances to the next node, (side, side - 1) and (side - 1, side); `supply` those from
    the source to the left side, (side,).
    """
    source = (SOURCE - v[:, :1]) / supply[:, None]
    across = np.concat([source, (v[:, :-1] - v[:, 1:]) / right, 0 * source], axis=1)
    along = np.pad((v[:-1] - v[1:]) / down, ((1, 1), (0, 0)))
    return diode(v) + np.diff(across, axis=1) + np.diff(along, axis=0)


def diode(v: Any) -> Any:
    return SATURATION * np.expm1(v / THERMAL)


def solve(resistances: list[Any], start: Any, pattern: Any) -> Any:
    return rootdiff.root(leaving, start, *resistances, jac_sparsity=pattern, derivatives="complex-step")


def draw(v: Any, gradient: Any, folder: Path) -> Path:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    figure.colorbar(axes[0].imshow(v), ax=axes[0])
    axes[0].set_title("voltage, V")
    sizes = np.log10(np.abs(gradient) + np.finfo(float).tiny)
    figure.colorbar(axes[1].imshow(np.maximum(sizes, sizes.max() - 12)), ax=axes[1])
    axes[1].set_title("log10 |d current / d resistance|, A/ohm")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "circuit.png"
    figure.savefig(path, dpi=90)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="nodes of each side (default: 64)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    side, rng = options.side, np.random.default_rng(0)
    shapes = [(side, side - 1), (side - 1, side), (side,)]
    resistances = [1000 * np.exp(0.3 * rng.standard_normal(shape)) for shape in shapes]
    row, column = side // 2, 2  # the node whose diode's current is asked for

    begin = time.perf_counter()
    sol = solve(resistances, np.zeros((side, side)), "detect")
    middle = time.perf_counter()
    cotangent = np.zeros((side, side))
    cotangent[row, column] = (diode(sol.y[row, column]) + SATURATION) / THERMAL  # the slope of its diode
    gradient = sol.vjp(cotangent)
    end = time.perf_counter()
    print(
        f"{side**2} nodes, {sum(map(np.size, resistances))} resistances, {sol.steps} steps, {middle - begin:.2f} s, "
        f"gradient {end - middle:.2f} s"
    )

    worst = 0.0
    for name, part, index in (("right", 0, (row, 1)), ("down", 1, (row, 1)), ("supply", 2, (row,))):
        around = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            moved = [array.copy() for array in resistances]
            moved[part][index] *= factor
            around.append(diode(solve(moved, sol.y, sol.sensitivities.residual.pattern).y[row, column]))
        difference = (around[0] - around[1]) / (2e-4 * resistances[part][index])
        ours = gradient[part][index]
        worst = max(worst, abs(ours / difference - 1))
        print(f"{name:7} {ours:15.8e} A/ohm, by differences {difference:15.8e}")
    print(f"figure: {draw(sol.y, gradient[0], options.output)}")
    return 0 if worst < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
