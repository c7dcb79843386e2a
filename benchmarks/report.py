"""From the JSON of a run to Markdown: the tables, and the page of the documentation with its figures.

python -m benchmarks.report output/benchmarks.json --docs docs

That of a run with ``--device cuda`` becomes a page of its own, benchmarks-gpu.md.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.contenders import FLOOR, OURS

_HEAD = (
    *("library", "configuration", "steps", "residual", "gradient error", "forward, ms", "x floor"),
    *("forward + backward, ms", "x floor", "first call, s", "peak, MiB"),
)


_TITLES = {
    "cpu": """# Benchmarks

Made by `benchmarks/report.py`, not edited by hand; `make bench-docs` makes it anew. `make bench` runs a part of it.
""",
    "cuda": """# Benchmarks on a GPU

Made by `benchmarks/report.py` from a run of `python -m benchmarks.run --device cuda`, not edited by hand. The problems
are those of [the benchmarks on a CPU](benchmarks.md), most of them too small to fill a GPU. JAX compiles with all
threads here, and XLA tunes no products, except where it says otherwise; JAX's peak memory is that of the process, what
it tried while it compiled included. "CUDA graph" is `cuda_graph=True`. A library that computes on the CPU is left out.
""",
}
_PAGE = """
- Every contender solves the same residual to the same end: a relative error of its gradients below the one stated,
  against a float64 reference by another route (a closed form, 60 digits, or dense solves with derivatives written out).
  What misses it is marked **wrong** and does not count.
- One thread, one process per contender; their calls are interleaved, and a number is the median of the repeats; of
  calls shorter than 5 ms each repeat is the mean of several. JAX's calls are compiled beforehand, except where it says
  otherwise, and run on a CPU in the thread that makes them (`jax_cpu_enable_async_dispatch` off): to hand one over to
  another thread costs some 50 us, whosever call it is.
- The *floor* is what the work must do, written out for the problem: the Jacobian by hand, the number of steps known,
  no test of convergence, no check. "x floor" is the time over that of the fastest floor of the same table.
- "First call" is value and gradient in a fresh process, compilation included, imports not. "Peak" is by how much a
  later such call raises the resident memory at most.
- "Steps" are those that the library reports: iterations, or evaluations for SciPy.
"""


def markdown(results: dict[str, Any]) -> str:
    """Return all tables."""
    return "\n".join([preamble(results), *(section(entry) for entry in results["tables"])])


def page(results: dict[str, Any], figures: list[tuple[str, str]]) -> str:
    """Return the page of the documentation; `figures` are captions and file names."""
    images = "\n".join(f"![{caption}](figures/{name})\n\n{caption}.\n" for caption, name in figures)
    tables = "\n".join(section(entry) for entry in results["tables"])
    title = _TITLES[results["environment"]["device"]]
    return f"{title}{_PAGE}\n{preamble(results)}\n## Summary\n\n{summary(results)}\n\n{images}\n## Tables\n{tables}\n"


def summary(results: dict[str, Any]) -> str:
    """Return a line per workload: the floor, our fastest row, and the fastest of the others."""
    lines = [
        "| workload | floor, ms | rootdiff, ms | x floor | best of the others, ms | x floor | rootdiff / other |",
        "|---|---:|---|---:|---|---:|---:|",
    ]
    for entry in compared(results):
        least, ours, peer = floor(entry["rows"], "both_s"), best(entry, ours=True), best(entry, ours=False)
        cells = [f"{entry['title']}: {entry['case']}", milliseconds(least)]
        for row in (ours, peer):
            time = None if row is None else row["both_s"]
            cells.append("none" if row is None else f"{milliseconds(time)} ({row['library']}, {row['configuration']})")
            cells.append(_ratio(time, least))
        cells.append(f"{ours['both_s'] / peer['both_s']:.2g}" if ours and peer else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compared(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables whose times are compared: those with a floor, without the sizes of the figure."""
    tables = [entry for entry in results["tables"] if entry["workload"] not in ("scaling", "memory")]
    return [entry for entry in tables if best(entry, ours=True) or best(entry, ours=False)]


def preamble(results: dict[str, Any]) -> str:
    around = results["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in around["versions"].items())
    return (
        f"{around['processor']}, {around['device']}, {around['threads']} thread; "
        f"Python {around['python']}; {versions}.\n"
        f"Medians of {around['repeats']} interleaved calls, each contender in a process of its own; "
        f"first calls {around['jobs']} at a time. Compare within a table only{_sources(results)}.\n"
        f"{_load(results)}\n"
    )


def _sources(results: dict[str, Any]) -> str:
    runs = results.get("runs", 1)
    return "" if runs == 1 else f": these come from {runs} runs, each table from one"


def _load(results: dict[str, Any]) -> str:
    """Return how busy the machine was: a contender alone, on one thread, is a load of one."""
    loads = [entry.get("load") for entry in results["tables"]]
    known = [load for load in loads if load is not None]
    if not known or len(known) < len(loads):
        return "How busy the machine was beside them was not recorded."
    return f"Load of the machine, one of which is ours: {min(known):.1f} to {max(known):.1f}."


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


def best(entry: dict[str, Any], *, ours: bool) -> dict[str, Any] | None:
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", type=Path, nargs="+", help="of one run, or of several with different workloads")
    parser.add_argument("--docs", type=Path, help="folder for benchmarks.md and its figures; else print the tables")
    options = parser.parse_args(arguments)
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in options.json]
    results = {"environment": runs[0]["environment"], "tables": [entry for run in runs for entry in run["tables"]]}
    results["runs"] = len(runs)
    if options.docs is None:
        print(markdown(results))
        return 0
    from benchmarks.figures import draw

    name = "benchmarks" if results["environment"]["device"] == "cpu" else "benchmarks-gpu"
    figures = draw(results, options.docs / "figures", name)
    (options.docs / f"{name}.md").write_text(page(results, figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
