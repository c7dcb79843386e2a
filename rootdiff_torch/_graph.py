"""What PyTorch traces in place of `root` where it wants one graph.

It does for ``torch.compile(fullgraph=True)`` and for `torch.export`. Otherwise `torch.compile` breaks its graph at a
root, which then runs as it is, with all that it can.
"""

from __future__ import annotations

from functools import wraps
from types import CodeType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from rootdiff._adapter import F
from rootdiff._errors import ArgumentError
from rootdiff._solution import Solution
from rootdiff_torch._transforms import TransformError, levels

try:
    from torch._dynamo.exc import SkipFrame
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._higher_order_ops.utils import setup_compilation_env

    from rootdiff_torch._node import ENTRIES, SOLVE, word
except (ImportError, AttributeError):  # an older PyTorch, which breaks the graph at a root
    _SUPPORTED = False
else:
    _SUPPORTED = True

#: The options of an entry point that a graph can hold.
_STATIC = ("solver", "adjoint", "batch_ndim", "on_failure", "y_scale")
#: The code of the functions that ask whether to be part of one graph.
_PARTS = set[CodeType]()
_INSTEAD = "Leave it out of the graph: torch.compile without fullgraph=True runs a root as it is."


def graphed(entry: F) -> F:
    """Return an entry point that is one node where PyTorch traces one graph; elsewhere it is as before."""
    name = entry.__name__
    if not _SUPPORTED:
        return entry
    ENTRIES[name] = entry

    @wraps(entry)
    def called(*args: Any, **options: Any) -> Any:
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            raise TransformError(
                f"{name}: torch.jit.trace would record the steps of one solve. Take torch.export, which records a root."
            )
        if not one_graph():
            return entry(*args, **options)
        if torch.compiler.is_dynamo_compiling():
            return _node(name, args, options)
        with setup_compilation_env() as backend:  # torch.export runs Python, on tensors without values
            return torch.compile(_node, backend=backend, fullgraph=True)(name, args, options)

    inlined(called)
    for attribute in ("__wrapped__", *(key for key in vars(called) if key.startswith("_torchdynamo"))):
        vars(called).pop(attribute, None)  # or Dynamo takes this function for the other
    return called  # type: ignore[return-value]


def inlined(function: F) -> F:
    """Return `function`, which PyTorch traces as a part of one graph; where it breaks graphs, it is not traced."""
    _PARTS.add(function.__code__)
    return function


def one_graph() -> bool:
    """Return whether PyTorch is tracing, and must not leave anything out of the graph."""
    if not _SUPPORTED:
        return False
    return _unbroken() if torch.compiler.is_dynamo_compiling() else torch.compiler.is_exporting()


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _unbroken() -> bool:
    traced = InstructionTranslator.current_tx()
    if not traced.one_graph and traced.f_code in _PARTS:  # the graph of what calls it has ended: not one more
        raise SkipFrame("a root runs as it is")
    return bool(traced.one_graph)


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _around() -> str:
    """Return what is around a root that is being traced, and changes what it must do; empty: nothing."""
    if levels():
        return "a transform of torch.func is around it"
    return "torch.autocast is on" if any(map(torch.is_autocast_enabled, ("cpu", "cuda"))) else ""


@torch._dynamo.assume_constant_result  # type: ignore[untyped-decorator]
def _word(value: Any) -> str:
    return word(value)


def _refuse(name: str, reason: str) -> NoReturn:
    raise TransformError(f"{name}: it cannot be part of one graph: {reason}. {_INSTEAD}")


def _check(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise if one graph cannot hold this call."""
    around = _around()
    if around:
        _refuse(name, around)
    if name not in ("root", "fixed_point"):
        _refuse(name, "only root and fixed_point can")
    if len(args) < 2:
        _refuse(name, "its function and its start must be given by position")
    for option, value in options.items():
        if option not in _STATIC and value is not None and value is not False:
            _refuse(name, f"it has the option {option}")
    if not isinstance(options.get("y_scale"), int | float | None):
        _refuse(name, "y_scale is no number")
    for leaf in pytree.tree_leaves(args[1]):
        if not isinstance(leaf, Tensor):
            _refuse(name, "its start must hold tensors only")


def _node(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> Solution:
    """Return the root as one node; PyTorch traces this function."""
    _check(name, args, options)
    function, y0, *others = args
    leaves, tree = pytree.tree_flatten(y0)
    count, batch_ndim = len(leaves), options.get("batch_ndim", 0)

    def body(*leaves: Tensor) -> tuple[Tensor, ...]:
        unknowns = [_inside(leaf) for leaf in leaves]  # used before all else, so that they are the first inputs
        y, inputs = pytree.tree_map(_inside, (pytree.tree_unflatten(unknowns, tree), others))
        values = _like(unknowns, pytree.tree_leaves(function(y, *inputs)))
        # the rest tells PyTorch the shapes of what the node returns beside y
        like, errors = unknowns[0], [torch.empty_like(leaf) for leaf in unknowns]
        batch = like.shape[:batch_ndim]
        counts = [like.new_zeros(batch, dtype=torch.int32) for _ in range(3)]
        return (*values, *errors, *counts, errors[0].abs().new_zeros(batch), like.new_zeros(batch, dtype=torch.bool))

    static = {option: value for option, value in options.items() if option in _STATIC and value is not None}
    for option in ("solver", "adjoint"):
        if not isinstance(static.get(option, ""), str):
            static[option] = _word(static[option])
    # copies, lest PyTorch take a start that is an argument too for one input
    found = SOLVE(body, *[leaf.detach().clone() for leaf in leaves], entry=name, unknowns=count, **static)
    error, (status, steps, method, norm, approximate) = found[count : 2 * count], found[2 * count :]
    return Solution(
        pytree.tree_unflatten(found[:count], tree),
        status.detach(),
        steps.detach(),
        norm.detach(),
        method.detach(),
        (),
        (),
        approximate.detach(),
        pytree.tree_unflatten([part.detach() for part in error], tree),
        (),
    )


def _like(unknowns: list[Tensor], values: list[Any]) -> list[Tensor]:
    """Return what a residual returned, in the shapes of the unknowns."""
    fit = len(values) == len(unknowns) and all(
        isinstance(value, Tensor) and value.dtype == leaf.dtype and value.numel() == leaf.numel()
        for value, leaf in zip(values, unknowns, strict=False)
    )
    if not fit:
        raise ArgumentError(
            "residual: in one graph it must return tensors like y0, as many and of the same sizes and dtypes. Stack "
            "numbers with torch.stack, and convert with .to(y0.dtype)."
        )
    return [value.reshape(leaf.shape) for value, leaf in zip(values, unknowns, strict=True)]


def _inside(leaf: Any) -> Any:
    """Return an alias that the residual's graph makes, so that attributes of the tensor are computed there too."""
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf
