"""The arguments of an entry point: what y0 is, what may be among args, and which of these are parameters.

An object that is no container to the framework, a dataclass say, is a constant in every package: its derivative is None
in NumPy, and arrays that it holds are followed as those that a residual closes over in PyTorch and JAX.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rootdiff._backend import Backend
from rootdiff._errors import ArgumentError, ArgumentTypeError, with_article
from rootdiff._numbers import is_of
from rootdiff._structure import Structure

_FRAMEWORKS = {"numpy": "rootdiff", "torch": "rootdiff_torch", "jax": "rootdiff_jax", "jaxlib": "rootdiff_jax"}


def describe(backend: Backend, y0: Any, batch_ndim: int, complex_step: bool = False) -> Structure:
    """Return the structure of `y0`, or raise an error that names what is wrong with it."""
    xp = backend.xp
    leaves, tree = backend.flatten(y0)
    if not leaves:
        raise ArgumentError("y0: it holds no array, so there is nothing to solve for.")
    if isinstance(batch_ndim, bool) or not isinstance(batch_ndim, int) or batch_ndim < 0:
        raise ArgumentError(
            f"batch_ndim: got {batch_ndim!r}; it must be the number (0, 1, ...) of leading axes of y0 "
            "that index independent systems."
        )
    for leaf in leaves:
        _check_array(backend, leaf)
    reals = {(xp.real(leaf) if xp.isdtype(leaf.dtype, "complex floating") else leaf).dtype for leaf in leaves}
    if len(reals) > 1:
        names = ", ".join(sorted(str(dtype) for dtype in reals))
        raise ArgumentTypeError(f"y0: its leaves mix the precisions {names}; give them all one.")
    for leaf in leaves:
        if leaf.ndim < batch_ndim:
            raise ArgumentError(
                f"batch_ndim: got {batch_ndim}, but y0 has a leaf of shape {tuple(leaf.shape)} "
                f"with only {leaf.ndim} axes."
            )
    batches = {tuple(leaf.shape[:batch_ndim]) for leaf in leaves}
    if len(batches) > 1:
        shapes = ", ".join(str(batch) for batch in sorted(batches))
        raise ArgumentError(
            f"batch_ndim: got {batch_ndim}, but the leaves of y0 have different leading axes {shapes}; "
            "every leaf must start with the same batch axes."
        )
    structure = Structure(
        backend,
        tree,
        tuple(tuple(leaf.shape[batch_ndim:]) for leaf in leaves),
        tuple(leaf.dtype for leaf in leaves),
        tuple(bool(xp.isdtype(leaf.dtype, "complex floating")) for leaf in leaves),
        batches.pop(),
        complex_step,
    )
    if complex_step and any(structure.complex_leaves):
        raise ArgumentError("derivatives: the complex step cannot differentiate in a complex y0; give jac, jvp or vjp.")
    if structure.size == 0:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
        raise ArgumentError(f"y0: it is empty (shape {shapes}); there is nothing to solve for.")
    return structure


def _check_array(backend: Backend, leaf: Any) -> None:
    framework = type(leaf).__module__.partition(".")[0]
    if not backend.is_array(leaf):
        advice = (
            f"Call {_FRAMEWORKS[framework]} for it, or convert it."
            if framework in _FRAMEWORKS and hasattr(leaf, "shape")
            else "A number, or a list of numbers, is one array too; any other list is a pytree with an array per entry."
        )
        raise ArgumentTypeError(
            f"y0: it is or holds {with_article(type(leaf).__name__)}, but must be a {backend.name} array "
            f"or a pytree of them. {advice}"
        )
    check_precision(backend, leaf, "y0")
    if not is_of(backend.xp, leaf.dtype, ("real floating", "complex floating")):
        raise ArgumentTypeError(
            f"y0: it has dtype {leaf.dtype}, but must be floating, since a root of an integer problem "
            "is not an integer. Convert it to the precision you want the root in."
        )


def check_args(backend: Backend, args: tuple[Any, ...]) -> None:
    """Raise if a leaf of `args` is an array of another framework than y0."""
    for index, arg in enumerate(args):
        for leaf in backend.flatten(arg)[0]:
            framework = type(leaf).__module__.partition(".")[0]
            foreign = is_of_framework(leaf) and not backend.is_array(leaf) and not isinstance(leaf, np.generic)
            if foreign and hasattr(leaf, "shape"):
                raise ArgumentTypeError(
                    f"args[{index}]: it holds a {framework} array ({type(leaf).__name__}), but this is the "
                    f"{backend.name} version of rootdiff. Convert it, or call {_FRAMEWORKS[framework]}."
                )
            if backend.is_array(leaf):
                check_precision(backend, leaf, f"args[{index}]")


def is_of_framework(leaf: Any) -> bool:
    """Return whether a leaf is of a kind that NumPy, PyTorch or JAX has defined."""
    return type(leaf).__module__.partition(".")[0] in _FRAMEWORKS


def check_precision(backend: Backend, array: Any, role: str) -> None:
    """Raise if the numbers of a NumPy array are of a precision in which nothing can be solved or differentiated."""
    name = str(array.dtype)
    if backend.name == "numpy" and (name in ("float16", "bfloat16") or name.startswith("float8")):
        raise ArgumentTypeError(
            f"{role}: it has dtype {name}, but NumPy neither factors matrices nor takes differences in so few digits. "
            "Convert it to float32 or float64."
        )


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
        dtype = getattr(leaf, "dtype", None)
        described = with_article(type(leaf).__name__) + (f" of {dtype}" if dtype is not None else "")
        raise ArgumentError(
            f"jvp: tangent {index} has an entry for {described}, which is not differentiated: only real "
            "floating arrays and floats are. Give None there; if it is a parameter, make it a floating array, or pass "
            "those that it holds, in a tuple or dict."
        )
