"""Run by test_sharding as each of some processes with one device: prints the case where an eager solve holds."""

from __future__ import annotations

import os
import sys

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=1 {os.environ.get('XLA_FLAGS', '')}"

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import rootdiff_jax as rd

SQUARES = np.array([[1.0], [4.0], [9.0], [16.0]])


def eager(mesh: Any) -> None:
    """Each process holds a part of the batch, and both know how all of it ended."""
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    a = jax.make_array_from_callback(SQUARES.shape, rows, lambda index: SQUARES[index])

    def found(a: Any) -> Any:
        return rd.root(lambda y, a: y**2 - a, jnp.ones_like(a), a, batch_ndim=1, solver="newton").y

    gradient, y = jax.grad(lambda a: (jnp.sum(y := found(a)), y), has_aux=True)(a)
    for of_each, expected in ((y, SQUARES**0.5), (gradient, SQUARES**-0.5 / 2)):
        for shard in of_each.addressable_shards:
            np.testing.assert_allclose(np.asarray(shard.data), expected[shard.index], rtol=1e-5)
    with pytest.raises(rd.ConvergenceError, match="1 of 4 systems"):
        found(jnp.where(a == 9, -1.0, a))


if __name__ == "__main__":
    process, count, port = map(int, sys.argv[1:])
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", count, process)
    mesh = jax.make_mesh((count,), ("batch",))
    with jax.set_mesh(mesh):
        eager(mesh)
    print("eager")
