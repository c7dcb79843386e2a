"""The harness of the benchmarks at the smallest sizes: its errors are small, its memory and its report make sense."""

import json

import numpy as np
import pytest

from benchmarks import measure, sparse_memory
from benchmarks.contenders import LIBRARIES, missing
from benchmarks.report import main, markdown
from benchmarks.workloads import WORKLOADS

#: Sizes at which a problem is solved in no time.
TINY = {
    "batch": {"n": 3, "batch": 5},
    "chemistry": {"batch": 4},
    "dense": {"n": 6},
    "deq": {"batch": 3, "width": 8},
    "bratu": {"m": 6},
    "kepler": {"size": 7},
    "volatility": {"size": 7},
    "slow": {"batch": 4, "n": 3},
    "overhead": {},
    "condition": {"condition": 1e3, "n": 5},
    "memory": {"steps": 3, "batch": 2, "width": 8},
    "sparse-bratu": {"m": 6},
    "curves": {"batch": 3, "m": 9},
    "ridge": {"samples": 12, "features": 3},
    "logistic": {"samples": 12, "features": 3, "logistic": True},
}

UNROLLED = {"back-propagation, torch", "back-propagation, JAX"}


@pytest.fixture(autouse=True)
def _few_imports(monkeypatch):
    needed = ("benchmarks.contenders.with_torch", "rootdiff_torch", "benchmarks.workloads")
    monkeypatch.setattr(measure, "PRELOAD", needed)


def records(name, rows):
    """Measure rows of a workload at its tiny size."""
    workload = WORKLOADS[name]
    problem = workload.build(**TINY[name])
    entry = {"workload": name, "case": "tiny", "title": workload.title, "note": workload.note, "dtype": "float64"}
    entry |= {"shape": list(problem.y0.shape), "accuracy": problem.accuracy}
    entry["rows"] = measure.table(name, TINY[name], problem, rows, repeats=2, limit=60, device="cpu")
    return entry


def results(tables):
    around = {"processor": "", "device": "cpu", "threads": 1, "python": "", "versions": {}, "repeats": 2, "jobs": 1}
    return {"environment": around, "tables": tables}


def chosen(name, libraries):
    """Return a row of each of some libraries, and those that have no numbers: these cost nothing."""
    rows = list(enumerate(WORKLOADS[name].rows))
    able = {row.library: (place, row) for place, row in reversed(rows) if not row.cannot}
    return [(p, row) for p, row in rows if row.cannot or missing(row) or (p, row) in map(able.get, libraries)]


@pytest.mark.parametrize("name", ["batch", "deq"])
def test_gradients_are_right_and_the_report_renders(name, tmp_path):
    entry = records(name, chosen(name, ("floor", "rootdiff", "rootdiff_torch")))
    measured = [row for row in entry["rows"] if "reason" not in row]
    assert {"floor", "rootdiff", "rootdiff_torch"} <= {row["library"] for row in measured}
    for row in measured:
        assert row["gradient_error"] < entry["accuracy"], row
        assert row["forward_s"] > 0
        assert row["both_s"] > 0
        assert row["memory_bytes"] >= 0
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(results([entry])), encoding="utf-8")
    (tmp_path / "docs").mkdir()
    main([str(path), "--docs", str(tmp_path / "docs")])
    page = (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert all(f"| {row['library']} | {row['configuration']} |" in page for row in entry["rows"])
    assert (tmp_path / "docs" / "figures" / "benchmarks.png").stat().st_size > 10_000


def test_an_absent_library_says_so(monkeypatch):
    monkeypatch.setitem(LIBRARIES, "TorchDEQ", (("a_package_that_is_not_there",), "with_torch:torchdeq"))
    rows = [(place, row) for place, row in enumerate(WORKLOADS["deq"].rows) if row.library == "TorchDEQ"]
    entry = records("deq", rows)
    assert [row["reason"] for row in entry["rows"]] == ["not installed"] * len(rows)
    assert "not installed" in markdown(results([entry]))


def test_memory_of_the_gradient_does_not_grow_with_steps():
    rows = {row.library: place for place, row in enumerate(WORKLOADS["memory"].rows)}
    batch, width, steps = 256, 128, (50, 2050)
    growth = {}
    for library in ("rootdiff_torch", "back-propagation, torch"):
        peaks = []
        for count in steps:
            worker = measure.Worker("memory", {"steps": count, "batch": batch, "width": width}, rows[library], "cpu")
            peaks.append(worker.answer(60)["memory_bytes"])
            worker.stop()
        growth[library] = peaks[1] - peaks[0]
    iterates = (steps[1] - steps[0]) * batch * width * 4  # bytes of those that a tape would keep: 250 MiB
    # resident memory is not exact: the adjoint's vectors alone, the same at any step, were seen to take 34 to 44 MiB
    assert growth["rootdiff_torch"] < iterates / 4
    assert growth["back-propagation, torch"] > iterates


@pytest.mark.parametrize("name", TINY)
def test_references_agree_with_complex_steps(name):
    """The reference has derivatives written out; here they come from the residual alone, exact to rounding."""
    problem = WORKLOADS[name].build(**TINY[name])
    y, args = problem.solved.root, tuple(a.astype(float) for a in problem.args)
    rng, step = np.random.default_rng(1), 1e-30
    directions = [rng.standard_normal(a.shape) for a in args]

    def along(change, directions):
        moved = [a + 1j * step * d for a, d in zip(args, directions, strict=True)]
        return np.imag(problem.residual(np, y + 1j * step * change, *moved)).ravel() / step

    units = np.eye(y.size).reshape(-1, *y.shape)
    jacobian = np.stack([along(unit, [0.0 * d for d in directions]) for unit in units], axis=-1)
    tangent = np.linalg.solve(jacobian, -along(np.zeros_like(y), directions))
    exact = sum(np.sum(g * d) for g, d in zip(problem.solved.gradients, directions, strict=True))
    assert np.max(np.abs(problem.residual(np, y, *args))) < 1e-12
    assert np.sum(problem.weights.ravel() * tangent) == pytest.approx(exact, rel=1e-9)


def test_every_workload_has_each_library():
    for name, workload in WORKLOADS.items():
        given = {row.library for row in workload.rows}
        if name in ("curves", "ridge", "logistic"):  # minima: no floor, and who has neither these nor their gradients
            assert given == set(LIBRARIES) - {"floor", "TorchDEQ", "xitorch", "CasADi"} - UNROLLED, name
        elif name not in ("memory", "scaling", "sparse-bratu"):
            assert given == set(LIBRARIES), name


@pytest.mark.exhaustive
@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch", "rootdiff_jax"])
@pytest.mark.parametrize(("case", "size", "library"), [("chain", 10**6, "superlu"), ("grid", 1024, "pyamg")])
def test_a_million_sparse_unknowns_are_solved_and_differentiated_within_memory(package, case, size, library):
    if library == "pyamg":
        pytest.importorskip("pyamg")
    assert sparse_memory.peak(package, case, size, library) <= sparse_memory.LIMIT
