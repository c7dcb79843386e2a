"""Each private name of PyTorch that is used is there; where a release takes one away, the test of that name says so."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

SPEC = find_spec("rootdiff_torch")  # not imported: that fails where a name is gone
assert SPEC is not None
assert SPEC.origin is not None
SOURCE = Path(SPEC.origin).parent
#: The module that may use such names.
ROOM = "_private.py"


def _is_private(dotted: str) -> bool:
    root, *parts = dotted.split(".")
    return root == "torch" and any(part.startswith("_") and not part.startswith("__") for part in parts)


def private_names(path: Path) -> Iterator[str]:
    """Yield the dotted private names of PyTorch in a module, also those behind a name that stands for one of them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    aliases = {
        node.targets[0].id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            aliases |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from filter(_is_private, (f"{node.module}.{name.name}" for name in node.names))
        elif isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            dotted = f"{aliases.get(root, root)}.{rest}"
            if _is_private(dotted) and dotted.replace(".", "").replace("_", "").isalnum():
                yield dotted


NAMES = {(name, path.name) for path in SOURCE.rglob("*.py") for name in private_names(path)}


def _find(name: str) -> object:
    found: object = torch
    parts = name.split(".")
    for index, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:  # a module that nobody has imported yet, or a name that is gone
            found = importlib.import_module(".".join(parts[:index]))
    return found


@pytest.mark.parametrize("name", sorted({name for name, _ in NAMES}))
def test_a_private_name_of_torch_is_there(name: str) -> None:
    try:
        found = _find(name)
    except (ImportError, AttributeError):
        pytest.fail(f"PyTorch {torch.__version__} has no {name}: mend rootdiff_torch/{ROOM}, which says what for.")
    assert found is not None


def test_a_name_that_is_gone_is_told() -> None:
    with pytest.raises(pytest.fail.Exception, match=rf"has no torch\._C\._gone: mend rootdiff_torch/{ROOM}"):
        test_a_private_name_of_torch_is_there("torch._C._gone")


def test_private_names_of_torch_keep_to_one_module() -> None:
    assert len(NAMES) > 40
    assert {room for _, room in NAMES} == {ROOM}
