"""Pullbacks that are right under every transform: the two ways that PyTorch has, and when to take which."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from threading import Lock
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor
from torch.autograd import forward_ad

from rootdiff._errors import ArgumentError, RootdiffError

F = TypeVar("F", bound=Callable[..., Any])
# torch.func has no public way to ask for its levels.
_functorch = torch._C._functorch
_Key = torch._C.DispatchKey
_AUTOGRAD = (_Key.AutogradFunctionality, _Key.AutogradOther, _Key.AutogradNestedTensor, _Key.ADInplaceOrView)
FIRST_ONLY = (
    "residual: the backward of a custom autograd.Function in it cannot be differentiated (it is once_differentiable, "
    "or works outside autograd: in NumPy, under no_grad), so that there is no second derivative, nor one in forward "
    "mode that is to be differentiated. Write its backward in differentiable operations."
)


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
    """Return `function`, which torch.compile runs as it is, and in which autograd works inside a custom operator too.

    PyTorch runs the body of a `torch.library.custom_op` with the keys by which it dispatches to autograd excluded.
    """

    @wraps(function)
    def dispatched(*args: Any, **options: Any) -> Any:
        excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD[0])
        if not excluded or torch.is_inference_mode_enabled():
            return function(*args, **options)
        included, left = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        for key in _AUTOGRAD:
            left = left.remove(key)
        with torch._C._ForceDispatchKeyGuard(included, left):
            return function(*args, **options)

    return torch.compiler.disable(dispatched)  # type: ignore[no-any-return, no-untyped-call]


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
        else:
            with _without_tf32():
                yield


class Shared:
    """A context of the whole process, which the first thread that is in it enters, and the last one leaves.

    Threads that saved and restored such a setting each by itself would leave it as another had set it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make, self.lock, self.inside, self.entered = make, Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Be in the context for a while."""
        with self.lock:
            if self.inside == 0:
                self.entered.enter_context(self.make())
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    self.entered.close()


@contextmanager
def _tf32_off() -> Iterator[None]:
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


_without_tf32 = Shared(_tf32_off)


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
    wanted = [place for place, primal in enumerate(primals) if is_differentiable(primal)]

    outputs: list[Tensor] = []

    def noting(*inputs: Tensor) -> Tensor:
        outputs.append(function(*inputs))
        return outputs[-1]

    def slope(cotangent: Tensor) -> Tensor:
        parts = pullback(noting, primals, wanted, cotangent)
        products = [(tangents[place].conj() * part).real.sum() for place, part in zip(wanted, parts, strict=True)]
        return torch.stack([product.to(like.dtype) for product in products]).sum()

    if not wanted:
        return torch.zeros_like(like)
    outside = any(tensor.requires_grad or is_wrapped(tensor) for tensor in tensors((primals, tangents)))
    try:
        result = pullback(slope, [torch.zeros_like(like)], [0], torch.ones_like(like.sum()))[0]
    except RuntimeError:
        return _otherwise(function, primals, tangents, wanted, like, outside)
    if breaks_graph(function, primals, wanted, outputs[0]):
        return _otherwise(function, primals, tangents, wanted, like, outside)
    return result if outside or is_dual(result) else result.detach()  # else its graph leads to our own aliases only


def breaks_graph(
    function: Callable[..., Tensor], primals: Sequence[Tensor], wanted: Sequence[int], output: Tensor
) -> bool:
    """Return whether the pullback of `function`, of which `output` is a value, is no differentiable operation.

    That of a custom `autograd.Function` need not be: one that works in NumPy or under `no_grad` gives zeros without a
    word. So where there is one, J v . u is compared with v . J^T u. Under a transform of torch.func that is not done.
    """
    if hidden((*primals, output)) or not has_custom_node(output):
        return False
    plain = [primal.detach() for primal in primals]
    with torch.enable_grad():
        for place in wanted:
            plain[place].requires_grad_()
        inputs = [plain[place] for place in wanted]
        value = function(*plain)
        u = _pattern(value).requires_grad_()
        try:
            parts = torch.autograd.grad(value, inputs, u, create_graph=True, materialize_grads=True)
            forth = [(_pattern(part).conj() * part).real.sum() for part in parts]
            total = torch.stack([part.to(u.dtype) for part in forth])
            back = torch.autograd.grad(total.sum(), u, allow_unused=True, materialize_grads=True)[0]
        except RuntimeError:
            return True
    size = total.detach().abs().sum() + (u * back).abs().sum()
    return bool(((u * back).sum() - total.sum()).abs() > torch.finfo(u.dtype).eps ** 0.5 * size)


def has_custom_node(output: Tensor) -> bool:
    """Return whether the graph of `output` holds a custom `autograd.Function`."""
    return any(isinstance(node, torch.autograd.function.BackwardCFunction) for node in graph_of(output))


def graph_of(output: Tensor) -> Iterator[Any]:
    """Return the nodes of the graph of `output`."""
    seen, nodes = set(), [output.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [following for following, _ in node.next_functions]


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
        raise ArgumentError(FIRST_ONLY)

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> Any:
        raise ArgumentError(FIRST_ONLY)


def _pattern(like: Tensor) -> Tensor:
    """Return weights of no special value, shaped as `like`."""
    return torch.cos(torch.arange(1, like.numel() + 1, device=like.device) ** 2).to(like.dtype).reshape(like.shape)


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


def in_forward_mode(function: Callable[..., Tensor], primals: Sequence[Tensor], tangents: Sequence[Tensor]) -> Tensor:
    """Return what `pushforward` does, by forward mode."""
    wanted = [place for place, primal in enumerate(primals) if is_differentiable(primal)]
    inputs, directions = [primals[place] for place in wanted], [tangents[place] for place in wanted]
    return torch.func.jvp(replaced(function, primals, wanted), tuple(inputs), tuple(directions))[1]  # type: ignore[no-any-return]


def _otherwise(
    function: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor],
    wanted: Sequence[int],
    like: Tensor,
    outside: bool,
) -> Tensor:
    """Return what `pushforward` does, in forward mode, or row by row where the derivative is wanted once."""
    directions = [tangents[place] for place in wanted]
    try:
        return in_forward_mode(function, primals, tangents)
    except RuntimeError as error:
        if outside:
            raise ArgumentError(FIRST_ONLY) from error
    rows = []
    for unit in torch.eye(like.numel(), dtype=like.dtype, device=like.device):
        parts = pullback(function, primals, wanted, unit.reshape(like.shape))
        products = [(v.conj() * part).real.sum().to(like.dtype) for v, part in zip(directions, parts, strict=True)]
        rows.append(torch.stack(products).sum())
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
