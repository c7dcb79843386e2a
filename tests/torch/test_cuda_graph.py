"""Recorded steps, on a CPU: a tape of PyTorch's operations stands for a CUDA graph. On a GPU: tests/test_gpu.py."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import rootdiff_torch
from rootdiff import ArgumentError
from rootdiff_torch import _adapter, _backend, _host, _namespace
from rootdiff_torch.cuda import _loops, _recording
from rootdiff_torch.nn import FixedPointLayer
from tests.harness import covering

SOLVERS = ("newton", "fixed_point", "anderson", "df_sane", "trust_region", "broyden", "chord", "auto")
SOLVERS += ("levenberg_marquardt", "newton_krylov")


class Tape(TorchDispatchMode):
    """Runs operations once when they are recorded, and again, into the same tensors, when they are replayed."""

    made = 0
    replays = 0

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        with self:
            self.output = work()
        Tape.made += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "_local_scalar_dense" in name:
            raise ArgumentError("cuda_graph: a step cannot be recorded.")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        Tape.replays += 1
        with torch.no_grad():
            for func, args, kwargs, result in self.operations:
                storages = {arg.untyped_storage().data_ptr() for arg in tensors((args, kwargs))}
                again = func(*args, **kwargs)
                for old, new in zip(tensors(result), tensors(again), strict=True):
                    if old.untyped_storage().data_ptr() not in storages:
                        with torch.autograd._unsafe_preserve_version_counter(old):  # of which a graph knows nothing
                            old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors as if on another device, whose graphs are tapes."""
    for module in (_backend, _host, _loops, _namespace):
        monkeypatch.setattr(module, "is_on_cpu", lambda tensor: False)
    monkeypatch.setattr(_recording, "Graph", Tape)
    monkeypatch.setattr(_recording, "_on_own_stream", lambda device, work: work())
    monkeypatch.setattr(_adapter, "check_device", lambda device: None)
    monkeypatch.setattr(_recording.THREAD, "recordable", {})
    monkeypatch.setattr(Tape, "made", 0)
    monkeypatch.setattr(Tape, "replays", 0)


def weights(n: int = 8) -> Tensor:
    torch.manual_seed(0)
    matrix = torch.randn(n, n, dtype=torch.float64)
    return 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)


