"""Reports are data that print as tables; the kit loads no framework that nobody asked for."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff.testing import CheckFailed, Report, check_residual

ROOT = Path(__file__).parent.parent.parent


def f(y: Any, a: Any) -> Any:
    return y**3 - a


def test_report_is_a_table() -> None:
    report = check_residual(f, np.ones(2), np.full(2, 2.0), solvers=["newton"], adjoints=["lu"])
    text = str(report)
    assert text.startswith("check_residual of f\n  numpy, float64: 2 unknowns, 2 parameters, condition 1; ")
    for word in ("property", "gradient (vjp)", "jvp and vjp transposed", "independent of y0", "allowed"):
        assert word in text
    assert dataclasses.is_dataclass(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.subject = ""  # type: ignore[misc]


def test_step_and_accuracy_are_reported() -> None:
    report = check_residual(f, np.ones(2), np.full(2, 2.0), solvers=["newton"], adjoints=["lu"])
    assert "root reached to" in report.conditions[0]
    assert "step of differences" in report.conditions[0]
    assert "symmetric here, which hides a transposition" in report.conditions[1]


def test_failure_is_an_assertion_and_an_error_of_rootdiff() -> None:
    with pytest.raises(CheckFailed) as caught:
        check_residual(lambda y, a: y**2 + a, np.ones(1), np.ones(1), solvers=["newton"])
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, rootdiff.RootdiffError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.report == caught.value.report
    assert isinstance(copy.report, Report)


def test_reproduce_line_reproduces() -> None:
    with pytest.raises(CheckFailed) as caught:
        check_residual(f, np.array([1.0]), np.array([2.0]), solvers=["newton"], jac=f)
    line = caught.value.report.reproduce
    with pytest.raises(CheckFailed, match="given jac"):
        eval(line, {"check_residual": check_residual, "np": np, "f": f})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backends": ["tensorflow"]}, "'tensorflow' is not among numpy, torch, jax"),
        ({"modes": ["hvp"]}, r"\['hvp'\] are not among"),
        ({"solvers": ["newtn"]}, "Did you mean 'newton'"),
        ({"batch_ndim": 3}, "batch_ndim"),
    ],
)
def test_wrong_arguments_are_named(options: Any, words: str) -> None:
    with pytest.raises((rootdiff.ArgumentError, CheckFailed), match=words):
        check_residual(f, np.ones(1), np.ones(1), **options)


def test_too_many_unknowns_are_refused() -> None:
    with pytest.raises(rootdiff.ArgumentError, match="Check a smaller instance"):
        check_residual(f, np.ones(2000), np.ones(2000))


def test_numpy_loads_no_framework() -> None:
    code = (
        "import sys, numpy as np\n"
        "from rootdiff.testing import check_residual\n"
        "check_residual(lambda y, a: y**3 - a, np.ones(1), np.ones(1), solvers=['newton'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "jax", "hypothesis", "pytest"} & set(done.stdout.split())


def test_backends_are_compared() -> None:
    report = check_residual(
        lambda y, a: y**3 + 0.5 * y[..., ::-1] - a if isinstance(y, np.ndarray) else y**3 + 0.5 * y.flip(-1) - a,
        np.ones(2), np.array([1.3, 2.0]), backends=["numpy", "torch"], solvers=["newton"], adjoints=["lu"],
    )  # fmt: skip
    assert [check.outcome for check in report.checks if check.name == "same root on every backend"] == ["passed"]


def test_jax() -> None:
    report = check_residual(
        lambda y, a: y**3 + 0.5 * y[::-1] - a, np.ones(2), np.array([1.3, 2.0]), backends=["jax"], solvers=["newton"],
        adjoints=["lu"],
    )  # fmt: skip
    assert {"gradient (vjp)", "gradient (jvp)", "second derivative", "no gradient to y0"} <= {
        check.name for check in report.checks if check.outcome == "passed"
    }
