"""From a problem to the calls of a library that are timed."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.problem import Calls, Problem, Row

#: Library: the packages it needs, and the function that prepares its calls.
LIBRARIES: dict[str, tuple[tuple[str, ...], str]] = {
    "rootdiff": ((), "with_numpy:rootdiff_numpy"),
    "rootdiff_torch": (("torch",), "with_torch:rootdiff_torch"),
    "rootdiff_jax": (("jax",), "with_jax:rootdiff_jax"),
    "floor": ((), ""),
    "SciPy": (("scipy",), "with_numpy:scipy"),
    "Optimistix": (("jax", "optimistix"), "with_jax:optimistix"),
    "JAXopt": (("jax", "jaxopt"), "with_jax:jaxopt"),
    "lax.custom_root by hand": (("jax",), "with_jax:custom_root"),
    "PyTorch by hand": (("torch",), "with_torch:by_hand"),
    "TorchDEQ": (("torch", "torchdeq"), "with_torch:torchdeq"),
    "TorchOpt": (("torch", "torchopt"), "with_torch:torchopt"),
    "xitorch": (("torch", "xitorch"), "with_torch:xitorch"),
    "back-propagation, torch": (("torch",), "with_torch:unrolled"),
    "back-propagation, JAX": (("jax",), "with_jax:unrolled"),
    "CasADi": (("casadi",), "with_casadi:casadi"),
}
OURS = ("rootdiff", "rootdiff_torch", "rootdiff_jax")
FLOOR = "floor"


def missing(row: Row) -> list[str]:
    """Return the packages that a row needs and that are not installed."""
    return [name for name in _needed(row) if find_spec(name) is None]


def reason_against(row: Row, device: str) -> str:
    """Return why a row has no numbers, or nothing."""
    if device != "cpu" and {"torch", "jax"}.isdisjoint(_needed(row)):
        return "computes on the CPU"
    return row.cannot or ("not installed" if missing(row) else "")


def prepare(row: Row, problem: Problem, device: str) -> Calls:
    """Return the calls of a row."""
    given = row.settings(problem) if callable(row.settings) else row.settings
    settings = {name: value for name, value in given.items() if name != "needs"}
    if row.prepare is not None:
        if "torch" in given.get("needs", ()):
            settings["device"] = device
        return row.prepare(problem, **settings)
    module, name = LIBRARIES[row.library][1].split(":")
    function: Callable[..., Calls] = getattr(import_module(f"benchmarks.contenders.{module}"), name)
    if module == "with_torch":
        settings["device"] = device
    return function(problem, **settings)


def _needed(row: Row) -> tuple[str, ...]:
    if row.library == FLOOR and not callable(row.settings):
        return tuple(row.settings.get("needs", ()))
    return LIBRARIES[row.library][0]


def on_host(value: Any) -> Any:
    """Return an array of any framework as NumPy's."""
    import numpy as np

    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
