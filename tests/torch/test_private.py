"""Each private name of PyTorch that is used is there; where a release takes one away, the test of that name says so."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import rootdiff_torch

SOURCE = Path(rootdiff_torch.__file__).parent
#: The modules that may use such names, and for what.
ROOMS = {
    "_transforms.py",  # torch.func's levels and dispatch keys
    "_contexts.py",  # forward mode's levels and hooks on saved tensors
    "_graph.py",  # torch.compile: one node of a graph
    "_node.py",  # the same: what the node is
    "_recording.py",  # CUDA graphs
    "_watching.py",  # sums over many tensors at once
    "_adapter.py",  # the kinds of torch.func's levels
    "nn.py",  # torch's pytrees
}


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


@pytest.mark.parametrize("name", sorted({name for name, _ in NAMES}))
def test_a_private_name_of_torch_is_there(name: str) -> None:
    found: object = torch
    parts = name.split(".")
    for index, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:  # a module that nobody has imported yet, or a name that is gone
            found = importlib.import_module(".".join(parts[:index]))
    assert found is not None


def test_private_names_of_torch_keep_to_their_rooms() -> None:
    assert len(NAMES) > 20
    assert {room for _, room in NAMES} <= ROOMS
