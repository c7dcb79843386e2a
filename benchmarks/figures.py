"""The figures of the documentation, from the JSON of a run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.contenders import FLOOR
from benchmarks.report import best, compared, floor

#: A colour per library, one of each kind, that stays apart in grey too.
_COLOURS = {
    "floor": "#555555",
    "rootdiff": "#9ecae1",
    "rootdiff_torch": "#4292c6",
    "rootdiff_jax": "#08306b",
    "Optimistix": "#e6550d",
    "PyTorch by hand": "#31a354",
    "TorchDEQ": "#fdae6b",
    "JAXopt": "#756bb1",
    "back-propagation, torch": "#a1d99b",
    "back-propagation, JAX": "#bcbddc",
}


def draw(results: dict[str, Any], folder: Path, name: str = "benchmarks") -> list[tuple[str, str]]:
    """Write the figures for which there are data, their files named after `name`; return captions and file names."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for caption, ending, function in (
        ("Value and gradient: the floor, rootdiff, and the best of the others", "", _comparison),
        ("Value and gradient against the batch (n = 8) and against the unknowns", "_scaling", _scaling),
        ("Peak memory of value and gradient against the solver's steps", "_memory", _memory),
    ):
        figure = function(results)
        if figure is not None:
            file = f"{name}{ending}.png"
            figure.savefig(folder / file, dpi=120, bbox_inches="tight", metadata={"Software": None})
            drawn.append((caption, file))
    return drawn


def _comparison(results: dict[str, Any]) -> Any:
    from matplotlib import pyplot as plt

    entries = compared(results)
    if not entries:
        return None
    marks = (("|", _COLOURS[FLOOR]), ("o", _COLOURS["rootdiff_jax"]), ("s", _COLOURS["Optimistix"]))
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(entries) + 1.2))
    for place, entry in enumerate(reversed(entries)):
        ours, peer = best(entry, ours=True), best(entry, ours=False)
        times = [floor(entry["rows"], "both_s"), *(row and row["both_s"] for row in (ours, peer))]
        known = [1e3 * time for time in times if time]
        axes.plot([min(known), max(known)], [place, place], color="#cccccc", zorder=0)
        for time, (marker, colour) in zip(times, marks, strict=True):
            if time:
                axes.plot(1e3 * time, place, marker, color=colour, markersize=8, markeredgewidth=2)
        if peer:
            offset = {"xytext": (0, 7), "textcoords": "offset points"}
            axes.annotate(peer["library"], (1e3 * peer["both_s"], place), ha="center", fontsize=7, **offset)
    axes.set_yticks(range(len(entries)), [f"{e['title']}:\n{e['case']}" for e in reversed(entries)], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("forward and backward, ms")
    for label, (marker, colour) in zip(("floor", "rootdiff", "best other"), marks, strict=True):
        axes.plot([], [], marker, color=colour, label=label)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=8)
    axes.margins(x=0.15)
    return figure


def _scaling(results: dict[str, Any]) -> Any:
    from matplotlib import pyplot as plt

    tables = [entry for entry in results["tables"] if entry["workload"] == "scaling"]
    panels = {"batch": r"batch (\d+)", "unknowns": r"^n = (\d+)"}
    found = {label: [(int(m[1]), e) for e in tables if (m := re.search(p, e["case"]))] for label, p in panels.items()}
    if not any(found.values()):
        return None
    figure, both = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axes, (label, entries) in zip(both, found.items(), strict=True):
        for library, rows in _by_row(entries, "both_s").items():
            _line(axes, library, rows, 1e3)
        axes.set(xscale="log", yscale="log", xlabel=label)
    both[0].set_ylabel("forward and backward, ms")
    both[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _memory(results: dict[str, Any]) -> Any:
    from matplotlib import pyplot as plt

    entries = [(int(e["case"].split()[0]), e) for e in results["tables"] if e["workload"] == "memory"]
    if not entries:
        return None
    figure, axes = plt.subplots(figsize=(6, 4))
    for library, rows in _by_row(entries, "memory_bytes").items():
        _line(axes, library, rows, 2**-20)
    axes.set(xscale="log", yscale="log", xlabel="solver steps", ylabel="peak memory, MiB")
    axes.legend(fontsize=7)
    return figure


def _by_row(entries: list[tuple[int, Any]], key: str) -> dict[tuple[str, str], list[tuple[int, float]]]:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for size, entry in entries:
        for row in entry["rows"]:
            if row.get(key):
                lines.setdefault((row["library"], row["configuration"]), []).append((size, row[key]))
    return lines


def _line(axes: Any, library: tuple[str, str], rows: list[tuple[int, float]], scale: float) -> None:
    style = "--" if library[0] == FLOOR else "-"
    sizes, values = zip(*sorted(rows), strict=True)
    axes.plot(
        sizes,
        [scale * value for value in values],
        f"o{style}",
        color=_COLOURS.get(library[0]),
        markersize=4,
        label=", ".join(library),
    )
