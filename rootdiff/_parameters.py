"""What of the arguments is a parameter in NumPy, and what may not be among them; the copies that a solve keeps.

An object that is no container to the framework, a dataclass say, is a constant in every package: its derivative is None
in NumPy, and arrays that it holds are followed as those that a residual closes over in PyTorch and JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rootdiff._backend import Backend
from rootdiff._errors import ArgumentError, ArgumentTypeError, with_article
from rootdiff._structure import Structure, is_of_framework


def is_parameter(leaf: Any) -> bool:
    """Return whether a leaf of args is differentiated: a real floating array or NumPy scalar, or a float."""
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind == "f"  # `isdtype` raises where the dtype has fields
    return isinstance(leaf, float)


def frozen(structure: Structure, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return `args` with copies of the arrays in them, so that who changes them later does not change a derivative.

    A number without a shape of its own, a float or a NumPy scalar, takes the precision of the unknown.
    """
    dtype = np.result_type(*(np.dtype(leaf).type(0).real.dtype for leaf in structure.dtypes))

    def copied(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            return np.array(leaf, subok=not is_parameter(leaf))  # a mask, say, stays with what is passed on as it is
        if is_parameter(leaf):
            return np.asarray(leaf, dtype=dtype)
        return leaf

    leaves, tree = structure.backend.flatten(args)
    return structure.backend.unflatten(tree, [copied(leaf) for leaf in leaves])  # type: ignore[no-any-return]


def check_meaning(backend: Backend, name: str, tree: Any) -> None:
    """Raise if a leaf carries more than the numbers of an array, which would be lost: a mask, units, labels."""
    to_array = {"torch": "torch.as_tensor(np.asarray(...))"}.get(backend.name, "np.asarray(...)")
    for leaf in backend.flatten(tree)[0]:
        kind = type(leaf)
        if isinstance(leaf, np.ndarray):
            if kind in (np.ndarray, np.memmap):
                continue
            if not backend.is_array(leaf) or leaf.dtype.kind in "fc":
                raise ArgumentTypeError(
                    f"{name}: it is or holds a {kind.__module__}.{kind.__name__}, a kind of NumPy array whose meaning "
                    f"(a mask, units, another product) would be lost. Pass {to_array} of it, in the units of the "
                    "residual, and make what you need of it inside the residual."
                )
        elif hasattr(leaf, "__array__") and not (backend.is_array(leaf) or is_of_framework(leaf)):
            raise ArgumentTypeError(
                f"{name}: it is or holds a {kind.__module__}.{kind.__name__}, which has no derivative here. Pass its "
                f"numbers, {to_array} of it, or let the residual close over it, where it is constant."
            )


def check_tangent(index: int, leaf: Any, tangent: Any) -> None:
    """Raise if there is a tangent for a leaf of args that is not differentiated."""
    if not is_parameter(leaf) and tangent is not None:
        raise ArgumentError(
            f"jvp: tangent {index} has an entry for {_described(leaf)}, which is not differentiated: only real "
            "floating arrays and floats are. Give None there; if it is a parameter, make it a floating array, or pass "
            "those that it holds, in a tuple or dict."
        )


def _described(leaf: Any) -> str:
    dtype = getattr(leaf, "dtype", None)
    return with_article(type(leaf).__name__) + (f" of {dtype}" if dtype is not None else "")
