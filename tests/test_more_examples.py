"""The short examples, as their users run them, at reduced size."""

import importlib
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from tests.test_examples import ROOT, is_figure, run

NUMBER = r"(-?\d\S*)"


@pytest.fixture
def equilibrium_fit(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import equilibrium_fit

    yield equilibrium_fit
    sys.modules.pop("equilibrium_fit", None)


def test_robertson_agrees_with_diffrax(tmp_path):
    printed = run("examples/robertson.py", "--steps", 100, "--end", 40, "--output", tmp_path)
    rows = re.findall(rf"^(C\(end\)|dC/dk\d) +.*?  {NUMBER} +{NUMBER} +{NUMBER}$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["C(end)", "dC/dk1", "dC/dk2", "dC/dk3"]
    # C at 40 s, as published with the problem
    assert float(rows[0][1]) == pytest.approx(0.2841637, abs=1e-6)
    for _, ours, theirs, deviation in rows:
        assert float(ours) == pytest.approx(float(theirs), rel=1e-6)
        assert float(deviation) < 1e-6
    assert is_figure(tmp_path / "robertson.png")


def test_the_last_of_the_poses_moves_with_what_was_measured(tmp_path):
    printed = run("examples/pose_graph.py", "--side", 8, "--output", tmp_path)
    found, wanted = re.search(rf"along a direction: {NUMBER}, by differences {NUMBER}$", printed, re.MULTILINE).groups()
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)
    assert is_figure(tmp_path / "pose_graph.png")


def test_a_pose_graph_in_the_format_of_toro_is_read(monkeypatch, tmp_path):
    """Three poses around a corner, seen without errors, and whole turns beside what they are."""
    (tmp_path / "Data").mkdir()
    lines = ["VERTEX2 0 .1 0 0", "VERTEX2 1 1 .1 0", "VERTEX2 2 1 1 1.5", "EQUIV 0 2"]
    lines += [f"EDGE2 {k} {k + 1} 1 0 {np.pi / 2 - 2 * np.pi * k} 1 0 1 1 0 0" for k in (0, 1)]
    (tmp_path / "Data" / "w100.graph").write_text("\n".join([*lines, "EDGE2 2 0 1 1 3.141592653589793 1 0 1 1 0 0"]))
    monkeypatch.syspath_prepend(ROOT / "examples")
    module = importlib.import_module("pose_graph")
    sys.modules.pop("pose_graph")
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(module, "find_spec", lambda name: found)
    poses = module.solve(module.read("w100"))
    expected = [[0, 0, 0], [1, 0, np.pi / 2], [1, 1, np.pi]]
    np.testing.assert_allclose(poses, expected, atol=1e-12)


def test_penalties_lower_the_validation_loss(tmp_path):
    printed = run("examples/ridge_hyperparameter.py", "--steps", 10, "--output", tmp_path)
    rows = re.findall(rf"^(?:first|last), .*?{NUMBER} +{NUMBER} +{NUMBER}$", printed, re.MULTILINE)
    assert len(rows) == 6
    assert max(abs(float(ours)) for ours, *_ in rows) > 1e-3
    assert max(float(deviation) for *_, deviation in rows) < 1e-7  # of scikit-learn's solutions; 1e-10 seen
    first, last = map(float, re.search(rf"^validation loss: {NUMBER} -> {NUMBER}$", printed, re.MULTILINE).groups())
    assert last < 0.8 * first
    assert is_figure(tmp_path / "ridge_hyperparameter.png")


def test_constants_are_those_that_made_the_data(tmp_path):
    printed = run("examples/equilibrium_fit.py", "--points", 15, "--output", tmp_path)
    rows = re.findall(rf"^(\w+) +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["HL", "H2L", "ML", "ML2"]
    for _, guess, fitted, error, true, _ in rows:
        assert abs(float(fitted) - float(true)) < 0.1 < abs(float(guess) - float(true))  # four errors of at most 0.025
        assert 1e-3 < float(error) < 0.03
    assert is_figure(tmp_path / "equilibrium_fit.png")


def nested_ph(totals, constants, water):
    """Return the pH of one point by two nested bisections in textbook form; all `constants` as powers of ten."""
    hydrogen, ligand, metal = totals
    first, second, ml, ml2 = 10.0**constants

    def bound(free):
        """Return ligand held by the metal per litre."""
        return metal * (ml * free + 2 * ml2 * free**2) / (1 + ml * free + ml2 * free**2)

    def excess(ph):
        h = 10.0**-ph

        def missing(log):
            free = 10.0**log
            return free * (1 + first * h + second * h**2) + bound(free) - ligand

        free = 10.0 ** brentq(missing, -30, 0, xtol=1e-15, rtol=1e-14)
        return h - water / h + free * (first * h + 2 * second * h**2) - hydrogen

    return brentq(excess, 0, 14, xtol=1e-14, rtol=1e-14)


def test_chemistry_and_its_jacobian_are_those_of_nested_bisections(equilibrium_fit):
    titration = equilibrium_fit.Titration.make(4)
    sol = titration.equilibrium(equilibrium_fit.TRUE, titration.start())
    jacobian = -sol.jacobian()[0][:, 0] / np.log(10)
    expected = []
    for totals in titration.totals:
        value = [
            nested_ph(totals, equilibrium_fit.TRUE + step, 10.0**equilibrium_fit.LOG_WATER)
            for step in [np.zeros(4), *(1e-4 * np.eye(4)), *(-1e-4 * np.eye(4))]
        ]
        expected.append(value[:1] + list((np.array(value[1:5]) - value[5:]) / 2e-4))
    expected = np.array(expected)
    np.testing.assert_allclose(equilibrium_fit.ph(sol.y), expected[:, 0], atol=1e-11)
    # the bisections are good to 1e-13, so their differences to 1e-9; the truncation is of the order of the step squared
    np.testing.assert_allclose(jacobian, expected[:, 1:], atol=1e-7)
    assert np.max(np.abs(jacobian)) > 0.3


def test_curves_have_the_certified_parameters():
    printed = run("examples/curve_fit.py")
    rows = re.findall(rf"^(?:Misra1a|MGH09) +b\d +{NUMBER} +{NUMBER} +{NUMBER} +{NUMBER}$", printed, re.MULTILINE)
    assert len(rows) == 6
    for _, off, deviation, linearised in rows:
        assert float(off) < 1e-9
        assert float(deviation) == pytest.approx(float(linearised), rel=0.4)


def test_a_killed_worker_loses_no_result_of_the_ensemble(monkeypatch, tmp_path):
    """A process is killed in the middle of the run, which finds what was done, and ends with all draws."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    case_data = importlib.import_module("ieee_cases")
    sys.modules.pop("ieee_cases")
    (tmp_path / "killed.py").write_text(KILLED)
    options = ("--case", 14, "--draws", 150, "--batch", 50, "--spread", 0.01, "--workers", 1, "--output", tmp_path)
    printed = run(tmp_path / "killed.py", ROOT / "examples", *options, "--engine", "processes", fresh=True)
    assert (tmp_path / "killed").exists()
    assert "150 draws, 0 without a power flow" in printed
    assert float(re.search(rf"^losses +{NUMBER}", printed, re.MULTILINE)[1]) == pytest.approx(13.4, abs=0.2)
    case = case_data.load_case("14")
    slopes = case_data.loss_differences(case, slice(None))
    expected = case.base * (slopes[0] * case.load.real + slopes[1] * case.load.imag) / 100
    of_load = {int(bus): float(x) for bus, x in re.findall(rf"^bus (\d+) +{NUMBER} MW", printed, re.MULTILINE)}
    for place in np.argsort(-expected)[:3]:  # a draw is 1 % off, and a slope changes by as much
        assert of_load[case.number[case.load_bus[place]]] == pytest.approx(expected[place], rel=0.01)
    assert is_figure(tmp_path / "14-50-0.01-0.png")


#: The example, whose second batch kills its process the first time.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import ensemble


def solve(flow, spread, draws, seed, batch):
    results, mark = ensemble.solve_batch(flow, spread, draws, seed, batch), Path(__file__).parent / "killed"
    if batch == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return results


if __name__ == "__main__":
    sys.exit(ensemble.main(sys.argv[2:], solve))
"""


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # attention has no batching rule
@pytest.mark.parametrize("name", ["deq_images", "deq_text"])
def test_equilibria_of_a_model_are_those_of_the_unrolled_one(monkeypatch, tmp_path, capsys, name):
    """The table tells what each keeps; the states and their gradients are those of a hundred steps."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    example = importlib.import_module(name)
    sys.modules.pop(name)
    small = {"deq_images": ("--epochs", 1, "--width", 4), "deq_text": ("--batches", 3, "--width", 20)}[name]
    assert example.main([*map(str, small), "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    rows = dict(re.findall(r"^(\w[\w ]*?) {2,}\d.* ([\d.]+)$", printed, re.MULTILINE))
    ours, unrolled = ("rootdiff", "unrolled") if name == "deq_images" else ("equilibrium", "8 unrolled")
    assert float(rows[ours]) < 0.6 * float(rows[unrolled])
    assert is_figure(tmp_path / f"{name}.png")
    monkeypatch.setattr(example, "TOLERANCE", 1e-6)
    torch.manual_seed(0)
    if name == "deq_images":
        cell, finds = example.Cell(4), (example.Equilibrium(4), example.Unrolled(4, 100))
        drive = cell.drive(torch.rand(3, 1, 8, 8))
    else:
        cell, finds = example.Block(20), (example.Equilibrium(100), example.unrolled(100))
        drive = [torch.rand(2, 5, 20, requires_grad=True)]
    found, expected = (find(cell, *drive) for find in finds)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    total = lambda states: sum((state**2).sum() for state in (states if isinstance(states, tuple) else [states]))
    gradients = [torch.autograd.grad(total(z), drive, retain_graph=True) for z in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_brusselator_keeps_the_exact_mean_and_its_derivatives(tmp_path):
    printed = run("examples/brusselator.py", "--points", 24, "--output", tmp_path)
    assert "1152 unknowns" in printed
    assert all(abs(float(part)) < 1e-8 for part in re.search(r"A and B: (.*)", printed)[1].split())
    assert is_figure(tmp_path / "brusselator.png")


def test_a_portfolio_by_a_solver_of_quadratic_programs(tmp_path):
    pytest.importorskip("clarabel")
    printed = run("examples/quadratic_program.py", "--points", 3, "--output", tmp_path)
    rows = re.findall(rf"^(.*?), (?:by|the) .*? +{NUMBER} +{NUMBER} +\S+$", printed, re.MULTILINE)
    slopes = ["d weights / d returns", "d multipliers / d returns", "d least risk / d goal"]
    assert [name for name, *_ in rows] == [*slopes, "weights", slopes[0]]
    for _, ours, other in rows:
        assert float(ours) == pytest.approx(float(other), rel=1e-6)
    assert is_figure(tmp_path / "quadratic_program.png")


def test_the_sensitivities_of_a_circuit_agree_with_differences(tmp_path):
    printed = run("examples/circuit.py", "--side", 12, "--output", tmp_path)
    rows = re.findall(rf"^(\w+) +{NUMBER} A/ohm, by differences +{NUMBER}$", printed, re.MULTILINE)
    assert [name for name, *_ in rows] == ["right", "down", "supply"]
    for _, ours, difference in rows:
        assert float(ours) == pytest.approx(float(difference), rel=1e-6)
    assert is_figure(tmp_path / "circuit.png")
