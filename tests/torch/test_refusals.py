"""What PyTorch's other ways to record or to hold tensors meet in a root: an error that says what to do, or the root."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import rootdiff_torch as rd

X = torch.tensor([[2.0, 10.0], [0.0, 30.0]], dtype=torch.float64)
Y = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)


def solved(x: Tensor) -> Tensor:
    return rd.root(lambda y, x: y**3 + y - x, torch.zeros_like(x), x, batch_ndim=1).y


class Layered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = rd.nn.FixedPointLayer(nn.RNNCell(2, 2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.transform("make_fx, with values, with fake tensors, with symbolic shapes")
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_a_root(mode: str) -> None:
    """Not the steps of one solve, nor its shapes alone: what is recorded is called with something else."""
    torch.testing.assert_close(make_fx(solved, tracing_mode=mode)(X + 1)(X), Y)
    if mode == "real":
        model = Layered()
        torch.testing.assert_close(make_fx(model)(X + 1)(X), model(X))


@pytest.mark.transform("torch.jit.trace and script, symbolic_trace, functionalize", refused="TransformError")
@pytest.mark.parametrize(
    ("record", "match"),
    [
        (lambda: torch.jit.trace(Layered(), (X,)), r"FixedPointLayer: torch\.jit\.trace would record.*torch\.export"),
        (lambda: torch.jit.script(Layered()), r"FixedPointLayer: torch\.jit\.script cannot.*torch\.export"),
        (lambda: torch.fx.symbolic_trace(Layered()), r"FixedPointLayer: torch\.fx\.symbolic_trace would record"),
        (lambda: torch.fx.symbolic_trace(solved), r"root: torch\.fx\.symbolic_trace would record"),
        (lambda: torch.func.functionalize(solved)(X), r"root: torch\.func\.functionalize would record"),
    ],
)
def test_what_records_steps_is_refused(record: Callable[[], Any], match: str) -> None:
    with pytest.raises(rd.TransformError, match=match):
        record()


@pytest.mark.transform("nested tensors", refused="ArgumentError")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_nested_tensors_are_refused(layout: torch.layout) -> None:
    sequences = torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)
    asks = r"it is a nested tensor.*to_padded_tensor.*x\.values\(\) with batch_ndim=1"
    with pytest.raises(rd.ArgumentError, match="y0: " + asks):
        rd.root(lambda y: y - 1, sequences)
    with pytest.raises(rd.ArgumentError, match=asks):
        rd.nn.FixedPointLayer(lambda z, x: torch.cos(z) + x)(sequences)
    with pytest.raises(rd.ArgumentError, match=r"args\[0\]: " + asks):
        rd.root(lambda y, a: y - 1, torch.ones(2), sequences.requires_grad_())
    padded = torch.nested.to_padded_tensor(sequences.detach(), 0.0)
    assert rd.root(lambda y, a: y - a, torch.zeros_like(padded), padded, batch_ndim=1).y.equal(padded)


@pytest.mark.transform("tensors with values beside fake or meta ones", refused="ArgumentError")
def test_tensors_with_and_without_values_are_refused() -> None:
    with FakeTensorMode() as mode:
        fake, made = mode.from_tensor(X), rd.nn.ImplicitLayer(nn.Bilinear(2, 2, 2, dtype=torch.float64))
    mixed = "residual: it mixes tensors that have values with such as have none"
    linear, law = nn.Linear(2, 2, dtype=torch.float64), lambda y, a: y - a
    for call, match in [
        (lambda: rd.root(law, X, fake), r"args[0]: it has no values"),
        (lambda: rd.root(law, fake, X), mixed),
        (lambda: rd.root(law, X, X.to("meta")), "args[0]: it is on device meta"),
        (lambda: rd.root(linear, X.to("meta")), mixed),
        (lambda: rd.root(nn.Linear(2, 2, device="meta"), torch.zeros(2)), mixed),
        (lambda: rd.root(lambda y: y - X.to("meta"), X), mixed),
        (lambda: rd.root(lambda y: y - fake, X), mixed),
        (lambda: rd.nn.ImplicitLayer(nn.Bilinear(2, 2, 2, device="meta"))(X.float()), mixed),
        (lambda: made(X), mixed),
        (lambda: rd.nn.spectral_radius(law, X.to("meta"), X.to("meta")), "z: it has no values"),
    ]:
        with pytest.raises(rd.ArgumentError, match=re.escape(match)):
            call()


@pytest.mark.transform("a residual that branches on the values of a FakeTensor", refused="TransformError")
def test_a_branch_without_values_is_refused() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    for residual in (lambda y: y - 1 if y.sum() > 0 else y, lambda y: y - float(y.sum())):
        with pytest.raises(rd.TransformError, match=r"residual: it branches on the values .* Write torch\.where"):
            rd.root(residual, fake)
