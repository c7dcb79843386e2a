"""The pytest plugin: fixtures that run a test once per backend, solver and adjoint that apply.

A test that asks for `rootdiff_backend`, `rootdiff_solver` or `rootdiff_adjoint` (any of them) runs for every
combination that is registered, plug-ins included. Each fixture is a name, as the arguments of the checks take it.

It stands by itself since pytest loads it in every run of an environment in which rootdiff is installed: rootdiff, and
what that imports, are loaded when a test asks for a fixture.
"""

from __future__ import annotations

import importlib.util
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIXTURES = ("rootdiff_backend", "rootdiff_solver", "rootdiff_adjoint")
_FRAMEWORKS = ("numpy", "torch", "jax")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that narrow the fixtures."""
    group = parser.getgroup("rootdiff")
    group.addoption(
        "--rootdiff-backends",
        metavar="NAMES",
        help="backends of the rootdiff fixtures, separated by commas; default: those whose framework is installed",
    )
    group.addoption(
        "--rootdiff-solvers",
        metavar="NAMES",
        help="solvers of the rootdiff fixtures, separated by commas; default: all that are registered",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that asks for a fixture of ours once per combination."""
    wanted = [name for name in _FIXTURES if name in metafunc.fixturenames]
    if not wanted:
        return
    config = metafunc.config
    combinations: dict[tuple[str, ...], None] = {}
    for backend in _backends(config.getoption("--rootdiff-backends")):
        values = {
            "rootdiff_backend": [backend],
            "rootdiff_solver": _solvers(backend, config.getoption("--rootdiff-solvers")),
            "rootdiff_adjoint": _adjoints(backend),
        }
        combinations |= dict.fromkeys(product(*(values[name] for name in wanted)))
    metafunc.parametrize(wanted, list(combinations), ids=["-".join(names) for names in combinations], indirect=True)


@pytest.fixture
def rootdiff_backend(request: pytest.FixtureRequest) -> Any:
    """Name of a backend whose framework is installed: "numpy", "torch" or "jax"."""
    return request.param


@pytest.fixture
def rootdiff_solver(request: pytest.FixtureRequest) -> Any:
    """Name of a registered solver of systems that runs on the backend."""
    return request.param


@pytest.fixture
def rootdiff_adjoint(request: pytest.FixtureRequest) -> Any:
    """Name of a registered exact adjoint solver that runs on the backend."""
    return request.param


def _backends(option: str | None) -> Sequence[str]:
    if option is None:
        return [name for name in _FRAMEWORKS if importlib.util.find_spec(name)]
    return _known("--rootdiff-backends", option, _FRAMEWORKS)


def _solvers(backend: str, option: str | None) -> Sequence[str]:
    from rootdiff._registry import available_solvers
    from rootdiff.testing._check_residual import system_solvers

    registered = system_solvers(backend)
    if option is None:
        return registered
    _known("--rootdiff-solvers", option, list(available_solvers()))
    return [name for name in _names(option) if name in registered]


def _adjoints(backend: str) -> Sequence[str]:
    from rootdiff.testing._check_residual import exact_adjoints

    return exact_adjoints(backend)


def _known(option: str, value: str, known: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in _names(value) if name not in known]
    if unknown:
        raise pytest.UsageError(f"{option}: {', '.join(unknown)} is not among {', '.join(known)}")
    return _names(value)


def _names(value: str) -> list[str]:
    return [name.strip() for name in value.split(",") if name.strip()]
