"""Imports only go down the floors, and the core never loads a framework."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: The floor of each module of the core; a module imports from its own floor or lower ones.
FLOORS = {
    "_backend": 0,
    "_inverse": 0,
    "_operator": 0,
    "_sparse_libraries": 0,
    "_host_factors": 0,
    "_sparsity": 0,
    "_errors": 0,
    "_space": 0,
    "_sizes": 0,
    "_columns": 0,
    "_differences": 0,
    "_line": 0,
    "_roughness": 0,
    "_slopes": 0,
    "_fixed_steps": 0,
    "_numpy": 0,
    "_numpy_lu": 0,
    "_freezing": 0,
    "_reached": 0,
    "_environment": 0,
    "_settings": 1,
    "_solution": 0,
    "_structure": 1,
    "_bounds": 1,
    "_constraints": 1,
    "_squares": 1,
    "_arguments": 1,
    "_residual": 1,
    "_sparse": 1,
    "_failure": 2,
    "_names": 1,
    "_numbers": 1,
    "_compaction": 2,
    "_resolution": 2,
    "_verdict": 2,
    "_solver": 2,
    "_iterate": 1,
    "_loop": 2,
    "linear": 3,
    "solvers": 3,
    "_derivatives": 3,
    "_by_products": 1,
    "_rules": 3,
    "_problems": 3,
    "_hooks": 3,
    "_coupling": 3,
    "_detection": 3,
    "_sparse_parameters": 3,
    "_implicit": 4,
    "_registry": 4,
    "_sensitivities": 4,
    "_report": 2,
    "_rounding": 4,
    "_gradient_error": 4,
    "_adapter": 5,
    "_bound": 5,
    "_task": 5,
    "_conditions": 5,
    "_entry": 5,
    "_ode": 5,
    "_implicit_steps": 1,
    "_spectrum": 5,
    "_numpy_words": 5,
    "_numpy_squares": 5,
    "petsc": 6,
    "plot": 6,
    "_numpy_adapter": 5,
    "testing": 6,
    "__init__": 6,
}


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names += [f"{module}.{alias.name}" if module == "rootdiff" else module for alias in node.names]
    return names


def _floor(module: str) -> int:
    return FLOORS[module.split(".")[1]]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rootdiff").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_imports_go_down(path: Path) -> None:
    own = FLOORS[path.relative_to(ROOT / "rootdiff").parts[0].removesuffix(".py")]
    for name in _imports(path):
        if name.startswith("rootdiff."):
            assert _floor(name) <= own, f"{path.name} on floor {own} imports {name}"


def test_arrays_with_one_number_for_each_system_are_made_in_one_way() -> None:
    """By `per_system`: the first unknown, which such an array was once made like, may lie on another device."""
    forbidden = re.compile(r"_like\(\w+\[\.\.\., 0\]")
    for path in (ROOT / "rootdiff").rglob("*.py"):
        if path.name != "_space.py":
            found = forbidden.findall(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name}: {found}; use rootdiff._space.per_system"


@pytest.mark.parametrize("wing", ["rootdiff_jax/xla", "rootdiff_torch/cuda"])
def test_a_wing_has_one_door(wing: str) -> None:
    inside, name = ROOT / wing, wing.replace("/", ".")
    for path in inside.parent.rglob("*.py"):
        if inside not in path.parents:
            through = [module for module in _imports(path) if module.startswith(name)]
            assert set(through) <= {name}, f"{path.name} imports {through}"


@pytest.mark.parametrize("package", ["rootdiff", "rootdiff_torch", "rootdiff_jax"])
def test_packages_keep_apart(package: str) -> None:
    allowed = {
        "rootdiff": set(),
        "rootdiff_torch": {"torch", "rootdiff_torch"},
        "rootdiff_jax": {"jax", "jaxlib", "optimistix", "rootdiff_jax"},
    }[package]
    others = {"torch", "jax", "jaxlib", "optimistix", "rootdiff_torch", "rootdiff_jax"} - allowed
    for path in (ROOT / package).rglob("*.py"):
        found = {name.partition(".")[0] for name in _imports(path)} & others
        assert not found, f"{path} imports {found}"


def test_import_loads_no_framework() -> None:
    code = "import sys, rootdiff; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "rootdiff" in done.stdout.split()
    assert not {"torch", "jax", "hypothesis", "pytest"} & set(done.stdout.split())


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_a_missing_framework_is_named_with_its_extra(framework: str) -> None:
    code = f"import sys; sys.modules[{framework!r}] = None; import rootdiff_{framework}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert f"rootdiff[{framework}]" in done.stderr
