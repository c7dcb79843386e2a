"""The entry points of the three packages are one: signatures, docstrings, refusals and the errors for bad arguments."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from collections.abc import Callable
from typing import Any, get_type_hints

import numpy as np
import pytest

from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, _entry, _ode, _task
from rootdiff._adapter import Adapter, Found
from rootdiff._bound import SHARED, bound, filled
from rootdiff._numpy import NumpyBackend
from rootdiff._numpy_words import WORDS as NUMPY_WORDS
from rootdiff._solver import run
from rootdiff_jax._words import WORDS as JAX_WORDS
from rootdiff_torch._words import WORDS as TORCH_WORDS

PACKAGES = ("rootdiff", "rootdiff_torch", "rootdiff_jax")
ENTRIES = (
    "root",
    "fixed_point",
    "implicit",
    "least_squares",
    "minimize",
    "root_scalar",
    "continuation",
    "gradient_report",
)
SOLVING = ("root", "root_scalar", "continuation")
ALONE = {
    "rootdiff": {"jac", "jvp", "vjp", "derivatives", "diff_step", "max_evaluations"},
    "rootdiff_torch": {"cuda_graph"},
    "rootdiff_jax": set(),
}


def make(package: str) -> Callable[..., Any]:
    """Return what makes an array of float64 where there is one."""
    if package == "rootdiff":
        return np.array
    name, function = {"rootdiff_torch": ("torch", "tensor"), "rootdiff_jax": ("jax.numpy", "array")}[package]
    return getattr(importlib.import_module(name), function)


def entry(package: str, name: str) -> Any:
    return getattr(importlib.import_module(package), name)


def square(y: Any, a: Any) -> Any:
    return y**2 - a


def messages(call: Callable[[str], Any], kind: type[Exception]) -> list[str]:
    """Return what the error of each package says, its own name left out."""
    found = []
    for package in PACKAGES:
        with pytest.raises(kind) as error:
            call(package)
        found.append(str(error.value))
    return found


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ENTRIES)
def test_signature_has_what_the_package_takes(package: str, name: str) -> None:
    function = entry(package, name)
    others = set().union(*(own for other, own in ALONE.items() if other != package))
    shared = [
        p
        for p in list(inspect.signature(getattr(_entry, name), eval_str=True).parameters.values())[1:]
        if p.name not in others
    ]
    assert list(inspect.signature(function).parameters.values()) == shared
    assert set(get_type_hints(function)) == {*(p.name for p in shared), "return"}
    assert (function.__module__, function.__name__) == (package, name)
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ENTRIES)
def test_an_option_of_another_package_is_refused_by_name(package: str, name: str) -> None:
    taken = inspect.signature(getattr(_entry, name)).parameters
    for other, own in ALONE.items():
        for option in own & set(taken) if other != package else ():
            with pytest.raises(
                ArgumentTypeError, match=f"^{option}: {package}.{name} has no such option; only {other} "
            ):
                entry(package, name)(square, [1.0], [2.0], **{option: None})


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ENTRIES)
def test_an_option_that_nobody_has_is_a_type_error(package: str, name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'slover'"):
        entry(package, name)(square, [1.0], [2.0], [3.0], slover=None)


def test_every_word_of_a_docstring_is_one_of_an_adapter() -> None:
    written = [*(getattr(_entry, name) for name in ENTRIES), _ode.integrate]
    used = {word for function in written for word in re.findall(r"\$(\w+)", function.__doc__)}
    assert used == {*SHARED, *NUMPY_WORDS, *TORCH_WORDS, *JAX_WORDS}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ENTRIES)
def test_docstring_is_about_what_the_package_takes(package: str, name: str) -> None:
    doc = entry(package, name).__doc__
    assert "$" not in doc
    assert max(map(len, doc.splitlines())) <= 120
    section = doc[doc.index("Parameters\n") : doc.index("Returns\n")]
    documented = {part.strip("* ") for line in re.findall(r"^(\S.*)$", section, re.MULTILINE) for part in _names(line)}
    assert documented - {"Parameters", "----------"} == set(inspect.signature(entry(package, name)).parameters)


def _names(line: str) -> list[str]:
    return line.partition(" : ")[0].split(",")


def test_blocks_of_words_are_indented_and_missing_ones_go() -> None:
    doc = """One $kind.

    a : int
        $more
        $nothing
    """
    words = {"kind": "word", "more": "\n  first\n  second\n"}
    assert filled(doc, words) == "One word.\n\na : int\n    first\n    second"


@pytest.mark.parametrize(
    ("cotangent", "text"),
    [
        ([1.0], r"cotangent has leaves of shape \[\(1,\)\]; it must be like y, with \[\(2,\)\]"),
        ([[1.0, 1.0]], r"cotangent has leaves of shape \[\(1, 2\)\]"),
        ([1.0 + 1j, 1.0], r"cotangent is complex, but y is real"),
    ],
)
def test_a_wrong_cotangent_is_one_error(cotangent: Any, text: str) -> None:
    def report(package: str) -> Any:
        array = make(package)
        y = array([1.0, 1.0])
        return entry(package, "gradient_report")(square, y, y, cotangent=array(cotangent))

    found = messages(report, ArgumentError)
    assert len(set(found)) == 1
    assert re.match(f"gradient_report: the {text}", found[0])
    y = np.ones(2)
    with pytest.raises(ArgumentError, match=f"vjp: the {text}"):
        entry("rootdiff", "root")(square, y, y).vjp(np.array(cotangent))


@pytest.mark.parametrize(
    ("name", "argument"), [("root", "residual"), ("fixed_point", "cell"), ("root_scalar", "residual")]
)
def test_what_is_no_function_is_one_error(name: str, argument: str) -> None:
    found = messages(lambda package: entry(package, name)(3, make(package)([1.0])), ArgumentTypeError)
    assert set(found) == {f"{argument}: got 3; it must be a function."}


@pytest.mark.parametrize("option", ["correct", "callback"])
def test_a_hook_that_is_no_function_is_one_error(option: str) -> None:
    def solve(package: str) -> Any:
        return entry(package, "root")(square, make(package)([1.0]), make(package)([2.0]), **{option: 3})

    assert set(messages(solve, ArgumentTypeError)) == {f"{option}: got 3; it must be a function, or None."}


def test_a_report_under_a_transform_is_one_error() -> None:
    import jax
    import torch

    found = []
    for transform, package in ((jax.jit, "rootdiff_jax"), (torch.func.vmap, "rootdiff_torch")):
        one = make(package)([1.0])
        with pytest.raises(ArgumentTypeError) as error:
            transform(lambda y, package=package, one=one: entry(package, "gradient_report")(square, y, one))(one)
        found.append(str(error.value))
    assert found[0] == found[1]
    assert found[0].startswith("gradient_report: it needs concrete values")


@pytest.mark.parametrize(
    ("package", "name"),
    [
        # a report needs concrete values, and each of its operations is a program in JAX
        pytest.param(p, n, marks=[pytest.mark.exhaustive] if (p, n) == ("rootdiff_jax", "gradient_report") else [])
        for p in PACKAGES
        for n in ENTRIES
    ],
)
def test_arguments_are_checked_once(package: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    check = _task.check_args

    def counted(backend: Any, args: Any) -> None:
        seen.append(args)
        check(backend, args)

    for module in (_task, _entry, importlib.import_module("rootdiff._problems")):
        monkeypatch.setattr(module, "check_args", counted, raising=False)
    array = make(package)
    calls = {
        "root": lambda f: f(square, array([1.0]), array([2.0])),
        "fixed_point": lambda f: f(lambda z, a: (z + a / z) / 2, array([1.0]), array([2.0])),
        "root_scalar": lambda f: f(square, (0.0, 3.0), array([2.0])),
        "continuation": lambda f: f(square, array([1.0]), array([1.0]), array([2.0])),
        "gradient_report": lambda f: f(square, array([1.41]), array([2.0])),
        "implicit": lambda f: f(square, array([1.0]), array([1.0])),
        "least_squares": lambda f: f(square, array([1.0]), array([2.0])),
        "minimize": lambda f: f(lambda y, a: ((y - a) ** 2).sum(), array([1.0]), array([2.0])),
    }
    traced = package == "rootdiff_jax" and name != "gradient_report"
    call = importlib.import_module("jax").eval_shape if traced else lambda function: function()
    call(lambda: calls[name](entry(package, name)))
    assert len(seen) == 1


class Least(Adapter):
    """A framework without derivatives: what an adapter must at least have."""

    package, words = "least", {"differentiable": "by `least`"}

    def entered(self, function: Any) -> Any:
        return np.errstate(all="ignore")(function)

    def backend(self, derivatives: Any = None) -> NumpyBackend:
        return NumpyBackend()

    def is_parameter(self, leaf: Any) -> bool:
        return isinstance(leaf, float)

    def solve(self, task: Any) -> Found:
        raw = run(task.solver, task.residual(), task.start)
        return Found(raw.y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.method)

    def measured(self, task: Any) -> Any:
        return task.residual()


def test_another_framework_needs_an_adapter_alone() -> None:
    root, root_scalar, continuation = (bound(getattr(_entry, name), Least()) for name in ENTRIES if name in SOLVING)
    assert root(square, 1.0, 4.0).y == pytest.approx(2.0)
    assert root_scalar(square, (0.0, 5.0), 9.0).y == pytest.approx(3.0)
    assert continuation(square, [1.0], 1.0, 16.0).y == pytest.approx(4.0)
    assert root.__doc__.startswith("Find y with ``residual(y, *args) = 0``, by `least`.\n")
    assert not {"jac", "cuda_graph"} & set(inspect.signature(root).parameters)
    with pytest.raises(ArgumentTypeError, match="only rootdiff_torch takes it"):
        root(square, 1.0, 4.0, cuda_graph=False)
    with pytest.raises(ConvergenceError, match="no root that can be vouched for"):
        root(lambda y: y**2 + 1, 1.0)
