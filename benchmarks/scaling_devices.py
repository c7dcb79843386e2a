"""One large system over 1, 2, 4 and 8 devices: work, memory and communication of each, from the compiled program.

Bratu's problem on a grid whose rows are spread over forced CPU devices, solved by `NewtonKrylov`, with its gradient by
`gmres`. Nothing is timed: the devices share the cores of one machine. Strong scaling keeps the grid of 512 x 512, weak
scaling the 64 rows of each device. `--solve` runs the largest program as well, and compares it with one device.

    python -m benchmarks.scaling_devices --solve
"""

from __future__ import annotations

import argparse
import math
import os
import re
from collections import Counter
from typing import Any, NamedTuple

DEVICES = (1, 2, 4, 8)
LAMBDA = 5.0
#: A collective of an optimised program: its result and its kind.
_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
_ARRAY = re.compile(r"[a-z]+(\d+)\[([\d,]*)\]")


class Program(NamedTuple):
    """What a device does, and has, in a compiled program.

    Attributes
    ----------
    flops : float. Of the text, each loop once.
    argument, temporary : int. Bytes.
    collectives : dict. Kind to count, in the text.
    largest : int. Bytes of the largest one.
    loops : list of Counter. Kinds in the body of each loop that has any, the most first.
    """

    flops: float
    argument: int
    temporary: int
    collectives: Counter[str]
    largest: int
    loops: list[Counter[str]]


def measured(compiled: Any) -> Program:
    """Return the counts of a compiled program."""
    memory, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    found = _COLLECTIVE.findall(text)
    sizes = [_bytes(result) for result, _ in found]
    return Program(
        flops=cost["flops"],
        argument=memory.argument_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        collectives=Counter(kind for _, kind in found),
        largest=max(sizes, default=0),
        loops=_loops(text),
    )


def _bytes(result: str) -> int:
    arrays = _ARRAY.findall(result)
    return sum(int(bits) // 8 * math.prod(int(size) for size in shape.split(",") if size) for bits, shape in arrays)


def _loops(text: str) -> list[Counter[str]]:
    """Return the collectives of one pass through each loop, loops inside it left out."""
    bodies = set(re.findall(r"body=%?([\w.\-]+)", text))
    computations = re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    found = [Counter(kind for _, kind in _COLLECTIVE.findall(body)) for name, body in computations if name in bodies]
    return sorted((count for count in found if count), key=lambda count: -count.total())


def residual(u: Any, field: Any) -> Any:
    """Return Bratu's equation ``-lap u = field exp u`` times h^2 on a grid, (rows, columns), zero at the border."""
    import jax.numpy as jnp
    from jax import lax

    def beside(shift: int, axis: int) -> Any:  # devices exchange a row; of a padded grid they would several
        place = lax.broadcasted_iota(int, u.shape, axis)
        end = 0 if shift > 0 else u.shape[axis] - 1
        return jnp.where(place == end, 0.0, jnp.roll(u, shift, axis))

    around = sum(beside(shift, axis) for shift in (1, -1) for axis in (0, 1))
    return 4 * u - around - field * jnp.exp(u) / (u.shape[1] + 1) ** 2


def program(rows: int, columns: int, devices: int) -> tuple[Any, tuple[Any, Any]]:
    """Return the compiled value and gradient for a grid whose rows are spread over so many devices, and its inputs."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    import rootdiff
    import rootdiff_jax

    solver = rootdiff.NewtonKrylov(linear=rootdiff.CG(max_steps=4000))
    mesh = jax.make_mesh((devices,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
    spread = NamedSharding(mesh, PartitionSpec("rows"))

    def total(field: Any, start: Any) -> Any:
        u = rootdiff_jax.root(residual, start, field, solver=solver, adjoint="cg").y
        return jnp.sum(jnp.sin(u)), u

    given = (jnp.full((rows, columns), LAMBDA), jnp.zeros((rows, columns)))
    inputs = tuple(jax.device_put(array, spread) for array in given)
    return jax.jit(jax.grad(total, has_aux=True)).lower(*inputs).compile(), inputs


def row(rows: int, columns: int, devices: int) -> str:
    """Return a row of the table, of one device's share."""
    found = measured(program(rows, columns, devices)[0])
    kinds = ("all-gather", "all-reduce", "collective-permute")
    counts = " ".join(f"{found.collectives[kind]:7d}" for kind in kinds)
    loop = found.loops[0] if found.loops else Counter[str]()
    numbers = f"{found.flops / 1e6:9.1f} {found.argument / 2**20:9.2f} {found.temporary / 2**20:9.2f}"
    return f"{devices:7d} {rows:5d} x {columns:<4d} {numbers} {counts} {found.largest:9d}   {dict(loop)}"


def compare(size: int) -> None:
    """Solve on one device and on all, and print how far root and gradient are apart."""
    import numpy as np

    results = []
    for devices in (1, DEVICES[-1]):
        compiled, inputs = program(size, size, devices)
        results.append([np.asarray(part) for part in compiled(*inputs)])
    for name, one, all_ in zip(("gradient", "root"), *results, strict=True):
        print(f"{name}: {np.max(np.abs(one - all_)) / np.max(np.abs(one)):.1e} apart, relative to the largest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the grid")
    parser.add_argument("--solve", action="store_true", help="run it as well, in minutes")
    options = parser.parse_args()
    forced = f"--xla_force_host_platform_device_count={DEVICES[-1]}"
    os.environ["XLA_FLAGS"] = f"{forced} --xla_cpu_collective_call_terminate_timeout_seconds=3600"
    import jax

    jax.config.update("jax_enable_x64", True)
    print("devices  grid         Mflop  args MiB  temp MiB  gather  reduce permute   largest B  most in a loop")
    for share in (None, options.size // DEVICES[-1]):
        for devices in DEVICES:
            print(row(options.size if share is None else share * devices, options.size, devices), flush=True)
    if options.solve:
        compare(options.size)


if __name__ == "__main__":
    main()
