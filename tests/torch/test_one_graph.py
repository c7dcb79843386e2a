"""A root as one node of a graph: torch.compile(fullgraph=True), torch.export, fake and meta tensors."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.proxy_tensor import make_fx

import rootdiff_torch as rd
from rootdiff_torch import _node
from tests.torch.test_closures import Cell

X = torch.tensor([[1.0, 2.0], [0.5, 3.0], [1.0, 1.0], [0.4, 2.0]], dtype=torch.float64)


class Model(nn.Module):
    """The root of A y^3 = B x, with A captured and B an argument."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([[3.0, 1, 0], [0, 2, -1], [0.5, 0, 4]], dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor([[1.0, 2], [3, 1], [2, 2]], dtype=torch.float64))
        self.options = options

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def residual(y: Tensor, x: Tensor, b: Tensor) -> Tensor:
            return y**3 @ self.a.mT - x @ b.mT

        y0 = torch.ones_like(x[:, :1]).expand(-1, 3)
        sol = rd.root(residual, y0, x, self.b, batch_ndim=1, **self.options)
        return 2 * sol.y, sol.converged

    def closed_form(self, x: Tensor) -> Tensor:
        return 2 * torch.linalg.solve(self.a, (x @ self.b.mT).mT).mT ** (1 / 3)


def one(function: Callable[..., Any], backend: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    return torch.compile(function, backend=backend, fullgraph=True, **options)


def gradients(y: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    total = (y.sin() * torch.arange(y.numel()).reshape(y.shape)).sum()
    return torch.autograd.grad(total, inputs, retain_graph=True)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        for kind in (DeprecationWarning, FutureWarning):  # PyTorch's, of its own parts
            warnings.simplefilter("ignore", kind)
        warnings.filterwarnings("ignore", "The .grad attribute", UserWarning)
        yield
    torch._dynamo.reset()


@pytest.mark.transform("torch.compile(fullgraph=True): value and gradient, of what is captured too")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    model, x = Model(), X.clone().requires_grad_()
    y, converged = one(model, backend)(x)
    torch.testing.assert_close(y, model.closed_form(x))
    assert converged.tolist() == [True] * 4
    inputs = (x, *model.parameters())
    torch.testing.assert_close(gradients(y, *inputs), gradients(model.closed_form(x), *inputs))


def test_compile_without_gradients() -> None:
    model = Model()
    with torch.no_grad():
        torch.testing.assert_close(one(model)(X)[0], model.closed_form(X))


def exported(model: nn.Module, **options: Any) -> ExportedProgram:
    return torch.export.export(model, (X,), dynamic_shapes=({0: Dim.DYNAMIC},), **options)


def reloaded(program: ExportedProgram) -> nn.Module:
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file).module()


@pytest.mark.transform("torch.export with a dynamic batch, strict or not, saved and loaded")
@pytest.mark.parametrize("strict", [False, True])
def test_export(strict: bool) -> None:
    model = Model(solver="newton")
    program = exported(model, strict=strict)
    lowered = program.run_decompositions()
    for graph in (program.graph, lowered.graph):  # the residual is in it, not a name for it
        assert _node.SOLVE in [node.target for node in graph.nodes]
    for module in (program.module(), reloaded(lowered)):
        for x in (X, torch.cat([X, X[:3] + 1]).requires_grad_()):
            torch.testing.assert_close(module(x)[0], model.closed_form(x))
        torch.testing.assert_close(gradients(module(x)[0], x), gradients(model.closed_form(x), x))


def test_an_exported_program_is_compiled_and_transformed() -> None:
    model, x = Model(), X.clone().requires_grad_()
    module = exported(model).module()
    torch.testing.assert_close(gradients(one(module)(x)[0], x), gradients(model.closed_form(x), x))
    jacobian = torch.func.jacrev(lambda x: module(x)[0])(X)
    torch.testing.assert_close(jacobian, torch.func.jacrev(model.closed_form)(X))


def test_a_root_inside_a_root() -> None:
    """y + z = a with z^3 = y, at z = a - y."""

    def nested(a: Tensor) -> Tensor:
        def outer(y: Tensor, a: Tensor) -> Tensor:
            return y + rd.root(lambda z, y: z**3 - y, torch.ones_like(y), y).y - a

        return rd.root(outer, torch.ones_like(a), a).y

    z = torch.tensor([1.5, 0.5], dtype=torch.float64)
    a = (z**3 + z).requires_grad_()
    y = one(nested)(a)
    torch.testing.assert_close(y, z**3)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), a)[0], 3 * z**2 / (3 * z**2 + 1))


