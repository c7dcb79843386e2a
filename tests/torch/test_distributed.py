"""Two processes give the gradients of one."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import rootdiff_torch as rd
from tests.torch.distributed_worker import PROCESSES, data, gradients, model
from tests.torch.problem import close

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    """The gradients that two processes find, by kind of parallelism."""
    path = tmp_path_factory.mktemp("distributed") / "gradients.pt"
    command = [sys.executable, "-m", "tests.torch.distributed_worker"]
    workers = [
        subprocess.Popen([*command, str(rank), str(path)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(PROCESSES)
    ]
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=200)
            assert worker.returncode == 0, errors
    finally:
        for worker in workers:
            worker.kill()
    return torch.load(path)  # type: ignore[no-any-return]


@pytest.mark.transform("DistributedDataParallel, two processes")
def test_ddp(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["ddp"], gradients(model(), data()))


@pytest.mark.transform("FSDP2 (fully_shard) of the model, two processes")
def test_fully_shard(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["fsdp"], gradients(model(), data()))


@pytest.mark.transform("FSDP2 (fully_shard) of the layer and the model, two processes")
def test_fully_sharded_layer(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["fsdp-layer"], gradients(model(), data()))


@pytest.mark.transform("a layer on a DTensor with its batch sharded, two processes")
def test_batch_sharded_layer(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["dtensor"], gradients(model(), data()))


def test_a_failure_on_one_process_is_raised_on_all(found: dict[str, Any]) -> None:
    first, last = found["failure"]
    assert first.startswith("root: systems of another process have no root")
    assert last.startswith("root: 1 of 2 systems")


@pytest.fixture
def mesh(tmp_path: pathlib.Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def law(y: Any, a: Any, b: Any) -> Any:
    return y**3 + y @ b - a


@pytest.mark.transform("root of DTensors whose batch is sharded, with gradients")
def test_root_of_distributed_systems(mesh: DeviceMesh) -> None:
    a, b = data(), torch.eye(4, dtype=torch.float64)
    on_mesh = lambda t, part: distribute_tensor(t, mesh, [part]).requires_grad_()
    sharded, shared = on_mesh(a, Shard(0)), on_mesh(b, Replicate())
    sol = rd.root(law, torch.zeros_like(sharded), sharded, shared, batch_ndim=1)
    assert sol.y.placements == sol.status.placements == (Shard(0),)
    plain = a.clone().requires_grad_(), b.clone().requires_grad_()
    expected = rd.root(law, torch.zeros_like(a), *plain, batch_ndim=1).y
    close(sol.y.full_tensor(), expected)
    found = torch.autograd.grad((sol.y**2).sum(), [sharded, shared])
    close([part.full_tensor() for part in found], torch.autograd.grad((expected**2).sum(), plain))


@pytest.mark.transform("DTensors beside plain tensors, or one system of them sharded", refused="ArgumentError")
def test_what_does_not_fit_on_a_mesh_is_named(mesh: DeviceMesh) -> None:
    a = distribute_tensor(data(), mesh, [Shard(0)])
    b = distribute_tensor(torch.eye(4, dtype=torch.float64), mesh, [Replicate()])
    zeros, options = torch.zeros_like(a), {"batch_ndim": 1}
    weight = torch.eye(4, dtype=torch.float64, requires_grad=True)
    for call, match in [
        (
            lambda: rd.root(law, zeros, a, b.full_tensor(), **options),
            r"args\[1\]: it is a plain tensor beside DTensors",
        ),
        (lambda: rd.root(law, torch.zeros(4, 4).double(), a, b, **options), "y0: it is a plain tensor"),
        (lambda: rd.root(law, zeros, a, b), r"y0: .* only axes of the batch may be sharded.*batch_ndim=0"),
        (lambda: rd.root(law, zeros.redistribute(placements=[Replicate()]), a, b, **options), r"args\[0\]: it has the"),
        (lambda: rd.root(lambda y, a: law(y, a, b), zeros, a, **options), "residual: it closes over a DTensor"),
        (lambda: rd.root(lambda y, a: law(y, a, weight), zeros, a, **options), "residual: it closes over"),
        (lambda: rd.nn.ImplicitLayer(lambda y, a: law(y, a, weight))(a), "residual: it closes over"),
    ]:
        with pytest.raises(rd.ArgumentError, match=match):
            call()
