"""The registry: names, values, duplicates, plug-ins."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentTypeError, DuplicateNameError, Newton, UnknownNameError, _names, _registry


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


def test_a_value_is_returned_as_it_is() -> None:
    solver: Any = Newton(rtol=1e-3)
    assert rootdiff.get_solver(solver) is solver


def test_solvers_are_values() -> None:
    assert Newton(rtol=1e-3) == Newton(rtol=1e-3)
    assert hash(Newton()) == hash(Newton())
    assert "rtol=0.001" in repr(Newton(rtol=1e-3))