def test_a_solver_that_is_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept beside the graph, in this process; what is loaded elsewhere names it."""
    model = Model(solver=rd.Newton(rtol=1e-3), adjoint=rd.GMRES())
    torch.testing.assert_close(one(model)(X), model(X), rtol=0, atol=0)
    program = exported(model)
    torch.testing.assert_close(program.module()(X), model(X), rtol=0, atol=0)
    module = reloaded(program)
    monkeypatch.setattr(_node, "_VALUES", {})
    with pytest.raises(rd.ArgumentError, match=r"^solver: .*another process, with Newton\(.*register_solver"):
        module(X)


def test_a_start_that_is_an_argument() -> None:
    """Which PyTorch takes for one input, if it is given twice."""
    torch.testing.assert_close(one(lambda a: rd.root(lambda y, a: y**2 - a, a, a).y)(X), X.sqrt())
    torch.testing.assert_close(one(lambda a: rd.root(lambda y: y**2 - a, a).y)(X), X.sqrt())


def test_a_captured_matrix_and_its_transpose() -> None:
    a, x = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64), X.clone().requires_grad_()
    a.requires_grad_()
    y = one(lambda x: rd.root(lambda y: y + y @ a @ a.mT - x, torch.zeros_like(x), batch_ndim=1).y)(x)
    expected = x @ torch.linalg.inv(torch.eye(2) + a @ a.mT)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(gradients(y, x, a), gradients(expected, x, a))


def test_sizes_and_pytrees() -> None:
    """A size that the residual reads is one of the graph's; an unknown may be a dict, and have attributes."""

    def model(x: Tensor) -> Tensor:
        n = x.shape[0]

        def residual(y: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
            return {"a": n * y["a"].T - x.T, "b": (y["b"] - y["a"].sum())[None]}

        return rd.root(residual, {"a": torch.zeros_like(x), "b": x.new_zeros(())}, x).y["b"]

    compiled = one(model, dynamic=True)
    for x in (X, X[:3]):
        x = x.clone().requires_grad_()
        y = compiled(x)
        torch.testing.assert_close(y, x.sum() / len(x))
        torch.testing.assert_close(torch.autograd.grad(y, x)[0], torch.full_like(x, 1 / len(x)))


@pytest.mark.transform("rootdiff_torch.nn layers under torch.compile(fullgraph=True), in training")
def test_training() -> None:
    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        model = nn.Sequential(rd.nn.FixedPointLayer(Cell(), shape=(3,)), nn.Linear(3, 1, dtype=torch.float64))
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        found = []
        for _ in range(3):
            optimiser.zero_grad()
            loss = ((one(model) if compiled else model)(X) - 1).square().mean()
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        return found

    assert losses(True) == pytest.approx(losses(False), rel=1e-12)


@pytest.mark.transform("rootdiff_torch.nn layers through torch.export with a dynamic batch")
def test_export_of_a_layer() -> None:
    layer = rd.nn.ImplicitLayer(lambda y, x: y**3 - x)
    module = torch.export.export(layer, (X,), dynamic_shapes=(({0: Dim.DYNAMIC},),)).module()
    for x in (X, X[:3]):
        torch.testing.assert_close(module(x), x ** (1 / 3))


def square(a: Tensor, on_failure: str) -> Tensor:
    return rd.root(lambda y, a: y**2 - a, torch.ones_like(a), a, batch_ndim=1, on_failure=on_failure).y


@pytest.mark.transform("on_failure in one graph, per system")
@pytest.mark.filterwarnings("ignore::rootdiff.ConvergenceWarning")
@pytest.mark.parametrize("on_failure", ["nan", "keep", "warn"])
def test_failure(on_failure: str) -> None:
    a = torch.tensor([[4.0], [-1.0], [9.0]], dtype=torch.float64, requires_grad=True)
    y = one(lambda a: square(a, on_failure))(a)
    torch.testing.assert_close(y[::2].flatten(), torch.tensor([2.0, 3.0], dtype=torch.float64))
    assert bool(y[1].isnan()) == (on_failure != "keep")
    found = torch.autograd.grad(y.sum(), a)[0]
    torch.testing.assert_close(found.flatten(), torch.tensor([1 / 4, torch.nan, 1 / 6]).double(), equal_nan=True)


def test_a_failure_is_raised() -> None:
    with pytest.raises(rd.ConvergenceError, match="1 of 1 systems"):
        one(lambda a: square(a, "raise"))(torch.tensor([[-1.0]], dtype=torch.float64))


@pytest.mark.transform("fake and meta tensors: shapes, dtypes and devices")
def test_tensors_without_values() -> None:
    meta = Model().to("meta")
    y, converged = meta(X.to("meta"))
    assert (y.shape, y.dtype, y.device.type) == ((4, 3), torch.float64, "meta")
    assert (converged.shape, converged.dtype) == ((4,), torch.bool)
    assert [g.shape for g in torch.autograd.grad(y.sum(), list(meta.parameters()))] == [(3, 3), (3, 2)]
    with FakeTensorMode():
        y, converged = Model(y_scale=1.0)(torch.ones(5, 2, dtype=torch.float64))
        assert (y.shape, y.dtype, y.requires_grad, converged.shape) == ((5, 3), torch.float64, True, (5,))
        layer = rd.nn.FixedPointLayer(nn.GRUCell(2, 2))
        assert layer(torch.ones(7, 2)).shape == (7, 2)


@pytest.mark.transform("least_squares, minimize, implicit, has_aux and settings in one graph, all of one root")
def test_every_entry_point() -> None:
    """Each is a function of a whose value and derivative are known: sqrt(a), and a sqrt(a) beside one."""

    @rd.implicit.wrap(lambda y, a: y**2 - a)
    def heron(y: Tensor, a: Tensor) -> Tensor:
        for _ in range(10):
            y = (y + a / y) / 2
        return y

    def roots(a: Tensor) -> tuple[Tensor, ...]:
        one = torch.ones_like(a)
        fit = rd.least_squares(lambda y, a: (y**2 - a, 2 * a - 2 * y**2), one, a, batch_ndim=1, loss="huber")
        least = rd.minimize(lambda y, a: (y**3 / 3 - a * y).sum(-1), one, a, batch_ndim=1)
        given = rd.implicit(lambda y, a: y**2 - a, a.detach().sqrt(), a, rtol=1e-8)
        square = rd.root(lambda y, a: (y**2 - a, {"more": a * y}), one, a, has_aux=True, rtol=1e-10, max_steps=30)
        return fit.y, least.y, given.y, heron(one, a).y, square.y, square.aux["more"] / a.detach()

    a = X[:, :1].clone().requires_grad_()
    *found, more = one(roots)(a)
    for y in found:
        torch.testing.assert_close(y, a.sqrt())
        torch.testing.assert_close(gradients(y, a), gradients(a.sqrt(), a))
    torch.testing.assert_close(gradients(more, a), gradients(a**1.5 / a.detach(), a))


def test_a_conjugate() -> None:
    """Which PyTorch leaves for later, and forgets inside of an operator of a compiled program."""
    y = torch.tensor([0.5 - 1j, 1 + 0.5j], dtype=torch.complex128)
    a = (2 * y.conj() + y.conj() * y).requires_grad_()
    found = one(lambda a: rd.root(lambda y, a: 2 * y.conj() + y.conj() * y - a, y.detach() + 0.1, a).y)(a)
    torch.testing.assert_close(found, y)


@pytest.mark.transform("torch.autocast around a root in one graph: it runs in the dtype of y0")
def test_autocast() -> None:
    before, cell = nn.Linear(2, 2), nn.Linear(2, 2)

    def half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = before(x)
            return rd.fixed_point(lambda z, h: torch.tanh(cell(z) / 2 + h), torch.zeros_like(x), h, batch_ndim=1).y

    x, parameters = X.float(), [*before.parameters(), *cell.parameters()]
    found, expected = one(half, "eager")(x), half(x)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradients(found, *parameters), gradients(expected, *parameters))


