"""Memory of large sparse systems: the peak of a process that solves one and differentiates its root.

    python -m benchmarks.sparse_memory --package rootdiff_torch --case grid --size 1024 --library pyamg

The chain has `size` unknowns, the grid `size` a side, with Bratu's equation; both are differentiated in one parameter.
The process fails where the peak is above the limit.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

import numpy as np

import rootdiff

#: Asked of a million unknowns. MB.
LIMIT = 4096


def pattern(case: str, size: int) -> rootdiff.Pattern:
    """Return where the Jacobian has entries: on three diagonals, or those of a grid to its neighbours."""
    if case == "chain":
        return rootdiff.Pattern.of(("banded", (1, 1)), size)
    from scipy import sparse

    place = np.arange(size * size).reshape(size, size)
    pairs = [(place, place), (place[1:], place[:-1]), (place[:, 1:], place[:, :-1])]
    pairs += [(column, row) for row, column in pairs[1:]]
    rows, columns = (np.concatenate([pair[part].ravel() for pair in pairs]) for part in (0, 1))
    ones = np.ones(len(rows), dtype=np.int8)
    return rootdiff.Pattern.of(sparse.coo_array((ones, (rows, columns)), shape=(place.size, place.size)), place.size)


def residual(case: str, size: int, pad: Any, exp: Any) -> Any:
    def chain(u: Any, rate: Any) -> Any:
        wide = pad(u)
        return 3 * u - wide[2:] - wide[:-2] - rate * exp(-u)

    def grid(u: Any, rate: Any) -> Any:
        wide = pad(u)
        sides = wide[2:, 1:-1] + wide[:-2, 1:-1] + wide[1:-1, 2:] + wide[1:-1, :-2]
        return 4 * u - sides - rate / (size + 1) ** 2 * exp(u)

    return {"chain": chain, "grid": grid}[case]


def solved(package: str, case: str, size: int, library: str, rate: float = 5.0) -> tuple[float, float]:
    """Return the sum of the root, and its derivative in the rate."""
    shape = (size,) if case == "chain" else (size, size)
    options: dict[str, Any] = {"jac_sparsity": pattern(case, size)}
    options["solver"] = rootdiff.Newton(linear=rootdiff.SparseLU(library=library))  # type: ignore[arg-type]
    module = import_module(package)
    if package == "rootdiff_torch":
        import torch

        f = residual(case, size, lambda u: torch.nn.functional.pad(u, (1, 1) * u.ndim), torch.exp)
        given = torch.tensor(rate, dtype=torch.float64, requires_grad=True)
        total = module.root(f, torch.zeros(shape, dtype=torch.float64), given, **options).y.sum()
        total.backward()
        return float(total.detach()), float(given.grad)
    if package == "rootdiff_jax":
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        f = residual(case, size, lambda u: jnp.pad(u, 1), jnp.exp)
        value = jax.value_and_grad(lambda rate: jnp.sum(module.root(f, jnp.zeros(shape), rate, **options).y))(rate)
        return float(value[0]), float(value[1])
    sol = module.root(residual(case, size, lambda u: np.pad(u, 1), np.exp), np.zeros(shape), rate, **options)
    return float(np.sum(sol.y)), float(sol.vjp(np.ones(shape))[0])


def peak(package: str, case: str, size: int, library: str) -> int:
    """Return the peak memory, in MB, of a process that solves and differentiates one system."""
    given = ["--package", package, "--case", case, "--size", str(size), "--library", library]
    said = subprocess.run(
        [sys.executable, "-m", "benchmarks.sparse_memory", *given], check=True, capture_output=True, text=True
    )
    return int(said.stdout.split()[-2])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", choices=("rootdiff", "rootdiff_torch", "rootdiff_jax"), default="rootdiff")
    parser.add_argument("--case", choices=("chain", "grid"), default="chain")
    parser.add_argument("--size", type=int, default=10**6, help="unknowns of the chain, or of each side of the grid")
    parser.add_argument("--library", default="superlu", help="what solves with the sparse matrices")
    options = parser.parse_args(arguments)
    start = time.process_time()
    total, gradient = solved(options.package, options.case, options.size, options.library)
    seconds = time.process_time() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{vars(options)}: sum {total:.12g}, derivative {gradient:.12g}, CPU {seconds:.1f} s, peak {most} MB")
    return int(most > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
