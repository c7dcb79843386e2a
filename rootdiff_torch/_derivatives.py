"""Pullbacks that are right under every transform: the two ways that PyTorch has, and when to take which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

from rootdiff._errors import RootdiffError

F = TypeVar("F", bound=Callable[..., Any])
# torch.func has no public way to ask for its levels.
_functorch = torch._C._functorch


class TransformError(RootdiffError, NotImplementedError):
    """A transform that PyTorch does not carry through a root, where the result would be silently wrong.

    Examples
    --------
    >>> import torch, rootdiff_torch as rd
    >>> root = lambda a: rd.root(lambda y, a: y**2 - a, torch.ones(1), a).y
    >>> torch.func.jacfwd(torch.func.jacfwd(root))(torch.ones(1))
    Traceback (most recent call last):
        ...
    rootdiff_torch._derivatives.TransformError: ...
    """


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a transform of torch.func tracks `tensor`."""
    return bool(_functorch.is_functorch_wrapped_tensor(tensor))


def uncompiled(function: F) -> F:
    """Return `function`, which torch.compile runs as it is."""
    return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]


def tensors(tree: Any) -> list[Tensor]:
    """Return the tensors among the leaves of a pytree."""
    leaves: list[Any] = optree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def is_differentiable(value: Any) -> bool:
    """Return whether `value` is a floating or complex tensor."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def is_dual(tensor: Tensor) -> bool:
    """Return whether `tensor` carries a tangent of the current dual level."""
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def is_vectorized(tensor: Tensor) -> bool:
    """Return whether `tensor` is batched by autograd's own vmap (``is_grads_batched``, ``vectorize``)."""
    return bool(_functorch.is_legacy_batchedtensor(tensor))


def devectorized(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Return ``function(tensor)`` with the batch of autograd's own vmap as an explicit leading axis."""
    if not is_vectorized(tensor):
        return function(tensor)
    level = torch._C._vmapmode_increment_nesting() - 1  # the only way to read the current level
    torch._C._vmapmode_decrement_nesting()
    stacked = torch._remove_batch_dim(tensor, level, 1, 0)
    return torch._add_batch_dim(devectorized(function, stacked), 0, level)


def levels() -> list[Any]:
    """Return the kinds of the active transforms of torch.func, outermost first."""
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


def forward_levels() -> int:
    """Return how many forward-mode transforms are active."""
    return sum(kind == _functorch.TransformType.Jvp for kind in levels())


def pullback(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int], cotangent: Tensor
) -> tuple[Tensor, ...]:
    """Return the cotangents of the `wanted` ones among `primals`; a differentiable operation of all inputs."""
    if not wanted:
        return ()
    primals = list(primals)
    # torch.autograd.grad inside a transform loses its levels; torch.func.vjp outside refuses saved-tensor hooks
    if _functorch.peek_interpreter_stack() is not None or any(map(is_wrapped, (*primals, cotangent))):
        return torch.func.vjp(replaced(function, primals, wanted), *[primals[place] for place in wanted])[1](cotangent)  # type: ignore[no-any-return]
    higher = torch.is_grad_enabled()
    with torch.enable_grad():
        for place in wanted:
            primals[place] = _tracked(primals[place])
        output = function(*primals)
        inputs = [primals[place] for place in wanted]
        if not output.requires_grad:
            return tuple(map(torch.zeros_like, inputs))
        return torch.autograd.grad(output, inputs, cotangent, create_graph=higher, materialize_grads=True)


def pushforward(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], like: Tensor
) -> Tensor:
    """Return the derivative of `function`, whose values are like `like`, along `tangents`.

    By transposing its pullback, in reverse mode alone, so that a custom `autograd.Function` needs no ``jvp``; one
    whose backward cannot be differentiated is taken through forward mode.
    """
    wanted = [place for place, primal in enumerate(primals) if is_differentiable(primal)]

    def slope(cotangent: Tensor) -> Tensor:
        parts = pullback(function, primals, wanted, cotangent)
        products = [(tangents[place].conj() * part).real.sum() for place, part in zip(wanted, parts, strict=True)]
        return torch.stack([product.to(like.dtype) for product in products]).sum()

    if not wanted:
        return torch.zeros_like(like)
    try:
        return pullback(slope, [torch.zeros_like(like)], [0], torch.ones_like(like.sum()))[0]
    except RuntimeError:
        return _forward(function, primals, tangents, wanted)


def pullbacks(output: Tensor, tensor: Tensor, cotangents: Tensor) -> Tensor:
    """Return the cotangents of `tensor`, for one or more cotangents (more leading axes) of `output`, by its graph."""
    if not output.requires_grad:
        return torch.zeros_like(tensor).expand(cotangents.shape[: -output.ndim] + tensor.shape)
    if cotangents.ndim == output.ndim:
        return _grad(output, tensor, cotangents)
    rows = cotangents.reshape(-1, *output.shape)
    try:
        found = torch.vmap(partial(_grad, output, tensor))(rows)
    except RuntimeError:  # an operation in the graph, such as a custom Function, has no batching rule
        found = torch.stack([_grad(output, tensor, row) for row in rows])
    return found.reshape(cotangents.shape[: cotangents.ndim - output.ndim] + tensor.shape)


def _grad(output: Tensor, tensor: Tensor, cotangent: Tensor) -> Tensor:
    return torch.autograd.grad(output, tensor, cotangent, retain_graph=True, materialize_grads=True)[0]


def _forward(
    function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor], wanted: Sequence[int]
) -> Tensor:
    return torch.func.jvp(  # type: ignore[no-any-return]
        replaced(function, primals, wanted),
        tuple(primals[place] for place in wanted),
        tuple(tangents[place] for place in wanted),
    )[1]


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
