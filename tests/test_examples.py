"""The examples, as their users run them, at reduced size."""

import io
import os
import re
import runpy
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from matplotlib import pyplot
from pypower.api import ppoption, runpf

from tests.harness import THOROUGH

ROOT = Path(__file__).parent.parent


def run(script, *arguments, fresh=THOROUGH):
    """Run a script, in a fresh process or as in one, and return what it printed; importing takes longer than most."""
    if not fresh:
        return run_here(ROOT / script, *map(str, arguments))
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_here(script, *arguments):
    """Run a script in this process, and leave no module and no setting of it behind."""
    known, double, printed, code = set(sys.modules), jax.config.jax_enable_x64, io.StringIO(), None
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(sys, "argv", [str(script), *arguments])
        patch.syspath_prepend(script.parent)
        pyplot.switch_backend("Agg")
        jax.config.update("jax_enable_x64", False)
        try:
            with redirect_stdout(printed):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            jax.config.update("jax_enable_x64", double)
            pyplot.close("all")
            for name in set(sys.modules) - known:
                if str(getattr(sys.modules[name], "__file__", "")).startswith(str(script.parent)):
                    del sys.modules[name]
    assert not code, printed.getvalue()
    return printed.getvalue()


def is_figure(path):
    data = path.read_bytes()
    return data.startswith(b"\x89PNG") and len(data) > 10_000


@pytest.fixture
def power_flow(monkeypatch):
    """The modules of the example, imported as a script imports them."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import ieee_cases
    import power_flow

    yield power_flow, ieee_cases
    for name in ("power_flow", "ieee_cases", "power_flow_figure"):
        sys.modules.pop(name, None)


def rows(printed):
    """Return the table of the example, once its errors are small."""
    found = re.findall(r"^IEEE 14 +(\w+) +(\S+) +\S+ +(\S+) +(\S+) +(\S+)", printed, re.MULTILINE)
    for _, _, voltage, losses, gradient in found:
        assert float(voltage) < 1e-8
        assert float(losses) == pytest.approx(13.393, abs=1e-3)  # MW, published with the case
        assert float(gradient) < 1e-6
    return [tuple(row[:2]) for row in found]


def test_power_flow_agrees_with_pypower(tmp_path):
    printed = run("examples/power_flow.py", "--case", 14, "--output", tmp_path, fresh=True)
    assert rows(printed) == [(backend, "newton") for backend in ("numpy", "torch", "jax")]
    assert is_figure(tmp_path / "power_flow_14.png")


@pytest.mark.parametrize(("solver", "backend"), [("scipy:hybr", "torch"), ("broyden", "numpy")])
def test_power_flow_by_other_solvers(power_flow, tmp_path, capsys, solver, backend):
    options = ("--case", "14", "--backend", backend, "--solver", solver, "--output", str(tmp_path))
    assert power_flow[0].main([*options]) == 0
    assert rows(capsys.readouterr().out) == [(backend, solver)]


@pytest.mark.parametrize("name", ["14", "118", "300"])
def test_power_flow_residual_vanishes_at_the_solution_of_pypower(power_flow, name):
    example, data = power_flow
    case = data.load_case(name)
    flow, start, loads = example.build(case, np.asarray, np.asarray)
    voltage = {"angle": np.angle(case.reference[:-1]), "magnitude": np.abs(case.reference[: case.n_pq])}
    mismatch = flow.mismatch(voltage, *loads)
    # PYPOWER stops below 1e-12 pu; the terms of the mismatch reach some hundred pu, each rounded
    assert max(np.max(np.abs(part)) for part in mismatch.values()) < 1e-11
    assert max(np.max(np.abs(part)) for part in flow.mismatch(start, *loads).values()) > 0.1
    # the losses of the branches, by PYPOWER's own branch flows
    solved, _ = runpf(data.CASES[name](), ppoption(PF_TOL=1e-12, VERBOSE=0, OUT_ALL=0))
    branch = solved["branch"]
    assert flow.losses(voltage) * case.base == pytest.approx(np.sum(branch[:, 13] + branch[:, 15]), rel=1e-10)


def test_power_flow_reports_a_deviation_as_failure(power_flow, monkeypatch, tmp_path, capsys):
    example, _ = power_flow
    monkeypatch.setattr(example, "VOLTAGE_TOLERANCE", 0.0)
    assert example.main(["--case", "14", "--backend", "numpy", "--output", str(tmp_path)]) == 1
    assert "FAILED" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("backend", "solver", "adjoint"),
    [
        ("torch", "auto", "auto"),
        *(
            pytest.param(*case, marks=pytest.mark.exhaustive)
            for case in [
                *(("jax", "anderson", "gmres"), ("jax", "auto", "auto")),
                *(("torch", "anderson", "gmres"), ("torch", "fixed_point", "lu")),
            ]
        ),
    ],
)
def test_digits_learn_in_one_epoch(tmp_path, backend, solver, adjoint):
    options = ("--backend", backend, "--solver", solver, "--adjoint", adjoint, "--epochs", 1, "--output", tmp_path)
    printed = run("examples/deq_digits.py", *options)
    number = r"([\d.e+-]+)"
    row = re.search(rf"^ +1 +{number} +{number} % +{number} +{number} +{number}", printed, re.MULTILINE)
    _, accuracy, steps, residual, adjoint_residual = map(float, row.groups())
    assert accuracy > 80  # a guess gets 10; the seeded run 88 to 89
    assert steps > 1
    assert residual < 1e-4  # eps^(3/4) of float32 in the state, of order one, times the slope of the residual
    assert adjoint_residual < 1e-5  # ten eps of float32 asked for, times the condition of the system, at most 20
    assert is_figure(tmp_path / f"deq_digits_{backend}.png")


def test_applications_are_solved():
    printed = run("examples/applications.py", "kepler", "colebrook", "diode-ladder", "--backend", "numpy")
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [row[0] for row in rows] == ["kepler", "colebrook", "diode-ladder"]
    assert all(float(row[4]) < 1e-12 for row in rows)
