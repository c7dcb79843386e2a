"""What each process of the distributed tests runs: a model with a root, and its gradients.

``python -m tests.torch.distributed_worker RANK PATH``
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_module, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import rootdiff_torch as rd

PROCESSES = 2
SAMPLES = 4
KINDS = ("ddp", "fsdp", "fsdp-layer", "dtensor")


def data() -> Tensor:
    return torch.randn(SAMPLES, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            self.inner.weight.mul_(0.3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(z) + self.outer(x))


def model() -> nn.Module:
    torch.manual_seed(11)
    ends = [nn.Linear(4, 4, dtype=torch.float64) for _ in range(2)]
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
    return fully_shard(network, mesh=mesh)


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


def run(rank: int, path: str) -> None:
    torch.set_num_threads(1)
    # processes meet in a file: a free port may be taken by the time it is used
    dist.init_process_group("gloo", init_method=f"file://{path}.store", rank=rank, world_size=PROCESSES)
    try:
        found = {kind: gradients(wrapped(kind), part(kind, rank)) for kind in KINDS}
        told: list[str] = [""] * PROCESSES
        dist.all_gather_object(told, failure())
        if rank == 0:
            torch.save(found | {"failure": told}, path)
        dist.barrier()  # nobody leaves while the other still talks to it
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2])
    # what the tests ask for is written. PyTorch's threads may still let go of a tensor while the interpreter is torn
    # down, which then ends the process by "terminate called" (pytorch/pytorch#179291)
    os._exit(0)
