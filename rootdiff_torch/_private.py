"""What is used of PyTorch's private API, and nowhere else: where a release moves a name, this file is mended.

Each name of it is a test in `tests/torch/test_private.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType as TransformType
from torch._subclasses import FakeTensor as FakeTensor
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction as BackwardCFunction
from torch.fx import _symbolic_trace
from torch.fx.experimental.proxy_tensor import get_proxy_mode as get_proxy_mode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

try:  # a root as one node of a graph
    from torch._dynamo.exc import SkipFrame as SkipFrame
    from torch._dynamo.exc import Unsupported as Unsupported
    from torch._dynamo.symbolic_convert import InstructionTranslator as InstructionTranslator
    from torch._dynamo.variables import higher_order_ops
    from torch._guards import detect_fake_mode as detect_fake_mode
    from torch._higher_order_ops.base_hop import BaseHOP as BaseHOP
    from torch._higher_order_ops.utils import setup_compilation_env as setup_compilation_env
    from torch._inductor.virtualized import V as V

    BaseHOPVariable = higher_order_ops.BaseHOPVariable
except (ImportError, AttributeError):  # an older PyTorch, which breaks the graph at a root
    has_one_graph = False
else:
    has_one_graph = True

__all__ = ["pytree"]

_func = torch._C._functorch
# torch.func has no public way to ask for its levels
is_wrapped: Callable[[Tensor], bool] = _func.is_functorch_wrapped_tensor
is_vectorized: Callable[[Tensor], bool] = _func.is_legacy_batchedtensor
unwrapped: Callable[[Tensor], Tensor] = _func.get_unwrapped
unwrapped_if_ended: Callable[[Tensor], Tensor] = _func.unwrap_if_dead
innermost_level: Callable[[], Any] = _func.peek_interpreter_stack
all_levels: Callable[[], Any] = _func.get_interpreter_stack
current_depth: Callable[[], int | None] = _func.maybe_current_level
depth_of: Callable[[Tensor], int | None] = _func.maybe_get_level

# autograd's own vmap
enter_vectorized: Callable[[], int] = torch._C._vmapmode_increment_nesting
leave_vectorized: Callable[[], int] = torch._C._vmapmode_decrement_nesting
without_axis: Callable[..., Tensor] = torch._remove_batch_dim
with_axis: Callable[..., Tensor] = torch._add_batch_dim

# the keys by which PyTorch dispatches to autograd and torch.func
_Key = torch._C.DispatchKey
AUTOGRAD_KEYS = (_Key.AutogradFunctionality, _Key.AutogradOther, _Key.AutogradNestedTensor, _Key.ADInplaceOrView)
#: And to what conj() and neg() leave for later.
FUNC_KEYS = (
    *(_Key.FuncTorchBatched, _Key.FuncTorchVmapMode, _Key.FuncTorchGradWrapper),
    *(_Key.FuncTorchDynamicLayerFrontMode, _Key.FuncTorchDynamicLayerBackMode),
    *(_Key.Conjugate, _Key.Negative, _Key.ZeroTensor),
)
is_key_excluded: Callable[[Any], bool] = torch._C._dispatch_tls_is_dispatch_key_excluded
included_keys: Callable[[], Any] = torch._C._dispatch_tls_local_include_set
excluded_keys: Callable[[], Any] = torch._C._dispatch_tls_local_exclude_set
dispatching_by: Callable[..., Any] = torch._C._ForceDispatchKeyGuard
below_autograd: Callable[[], Any] = torch._C._AutoDispatchBelowAutograd

# forward mode
forward_mode: Callable[[bool], Any] = forward_ad._set_fwd_grad_enabled

# many tensors at once
add_to_each: Callable[..., Any] = torch._foreach_add
differences_of_each: Callable[..., Any] = torch._foreach_sub
norms_of_each: Callable[..., Any] = torch._foreach_norm
copy_each: Callable[..., Any] = torch._foreach_copy_

# torch.compile
as_constant: Callable[..., Any] = torch._dynamo.assume_constant_result
#: PyTorch 2.6 has the second name alone, which later versions warn of.
is_fx_tracing: Callable[[], bool] = getattr(_symbolic_trace, "is_fx_symbolic_tracing", _symbolic_trace.is_fx_tracing)


def forward_active() -> bool:
    """Return whether a dual level is open."""
    return forward_ad._current_level >= 0


def may_have_hooks() -> bool:
    """Return whether a user may have hooks on saved tensors; before PyTorch 2.7: whether there may be any."""
    autograd: Any = torch._C._autograd
    if hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return autograd._top_saved_tensors_default_hooks(False) is not None
    return bool(autograd._saved_tensors_hooks_is_enabled())


def trace_as(name: str, variable: type) -> None:
    """Let Dynamo take the higher-order operator of this name for such a variable."""
    getattr(higher_order_ops, "_hop_name_to_variable_class", {})[name] = variable
