"""The registry: names, values, duplicates, plug-ins."""

from __future__ import annotations

import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
from scipy.linalg import LinAlgWarning

import rootdiff
from rootdiff import ArgumentTypeError, DuplicateNameError, Newton, UnknownNameError, _names, _registry
from rootdiff.solvers._scipy import _FILTER
from tests.strict import STRICT


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries whose new entries are forgotten after the test."""
    for registry in (_registry.SOLVERS, _registry.ADJOINTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))


def test_every_name_makes_its_object() -> None:
    for name in rootdiff.available_solvers():
        if not name.startswith("optimistix:"):
            assert isinstance(rootdiff.get_solver(name), rootdiff.Solver)
    for name in rootdiff.available_adjoints():
        assert isinstance(rootdiff.get_adjoint(name), rootdiff.LinearSolver)


@pytest.mark.usefixtures("fresh")
def test_registered_solver_is_used_by_name() -> None:
    rootdiff.register_solver("mine", lambda: Newton(max_steps=1))
    sol = rootdiff.root(lambda y: y**2 - 2, np.array([1.0]), solver="mine", on_failure="ignore")
    assert sol.steps == 1
    assert "mine" in rootdiff.available_solvers("torch")


@pytest.mark.usefixtures("fresh")
def test_duplicate_is_refused() -> None:
    with pytest.raises(DuplicateNameError, match="'newton' is registered already"):
        rootdiff.register_solver("newton", Newton)
    with pytest.raises(DuplicateNameError, match=r"register_adjoint.*'lu'"):
        rootdiff.register_adjoint("lu", rootdiff.LU)


@pytest.mark.usefixtures("fresh")
def test_solver_of_another_backend_is_refused_with_the_reason() -> None:
    rootdiff.register_solver("jax-only", Newton, backends=["jax"])
    assert "jax-only" not in rootdiff.available_solvers("numpy")
    with pytest.raises(UnknownNameError, match="'jax-only' does not run on numpy, only on jax"):
        rootdiff.root(lambda y: y, np.array([1.0]), solver="jax-only")


@pytest.mark.usefixtures("fresh")
def test_unknown_backend_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="tensorflow"):
        rootdiff.register_solver("mine", Newton, backends=["tensorflow"])


@pytest.mark.usefixtures("fresh")
def test_an_adapter_brings_its_backend() -> None:
    rootdiff.register_solver("strict-only", Newton, backends=["strict"])
    assert "strict-only" in rootdiff.available_solvers(STRICT.backend().name)
    assert "strict-only" not in rootdiff.available_solvers("numpy")
    assert "newton" in rootdiff.available_solvers("strict")


@pytest.mark.usefixtures("fresh")
def test_factory_that_cannot_be_called_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="factory"):
        rootdiff.register_solver("mine", Newton())  # type: ignore[arg-type]


def test_entry_points_are_read_on_first_use(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def entry_points(group: str) -> list[EntryPoint]:
        read.append(group)
        return [EntryPoint("plugged", "rootdiff:Broyden", group)]

    monkeypatch.setattr(_names, "entry_points", entry_points)
    monkeypatch.setattr(_registry.SOLVERS, "_plugged", False)
    assert read == []
    assert "plugged" in rootdiff.available_solvers()
    assert read == ["rootdiff.solvers"]
    assert isinstance(rootdiff.get_solver("plugged"), rootdiff.Broyden)


def plug_in(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Make these the entry points, not read yet."""
    monkeypatch.setattr(
        _names, "entry_points", lambda group: [EntryPoint(name, value, group) for name, value in points]
    )
    monkeypatch.setattr(_registry.SOLVERS, "_plugged", False)


@pytest.mark.usefixtures("fresh")
def test_an_entry_point_with_a_taken_name_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, ("newton", "rootdiff:Broyden"), ("later", "rootdiff:Chord"))
    with pytest.warns(RuntimeWarning, match=r"entry point 'newton' \(rootdiff:Broyden\).*another name"):
        names = rootdiff.available_solvers()
    assert "later" in names
    assert isinstance(rootdiff.get_solver("newton"), Newton)
    assert isinstance(rootdiff.get_solver("later"), rootdiff.Chord)


@pytest.mark.usefixtures("fresh")
def test_threads_that_are_first_together_all_see_the_plug_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(group: str) -> list[EntryPoint]:
        time.sleep(0.05)
        return [EntryPoint("plugged", "rootdiff:Broyden", group)]

    monkeypatch.setattr(_names, "entry_points", slow)
    monkeypatch.setattr(_registry.SOLVERS, "_plugged", False)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: type(rootdiff.get_solver("plugged")).__name__, range(8)))
    assert found == ["Broyden"] * 8


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("name", [3, None, "", ("a",)])
def test_a_name_that_is_no_text_is_refused_and_breaks_nothing(name: Any) -> None:
    before = rootdiff.available_solvers()
    with pytest.raises(ArgumentTypeError, match="register_solver: name is"):
        rootdiff.register_solver(name, Newton)
    assert rootdiff.available_solvers() == before


@pytest.mark.usefixtures("fresh")
def test_a_factory_that_returns_no_solver_is_named() -> None:
    rootdiff.register_solver("mine", lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ArgumentTypeError, match=r"factory of 'mine' returned None; it must return a Solver"):
        rootdiff.root(lambda y: y, np.array([1.0]), solver="mine")


def test_scipy_in_threads_leaves_the_filters_of_warnings_alone() -> None:
    before = [entry for entry in warnings.filters if entry is not _FILTER]

    def solve(k: int) -> bool:
        y0 = np.full(3, 1.0 + k / 10)
        return bool(rootdiff.root(lambda y: np.cos(y) - y, y0, solver="scipy:anderson").converged)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(solve, range(32)))
    assert [entry for entry in warnings.filters if entry is not _FILTER] == before
    with pytest.warns(LinAlgWarning):
        warnings.warn("of the user", LinAlgWarning, stacklevel=1)


def test_a_value_is_returned_as_it_is() -> None:
    solver: Any = Newton(rtol=1e-3)
    assert rootdiff.get_solver(solver) is solver


def test_solvers_are_values() -> None:
    assert Newton(rtol=1e-3) == Newton(rtol=1e-3)
    assert hash(Newton()) == hash(Newton())
    assert "rtol=0.001" in repr(Newton(rtol=1e-3))