def test_a_node_as_a_text_is_whole() -> None:
    """What AOTInductor writes into a program tells another process all of the root."""

    def body(y: Tensor, a: Tensor) -> tuple[Any, ...]:
        return (y**2 - a, torch.empty_like(y), *[y.new_zeros(()) for _ in range(5)])

    x = torch.tensor([4.0, 9.0], dtype=torch.float64)
    with V.set_aot_compilation(True):
        text = _node._Call.of(make_fx(body)(x + 1, x), [True, True], "root", 1, solver="newton").name
    y, _, status, *_ = torch.ops.rootdiff.solve(text, [torch.ones_like(x), x], [0])
    torch.testing.assert_close(y, x.sqrt())
    assert int(status) == 0


@pytest.mark.exhaustive  # it runs a compiler of C++
@pytest.mark.transform("AOTInductor, with a dynamic batch")
def test_aot_inductor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(solver="newton")
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "model.pt2"))
        monkeypatch.setattr(_node, "_NAMED", {})  # as in another process
        loaded = torch._inductor.aoti_load_package(path)
        for x in (X, X[:3]):
            torch.testing.assert_close(loaded(x)[0], model.closed_form(x))


def refused(function: Callable[..., Any], match: str, error: type[Exception] = rd.TransformError) -> None:
    with pytest.raises(error, match=match):
        one(function)(X)


