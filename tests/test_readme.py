"""Every Python block of the README and of docs/ runs, and prints what the text block after it says."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import get_args

import jax
import pytest

import rootdiff
import rootdiff_jax
import rootdiff_torch
from rootdiff import _registry

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = "-- end of block --"
#: What each package offers before any test has registered more.
NAMES = {
    package.__name__: (*package.available_solvers(), *package.available_adjoints())
    for package in (rootdiff, rootdiff_torch, rootdiff_jax)
}
BLOCK = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\s*^(?P=indent)```text\n(?P<output>.*?)^(?P=indent)```$)?",
    re.MULTILINE | re.DOTALL,
)


def program(page: Path) -> tuple[str, list[str]]:
    """Return the blocks of a page as one program, each block at its own line numbers, and the expected outputs."""
    text = page.read_text(encoding="utf-8")
    code, expected = "", []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        code += "\n" * (line - code.count("\n")) + dedent(match["code"])
        code += f"print({MARK!r})\n" if match["output"] is None else f"print({MARK!r}, 'checked')\n"
        expected += [] if match["output"] is None else [dedent(match["output"])]
    return code, expected


@contextmanager
def as_at_the_start() -> Iterator[None]:
    """Leave behind neither what is registered nor JAX's precision, which is float32 at first."""
    before = jax.config.jax_enable_x64
    with pytest.MonkeyPatch.context() as patch:
        for registry in (_registry.SOLVERS, _registry.ADJOINTS):
            patch.setattr(registry, "_entries", dict(registry._entries))
        jax.config.update("jax_enable_x64", False)
        try:
            yield
        finally:
            jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run_and_print_what_they_say(page, tmp_path, capsys, monkeypatch):
    code, expected = program(page)
    script = tmp_path / f"page_{page.stem}.py"
    script.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script.stem, module)
    with as_at_the_start():
        spec.loader.exec_module(module)
    blocks = re.findall(rf"(.*?){MARK}( checked)?\n", capsys.readouterr().out, re.DOTALL)
    assert [output for output, checked in blocks if checked] == expected


def test_readme_has_code_in_three_frameworks():
    code, _ = program(ROOT / "README.md")
    assert all(f"import {name} as rd" in code for name in ("rootdiff", "rootdiff_torch", "rootdiff_jax"))


@pytest.mark.parametrize("backend", NAMES)
def test_a_page_names_every_solver_and_adjoint(backend):
    text = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    assert [name for name in NAMES[backend] if f"`{name}`" not in text] == []


def test_readme_is_read_in_minutes():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 200


def test_editors_offer_every_solver_and_adjoint():
    assert {*get_args(_registry.Solvers), *get_args(_registry.Adjoints)} == set().union(*NAMES.values())
