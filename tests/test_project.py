"""The files around the code agree with it: versions, licence, workflows."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import rootdiff

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_one_version_everywhere() -> None:
    assert f"version: {rootdiff.__version__}\n" in text("CITATION.cff")
    assert f"  version: {rootdiff.__version__}\n" in text("conda/recipe.yaml")


def test_the_recipe_asks_for_what_the_project_asks_for() -> None:
    run = re.search(r"run: \[(.*)\]", text("conda/recipe.yaml"))[1].split(", ")
    assert run[0] == f"python {PROJECT['requires-python']}"
    assert [name.replace(" ", "") for name in run[1:]] == PROJECT["dependencies"]


def test_every_python_that_is_named_is_tested() -> None:
    named = re.findall(r":: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    tested = json.loads(re.search(r"python: (\[.*\])", text(".github/workflows/test.yml"))[1])
    assert named == tested


def test_the_history_of_counts_has_the_same_counts_in_each_entry() -> None:
    entries = json.loads(text("benchmarks/history.json"))
    assert {frozenset(entry) for entry in entries} == {frozenset(("commit", "date", "versions", "counts"))}
    assert all(value > 0 for entry in entries for value in entry["counts"].values())


def test_what_jax_leaves_to_another_test_is_tested_there() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for file, name in re.findall(r"^@pytest.mark.elsewhere_in_jax\(\"(.*)::(.*)\"\)", tests, re.M):
        marks = re.search(rf"((?:^@.*\n)*)^def {name}\(", text(file), re.M)
        assert marks, f"{file} has no {name}"
        assert "elsewhere_in_jax" not in marks[1]
        assert not re.search(r"^@pytest.mark.exhaustive", marks[1], re.M)
