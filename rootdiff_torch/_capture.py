"""What a residual closes over: found in one call, and then given to it as explicit arguments.

An `autograd.Function` drops the gradients of tensors that are not among its inputs. One mode sees every operation and
finds such tensors; another replaces them by inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from rootdiff._errors import ArgumentError
from rootdiff_torch._contexts import Shared
from rootdiff_torch._derivatives import graph_of, tensors
from rootdiff_torch._private import forward_active, is_wrapped, unwrapped
from rootdiff_torch._transforms import depth, is_dual, levels

_ADVICE = (
    "residual: it uses a tensor from outside that is differentiated but cannot be followed (through torch.vmap, "
    "torch.jit, a custom autograd.Function or another way around torch's operators). Pass it through args."
)

#: What is wrong with a sparse tensor that is differentiated.
SPARSE = (
    "it is or uses a sparse tensor that is differentiated, which the implicit derivative cannot follow. Pass its "
    "values through args as a dense tensor, and build the sparse one inside. A constant may stay sparse."
)
#: What is wrong with a nested tensor.
NESTED = (
    "it is a nested tensor, of sequences with lengths of their own. Pad them, torch.nested.to_padded_tensor(x, 0.0), "
    "and mask what the residual makes of the padding; where entries do not meet, take x.values() with batch_ndim=1; or "
    "solve sequence by sequence."
)
_RUNNING, _AFFINE, _REST = ("running_mean", "running_var"), ("weight", "bias"), ("momentum", "eps", "cudnn_enabled")
#: Methods of tensors that do not read what they hold.
_OF_SHAPES = ("size", "dim", "ndimension", "numel", "stride", "is_floating_point", "is_complex", "__len__")
#: What normalises over the leading axis of its input, or keeps means over that, with the names of its arguments.
_NORMS: dict[Any, tuple[str, ...]] = {
    functional.batch_norm: ("input", *_RUNNING, *_AFFINE, "training", *_REST),
    functional.instance_norm: ("input", *_RUNNING, *_AFFINE, "use_input_stats", *_REST),
    torch.batch_norm: ("input", *_AFFINE, *_RUNNING, "training", *_REST),
    torch.native_batch_norm: ("input", *_AFFINE, *_RUNNING, "training", *_REST),
}


def needs_capture() -> bool:
    """Return whether a derivative of what the residual closes over may be wanted."""
    return torch.is_grad_enabled() or bool(levels()) or forward_active() or torch.is_inference_mode_enabled()


class Capture(NamedTuple):
    """What a call of a residual uses beside its inputs: what is differentiated, what it reads and does not write.

    And the value of the call; None under a transform, where that at plain inputs does not tell what is differentiated.
    """

    differentiated: tuple[Tensor, ...] = ()
    constants: tuple[Tensor, ...] = ()
    value: Tensor | None = None


def capture(function: Callable[..., Tensor], y: Tensor, parameters: Sequence[Tensor]) -> Capture:
    """Return what ``function(y, *parameters)`` uses beside its inputs."""
    with torch.enable_grad(), _eagerly():
        hidden = bool(levels()) or torch.is_inference_mode_enabled()
        inputs = (y, *parameters) if hidden else [tensor.detach() for tensor in (y, *parameters)]
        with _Recorder(inputs) as recorder:
            value = function(*inputs)
        captured, constants = tuple(recorder.found.values()), recorder.constants()
        if hidden:
            return Capture(captured, constants)
        if not is_followed(value):
            return Capture((), constants, value)
        check_followed(with_captured(function, captured, len(inputs)), [*inputs, *[t.detach() for t in captured]])
    return Capture(captured, constants, value.detach())


def tensors_used(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], shape: tuple[int, ...] | None = None
) -> tuple[Tensor, ...]:
    """Return the tensors beside its inputs that ``function(*inputs)`` uses and that are differentiated or mapped.

    With a `shape` the constants whose leading axes have it, instead.
    """
    with _eagerly(), _Recorder(inputs) if shape is None else _Constants(inputs, shape) as recorder:
        function(*inputs)
    return tuple(recorder.found.values())


def with_captured(function: Callable[..., Tensor], captured: Sequence[Tensor], count: int) -> Callable[..., Tensor]:
    """Return `function` of its first `count` inputs and, after them, of replacements for the `captured` tensors."""
    if not captured:
        return function

    def explicit(*inputs: Tensor) -> Tensor:
        with _eagerly(), _Substitution(captured, inputs[count:], inputs[:count]):
            return function(*inputs[:count])

    return explicit


def check_followed(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise if the value of `function` at plain inputs depends on something else that is differentiated."""
    with torch.enable_grad():
        value = function(*inputs)
    if is_followed(value):
        _check_made(function, inputs)


