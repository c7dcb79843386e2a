"""Four processes give the gradients of one."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import rootdiff_torch as rd
from tests.torch.distributed_worker import IN_PARTS, data, gradients, model, one_system
from tests.torch.problem import close

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[torch.Tensor]]:
    """The gradients that four processes find, by kind of parallelism."""
    path = tmp_path_factory.mktemp("distributed") / "gradients.pt"
    command = [sys.executable, "-m", "tests.torch.distributed_worker", str(path)]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    return torch.load(path)  # type: ignore[no-any-return]


@pytest.mark.transform("DistributedDataParallel, four processes")
def test_ddp(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["ddp"], gradients(model(), data()))


@pytest.mark.transform("FSDP2 (fully_shard) of the model, four processes")
def test_fully_shard(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["fsdp"], gradients(model(), data()))


@pytest.mark.transform("FSDP2 (fully_shard) of the layer and the model, four processes")
def test_fully_sharded_layer(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["fsdp-layer"], gradients(model(), data()))


@pytest.mark.transform("a layer on a DTensor with its batch sharded, four processes")
def test_batch_sharded_layer(found: dict[str, list[torch.Tensor]]) -> None:
    close(found["dtensor"], gradients(model(), data()))


def test_a_failure_on_one_process_is_raised_on_all(found: dict[str, Any]) -> None:
    *others, last = [told for told, *_ in found["failures"]]
    assert all(told.startswith("root: systems of another process have no root") for told in others)
    assert last.startswith("root: 1 of 2 systems")


def test_a_failed_derivative_on_one_process_is_raised_on_all(found: dict[str, Any]) -> None:
    first, *others = [told for *_, told in found["failures"]]
    for case, own in (("raise", "AdjointError: "), ("wrong", "ValueError: wrong here")):
        assert first[case].startswith(own)
        assert all(told[case].startswith("ConvergenceError: root: systems of another") for told in others)
    for told in (first, *others):
        assert all(np.isnan(told["nan"]))
        np.testing.assert_allclose(told["approximate"], 2.0)  # the systems that have a derivative


@pytest.mark.transform("one system in parts, DTensors, with gradients, four processes")
@pytest.mark.parametrize("solver", IN_PARTS)
def test_one_system_in_parts(found: dict[str, list[torch.Tensor]], solver: str) -> None:
    expected = one_system(solver, lambda tensor, parts=False: tensor)
    for part, whole in zip(found[solver], (tensor.detach() for tensor in expected), strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-12 * float(whole.abs().max()))


def test_what_is_no_number_in_one_part_is_raised_on_all(found: dict[str, Any]) -> None:
    assert all("NONFINITE_START" in told for _, told, _ in found["failures"])


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
    a, b = data(), torch.eye(data().shape[1], dtype=torch.float64)
    on_mesh = lambda t, part: distribute_tensor(t, mesh, [part]).requires_grad_()
    sharded, shared = on_mesh(a, Shard(0)), on_mesh(b, Replicate())
    sol = rd.root(law, torch.zeros_like(sharded), sharded, shared, batch_ndim=1)
    assert sol.y.placements == sol.status.placements == (Shard(0),)
    plain = a.clone().requires_grad_(), b.clone().requires_grad_()
    expected = rd.root(law, torch.zeros_like(a), *plain, batch_ndim=1).y
    close(sol.y.full_tensor(), expected)
    found = torch.autograd.grad((sol.y**2).sum(), [sharded, shared])
    close([part.full_tensor() for part in found], torch.autograd.grad((expected**2).sum(), plain))


@pytest.mark.transform("DTensors beside plain tensors, or sharded in ways that do not fit", refused="ArgumentError")
def test_what_does_not_fit_on_a_mesh_is_named(mesh: DeviceMesh) -> None:
    a = distribute_tensor(data(), mesh, [Shard(0)])
    b = distribute_tensor(torch.eye(data().shape[1], dtype=torch.float64), mesh, [Replicate()])
    zeros, options = torch.zeros_like(a), {"batch_ndim": 1}
    weight = torch.eye(data().shape[1], dtype=torch.float64, requires_grad=True)
    for call, match in [
        (
            lambda: rd.root(law, zeros, a, b.full_tensor(), **options),
            r"args\[1\]: it is a plain tensor beside DTensors",
        ),
        (lambda: rd.root(law, torch.zeros_like(data()), a, b, **options), "y0: it is a plain tensor"),
        (lambda: rd.root(law, zeros, a, b), "y0: it is one system in parts, of which a process has 1024 unknowns or"),
        (lambda: rd.root(law, zeros.mT, a, b, **options), r"y0: .* only axes of the batch .*batch_ndim=1"),
        (lambda: rd.root(law, zeros.redistribute(placements=[Replicate()]), a, b, **options), r"args\[0\]: it has the"),
        (lambda: rd.root(lambda y, a: law(y, a, b), zeros, a, **options), "residual: it closes over a DTensor"),
        (lambda: rd.root(lambda y, a: law(y, a, weight), zeros, a, **options), "residual: it closes over"),
        (lambda: rd.nn.ImplicitLayer(lambda y, a: law(y, a, weight))(a), "residual: it closes over"),
    ]:
        with pytest.raises(rd.ArgumentError, match=match):
            call()


@pytest.mark.transform("one system in parts: matrices, options that see it whole", refused="ArgumentError")
def test_what_one_system_in_parts_cannot_have_is_named(mesh: DeviceMesh) -> None:
    y0, a = (distribute_tensor(torch.ones(1100, dtype=torch.float64), mesh, [Shard(0)]) for _ in range(2))
    whole = lambda y, a: y - a
    moved = lambda y, a: y.redistribute(mesh, [Replicate()]).redistribute(mesh, [Shard(0)]) * 3 - a
    for call, match in [
        (lambda: rd.root(whole, y0, a, solver="newton"), "solver: Newton.* Auto, NewtonKrylov, .* gather the unknowns"),
        (lambda: rd.root(whole, y0, a, adjoint="lu"), r"adjoint: LU\(\) .* GMRES"),
        (lambda: rd.root(whole, y0, a, bounds=(0.0, 1.0)), "bounds, callback, history or check: "),
        (lambda: rd.root(whole, y0, a, jac_sparsity="detect"), "y0: it is one system in parts"),
        (lambda: rd.minimize(lambda y, a: ((y - a) ** 2).sum(), y0, a), "solver: MinimumOfObjective"),
        (
            lambda: rd.root(moved, y0, a, solver="newton_krylov"),
            "residual: autograd .* twice what .*_redistribute",
        ),
        (lambda: rd.root(lambda y, a: y.to_local(), y0, a), "residual: of a start of DTensors it must return DTensors"),
        (
            lambda: rd.root(lambda y, a: (y[0] - a, y[1]), (y0, y0.redistribute(mesh, [Replicate()])), a),
            "y0: its leaves",
        ),
    ]:
        with pytest.raises(rd.ArgumentError, match=match):
            call()
    with pytest.raises(rd.TransformError, match=r"y0: torch\.func cannot follow"):
        torch.func.grad(lambda s: s * rd.root(whole, y0, a).y.full_tensor().sum())(torch.tensor(1.0))
