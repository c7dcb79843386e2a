"""Write docs/transforms.md from the tests: each marker ``transform(name, refused=None)`` is a row."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "transforms.md"
FRAMEWORKS = {"PyTorch": ROOT / "tests" / "torch", "JAX": ROOT / "tests" / "jax"}

HEADER = """# Transforms

A root is an ordinary differentiable operation: what PyTorch and JAX can do with one, they can do with a root, or an
error says what they cannot. Each row is a test of that name in `tests/`, against an oracle that shares no code with
the library. This page is written from those tests by `python docs/make_transforms.py`.

Inside a traced JAX program nothing can raise: there a failed solve is NaN in its own system.

`torch.compile` breaks its graph at a root, which then runs as it is, with all that it can. Under `fullgraph=True` and
in `torch.export` `root`, `fixed_point`, `implicit`, `least_squares` and `minimize`, and the layers, are one node, with
first derivatives. It takes `solver`, `adjoint`, `batch_ndim`, `on_failure`, `y_scale`, `rtol`, `atol`, `max_steps`,
`loss` and `has_aux`. An exported program holds the residual; before it is loaded in another process, import
`rootdiff_torch` there, and give it `solver` and `adjoint` by name. So does a program that AOTInductor has compiled,
which runs where there is Python: the solve is called from it.
"""


class Row(NamedTuple):
    """A transform, the test that holds it, and the error that refuses it."""

    name: str
    test: str
    refused: str | None


def rows(folder: Path) -> Iterator[Row]:
    """Yield the rows of one framework, in the order of the tests."""
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.transform":
                    refused = next((ast.literal_eval(k.value) for k in mark.keywords if k.arg == "refused"), None)
                    yield Row(ast.literal_eval(mark.args[0]), f"{path.parent.name}/{path.name}::{node.name}", refused)


def page() -> str:
    """Return the text of docs/transforms.md."""
    parts = [HEADER]
    for framework, folder in FRAMEWORKS.items():
        found = list(rows(folder))
        parts.append(f"\n## {framework}: works\n\n| transform | test |\n|---|---|\n")
        parts += [f"| {row.name} | `{row.test}` |\n" for row in found if row.refused is None]
        parts.append(f"\n## {framework}: refused\n\n| transform | error | test |\n|---|---|---|\n")
        parts += [f"| {row.name} | `{row.refused}` | `{row.test}` |\n" for row in found if row.refused is not None]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
