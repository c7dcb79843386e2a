"""The pytest plugin, run by a pytest of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rootdiff

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def inner(source: str, *options: str) -> Any:
        pytester.makepyfile(source)
        return pytester.runpytest_subprocess("-p", "rootdiff_pytest", "-v", *options)

    return inner


def test_a_run_that_asks_for_no_fixture_imports_nothing() -> None:
    code = """
import sys, pytest
before = set(sys.modules)
import rootdiff_pytest
print(sorted(name for name in set(sys.modules) - before if name.partition(".")[0] in ("numpy", "scipy", "rootdiff")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_old_name_of_the_plugin_loads_it_once(run: Callable[..., Any]) -> None:
    result = run(
        "def test_backend(rootdiff_backend): pass", "-p", "rootdiff.testing.plugin", "--rootdiff-backends=numpy"
    )
    result.assert_outcomes(passed=1)


def test_one_run_per_combination(run: Callable[..., Any]) -> None:
    source = """
        import numpy as np, rootdiff
        from rootdiff.testing import check_residual

        def test_mine(rootdiff_backend, rootdiff_solver, rootdiff_adjoint):
            check_residual(lambda y, a: y**3 - a, np.ones(1), np.full(1, 2.0), modes=["vjp"],
                backends=[rootdiff_backend], solvers=[rootdiff_solver], adjoints=[rootdiff_adjoint])
    """
    result = run(source, "--rootdiff-backends=numpy", "--rootdiff-solvers=newton,broyden")
    exact = [name for name in rootdiff.available_adjoints("numpy") if rootdiff.get_adjoint(name).exact]
    result.assert_outcomes(passed=2 * len(exact))
    result.stdout.fnmatch_lines(["*test_mine?numpy-newton-lu? PASSED*"])


def test_a_fixture_alone(run: Callable[..., Any]) -> None:
    source = """
        def test_backend(rootdiff_backend):
            assert rootdiff_backend in ("numpy", "torch", "jax")

        def test_solver(rootdiff_solver):
            assert isinstance(rootdiff_solver, str)
    """
    result = run(source, "--rootdiff-backends=numpy,torch", "--rootdiff-solvers=newton")
    result.assert_outcomes(passed=3)


def test_unknown_names_are_refused(run: Callable[..., Any]) -> None:
    source = "def test_backend(rootdiff_backend): pass"
    result = run(source, "--rootdiff-backends=tensorflow")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*--rootdiff-backends: tensorflow is not among numpy, torch, jax*"])


def test_a_failure_reads_like_a_diagnosis(run: Callable[..., Any]) -> None:
    source = """
        import numpy as np
        from rootdiff.testing import check_residual

        def test_mine():
            theta = np.ones(1)
            check_residual(lambda y, a: y**3 - theta, np.ones(1), theta, solvers=["newton"])
    """
    result = run(source)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*captured array that is not in args*'theta'*", "*To reproduce: check_residual(*"])


def test_the_plugin_needs_no_hypothesis(run: Callable[..., Any]) -> None:
    source = """
        import sys

        def test_nothing_is_loaded():
            assert not {"torch", "jax", "hypothesis"} & set(sys.modules)
    """
    run(source).assert_outcomes(passed=1)