@pytest.mark.transform("options of a root that one graph cannot hold", refused="TransformError")
def test_options_are_refused() -> None:
    refused(Model(history=True), r"root: it cannot be part of one graph: it has the option history\. .*fullgraph")
    refused(Model(y_scale=X), "y_scale is no number")
    refused(rd.nn.FixedPointLayer(nn.Tanh(), warm_start=True), "warm_start: one graph keeps nothing")
    refused(
        lambda x: rd.continuation(lambda y, a: y - a, x, x, 2 * x).y, "continuation: it cannot be part of one graph"
    )
    refused(lambda x: rd.root_scalar(lambda y: y - 1, x).y, r"root_scalar: .* only root, fixed_point, implicit, .* can")


@pytest.mark.transform("torch.func around a root in one graph", refused="TransformError")
def test_transforms_in_one_graph_are_refused() -> None:
    refused(torch.func.grad(lambda x: rd.root(lambda y, x: y - x, x, x).y.sum()), "a transform of torch.func is around")


@pytest.mark.transform("a residual that branches on values, in one graph", refused="Unsupported")
def test_a_branch_is_refused() -> None:
    refused(lambda x: rd.root(lambda y: y - x if y.sum() > 0 else y + x, x).y, "Data-dependent branching", Unsupported)
    refused(lambda x: rd.root(lambda y: y - x if y.sum() > 0 else y + x, x).y, r"residual: .* Write torch\.where")
    refused(lambda x: rd.root(lambda y: (y - x).float(), x).y, r"residual: in one graph it must return tensors like y0")


@pytest.mark.transform("second derivatives in one graph", refused="RuntimeError")
def test_second_derivatives_are_refused() -> None:
    x = X.clone().requires_grad_()
    y = one(lambda a: rd.root(lambda y, a: y**2 - a, a, a).y)(x)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.transform("torch.jit.trace", refused="TransformError")
def test_jit_trace_is_refused() -> None:
    with pytest.raises(rd.TransformError, match=r"torch\.jit\.trace would record.*torch\.export"):
        torch.jit.trace(Model(), (X,))
