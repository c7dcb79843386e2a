"""The figure of a power flow: voltages, sensitivities of the losses, the network, and how the solver converged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from scipy.sparse import issparse
from scipy.sparse.csgraph import shortest_path

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.collections import LineCollection

KINDS = (("load (PQ)", "o", "#1f77b4"), ("generator (PV)", "s", "#d95f02"), ("reference", "*", "#7b3294"))
LINES = {"numpy": ("NumPy", "-", "o"), "torch": ("PyTorch", "--", "s"), "jax": ("JAX", ":", "^")}


def draw(case: Any, some: Any, differences: tuple[Any, Any], results: list[Any], folder: Path) -> Path:
    """Save the figure of one case and return its path."""
    figure, axes = plt.subplots(2, 2, figsize=(13, 8.5), layout="constrained")
    answer = results[0].answer
    profile(axes[0, 0], case, answer)
    (plane if issparse(case.admittance) else network)(figure, axes[0, 1], case, answer)
    sensitivities(axes[1, 0], case, some, differences, answer)
    history(axes[1, 1], results)
    title = f"{case.name}: power flow of {len(case.number)} buses, losses {answer.losses * case.base:.2f} MW"
    figure.suptitle(title, fontsize=14)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"power_flow_{len(case.number)}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def kinds(case: Any) -> list[slice]:
    """Return where PQ buses, PV buses and the reference stand."""
    return [slice(0, case.n_pq), slice(case.n_pq, case.n_pq + case.n_pv), slice(case.n_pq + case.n_pv, None)]


def rank(case: Any) -> Any:
    """Return the place of each bus when sorted by its number."""
    return np.argsort(np.argsort(case.number))


def profile(axes: Any, case: Any, answer: Any) -> None:
    x, size = rank(case), 36 if len(case.number) < 50 else 14
    axes.scatter(
        x, np.abs(case.reference), s=3.5 * size, facecolors="none", edgecolors="0.5", linewidths=0.8, label="PYPOWER"
    )
    for (label, marker, color), part in zip(KINDS, kinds(case), strict=True):
        scale = 4 if marker == "*" else 1
        axes.scatter(x[part], answer.magnitude[part], s=scale * size, marker=marker, color=color, label=label, zorder=3)
    axes.set(title="Voltage profile", ylabel="voltage magnitude (pu)")
    low, high = np.min(answer.magnitude), np.max(answer.magnitude)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
    axes.legend(ncols=4, loc="upper center", fontsize=9, columnspacing=1.0, handletextpad=0.3)
    label_buses(axes, case)


def sensitivities(axes: Any, case: Any, some: Any, differences: tuple[Any, Any], answer: Any) -> None:
    x, wide = rank(case)[case.load_bus], 0.4
    parts = (
        ("active (MW/MW)", answer.gradient_p, differences[0], -0.5 * wide, "#1b9e77"),
        ("reactive (MW/Mvar)", answer.gradient_q, differences[1], 0.5 * wide, "#e6ab02"),
    )
    for label, gradient, difference, shift, color in parts:
        axes.vlines(x + shift, 0, gradient, linewidth=3 if len(x) < 50 else 0.7, color=color, label=label, zorder=2)
        size = 5 if len(some) < 50 else 2
        last = axes.plot(x[some] + shift, difference, ".", color="black", markersize=size, zorder=3)
    last[0].set_label("PYPOWER, differences")
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.set(title="Sensitivity of the losses to each load", ylabel="d(losses)/d(load)")
    values = np.concatenate([answer.gradient_p, answer.gradient_q])
    span = values.max() - min(values.min(), 0)
    axes.set_ylim(min(values.min(), 0) - 0.05 * span, values.max() + 0.2 * span)
    axes.legend(ncols=3, loc="upper center", fontsize=9, columnspacing=1.0, handletextpad=0.4)
    axes.grid(axis="y", linewidth=0.4)
    label_buses(axes, case)


def network(figure: Any, axes: Any, case: Any, answer: Any) -> None:
    place = layout(case.admittance)
    pairs = np.argwhere(np.triu(np.abs(case.admittance), 1) > 0)
    axes.add_collection(LineCollection(place[pairs], colors="0.75", linewidths=0.8, zorder=1))
    few = len(case.number) < 50
    axes.scatter(*place.T, s=30 if few else 6, color="0.6", zorder=2)
    spread = np.max(np.abs(answer.gradient_p))
    dots = axes.scatter(
        *place[case.load_bus].T,
        c=answer.gradient_p,
        s=170 if few else 34,
        cmap="RdBu_r",
        vmin=-spread,
        vmax=spread,
        edgecolors="0.3",
        linewidths=0.5,
        zorder=3,
    )
    axes.scatter(*place[-1], marker="*", s=260 if few else 200, color="#7b3294", edgecolors="white", zorder=4)
    if few:
        for number, (across, up) in zip(case.number, place, strict=True):
            axes.annotate(str(number), (across, up), (7, 7), textcoords="offset points", fontsize=9)
    axes.set(title="Active sensitivity on the network (star: reference bus)", xticks=[], yticks=[], aspect="equal")
    axes.margins(0.06)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(dots, ax=axes, label="d(losses)/d(active load) (MW/MW)", shrink=0.85)


def plane(figure: Any, axes: Any, case: Any, answer: Any) -> None:
    """Draw the buses with loads in the plane of angle and magnitude: a large network is a cloud."""
    angle, magnitude = np.rad2deg(answer.angle[case.load_bus]), answer.magnitude[case.load_bus]
    spread = np.max(np.abs(answer.gradient_p))
    dots = axes.scatter(
        angle, magnitude, c=answer.gradient_p, s=4, cmap="RdBu_r", vmin=-spread, vmax=spread, rasterized=True
    )
    axes.set(title="Active sensitivity of the loads", xlabel="voltage angle (degrees)", ylabel="magnitude (pu)")
    figure.colorbar(dots, ax=axes, label="d(losses)/d(active load) (MW/MW)", shrink=0.85)


def history(axes: Any, results: list[Any]) -> None:
    for result in results:
        name, style, marker = LINES[result.backend]
        limits, norms = result.history
        norms = np.maximum(norms, 1e-17)  # a residual of zero has no place on a log axis
        size = 9 - 2 * list(LINES).index(result.backend)  # equal curves stay visible
        axes.semilogy(limits, norms, style, marker=marker, markersize=size, label=name)
    axes.set(
        title=f"Convergence ({results[0].solver})",
        xlabel="step",
        ylabel="largest power mismatch (pu)",
    )
    axes.set_ylim(1e-16, None)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(linewidth=0.4)
    axes.legend()


def label_buses(axes: Any, case: Any) -> None:
    """Label the horizontal axis with bus numbers: all where they are few, else some."""
    numbers = np.sort(case.number)
    stride = 1 if len(numbers) < 50 else len(numbers) // 12
    places = np.arange(0, len(numbers), stride)
    axes.set_xticks(places, [str(number) for number in numbers[places]], fontsize=9)
    axes.set(xlabel="bus number", xlim=(-1, len(numbers)))


def layout(admittance: Any, rounds: int = 300) -> Any:
    """Return places, (buses, 2), whose distances are those along the branches as nearly as can be.

    Stress majorisation (Gansner, Koren & North 2005) with weights 1/d^2, from classical scaling.
    """
    distance = shortest_path(np.abs(admittance) > 0, unweighted=True, directed=False)
    n = len(distance)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ distance**2 @ centring)
    place = vectors[:, -2:] * np.sqrt(values[-2:])
    weight = 1 / (distance + np.eye(n)) ** 2 - np.eye(n)
    inverse = np.linalg.pinv(np.diag(weight.sum(axis=1)) - weight)
    for _ in range(rounds):
        apart = np.linalg.norm(place[:, None] - place[None], axis=-1)
        pull = -weight * distance / np.maximum(apart, 1e-9)
        place = inverse @ ((pull - np.diag(pull.sum(axis=1))) @ place)
    spread = np.linalg.svd(place - place.mean(axis=0), full_matrices=False)[2]
    return (place - place.mean(axis=0)) @ spread.T  # the long side across
