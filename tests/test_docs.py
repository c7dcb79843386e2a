"""Pages that are written from the code are up to date, and messages name places that are on them."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import rootdiff
import rootdiff_jax
import rootdiff_torch
from tests.test_entry import ENTRIES
from tests.test_readme import as_at_the_start

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "docs" / "make_transforms.py"


def test_transforms_page_is_that_of_the_tests() -> None:
    spec = importlib.util.spec_from_file_location("make_transforms", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = module.PAGE.read_text(encoding="utf-8")
    assert written == module.page(), "run: python docs/make_transforms.py"
    assert written.count("| `torch/") > 50
    assert written.count("| `jax/") > 30


def anchors() -> set[str]:
    text = (ROOT / "docs" / "failure.md").read_text(encoding="utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (\w[\w ]*)$", text, re.MULTILINE)}
    return headings | set(re.findall(r'<a id="(\w+)">', text))


def beginnings() -> Iterator[str]:
    """Yield the name with which each message in the source begins, where it is written out."""
    for package in ("rootdiff", "rootdiff_torch", "rootdiff_jax"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in dir(rootdiff) and node.args:
                    text = ast.unparse(node.args[0]).lstrip("f")[1:]
                    yield from re.findall(r"^(\w+)(?:\[.*?\])?: ", text)


def test_every_status_and_message_has_a_place_on_one_page() -> None:
    found = anchors()
    packages = (rootdiff, rootdiff_torch, rootdiff_jax)
    parameters = {
        name for p in packages for entry in ENTRIES for name in inspect.signature(getattr(p, entry)).parameters
    }
    begun = set(beginnings())
    assert len(begun) > 20
    named = {name if name.islower() else "class" for name in begun}
    assert {status.name.lower() for status in rootdiff.Status} | parameters | named <= found


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"solver": "newton", "max_steps": 1}, "max_steps"),
        ({"on_failure": "no"}, "on_failure"),
        ({"solver": "no"}, "solver"),
        ({"check": 1}, "check"),
    ],
)
def test_an_error_names_its_place(options: dict[str, object], place: str) -> None:
    with pytest.raises(rootdiff.RootdiffError) as caught:
        rootdiff.root(lambda y: y**2 + 1, np.array([3.0]), **options)
    assert caught.value.__notes__ == [f"About this: docs/failure.md#{place}"]


def test_a_warning_and_a_setting_name_their_place() -> None:
    with pytest.warns(rootdiff.ConvergenceWarning, match="docs/failure.md#max_steps$"):
        rootdiff.root(lambda y: y**2 + 1, np.array([3.0]), solver="newton", max_steps=1, on_failure="warn")
    with pytest.raises(rootdiff.ArgumentError) as caught:
        rootdiff.Newton(rtol=-1.0)
    assert caught.value.__notes__ == ["About this: docs/failure.md#class"]


_ROW = re.compile(r"^\| `(?P<theirs>[^`]+)` \| `(?P<ours>[^`]+)` \|$", re.MULTILINE)
_BLOCK = re.compile(r"^```(?:python|py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections() -> list[str]:
    """Return the sections of the page about other libraries that have code."""
    text = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
    return [part for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:] if _ROW.search(part)]


def test_calls_of_other_libraries_and_ours_give_the_same_numbers() -> None:
    names: dict[str, object] = {}
    compared = 0
    with as_at_the_start():
        for section in sections():
            try:
                exec("".join(_BLOCK.findall(section)), names)  # the names of a section are there for the later ones
            except ModuleNotFoundError:
                continue
            for row in _ROW.finditer(section):
                theirs, ours = (np.asarray(eval(row[side], names)) for side in ("theirs", "ours"))
                np.testing.assert_allclose(theirs, ours, rtol=1e-6, atol=1e-8, err_msg=row[0])
                compared += 1
    assert compared >= 16


def test_the_gallery_shows_the_code_of_each_example() -> None:
    shown = re.findall(r'--8<-- "(.*)"', (ROOT / "docs" / "examples.md").read_text(encoding="utf-8"))
    assert all((ROOT / name).exists() for name in shown)
    parts = {"ieee_cases.py", "power_flow_figure.py"}  # of the power flow
    assert {path.name for path in (ROOT / "examples").glob("*.py")} - parts <= {Path(name).name for name in shown}