def solved(solver: Any, adjoint: str = "auto", n: int = 8, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    matrix, x = weights(n).requires_grad_(), torch.linspace(-2, 2, 16 * n, dtype=torch.float64).reshape(16, n)
    x.requires_grad_()
    sol = rootdiff_torch.fixed_point(
        lambda z, matrix, x: torch.tanh(z @ matrix.T + x),
        torch.zeros(16, n, dtype=torch.float64),
        *(matrix, x),
        solver=solver,
        adjoint=adjoint,
        batch_ndim=1,
        **options,
    )
    return sol, torch.autograd.grad(sol.y.square().sum(), (matrix, x))


@pytest.mark.parametrize(
    ("solver", "adjoint"), covering(SOLVERS, ["auto", "gmres", "bicgstab", "neumann", "lsmr"], together=1)
)
def test_a_recording_does_what_the_steps_do(solver: str, adjoint: str, device: None) -> None:
    plain, gradients = solved(solver, adjoint)
    for _ in range(2):  # the second time from the first step on
        sol, found = solved(solver, adjoint, cuda_graph=True)
        for new, old in zip((sol.y, sol.status, sol.steps, *found), (*plain[:3], *gradients), strict=True):
            torch.testing.assert_close(new, old, rtol=0, atol=0)


def test_a_step_is_recorded_once(device: None) -> None:
    adjoint = rootdiff_torch.GMRES(rtol=1e-3)
    sol, _ = solved("fixed_point", adjoint, cuda_graph=True)
    # the step of the solver, in the solve and in that from beside its end, that of the adjoint's iteration, and the way
    # to the next of each
    assert Tape.made == 6
    replays = Tape.replays
    assert replays > 2 * (int(sol.steps.max()) - 1)
    solved("fixed_point", adjoint, cuda_graph=True)
    assert Tape.made == 12
    assert Tape.replays == 2 * replays + 6  # the first steps too


def test_a_first_step_that_cannot_be_recorded_is_taken(device: None) -> None:
    solved("fixed_point", "one_step", cuda_graph=True)
    made, calls = Tape.made, list[int]()

    def cell(z: Tensor) -> Tensor:
        """Waits for the device in the first step, as what has to be set up would."""
        calls.append(len(calls))
        return torch.cos(0.5 * z) + (0.0 if len(calls) != 2 else float(z.sum().item() < -1e9))

    z0, options = torch.zeros(3, 2, dtype=torch.float64), {"solver": "fixed_point", "batch_ndim": 1}
    found = rootdiff_torch.fixed_point(cell, z0, cuda_graph=True, **options)
    assert list(_recording.THREAD.recordable.values()) == [
        False,
        True,
    ]  # in that from beside the end nothing waits
    calls.clear()
    assert Tape.made > made
    torch.testing.assert_close(found.y, rootdiff_torch.fixed_point(cell, z0, **options).y, rtol=0, atol=0)


def test_no_replay_linearises_again(device: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of a linear solve share an evaluation of the residual, which is none of their first one's."""
    tapes: list[Tape] = []
    keep = Tape.__init__

    def made(self: Tape, work: Callable[[], Any]) -> None:
        keep(self, work)
        tapes.append(self)

    monkeypatch.setattr(Tape, "__init__", made)
    for _ in range(
        2
    ):  # so loosely, of so many unknowns, that no verdict is asked for, whose loop evaluates the residual
        solved(rootdiff_torch.NewtonKrylov(rtol=1e-6), "gmres", 80, cuda_graph=True)
    assert tapes
    assert not any("aten.tanh.default" in str(function) for tape in tapes for function, *_ in tape.operations)


def test_a_solve_inside_that_has_nothing_to_do_at_first(device: None) -> None:
    """The steps of the outer solver then meet no condition, until one does."""

    def residual(y: Tensor) -> Tensor:
        inner = rootdiff_torch.root(
            lambda x, y: torch.where(y > 0.3, x**3 + x - y, x), 0 * y, y, solver="newton", batch_ndim=1
        )
        return 0.1 - 0.15 * y + inner.y

    start, expected = torch.zeros(2, 1, dtype=torch.float64), torch.full((2, 1), torch.nan, dtype=torch.float64)
    options: Any = {"solver": rootdiff_torch.FixedPoint(max_steps=8), "batch_ndim": 1}  # above 0.3 from the fourth on
    for graph in (False, True, True):
        sol = rootdiff_torch.root(residual, start, cuda_graph=graph, on_failure="ignore", **options)
        torch.testing.assert_close(sol.y, sol.y if graph is False else expected, rtol=0, atol=0)
        expected = sol.y


@pytest.mark.parametrize(
    "solver",  # the default one takes the steps of others
    [*(s for s in SOLVERS if s != "auto"), "pseudo_transient", pytest.param("auto", marks=pytest.mark.exhaustive)],
)
def test_steps_that_go_otherwise_are_taken_again(solver: str, device: None) -> None:
    """Far starts, so that steps are rejected and searched for."""
    torch.manual_seed(3)
    start, target = 30 * torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 3, dtype=torch.float64)

    def solve(**options: Any) -> list[Tensor]:
        short = solver if solver == "auto" else replace(rootdiff_torch.get_solver(solver), max_steps=30)
        options |= {"solver": short, "batch_ndim": 1, "on_failure": "ignore"}
        sol = rootdiff_torch.root(lambda y, a: a - y - y**3 - torch.sin(3 * y.flip(-1)), start, target, **options)
        return [sol.y, sol.status, sol.steps]

    expected = solve()
    for _ in range(2):
        for found, value in zip(solve(cuda_graph=True), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=0, equal_nan=True)


def test_what_is_returned_is_not_overwritten_by_a_later_solve(device: None) -> None:
    first, gradients = solved("anderson", "gmres", cuda_graph=True)
    copies = [tensor.clone() for tensor in (first.y, *gradients)]
    solved("anderson", "gmres", cuda_graph=True)
    for tensor, copy in zip((first.y, *gradients), copies, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{}, {"cuda_graph": True}])
