"""Pullbacks that are right under every transform, by torch.autograd or torch.func, and what custom Functions lack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import optree
import torch
from torch import Tensor

from rootdiff._errors import ArgumentError
from rootdiff._freezing import OURS
from rootdiff._sizes import FEW
from rootdiff_torch._private import BackwardCFunction, TorchDispatchMode, is_wrapped
from rootdiff_torch._transforms import hidden, is_dual


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of a pytree."""
    leaves: list[Any] = optree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def is_differentiable(value: Any) -> bool:
    """Return whether `value` is a floating or complex tensor."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def differentiable(primals: Sequence[Any]) -> list[int]:
    """Return the places of the floating and complex tensors."""
    return [place for place, primal in enumerate(primals) if is_differentiable(primal)]


def pullback(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Return the cotangents of the `wanted` ones among `primals`; a differentiable operation of all inputs."""
    if not wanted:
        return ()
    primals = list(primals)
    # torch.autograd.grad inside a transform loses its levels; torch.func.vjp outside refuses saved-tensor hooks
    if hidden((*primals, cotangent)):
        return torch.func.vjp(replaced(function, primals, wanted), *[primals[place] for place in wanted])[1](cotangent)  # type: ignore[no-any-return]
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        for place in wanted:
            primals[place] = _tracked(primals[place])
        output = function(*primals)
        inputs = [primals[place] for place in wanted]
        if not output.requires_grad:
            return tuple(map(torch.zeros_like, inputs))
        found = torch.autograd.grad(output, inputs, cotangent, create_graph=higher, materialize_grads=True)
        return tuple(map(dense, found))


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient as a dense tensor: that of an embedding may be sparse."""
    return gradient if gradient.layout is torch.strided else gradient.to_dense()


def pushforward(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], like: Tensor
) -> Tensor:
    """Return the derivative of `function`, whose values are like `like`, along `tangents`.

    By transposing its pullback, in reverse mode alone, so that a custom `autograd.Function` needs no ``jvp``; one
    whose backward cannot be differentiated is taken through forward mode.
    """
    wanted, outputs = differentiable(primals), list[Tensor]()

    def noting(*inputs: Tensor) -> Tensor:
        outputs.append(function(*inputs))
        return outputs[-1]

    def slope(cotangent: Tensor) -> Tensor:
        parts = pullback(noting, primals, wanted, cotangent)
        return _products([tangents[place] for place in wanted], parts, like.dtype).sum()

    if not wanted:
        return torch.zeros_like(like)
    outside = any(tensor.requires_grad or is_wrapped(tensor) for tensor in tensors((primals, tangents)))
    try:
        result = pullback(slope, [torch.zeros_like(like)], [0], torch.ones_like(like.sum()))[0]
        broken = breaks_graph(function, primals, wanted, outputs[0])
    except RuntimeError:
        broken = True
    if broken:
        return _otherwise(function, primals, tangents, like, outside)
    return result if outside or is_dual(result) else result.detach()  # its graph leads to nothing but our aliases


def breaks_graph(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int], output: Tensor
) -> bool:
    """Return whether the pullback of `function`, of which `output` is a value, is no differentiable operation.

    That of a custom `autograd.Function` need not be: one that works in NumPy or under `no_grad` gives zeros without a
    word. So where there is one, J v . u is compared with v . J^T u. Under a transform of torch.func that is not done.
    """
    if hidden((*primals, output)) or not custom_in(output):
        return False
    plain = [primal.detach() for primal in primals]
    with torch.enable_grad():
        for place in wanted:
            plain[place].requires_grad_()
        inputs = [plain[place] for place in wanted]
        value = function(*plain)
        u = waves(value).requires_grad_()
        try:
            parts = torch.autograd.grad(value, inputs, u, create_graph=True, materialize_grads=True)
            forth = _products(list(map(waves, parts)), parts, u.dtype)
            back = torch.autograd.grad(forth.sum(), u, allow_unused=True, materialize_grads=True)[0]
        except RuntimeError:
            return True
    size = forth.detach().abs().sum() + (u * back).abs().sum()
    return bool(((u * back).sum() - forth.sum()).abs() > torch.finfo(u.dtype).eps ** 0.5 * size)


def has_no_second(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int], output: Tensor
) -> bool:
    """Return whether autograd misses what the pullback of `function`, of which `output` is a value, makes of `primals`.

    To autograd a custom `autograd.Function` whose backward reads a NumPy array, or a detached tensor, takes that for a
    constant. So where there is one, the derivative of the pullback is compared with differences. One whose backward is
    not the derivative of its value, by intent (that of a rounding, say), tells nothing.
    """
    if not custom_in(output):
        return False
    plain = [primal.detach() for primal in primals]
    directions = [waves(plain[place]) * torch.where(plain[place] == 0, 1, plain[place].abs()) for place in wanted]

    def value(*points: Tensor) -> Tensor:
        return _products([waves(output)], [function(*points)], output.dtype)

    def slope(*points: Tensor) -> Tensor:
        parts = pullback(function, points, wanted, waves(output))
        return _products(list(map(waves, parts)), parts, output.dtype)

    return _is_derived(value, plain, wanted, directions) and not _is_derived(slope, plain, wanted, directions)


def _is_derived(
    terms: Callable[..., Tensor], plain: Sequence[Tensor], wanted: Sequence[int], directions: Sequence[Tensor]
) -> bool:
    """Return whether autograd's derivative of the sum of ``terms(*plain)`` along `directions` is that by differences.

    These have two steps: how they disagree tells their error.
    """
    with torch.enable_grad():
        here = terms(*plain)
        parts = pullback(lambda *points: terms(*points).sum(), plain, wanted, torch.ones_like(here.sum()))
    found = _products(directions, parts, here.dtype).detach()

    def difference(step: float) -> Tensor:
        moved = [list(plain), list(plain)]
        for place, direction in zip(wanted, directions, strict=True):
            moved[0][place], moved[1][place] = plain[place] + step * direction, plain[place] - step * direction
        return (terms(*moved[0]) - terms(*moved[1])).detach().sum() / (2 * step)

    eps = torch.finfo(here.dtype).eps
    step = eps ** (1 / 3)
    near, far = difference(step), difference(2 * step)
    rounding = eps * here.detach().abs().sum() / step
    error = 10 * (near - far).abs() + 100 * rounding + 1e-4 * (near.abs() + found.abs().sum())
    return not bool((near - found.sum()).abs() > error)


def custom_in(output: Tensor) -> set[str]:
    """Return the modules of the custom `autograd.Function`s in the graph of `output`, other than ours."""
    found = (type(node)._forward_cls for node in graph_of(output) if isinstance(node, BackwardCFunction))  # type: ignore[attr-defined]
    return {function.__module__ for function in found if function.__module__.partition(".")[0] not in OURS}


def graph_of(output: Tensor) -> Iterator[Any]:
    """Return the nodes of the graph of `output`."""
    seen, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions]


class FirstOnlyError(ArgumentError, RuntimeError):
    """A derivative that a residual does not have; a RuntimeError, as those of PyTorch for the same reason are."""

    def __init__(self) -> None:
        super().__init__(
            "residual: the backward of a custom autograd.Function in it cannot be differentiated (it is "
            "once_differentiable, or works outside autograd: in NumPy, under no_grad, on detached tensors), so that "
            "there is no second derivative, nor one in forward mode that is to be differentiated. Write its backward "
            "in differentiable operations."
        )


class FirstOnly(torch.autograd.Function):
    """``(count, *gradients, *inputs) -> gradients``, so many, of the inputs, which cannot be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *values: Tensor) -> tuple[Tensor, ...]:
        return tuple(value.clone() for value in values[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise FirstOnlyError

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise FirstOnlyError


def _products(vectors: Sequence[Tensor], others: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the real inner products of vectors with others, stacked."""
    return torch.stack([(v.conj() * w).real.sum().to(dtype) for v, w in zip(vectors, others, strict=True)])


def waves(like: Tensor) -> Tensor:
    """Return fixed irregular weights, shaped as `like`, for products that must not vanish by symmetry."""
    return torch.cos(torch.arange(1, like.numel() + 1, device=like.device) ** 2).to(like.dtype).reshape(like.shape)


def pullbacks(output: Tensor, tensor: Tensor, cotangents: Tensor) -> Tensor:
    """Return the cotangents of `tensor`, for one or more cotangents (more leading axes) of `output`, by its graph."""
    if not output.requires_grad:
        return torch.zeros_like(tensor).expand(cotangents.shape[: -output.ndim] + tensor.shape)
    if cotangents.ndim == output.ndim:
        return _grad(output, tensor, cotangents)
    rows = cotangents.reshape(-1, *output.shape)
    try:
        with _Folding() if len(rows) > FEW else nullcontext():  # type: ignore[no-untyped-call]
            found = torch.vmap(partial(_grad, output, tensor))(rows)
    except RuntimeError:  # an operation in the graph, such as a custom Function, has no batching rule
        found = torch.stack([_grad(output, tensor, row) for row in rows])
    return found.reshape(cotangents.shape[: cotangents.ndim - output.ndim] + tensor.shape)


class _Folding(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Multiplies a matrix that `torch.vmap` repeats with all others at once, in a tenth of the time."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.ops.aten.bmm.default:
            return func(*args, **(kwargs or {}))
        left, right = args
        if right.stride(0) == 0:
            return (left.flatten(0, 1) @ right[0]).unflatten(0, left.shape[:2])
        if left.stride(0) != 0:
            return func(left, right)
        columns = right.mT
        return (columns.flatten(0, 1) @ left[0].mT).unflatten(0, columns.shape[:2]).mT.contiguous()


def _grad(output: Tensor, tensor: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(output, tensor, cotangent, retain_graph=True, materialize_grads=True)[0]


def in_forward_mode(function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """Return what `pushforward` does, by forward mode."""
    wanted = differentiable(primals)
    inputs, directions = [primals[place] for place in wanted], [tangents[place] for place in wanted]
    return torch.func.jvp(replaced(function, primals, wanted), tuple(inputs), tuple(directions))[1]  # type: ignore[no-any-return]


def _otherwise(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], like: Tensor, outside: bool
) -> Tensor:
    """Return what `pushforward` does, in forward mode, or row by row where the derivative is wanted once."""
    wanted = differentiable(primals)
    try:
        return in_forward_mode(function, primals, tangents)
    except RuntimeError as error:
        if outside:
            raise FirstOnlyError from error
    rows = []
    for unit in torch.eye(like.numel(), dtype=like.dtype, device=like.device):
        parts = pullback(function, primals, wanted, unit.reshape(like.shape))
        rows.append(_products([tangents[place] for place in wanted], parts, like.dtype).sum())
    return torch.stack(rows).reshape(like.shape)


def replaced(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int]
) -> Callable[..., Tensor]:
    """Return `function` of the `wanted` ones among its inputs, the others kept."""

    def of_wanted(*values: Tensor) -> Tensor:
        merged = list(primals)
        for place, value in zip(wanted, values, strict=True):
            merged[place] = value
        return function(*merged)

    return of_wanted


def _tracked(tensor: Tensor) -> Tensor:
    """Return an alias of `tensor` to differentiate in, which keeps its history and its tangent."""
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    if is_dual(tensor):
        return tensor + torch.zeros_like(tensor).requires_grad_()
    return tensor.detach().requires_grad_()
