"""torch.compile of models that contain a root: values and gradients as in eager mode, one break, no recompiles."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import rootdiff_torch as rd
from tests.torch.problem import THETAS, close, loss
from tests.torch.test_closures import Cell


class Explicit(nn.Module):
    """A model that calls `root` itself, with explicit arguments."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(2, 3, dtype=torch.float64)
        self.weight = nn.Parameter(0.2 * torch.randn(3, 3, dtype=torch.float64))
        self.last = nn.Linear(3, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y0 = torch.zeros_like(x)
        y = rd.root(lambda y, x, w: torch.tanh(y @ w.mT + x) - y, y0, x, self.weight, batch_ndim=1).y
        return self.last(torch.sin(y))


class Captured(Explicit):
    """The same, with captured parameters."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = rd.root(lambda y: torch.tanh(y @ self.weight.mT + x) - y, torch.zeros_like(x), batch_ndim=1).y
        return self.last(torch.sin(y))


class Layered(nn.Sequential):
    """A model with a layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(
            nn.Linear(2, 2, dtype=torch.float64),
            nn.Tanh(),
            rd.nn.FixedPointLayer(Cell(), shape=(3,)),
            nn.Linear(3, 2, dtype=torch.float64),
        )


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():
        # Dynamo and inductor warn of their own dependencies' deprecations
        warnings.simplefilter("ignore", DeprecationWarning)
        # ... and Dynamo looks at the .grad of every tensor, leaf or not
        warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)
        yield
    torch._dynamo.reset()


def outputs(model: nn.Module, x: Tensor, parameters: list[Tensor]) -> tuple[Tensor, ...]:
    x = x.clone().requires_grad_()
    y = model(x)
    return (y, *torch.autograd.grad((y**2).sum(), [x, *parameters]))


@pytest.mark.transform("torch.compile(backend='aot_eager'), one graph break")
@pytest.mark.transform("torch.compile: no recompile per call")
@pytest.mark.parametrize("kind", [Explicit, Captured, Layered])
def test_aot_eager_compiles_once(kind: type[nn.Module]) -> None:
    model = kind()
    parameters = list(model.parameters())
    compiled = torch.compile(model, backend="aot_eager")
    close(outputs(compiled, THETAS, parameters), outputs(model, THETAS, parameters))
    assert sum(counters["graph_break"].values()) <= 1, dict(counters["graph_break"])
    frames = counters["frames"]["total"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for scale in (0.5, 1.5):
            close(outputs(compiled, scale * THETAS, parameters), outputs(model, scale * THETAS, parameters))
    assert counters["frames"]["total"] == frames


@pytest.mark.transform("torch.compile(backend='inductor')")
def test_inductor() -> None:
    model = Layered()
    parameters = list(model.parameters())
    compiled = torch.compile(model, backend="inductor")
    close(outputs(compiled, THETAS, parameters), outputs(model, THETAS, parameters))


@pytest.mark.transform("torch.func.grad inside torch.compile")
def test_func_inside() -> None:
    w = 0.2 * torch.eye(3, dtype=torch.float64)

    def objective(x: Tensor) -> Tensor:
        y = rd.root(lambda y, x: torch.tanh(w @ y + x) - y, torch.zeros(3, dtype=torch.float64), x).y
        return loss(y)

    x = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64)
    gradient = torch.compile(lambda x: torch.func.grad(objective)(x), backend="aot_eager")(x)
    close(gradient, torch.func.grad(objective)(x))


@pytest.mark.transform("a compiled cell inside a root")
def test_compiled_cell() -> None:
    cell = Cell()
    compiled = torch.compile(cell, backend="aot_eager")
    theta = THETAS.clone().requires_grad_()
    z0 = torch.zeros(4, 3, dtype=torch.float64)
    z = rd.fixed_point(compiled, z0, theta, batch_ndim=1).y
    expected = rd.fixed_point(cell, z0, theta, batch_ndim=1).y
    inputs = [theta, *cell.parameters()]
    close(torch.autograd.grad(loss(z), inputs), torch.autograd.grad(loss(expected), inputs))


def test_a_compiled_residual_is_not_compiled_again() -> None:
    def residual(y: Tensor, theta: Tensor) -> Tensor:
        return y**3 + y - theta

    compiled = torch.compile(residual, backend="aot_eager", dynamic=False)

    def gradient(function: Callable[..., Tensor], theta: Tensor) -> Tensor:
        y = rd.root(function, torch.ones_like(theta), theta, solver="newton", batch_ndim=1).y
        return torch.autograd.grad(loss(y), theta)[0]

    theta = torch.linspace(1.0, 2.0, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
    gradient(compiled, theta)
    graphs = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for scale in (0.5, 2.0):
            other = (scale * theta.detach()).requires_grad_()
            close(gradient(compiled, other), gradient(residual, other))
    assert counters["stats"]["unique_graphs"] == graphs
