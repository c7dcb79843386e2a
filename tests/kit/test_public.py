"""The public surface of the kit: what is exported, documented and shown by example."""

from __future__ import annotations

import doctest
import inspect

import pytest

import rootdiff.testing


def test_all_is_what_is_exported() -> None:
    public = {
        name
        for name, value in vars(rootdiff.testing).items()
        if not name.startswith("_") and (not inspect.ismodule(value) or name == "problems")
    }
    assert set(rootdiff.testing.__all__) == public - {"annotations"}


@pytest.mark.parametrize("name", rootdiff.testing.__all__)
def test_docstring_examples_run(name: str) -> None:
    value = getattr(rootdiff.testing, name)
    assert inspect.getdoc(value)
    for test in doctest.DocTestFinder(recurse=False).find(value, name, globs={}):
        failures: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
        runner.run(test, out=failures.append)
        assert not failures, "".join(failures)
