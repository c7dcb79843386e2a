"""Pullbacks that are right under every transform: the two ways that PyTorch has, and when to take which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
    """A transform that cannot be carried through a root, where the result would be silently wrong.

    Examples
    --------
    >>> import rootdiff_torch as rd
    >>> issubclass(rd.TransformError, NotImplementedError)
    True
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


def depth(tensor: Tensor | None = None) -> int:
    """Return the level of torch.func that tracks `tensor`, or that is active; 0: none."""
    level = _functorch.maybe_current_level() if tensor is None else _functorch.maybe_get_level(tensor)
    return max(level or 0, 0)


def unwrapped(tensor: Tensor) -> Tensor:
    """Return what the innermost transform of torch.func that tracks `tensor` has wrapped."""
    return _functorch.get_unwrapped(tensor)


def is_vectorized(tensor: Tensor) -> bool:
    """Return whether `tensor` is batched by autograd's own vmap (``is_grads_batched``, ``vectorize``)."""
    return bool(_functorch.is_legacy_batchedtensor(tensor))


def refuse_vectorized(tensor: Tensor) -> None:
    """Raise if `tensor` is batched by autograd's own vmap, under which a custom rule sees one batch as one system."""
    if is_vectorized(tensor):
        raise TransformError(
            "root: an argument is batched by autograd's own vmap (torch._vmap_internals). Use torch.func.vmap."
        )


def rule(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``backward`` or ``jvp`` of `function`, which torch.compile runs as it is.

    Batches of autograd's own vmap, which tracks no derivatives through operations of its own, become those of
    torch.func.
    """

    def stacked(ctx: Any, *values: Any) -> Any:
        places = [place for place, value in enumerate(values) if isinstance(value, Tensor) and is_vectorized(value)]
        if not places:
            return function(ctx, *values)
        level = torch._C._vmapmode_increment_nesting() - 1  # the only way to read the current level
        torch._C._vmapmode_decrement_nesting()
        kinds: list[bool] = []

        def of_batched(*parts: Tensor) -> tuple[Tensor, ...]:
            merged = dict(enumerate(values)) | dict(zip(places, parts, strict=True))
            output = stacked(ctx, *merged.values())
            outputs = output if isinstance(output, tuple) else (output,)
            kinds[:] = [part is not None for part in outputs]
            return tuple(part for part in outputs if part is not None)

        found = iter(torch.vmap(of_batched)(*[torch._remove_batch_dim(values[place], level, 1, 0) for place in places]))
        outputs = tuple(torch._add_batch_dim(next(found), 0, level) if kind else None for kind in kinds)
        return outputs if len(outputs) > 1 else outputs[0]

    return uncompiled(stacked)


def levels() -> list[Any]:
    """Return the kinds of the active transforms of torch.func, outermost first."""
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


@contextmanager
def outer_forward_mode() -> Iterator[None]:
    """Let the outer levels of forward mode through a ``jvp`` rule.

    PyTorch runs such a rule with forward mode off, so that the derivative of a derivative would be zero. All that the
    rule does must be done inside, and what it reads be freed by `without_tangents` from the tangents of the level
    that the rule is for, lest it call itself.
    """
    with forward_ad._set_fwd_grad_enabled(forward_ad._current_level >= 0):
        yield


def without_tangents(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors stripped of their tangents of the innermost level."""
    if forward_ad._current_level < 0:
        return list(tensors)
    return [forward_ad.unpack_dual(tensor).primal for tensor in tensors]  # type: ignore[no-untyped-call]


@contextmanager
def in_full_precision(y: Tensor) -> Iterator[None]:
    """Keep autocast away, and the TF32 that PyTorch computes convolutions in on a GPU by default.

    To the ten bits of either no solve converges. TF32 for matrix products is left to those who have asked for it.
    """
    with torch.autocast(y.device.type, enabled=False):
        if y.device.type != "cuda":
            yield
            return
        cudnn = torch.backends.cudnn
        try:
            before, cudnn.allow_tf32 = cudnn.allow_tf32, False
        except RuntimeError:  # the precision has been set by the newer of PyTorch's two ways: that choice stands
            yield
            return
        try:
            yield
        finally:
            cudnn.allow_tf32 = before


def hidden(values: Sequence[Any]) -> bool:
    """Return whether a transform of torch.func is active, or tracks one of the tensors."""
    return _functorch.peek_interpreter_stack() is not None or any(map(is_wrapped, values))


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
        result = pullback(slope, [torch.zeros_like(like)], [0], torch.ones_like(like.sum()))[0]
    except RuntimeError:
        return _forward(function, primals, tangents, wanted)
    outside = any(tensor.requires_grad or is_wrapped(tensor) for tensor in tensors((primals, tangents)))
    return result if outside or is_dual(result) else result.detach()  # else its graph leads to our own aliases only


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