def test_a_solve_inside_the_residual(options: dict[str, Any], device: None) -> None:
    """Its steps are recorded if it asks for that itself; the outer steps, which always enter its loop, are not."""

    def solve(**outer: Any) -> tuple[Tensor, Tensor]:
        a = torch.linspace(1, 2, 5, dtype=torch.float64)[:, None].requires_grad_()

        def residual(y: Tensor, a: Tensor) -> Tensor:
            inner = rootdiff_torch.root(lambda x, y: x**3 + x - y, y, y, solver="newton", batch_ndim=1, **options)
            return inner.y + y - a

        y = rootdiff_torch.root(
            residual, torch.ones(5, 1, dtype=torch.float64), a, solver="chord", batch_ndim=1, **outer
        ).y
        return y, torch.autograd.grad(y.sum(), a)[0]

    expected = solve()
    without = Tape.made
    for _ in range(2):
        for found, value in zip(solve(cuda_graph=True), expected, strict=True):
            torch.testing.assert_close(found, value, rtol=0, atol=0)
    assert (Tape.made > without) == bool(options)


def test_a_layer_takes_the_option(device: None) -> None:
    layer = FixedPointLayer(lambda z, x: torch.cos(0.5 * z) + x, solver="fixed_point", cuda_graph=True)
    layer(torch.ones(3, 4))
    assert Tape.replays > 0


@pytest.mark.parametrize("option", [{"verbose": True}, {"progress": True}, {"history": True}, {"callback": print}])
def test_python_sees_no_recorded_step(option: dict[str, Any], device: None) -> None:
    with pytest.raises(ArgumentError, match=r"cuda_graph: .*callback, verbose, progress and history"):
        rootdiff_torch.root(lambda y: y**2 - 2, torch.ones(1), cuda_graph=True, **option)


def test_a_cpu_has_no_graphs() -> None:
    with pytest.raises(ArgumentError, match=r"cuda_graph: y0 is on cpu.*\.to\('cuda'\)"):
        rootdiff_torch.root(lambda y: y**2 - 2, torch.ones(1), cuda_graph=True)


class FakeGraph:
    """What is asked of a `torch.cuda.CUDAGraph`."""

    def capture_begin(self, **_: Any) -> None: ...

    def capture_end(self) -> None: ...

    def pool(self) -> None: ...


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> weakref.WeakSet[FakeGraph]:
    """Return those that there are."""
    alive = weakref.WeakSet[FakeGraph]()

    def made() -> FakeGraph:
        graph = FakeGraph()
        alive.add(graph)
        return graph

    monkeypatch.setattr(torch.cuda, "CUDAGraph", made)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(_recording.THREAD, "graphs", {})
    return alive


def test_no_garbage_is_collected_while_a_step_is_recorded(graphs: weakref.WeakSet[FakeGraph]) -> None:
    """It may hold a graph, and CUDA does not let one be destroyed then."""
    assert gc.isenabled()
    assert not _recording.Graph(gc.isenabled).output
    assert gc.isenabled()


def test_a_recording_that_fails_is_no_garbage(graphs: weakref.WeakSet[FakeGraph]) -> None:
    def waits() -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    gc.disable()
    try:
        with pytest.raises(ArgumentError, match=r"PyTorch says: operation not permitted when stream is capturing\n"):
            _recording.Graph(waits)
        assert len(graphs) == 0
        assert not gc.isenabled()
    finally:
        gc.enable()
