"""Robertson's stiff kinetics, A -> B -> C: each step in time is a root, and the rate constants are differentiated.

A step of the three-stage Radau IIA collocation method (order 5, L-stable) solves nine equations for the concentrations
at its nodes. The steps grow from 1e-6 s to the end by a constant ratio. The gradient of the concentration of C at the
end passes through all roots by the implicit function theorem; the table compares it with that of diffrax, which
differentiates an adaptive integration.

    python examples/robertson.py --steps 200 --end 1e4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import rootdiff_jax as rd

jax.config.update("jax_enable_x64", True)

RATES = {"k1": 0.04, "k2": 3e7, "k3": 1e4}  # A -> B in 1/s; 2 B -> B + C and B + C -> A + C in l/(mol s)
START = (1.0, 0.0, 0.0)  # mol/l of A, B, C
FIRST_TIME = 1e-6  # s; B settles within milliseconds
TOLERANCE = 1e-6  # relative; a hundred steps are good to 1e-7, and ten times better with each 1.6 times as many
# Radau IIA of order 5 (Hairer & Wanner 1996, table IV.5.6); the last node is the end of the step
R6 = np.sqrt(6)
RADAU = np.array(
    [
        [(88 - 7 * R6) / 360, (296 - 169 * R6) / 1800, (-2 + 3 * R6) / 225],
        [(296 + 169 * R6) / 1800, (88 + 7 * R6) / 360, (-2 - 3 * R6) / 225],
        [(16 - R6) / 36, (16 + R6) / 36, 1 / 9],
    ]
)


def speeds(y: Any, rates: Any) -> Any:
    """Return dy/dt, (..., 3), in mol/(l s)."""
    a, b, c = jnp.moveaxis(y, -1, 0)
    first, second, third = rates[0] * a, rates[1] * b * b, rates[2] * b * c
    return jnp.stack([third - first, first - second - third, second], axis=-1)


def collocation(changes: Any, start: Any, step: Any, rates: Any) -> Any:
    """Return the residual of one step, (3 nodes, 3 species), in the changes since its start, where it is `start`.

    In the concentrations themselves a short step would be lost in rounding (Hairer & Wanner 1996, eq. IV.8.2).
    """
    return changes - step * (RADAU @ speeds(start + changes, rates))


def integrate(rates: Any, times: Any) -> Any:
    """Return the concentrations at `times`, (steps, 3), by one root per step."""

    def advance(start: Any, step: Any) -> tuple[Any, Any]:
        sol = rd.root(collocation, jnp.zeros((3, 3)), start, step, rates, solver="newton")
        end = start + sol.y[-1]  # NaN after a failed step: compiled code cannot raise
        return end, end

    return jax.lax.scan(advance, jnp.array(START), jnp.diff(times, prepend=0.0))[1]


def reference(rates: Any, end: float) -> Any:
    """Return the concentrations at the end by diffrax, (3): ESDIRK of order 5 with adaptive steps."""
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, rates: speeds(y, rates)),
        diffrax.Kvaerno5(),
        t0=0.0,
        t1=end,
        dt0=FIRST_TIME,
        y0=jnp.array(START),
        args=rates,
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-13),
        max_steps=4096,
    )
    return solution.ys[-1]


def table(ours: Any, theirs: Any) -> float:
    """Print value and gradient beside the reference and return the largest relative deviation."""
    units = ("mol/l", "mol s/l", "mol^2 s/l^2", "mol^2 s/l^2")
    print("                       unit  rootdiff             diffrax              relative deviation")
    deviations = []
    for name, unit, mine, other in zip(("C", *RATES), units, ours, theirs, strict=True):
        deviations.append(abs(mine / other - 1))
        label = "C(end)" if name == "C" else f"dC/d{name}"
        print(f"{label:12s}{unit:>15s}  {mine:<19.12e}  {other:<19.12e}  {deviations[-1]:.1e}")
    return float(np.max(deviations))


def draw(times: Any, path: Any, folder: Path) -> Path:
    """Save the concentrations over time and return the path of the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    curves = ((1, "#1b9e77", "A"), (2e4, "#d95f02", "B, times 20 000"), (1, "#7570b3", "C"))
    for (scale, color, label), values in zip(curves, path.T, strict=True):
        axes.semilogx(times, scale * values, ".-", color=color, label=label, linewidth=1.2, markersize=3)
    axes.set(xlabel="time (s)", ylabel="concentration (mol/l)", ylim=(-0.02, 1.05))
    axes.set_title(f"Robertson's kinetics: {len(times)} roots, one per step")
    axes.grid(linewidth=0.4)
    axes.legend(loc="center left")
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "robertson.png", dpi=100)
    plt.close(figure)
    return folder / "robertson.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="number of steps in time (default: 200)")
    parser.add_argument("--end", type=float, default=1e4, help="end of the integration in s (default: 1e4)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    rates = jnp.array(list(RATES.values()))
    times = jnp.geomspace(FIRST_TIME, options.end, options.steps)

    def last(rates: Any) -> tuple[Any, Any]:
        path = integrate(rates, times)
        return path[-1, 2], path

    (value, path), gradient = jax.jit(jax.value_and_grad(last, has_aux=True))(rates)
    other = jax.jit(jax.value_and_grad(lambda rates: reference(rates, options.end)[2]))(rates)
    deviation = table((value, *gradient), (other[0], *other[1]))
    print(f"figure: {draw(times, np.asarray(path), options.output)}")
    if not deviation < TOLERANCE:
        print(f"FAILED: a deviation is not below {TOLERANCE}; take more steps.", file=sys.stderr)
    return 0 if deviation < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
