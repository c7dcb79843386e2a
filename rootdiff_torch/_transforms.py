"""The transforms around a tensor, and how to stay right under them: levels of torch.func, forward mode, compilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rootdiff._errors import RootdiffError
from rootdiff_torch import _private
from rootdiff_torch._private import AUTOGRAD_KEYS, FUNC_KEYS, FakeTensor, forward_active, is_vectorized, is_wrapped

F = TypeVar("F", bound=Callable[..., Any])


class TransformError(RootdiffError, NotImplementedError):
    """A transform that cannot be carried through a root, where the result would be silently wrong.

    Examples
    --------
    >>> import rootdiff_torch as rd
    >>> issubclass(rd.TransformError, NotImplementedError)
    True
    """


def hidden(values: Sequence[Any]) -> bool:
    """Return whether a transform of torch.func is active, or tracks one of the tensors."""
    return _private.innermost_level() is not None or any(map(is_wrapped, values))


def levels() -> list[Any]:
    """Return the kinds of the active transforms of torch.func, outermost first."""
    return [level.key() for level in _private.all_levels() or ()]


def depth(tensor: Tensor | None = None) -> int:
    """Return the level of torch.func that tracks `tensor`, or that is active; 0: none."""
    level = _private.current_depth() if tensor is None else _private.depth_of(tensor)
    return max(level or 0, 0)


def lasting(tensor: Tensor) -> Tensor:
    """Return `tensor` without the wrappers of transforms of torch.func that have ended.

    PyTorch takes away one of them by itself; a pullback in a pullback puts a second one around a tensor that was saved.
    """
    while (inner := _private.unwrapped_if_ended(tensor)) is not tensor:
        tensor = inner
    return tensor


def has_values(tensor: Tensor) -> bool:
    """Return whether `tensor` has values; if not, it has a shape and a dtype only."""
    return not (tensor.is_meta or isinstance(tensor, FakeTensor))


def is_dual(tensor: Tensor) -> bool:
    """Return whether `tensor` carries a tangent of the current dual level."""
    return forward_active() and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


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
        level = _private.enter_vectorized() - 1  # the only way to read the current level
        _private.leave_vectorized()
        kinds: list[bool] = []

        def of_batched(*parts: Tensor) -> tuple[Tensor, ...]:
            merged = dict(enumerate(values)) | dict(zip(places, parts, strict=True))
            output = stacked(ctx, *merged.values())
            outputs = output if isinstance(output, tuple) else (output,)
            kinds[:] = [part is not None for part in outputs]
            return tuple(part for part in outputs if part is not None)

        found = iter(torch.vmap(of_batched)(*[_private.without_axis(values[place], level, 1, 0) for place in places]))
        outputs = tuple(_private.with_axis(next(found), 0, level) if kind else None for kind in kinds)
        return outputs if len(outputs) > 1 else outputs[0]

    return uncompiled(stacked)


def uncompiled(function: F) -> F:
    """Return `function`, which torch.compile runs as it is, and in which autograd works inside a custom operator too.

    PyTorch runs the body of a `torch.library.custom_op` with the keys by which it dispatches to autograd excluded, and
    in a compiled program with those of torch.func.
    """

    @wraps(function)
    def dispatched(*args: Any, **options: Any) -> Any:
        excluded = _private.is_key_excluded(AUTOGRAD_KEYS[0])
        if not excluded or torch.is_inference_mode_enabled():
            return function(*args, **options)
        included, left = _private.included_keys(), _private.excluded_keys()
        for key in AUTOGRAD_KEYS if levels() else (*AUTOGRAD_KEYS, *FUNC_KEYS):
            left = left.remove(key)
        with _private.dispatching_by(included, left):
            return function(*args, **options)

    return torch.compiler.disable(dispatched)  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def outer_forward_mode() -> Iterator[None]:
    """Let the outer levels of forward mode through a ``jvp`` rule.

    PyTorch runs such a rule with forward mode off, so that the derivative of a derivative would be zero. All that the
    rule does must be done inside, and what it reads be freed by `without_tangents` from the tangents of the level
    that the rule is for, lest it call itself.
    """
    with _private.forward_mode(forward_active()):
        yield


def without_tangents(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors stripped of their tangents of the innermost level."""
    if not forward_active():
        return list(tensors)
    return [forward_ad.unpack_dual(tensor).primal for tensor in tensors]  # type: ignore[no-untyped-call]
