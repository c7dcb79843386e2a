"""What a solve keeps away: lower precision, inference mode, the user's hooks on saved tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from rootdiff_torch._private import may_have_hooks
from rootdiff_torch._transforms import refuse_vectorized


class Shared:
    """A context of the whole process: the first thread inside enters it, and the last one leaves it.

    If each thread saved and restored such a setting, one would restore what another had set.
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
def in_full_precision(y: Tensor) -> Iterator[None]:
    """Turn off autocast, and TF32 for convolutions, which PyTorch uses on a GPU by default.

    Both round to about ten bits, too few for a solve to converge. TF32 for matrix products is off by default: a user
    has asked for it.
    """
    with torch.autocast(y.device.type, enabled=False), _without_tf32() if y.device.type == "cuda" else nullcontext():
        yield


@contextmanager
def _tf32_off() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    try:
        before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    except RuntimeError:  # the user has set the precision by PyTorch's newer interface: that choice stands
        yield
        return
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


_without_tf32 = Shared(_tf32_off)


@contextmanager
def on_plain_tensors(y: Tensor) -> Iterator[None]:
    """Work on plain tensors, without a graph and apart from the user's contexts."""
    with ExitStack() as stack:
        stack.enter_context(in_full_precision(y))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        # the user's hooks on saved tensors, those of a checkpoint say, are not meant for the solver's graphs; a hook
        # that stores a tensor with its graph would keep it alive for ever
        if may_have_hooks():
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor))
        stack.enter_context(torch.no_grad())
        yield


def without_history(tensor: Tensor) -> Tensor:
    """Return `tensor` without history; a copy of one made in inference mode, with which autograd does not work."""
    refuse_vectorized(tensor)
    return tensor.clone() if tensor.is_inference() else tensor.detach()
