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

from rootdiff._adapter import F
from rootdiff._solution import Solution
from rootdiff_torch._private import TransformType, as_constant, get_proxy_mode, has_one_graph, is_fx_tracing, pytree
from rootdiff_torch._transforms import TransformError, levels

if has_one_graph:
    from rootdiff_torch._node import ENTRIES, SOLVE, RefusedError, word
    from rootdiff_torch._private import InstructionTranslator, SkipFrame, setup_compilation_env

#: The options of an entry point that a graph can hold.
_STATIC = ("solver", "adjoint", "batch_ndim", "on_failure", "y_scale", "rtol", "atol", "max_steps", "loss")
#: The entry points that a graph can hold, and whether what their function returns is like the unknowns.
_LIKE_UNKNOWNS = {"root": True, "fixed_point": True, "implicit": True, "least_squares": False, "minimize": False}
#: The code of the functions that ask whether to be part of one graph.
_PARTS = set[CodeType]()
_INSTEAD = "Leave it out of the graph: torch.compile without fullgraph=True runs a root as it is."


def graphed(entry: F) -> F:
    """Return an entry point that is one node where PyTorch traces one graph; elsewhere it is as before."""
    name = entry.__name__
    if not has_one_graph:
        return entry
    ENTRIES[name] = entry

    @wraps(entry)
    def called(*args: Any, **options: Any) -> Any:
        refuse_tracing(name)
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


def refuse_tracing(name: str) -> None:
    """Raise if what records Python is around a call: it would record the steps of one solve, not a root."""
    if torch.compiler.is_dynamo_compiling():
        return
    tracer = "torch.jit.trace" if torch.jit.is_tracing() else ""  # type: ignore[attr-defined, no-untyped-call]
    if is_fx_tracing() and not torch.compiler.is_compiling() and get_proxy_mode() is None:
        tracer = "torch.fx.symbolic_trace"
    elif TransformType.Functionalize in levels():
        tracer = "torch.func.functionalize"
    if tracer:
        raise TransformError(
            f"{name}: {tracer} would record the steps of one solve. Take torch.export, which records a root."
        )


def inlined(function: F) -> F:
    """Return `function`, which PyTorch traces as a part of one graph; where it breaks graphs, it is not traced."""
    _PARTS.add(function.__code__)
    return function


def one_graph() -> bool:
    """Return whether PyTorch is tracing, and must not leave anything out of the graph."""
    if not has_one_graph:
        return False
    return (
        _unbroken()
        if torch.compiler.is_dynamo_compiling()
        else torch.compiler.is_exporting() or get_proxy_mode() is not None
    )


@as_constant
def _unbroken() -> bool:
    traced = InstructionTranslator.current_tx()
    if not traced.one_graph and traced.f_code in _PARTS:  # the graph of what calls it has ended: not one more
        raise SkipFrame("a root runs as it is")
    return bool(traced.one_graph)


@as_constant
def _transformed() -> bool:
    return bool(levels())


@as_constant
def _autocast(device: str) -> bool:
    return torch.is_autocast_enabled(device)


@as_constant
def refuse(message: str) -> NoReturn:
    """Raise, also while PyTorch traces what calls this: it cannot trace how our errors are made."""
    raise RefusedError(message)


def _refuse(name: str, reason: str) -> None:
    refuse(f"{name}: it cannot be part of one graph: {reason}. {_INSTEAD}")


def _check(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Raise if one graph cannot hold this call."""
    if _transformed():
        _refuse(name, "a transform of torch.func is around it")
    if name not in _LIKE_UNKNOWNS:
        _refuse(name, f"only {', '.join(_LIKE_UNKNOWNS)} can")
    if len(args) < 2:
        _refuse(name, "its function and its start must be given by position")
    for option, value in options.items():
        if option not in (*_STATIC, "has_aux") and value is not None and value is not False:
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
    device = leaves[0].device.type
    if _autocast(device):
        with torch.autocast(device, enabled=False):
            widened = pytree.tree_map(lambda leaf: _widened(leaf, leaves[0]), others)
            return _node(name, (function, y0, *widened), options)
    count, batch_ndim, has_aux = len(leaves), options.get("batch_ndim", 0), options.get("has_aux", False)

    def body(*leaves: Tensor) -> tuple[Tensor, ...]:
        unknowns = [_inside(leaf) for leaf in leaves]  # used before all else, so that they are the first inputs
        y, inputs = pytree.tree_map(_inside, (pytree.tree_unflatten(unknowns, tree), others))
        output = function(y, *inputs)
        values = pytree.tree_leaves(output[0] if has_aux else output)
        extra: list[Tensor] = []
        if _LIKE_UNKNOWNS[name]:
            of_y = _like(unknowns, values)
        else:  # y depends on all that the values depend on
            of_y, extra = [leaf + 0 * sum(value.sum() for value in values) for leaf in unknowns], values
        # the rest tells PyTorch the shapes of what the node returns beside y
        like, errors = unknowns[0], [torch.empty_like(leaf) for leaf in unknowns]
        batch = like.shape[:batch_ndim]
        counts = [like.new_zeros(batch, dtype=torch.int32) for _ in range(3)]
        norm, approximate = errors[0].abs().new_zeros(batch), like.new_zeros(batch, dtype=torch.bool)
        return (*of_y, *errors, *counts, norm, approximate, *extra)

    static = {option: value for option, value in options.items() if option in _STATIC and value is not None}
    for option in ("solver", "adjoint"):
        if not isinstance(static.get(option, ""), str):
            static[option] = word(static[option])
    # copies, lest PyTorch take a start that is an argument too for one input
    found = SOLVE(body, *[leaf.detach().clone() for leaf in leaves], entry=name, unknowns=count, **static)
    error, (status, steps, method, norm, approximate, *_) = found[count : 2 * count], found[2 * count :]
    root = pytree.tree_unflatten(found[:count], tree)
    return Solution(
        root,
        status.detach(),
        steps.detach(),
        norm.detach(),
        method.detach(),
        (),
        (),
        approximate.detach(),
        pytree.tree_unflatten([part.detach() for part in error], tree),
        function(root, *others)[1] if has_aux else (),
    )


def _like(unknowns: list[Tensor], values: list[Any]) -> list[Tensor]:
    """Return what a residual returned, in the shapes of the unknowns."""
    fit = len(values) == len(unknowns) and all(
        isinstance(value, Tensor) and value.dtype == leaf.dtype and value.numel() == leaf.numel()
        for value, leaf in zip(values, unknowns, strict=False)
    )
    if not fit:
        refuse(
            "residual: in one graph it must return tensors like y0, as many and of the same sizes and dtypes. Stack "
            "numbers with torch.stack, and convert with .to(y0.dtype)."
        )
    return [value.reshape(leaf.shape) for value, leaf in zip(values, unknowns, strict=True)]


def _inside(leaf: Any) -> Any:
    """Return an alias that the residual's graph makes, so that attributes of the tensor are computed there too."""
    return leaf.view_as(leaf) if isinstance(leaf, Tensor) else leaf


def _widened(leaf: Any, like: Tensor) -> Any:
    """Return a tensor of lower precision than `like` in that of it."""
    lower = isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype.itemsize < like.real.dtype.itemsize
    return leaf.to(like.real.dtype) if lower else leaf
