"""The public surface: what is exported, documented and shown by example."""

from __future__ import annotations

import doctest
import importlib
import inspect
from types import ModuleType
from typing import Any

import pytest

from rootdiff import _registry

PACKAGES = ("rootdiff", "rootdiff_torch", "rootdiff_jax")


def _public(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_what_is_exported(package: str) -> None:
    module = importlib.import_module(package)
    assert set(module.__all__) == _public(module)
    assert list(module.__all__) == list(dict.fromkeys(module.__all__))


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_adapters_offer_the_names_of_the_core(package: str) -> None:
    core = set(importlib.import_module("rootdiff").__all__)
    assert core <= set(importlib.import_module(package).__all__)


def _examples() -> list[Any]:
    seen: dict[int, Any] = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            seen.setdefault(id(value), pytest.param(value, id=f"{package}.{name}"))
    return list(seen.values())


@pytest.mark.parametrize("value", _examples())
def test_public_name_is_documented(value: Any) -> None:
    assert inspect.getdoc(value)
    assert inspect.getdoc(value) != inspect.getdoc(object)


@pytest.mark.parametrize("value", _examples())
def test_docstring_examples_run(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in (_registry.SOLVERS, _registry.ADJOINTS):  # what an example registers is forgotten
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    name = getattr(value, "__name__", "example")
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
        failures: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(test, out=failures.append)
        assert not failures, "".join(failures)
