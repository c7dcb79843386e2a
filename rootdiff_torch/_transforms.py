"""The transforms around a tensor, and how to stay right under them: levels of torch.func, forward mode, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.autograd import forward_ad

from rootdiff._errors import RootdiffError

F = TypeVar("F", bound=Callable[..., Any])
# torch.func has no public way to ask for its levels.
_functorch = torch._C._functorch
_Key = torch._C.DispatchKey
_AUTOGRAD = (_Key.AutogradFunctionality, _Key.AutogradOther, _Key.AutogradNestedTensor, _Key.ADInplaceOrView)
#: By which it dispatches to torch.func, and to what conj() and neg() leave for later.
_FUNC = (
    *(_Key.FuncTorchBatched, _Key.FuncTorchVmapMode, _Key.FuncTorchGradWrapper),
    *(_Key.FuncTorchDynamicLayerFrontMode, _Key.FuncTorchDynamicLayerBackMode),
    *(_Key.Conjugate, _Key.Negative, _Key.ZeroTensor),
)


class TransformError(RootdiffError, NotImplementedError):
    """A transform that cannot be carried through a root, where the result would be silently wrong.

    Examples
    --------
    >>> import rootdiff_torch as rd
    >>> issubclass(rd.TransformError, NotImplementedError)
    True
    """


#: Whether a transform of torch.func tracks a tensor.
is_wrapped: Callable[[Tensor], bool] = _functorch.is_functorch_wrapped_tensor


def hidden(values: Sequence[Any]) -> bool:
    """Return whether a transform of torch.func is active, or tracks one of the tensors."""
    return _functorch.peek_interpreter_stack() is not None or any(map(is_wrapped, values))


def levels() -> list[Any]:
    """Return the kinds of the active transforms of torch.func, outermost first."""
    return [level.key() for level in _functorch.get_interpreter_stack() or ()]


def depth(tensor: Tensor | None = None) -> int:
    """Return the level of torch.func that tracks `tensor`, or that is active; 0: none."""
    level = _functorch.maybe_current_level() if tensor is None else _functorch.maybe_get_level(tensor)
    return max(level or 0, 0)


def unwrapped(tensor: Tensor) -> Tensor:
    """Return what the innermost transform of torch.func that tracks `tensor` has wrapped."""
    return _functorch.get_unwrapped(tensor)


def forward_active() -> bool:
    """Return whether a dual level is open."""
    return forward_ad._current_level >= 0


def has_values(tensor: Tensor) -> bool:
    """Return whether `tensor` has values; if not, it has a shape and a dtype only."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def is_dual(tensor: Tensor) -> bool:
    """Return whether `tensor` carries a tangent of the current dual level."""
    return forward_active() and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


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


def uncompiled(function: F) -> F:
    """Return `function`, which torch.compile runs as it is, and in which autograd works inside a custom operator too.

    PyTorch runs the body of a `torch.library.custom_op` with the keys by which it dispatches to autograd excluded, and
    in a compiled program with those of torch.func.
    """

    @wraps(function)
    def dispatched(*args: Any, **options: Any) -> Any:
        excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD[0])
        if not excluded or torch.is_inference_mode_enabled():
            return function(*args, **options)
        included, left = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        for key in _AUTOGRAD if levels() else (*_AUTOGRAD, *_FUNC):
            left = left.remove(key)
        with torch._C._ForceDispatchKeyGuard(included, left):
            return function(*args, **options)

    return torch.compiler.disable(dispatched)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def outer_forward_mode() -> Iterator[None]:
    """Let the outer levels of forward mode through a ``jvp`` rule.

    PyTorch runs such a rule with forward mode off, so that the derivative of a derivative would be zero. All that the
    rule does must be done inside, and what it reads be freed by `without_tangents` from the tangents of the level
    that the rule is for, lest it call itself.
    """
    with forward_ad._set_fwd_grad_enabled(forward_active()):
        yield


def without_tangents(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors stripped of their tangents of the innermost level."""
    if not forward_active():
        return list(tensors)
    return [forward_ad.unpack_dual(tensor).primal for tensor in tensors]  # type: ignore[no-untyped-call]
