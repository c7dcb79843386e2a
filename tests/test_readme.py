"""Every Python block of the README and of docs/ runs, and prints what the text block after it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rootdiff
import rootdiff_jax
import rootdiff_torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARK = "-- end of block --"
#: What each package offers before any test has registered more.
NAMES = {
    package.__name__: (*package.available_solvers(), *package.available_adjoints())
    for package in (rootdiff, rootdiff_torch, rootdiff_jax)
}
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```$(?:\s*^```text\n(?P<output>.*?)^```$)?", re.MULTILINE | re.DOTALL)


def program(page: Path) -> tuple[str, list[str]]:
    """Return the blocks of a page as one program, each block at its own line numbers, and the expected outputs."""
    text = page.read_text(encoding="utf-8")
    code, expected = "", []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("code"))
        code += "\n" * (line - code.count("\n")) + match["code"]
        code += f"print({MARK!r})\n" if match["output"] is None else f"print({MARK!r}, 'checked')\n"
        expected += [] if match["output"] is None else [match["output"]]
    return code, expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run_and_print_what_they_say(page, tmp_path):
    code, expected = program(page)
    script = tmp_path / page.name
    script.write_text(code, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    blocks = re.findall(rf"(.*?){MARK}( checked)?\n", done.stdout, re.DOTALL)
    assert [output for output, checked in blocks if checked] == expected


def test_readme_has_code_in_three_frameworks():
    code, _ = program(ROOT / "README.md")
    assert all(f"import {name} as rd" in code for name in ("rootdiff", "rootdiff_torch", "rootdiff_jax"))


@pytest.mark.parametrize("backend", NAMES)
def test_readme_names_every_solver_and_adjoint(backend):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in NAMES[backend] if f"`{name}`" not in text] == []
