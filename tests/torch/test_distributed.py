"""Two processes give the gradients of one."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest
import torch

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
