"""What each process of the distributed tests runs: a model with a root, and its gradients.

``python -m tests.torch.distributed_worker PATH``
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import rootdiff_torch as rd

PROCESSES = 4
SAMPLES = 4
#: Units of the model: each process has the rows of so many, over `PROCESSES`.
WIDTH = 32
#: Adjoints of one system by solvers, and the axes of meshes on which it lies in parts, or in copies.
IN_PARTS: dict[str, tuple[str, dict[str, int]]] = {
    "newton_krylov": ("gmres", {"part": PROCESSES}),
    "df_sane": ("lsmr", {"copy": 2, "part": PROCESSES // 2}),
    "anderson": ("auto", {"part": 2, "copy": PROCESSES // 2}),
}
#: Its unknowns: of so many that no part forms a matrix, and not as many in each.
UNKNOWNS = PROCESSES * 1100 - 1
KINDS = ("ddp", "fsdp", "fsdp-layer", "dtensor")


def data() -> Tensor:
    return torch.randn(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            self.inner.weight.mul_(0.3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))


def model() -> nn.Module:
    torch.manual_seed(11)
    ends = [nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2)]
    return nn.Sequential(ends[0], rd.nn.FixedPointLayer(Cell(), adjoint="gmres"), ends[1])


def gradients(network: nn.Module, x: Tensor) -> list[Tensor]:
    (network(x) ** 2).mean().backward()
    gathered = []
    for parameter in network.parameters():
        gradient = parameter.grad
        assert gradient is not None
        gathered.append(gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient)
    return gathered


def wrapped(kind: str) -> nn.Module:
    """Return the model under one of `KINDS`."""
    network = model()
    if kind == "ddp":
        return DistributedDataParallel(network)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    if kind == "dtensor":
        return distribute_module(network, mesh)
    if kind == "fsdp-layer":
        fully_shard(network[1], mesh=mesh)
    network = fully_shard(network, mesh=mesh)
    assert all(weight.to_local().shape[0] * PROCESSES == weight.shape[0] for weight in network.parameters())  # type: ignore[attr-defined]
    return network


def part(kind: str, rank: int) -> Tensor:
    """Return what a process has of the data."""
    if kind == "dtensor":
        return distribute_tensor(data(), init_device_mesh("cpu", (PROCESSES,)), [Shard(0)])
    return data().chunk(PROCESSES)[rank]


def failure() -> str:
    """Return what this process is told where a system of the last one has no root."""
    mesh, n = init_device_mesh("cpu", (PROCESSES,)), 2 * PROCESSES
    start = torch.ones(n, 1, dtype=torch.float64)
    a = torch.where(torch.arange(n)[:, None] == n - 1, -1.0, start)
    try:
        rd.root(lambda y, a: y**2 - a, *(distribute_tensor(t, mesh, [Shard(0)]) for t in (start, a)), batch_ndim=1)
    except rd.ConvergenceError as error:
        return str(error)
    return ""


def failed_derivatives() -> dict[str, Any]:
    """Return what this process is told where an adjoint solves the linear systems of all processes but the first.

    And where the residual raises on that one; then the gradients under policies that go on. The last process has no
    system. Each residual solves for another root, on each process as often as its solver asks for.
    """
    mesh, systems = init_device_mesh("cpu", (PROCESSES,)), PROCESSES - 1
    coupled = torch.zeros(systems, 3, 3, dtype=torch.float64)
    coupled[0] = torch.tensor([[0.0, 0.5, 0.1], [0.0, 0.0, 0.3], [0.2, 0.0, 0.0]])
    shared = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    told: dict[str, Any] = {}
    rd.register_adjoint("identity", lambda _, rhs: rhs)

    def law(y: Any, a: Any, shared: Any) -> Any:
        if told.get("wrong") == "" and a.any():
            raise ValueError("wrong here")
        half = rd.root(lambda x, y: 2 * x - y, y.detach().sum(), y.sum(), solver="newton").y
        return y + (y[..., None, :] @ a)[..., 0, :] + 1e-3 * (half - y.sum() / 2) - shared

    for case in ("wrong", "raise", "nan", "approximate"):
        told[case] = ""
        a = distribute_tensor(coupled, mesh, [Shard(0)])
        y0 = torch.zeros_like(distribute_tensor(torch.zeros(systems, 3, dtype=torch.float64), mesh, [Shard(0)]))
        b = distribute_tensor(shared, mesh, [Replicate()]).requires_grad_()
        policy = "raise" if case == "wrong" else case
        try:
            y = rd.root(law, y0, a, b, batch_ndim=1, solver="newton", adjoint="identity", on_failure=policy).y  # type: ignore[arg-type]
            told[case] = torch.autograd.grad(y.sum(), b)[0].full_tensor().tolist()
        except (rd.ConvergenceError, ValueError) as error:
            told[case] = f"{type(error).__name__}: {error}"
    return told


def field(y: Any, load: Any, coupling: Any) -> Any:
    """Return a residual in which each unknown feels the means of all."""
    return (load - 4 * y - y**3 + coupling[0] * (y * load).mean() + coupling[1] * y.mean() * y.cos()) / 6


def one_system(solver: str, spread: Callable[..., Tensor]) -> list[Tensor]:
    """Return the root of a `field` and two gradients; `spread` makes DTensors, or leaves tensors as they are."""
    place = torch.arange(UNKNOWNS, dtype=torch.float64)
    load = spread(place.sin() + place / UNKNOWNS, parts=True).requires_grad_()
    coupling = spread(torch.tensor([0.4, 0.3], dtype=torch.float64)).requires_grad_()
    start, options = spread(torch.zeros_like(place), parts=True), {"solver": solver, "adjoint": IN_PARTS[solver][0]}
    if solver == "anderson":  # the cell closes over a parameter, and takes each unknown from its neighbour's process
        cell = lambda y, load: y + field(y, load, coupling) + 0.1 * torch.roll(y, 1)
        y = rd.fixed_point(cell, start, load, **options).y
    else:
        y = rd.root(field, start, load, coupling, **options).y
    found = [y, *torch.autograd.grad((y**2).sum(), [load, coupling])]
    return [part.full_tensor() if hasattr(part, "full_tensor") else part for part in found]


def in_parts(solver: str) -> list[Tensor]:
    """Return what `one_system` does, in parts on a mesh."""
    _, axes = IN_PARTS[solver]
    mesh = init_device_mesh("cpu", tuple(axes.values()), mesh_dim_names=tuple(axes))

    def spread(tensor: Tensor, parts: bool = False) -> Tensor:
        return distribute_tensor(tensor, mesh, [Shard(0) if parts and axis == "part" else Replicate() for axis in axes])

    return one_system(solver, spread)


def no_number() -> str:
    """Return what this process is told where the part of the last one is no number."""
    place = torch.arange(UNKNOWNS, dtype=torch.float64)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    load = distribute_tensor(torch.where(place == UNKNOWNS - 1, torch.nan, place), mesh, [Shard(0)])
    try:
        rd.root(lambda y, load: y - load, torch.zeros_like(load), load, solver="anderson")
    except rd.ConvergenceError as error:
        return str(error)
    return ""


def run(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    # processes meet in a file: a free port may be taken by the time it is used
    dist.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=PROCESSES)
    found = {kind: gradients(wrapped(kind), part(kind, rank)) for kind in KINDS}
    found |= {solver: in_parts(solver) for solver in IN_PARTS}
    told: list[Any] = [None] * PROCESSES
    dist.all_gather_object(told, (failure(), no_number(), failed_derivatives()))
    if rank == 0:
        torch.save(found | {"failures": told}, path)
    dist.barrier()  # nobody leaves while another still talks to it
    # what the tests ask for is written. PyTorch's threads may still let go of a tensor while the interpreter is torn
    # down, which then ends the process by "terminate called" (pytorch/pytorch#179291)
    os._exit(0)


if __name__ == "__main__":
    # a fork has imported PyTorch, which takes longer than all that it does
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=run, args=(rank, sys.argv[1])) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
        process.kill()  # which does nothing to one that has ended
    sys.exit(max(abs(process.exitcode or 0) for process in processes))
