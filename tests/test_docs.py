"""Pages that are written from the code are up to date."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "docs" / "make_transforms.py"


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
