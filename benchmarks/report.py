"""From the JSON of a run to Markdown tables.

python -m benchmarks.report output/benchmarks.json
"""

from __future__ import annotations

import math
from typing import Any

from benchmarks.contenders import FLOOR, OURS

_HEAD = (
    *("library", "configuration", "steps", "residual", "gradient error", "forward, ms", "x floor"),
    *("forward + backward, ms", "x floor", "first call, s", "peak, MiB"),
)


def markdown(results: dict[str, Any]) -> str:
    """Return all tables."""
    return "\n".join([preamble(results), *(section(entry) for entry in results["tables"])])


def preamble(results: dict[str, Any]) -> str:
    around = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    return (
        f"{around['processor']}, {around['device']}, {around['threads']} thread; "
        f"Python {around['python']}; {versions}.\n"
        f"Medians of {around['repeats']} interleaved calls, each contender in a process of its own.\n"
    )


def section(entry: dict[str, Any]) -> str:
    """Return the table of one workload."""
    rows = entry["rows"]
    forward, both = (floor(rows, key) for key in ("forward_s", "both_s"))
    lines = [
        f"\n### {entry['title']}: {entry['case']}\n",
        f"{entry['dtype']}, unknown {tuple(entry['shape'])}; "
        f"gradients count up to a relative error of {entry['accuracy']:g}.",
        entry["note"],
        "",
        "| " + " | ".join(_HEAD) + " |",
        "|---|---|" + "---:|" * (len(_HEAD) - 2),
        *(_line(row, entry["accuracy"], forward, both) for row in rows),
    ]
    return "\n".join(line for place, line in enumerate(lines) if line or place != 2)


def floor(rows: list[dict[str, Any]], key: str) -> float | None:
    """Return the time of the fastest floor."""
    return min((row[key] for row in rows if row["library"] == FLOOR and row.get(key)), default=None)


def counts(row: dict[str, Any], accuracy: float) -> bool:
    """Return whether a row has gradients, and right ones."""
    error = row.get("gradient_error")
    return error is not None and row.get("both_s") is not None and math.isfinite(error) and error <= accuracy


def best(entry: dict[str, Any], ours: bool) -> dict[str, Any] | None:
    """Return the fastest row of ours, or of the peers, among those that count."""
    rows = [r for r in entry["rows"] if r["library"] != FLOOR and (r["library"] in OURS) == ours]
    return min((r for r in rows if counts(r, entry["accuracy"])), key=lambda r: r["both_s"], default=None)


def _line(row: dict[str, Any], accuracy: float, forward: float | None, both: float | None) -> str:
    head = [row["library"], row["configuration"]]
    if "reason" in row:
        return "| " + " | ".join([*head, "", "", row["reason"], *[""] * 6]) + " |"
    once = " (1 call)" if row.get("calls", 5) == 1 else ""
    gradient = "no derivative"
    if row["has_gradient"]:
        wrong = "" if counts(row, accuracy) else " **wrong**"
        gradient = f"{row['gradient_error']:.1e}{wrong}"
    cells = [
        "" if row["steps"] is None else str(row["steps"]),
        f"{row['residual']:.1e}{'' if row['root_error'] <= accuracy else ' **wrong**'}",
        gradient,
        milliseconds(row["forward_s"]) + once,
        _ratio(row["forward_s"], forward),
        milliseconds(row["both_s"]),
        _ratio(row["both_s"], both),
        f"{row['first_s']:.2f}",
        f"{row['memory_bytes'] / 2**20:.1f}",
    ]
    return "| " + " | ".join([*head, *cells]) + " |"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.3g}"


def _ratio(seconds: float | None, least: float | None) -> str:
    return (
        ""
        if not seconds or not least
        else f"{seconds / least:.2g}"
        if seconds < 100 * least
        else f"{seconds / least:.0f}"
    )