def check_graph(value: Tensor, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise if the graph of `value`, that of `function` at `inputs`, leads to a tensor beside them."""
    if _leads_beside(value, inputs):
        _check_made(function, inputs)


def _check_made(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """Raise unless all that the value of `function` depends on is among its inputs, or made in the call."""
    with torch.enable_grad(), _eagerly(), _Recorder(inputs) as recorder:
        value = function(*inputs)
    if is_wrapped(value) or is_dual(value) or _leads_beside(value, recorder.made.values()):
        raise ArgumentError(_ADVICE)


def _leads_beside(value: Tensor, known: Iterable[Tensor]) -> bool:
    """Return whether the graph of `value` leads to a tensor that is not known."""
    leaves = {id(value), *map(id, known)}
    return any(id(getattr(node, "variable", value)) not in leaves for node in graph_of(value))


def is_followed(tensor: Tensor) -> bool:
    """Return whether something differentiates `tensor`."""
    return tensor.requires_grad or is_wrapped(tensor) or is_dual(tensor)


@dataclass
class Statistics:
    """The running statistics that a residual moves, as `BatchNorm` in training does: so many of them, None: unknown.

    In a batch such a residual is refused, for its systems are not independent. For one system they stay as they are.
    """

    batched: bool
    count: int | None = None

    def kept(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return `function`, which moves no statistics; its first call finds out whether it would."""

        def still(*inputs: Tensor) -> Tensor:
            if self.count == 0:
                return function(*inputs)
            with _eagerly(), _BatchNorms(self.batched) as seen:
                value = function(*inputs)
            self.count = seen.count
            return value

        return still


#: Runs what the user has compiled as it is: Dynamo cannot trace a mode that looks at tensors one by one.
_eagerly = Shared(lambda: torch.compiler.set_stance("force_eager"))


class _Recorder(TorchFunctionMode):
    """Finds the tensors that operations use and none of them made."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.made = {id(tensor): tensor for tensor in inputs}  # held: the id of a freed tensor may be used again
        self.found: dict[int, Tensor] = {}
        self.read: dict[int, Tensor] = {}
        self.versions: dict[int, tuple[Tensor, int]] = {}  # at the first meeting, of a tensor and all its views
        self.depth = depth()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        met = [tensor for tensor in tensors((args, kwargs)) if id(tensor) not in self.made]
        for tensor in met:
            self._meet(tensor)
        constants = [(base_of(t), t) for t in met if not (is_followed(t) or t.is_inference())]
        for base, tensor in constants:
            self.versions.setdefault(id(base), (base, tensor._version))
        output = func(*args, **(kwargs or {}))
        outputs = (output,) if isinstance(output, Tensor) else tensors(output)
        again = set[int]()
        if constants:  # what comes out again, as a view or written into, is not read by this operation, nor made
            again = {id(base) for base, _ in constants}.intersection(id(base_of(t)) for t in outputs)
            if _reads_values(func, outputs):
                self.read |= {id(tensor): tensor for base, tensor in constants if id(base) not in again}
        self.made |= {id(t): t for t in outputs if not again or id(base_of(t)) not in again}
        return output

    def constants(self) -> tuple[Tensor, ...]:
        """Return what operations read, none wrote, and nothing differentiates."""
        return tuple(part for part in self.read.values() if part._version == self.versions[id(base_of(part))][1])

    def _meet(self, tensor: Tensor) -> None:
        base = tensor
        while depth(base) > self.depth:  # wrapped by a transform that the residual itself applies
            base = unwrapped(base)
        if id(base) in self.made or not (is_followed(base) or base.is_inference()):
            return
        if base is not tensor:
            raise ArgumentError(_ADVICE)
        if tensor.layout is not torch.strided:
            raise ArgumentError(f"residual: {SPARSE}")
        self.found[id(tensor)] = tensor


def base_of(tensor: Tensor) -> Tensor:
    """Return the tensor that `tensor` is a view of, or itself; they share what counts changes in place."""
    base = None if is_wrapped(tensor) else tensor._base
    return tensor if base is None else base


def _reads_values(func: Any, outputs: Sequence[Tensor]) -> bool:
    """Return whether an operation reads what its tensors hold, not only their shape or dtype."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # an attribute: .shape, or .T
        return bool(outputs)
    return not (name in _OF_SHAPES or name.endswith("_like") or name.startswith("new_"))


class _BatchNorms(TorchFunctionMode):
    """Sees where a normalisation, a module's or a function, takes statistics over the batch, and raises if `batched`.

    It keeps running statistics, and the count of a module before it, as they are.
    """

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.batched, self.count = batched, 0
        self.counter: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.add_ and args[0].dtype is torch.long:
            self.counter = args[0]
        if func not in _NORMS:
            return func(*args, **kwargs)
        given = dict(zip(_NORMS[func], args, strict=False)) | kwargs
        keeps = given.get("running_mean") is not None
        # instance norm takes each system by itself, but the statistics that it keeps are means over all
        by_system = func is functional.instance_norm
        takes = keeps and given.get("use_input_stats", True) if by_system else given.get("training", False)
        if takes and self.batched:
            raise ArgumentError(
                f"residual: {func.__name__} in training mode takes statistics over the batch, so that its systems are "
                "not independent: derivatives or running statistics would be wrong. Call .eval() on its module, take "
                "LayerNorm or GroupNorm, or solve the batch as one system with batch_ndim=0."
            )
        if not (takes and keeps):
            return func(*args, **kwargs)
        self.count += 1
        if self.counter is not None:
            self.counter.sub_(1)
            self.counter = None
        return func(**given | dict.fromkeys(_RUNNING))


class _Constants(_Recorder):
    """Finds the dense tensors that are not differentiated and whose leading axes have one shape."""

    def __init__(self, inputs: Sequence[Tensor], shape: tuple[int, ...]) -> None:
        super().__init__(inputs)
        self.shape = shape

    def _meet(self, tensor: Tensor) -> None:
        plain = tensor.layout is torch.strided and not is_followed(tensor)
        if plain and tensor.shape[: len(self.shape)] == self.shape:
            self.found[id(tensor)] = tensor


class _Substitution(TorchFunctionMode):
    """Gives operations the replacements in place of the originals."""

    def __init__(self, originals: Sequence[Tensor], replacements: Sequence[Tensor], inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.table = {id(old): new for old, new in zip(originals, replacements, strict=True)}
        self.known = {id(tensor) for tensor in (*replacements, *inputs)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs: Any = (args, kwargs or {})
        args, kwargs = optree.tree_map(self._replace, inputs)
        return func(*args, **kwargs)

    def _replace(self, leaf: Any) -> Any:
        if id(leaf) in self.table:
            return self.table[id(leaf)]
        if isinstance(leaf, nn.Parameter) and leaf.requires_grad and id(leaf) not in self.known:
            raise ArgumentError(
                f"residual: it uses a parameter of shape {tuple(leaf.shape)} that it did not use at y0, where what it "
                "closes over was looked up, so that its gradient would be lost. Pass it through args."
            )
        return leaf
