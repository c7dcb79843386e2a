"""How large a compiled program is: counts that the load of a machine does not change, and times as ratios.

Of value and gradient in JAX: copies of the residual, equations of the jaxpr, instructions of the optimised program, and
the seconds of tracing and compiling over those of Optimistix' Newton in the same run. In PyTorch: operations dispatched
in a solve and in its backward pass, over those of Newton's method written by hand.

    python -m benchmarks.compiled --sizes 1 10 100 2000
    python -m benchmarks.compiled --history benchmarks/history.json

The second appends the counts at a few sizes, with commit and versions, to a file, and prints how they went from one
entry to the next.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

#: What is counted by default: unknowns of a single system, and a batch of 64 systems of 8.
SIZES, BATCH = (1, 10, 100, 2000), (64, 8)
SOLVERS = ("newton", "auto", "newton_krylov", "anderson")


@dataclass(frozen=True)
class Size:
    """The size of a program.

    Attributes
    ----------
    copies : int. Evaluations of the residual that stand in its jaxpr, in branches that are not taken too.
    equations : int. Equations of its jaxpr.
    instructions : int or None. Those of the optimised program; None where it was not compiled.
    seconds : float. Time of tracing and compiling.
    """

    copies: int
    equations: int
    instructions: int | None
    seconds: float


def residual(y: Any, a: Any) -> Any:
    """Return a tridiagonal law; its `atan2` occurs in no solver, which tells the copies apart."""
    import jax.numpy as jnp
    from jax import lax

    return lax.atan2(y, 1.0 + a * a) + y + 0.3 * jnp.roll(y, 1, axis=-1) - a


def size(solve: Callable[[Any, Any], Any], shape: tuple[int, ...], compiled: bool = True) -> Size:
    """Return the size of the program of value and gradient of ``sum(solve(y0, a))``, for unknowns of this shape."""
    import jax
    import jax.numpy as jnp

    y0, a = jnp.ones(shape), jnp.broadcast_to(jnp.linspace(1.0, 3.0, shape[-1]), shape)
    begun = time.perf_counter()
    traced = jax.jit(jax.value_and_grad(lambda a: jnp.sum(solve(y0, a)))).trace(a)
    instructions = None
    if compiled:
        text = traced.lower().compile().as_text() or ""
        instructions = sum(" = " in line for line in text.splitlines())
    seconds = time.perf_counter() - begun
    found = list(_equations(traced.jaxpr.jaxpr))
    return Size(sum(e.primitive.name == "atan2" for e in found), len(found), instructions, seconds)


def _equations(jaxpr: Any) -> Iterator[Any]:
    from jax.extend.core import DropVar
    from jax.interpreters.partial_eval import dce_jaxpr

    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    if equation.primitive.name == "custom_vmap_call":  # JAX leaves it to XLA to drop what nobody uses
                        inner = dce_jaxpr(inner, [not isinstance(v, DropVar) for v in equation.outvars])[0]
                    yield from _equations(inner)


def rootdiff_solve(solver: str, **options: Any) -> Callable[[Any, Any], Any]:
    """Return the root by a solver of `rootdiff_jax`, as a function of the start and the parameters."""
    import rootdiff_jax

    return lambda y0, a: rootdiff_jax.root(residual, y0, a, solver=solver, **options).y


def optimistix_newton(y0: Any, a: Any) -> Any:
    """Return the root by Optimistix' Newton; of a batch, by `jax.vmap`."""
    import jax
    import optimistix

    if y0.ndim > 1:
        return jax.vmap(optimistix_newton)(y0, a)
    solver = optimistix.Newton(rtol=1e-10, atol=1e-10)
    return optimistix.root_find(residual, solver, y0, a, throw=False).value


def dispatched(solver: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the operations that PyTorch dispatches in a solve and in its backward pass, and the steps.

    By `solver` "by hand", five steps of Newton's method with one factorisation each, and one adjoint solve.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    import rootdiff_torch

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.total = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.total += 1
            return function(*args, **(kwargs or {}))

    def law(y: Any, a: Any) -> Any:
        return torch.tanh(y) + y**3 + 0.3 * torch.roll(y, 1, -1) - a

    jacobian: Any = torch.func.jacrev(law)
    if len(shape) > 1:
        jacobian = torch.vmap(jacobian)

    def by_hand(y0: Any, a: Any) -> tuple[Any, int]:
        y, steps = y0, 5
        for _ in range(steps):
            y = y - torch.linalg.solve(jacobian(y, a.detach()), law(y, a.detach())[..., None])[..., 0]
        y = y.detach().requires_grad_()
        matrix = jacobian(y, a.detach()).detach()
        f = law(y, a)
        y_again = y.detach() - f + f.detach()
        y_again.register_hook(lambda w: torch.linalg.solve(matrix.mT, w[..., None])[..., 0])
        return y_again, steps

    def by_library(y0: Any, a: Any) -> tuple[Any, int]:
        options = {"batch_ndim": 1, "batched_args": (0,)} if len(shape) > 1 else {}
        found = rootdiff_torch.root(law, y0, a, solver=solver, **options)
        return found.y, int(found.steps.max())

    y0 = torch.ones(shape, dtype=torch.float64)
    a = torch.linspace(1.0, 3.0, shape[-1], dtype=torch.float64).expand(shape).clone().requires_grad_()
    solve = by_hand if solver == "by hand" else by_library
    solve(y0, a)  # what is done only once is not counted
    with Count() as forward:
        y, steps = solve(y0, a)
    with Count() as backward:
        torch.autograd.grad(y.sum(), a)
    return forward.total, backward.total, steps


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="unknowns of a single system")
    parser.add_argument("--history", type=Path, help="append the counts to this file, instead of the tables")
    options = parser.parse_args()
    sizes = options.sizes
    import jax

    jax.config.update("jax_enable_x64", True)
    if options.history:
        return _append(options.history)
    print("| JAX, value and gradient | unknowns | copies | equations | instructions | trace and compile |")
    print("|---|---:|---:|---:|---:|---:|")
    for shape in (*((n,) for n in sizes), BATCH):
        options = {"batch_ndim": 1, "batched_args": (0,)} if len(shape) > 1 else {}
        peer = size(optimistix_newton, shape)
        _show("Optimistix Newton", shape, peer, 1.0)
        for solver in SOLVERS:
            found = size(rootdiff_solve(solver, **options), shape)
            _show(solver, shape, found, found.seconds / peer.seconds)
    print("\n| PyTorch | unknowns | forward | per step | backward |\n|---|---:|---:|---:|---:|")
    for shape in ((8,), (64,), BATCH):
        for solver in ("by hand", "newton", "auto"):
            forward, backward, steps = dispatched(solver, shape)
            unknowns = " x ".join(map(str, shape))
            print(f"| {solver} | {unknowns} | {forward} | {forward / max(steps, 1):.0f} | {backward} |", flush=True)


def counts() -> dict[str, int]:
    """Return the counts that the history keeps: of traced programs in JAX, and of operations in PyTorch."""
    found = {}
    for solver in SOLVERS:
        for n in (1, 10):
            program = size(rootdiff_solve(solver), (n,), compiled=False)
            found[f"jax {solver} {n} copies"], found[f"jax {solver} {n} equations"] = program.copies, program.equations
    for solver in ("newton", "auto"):
        forward, backward, _ = dispatched(solver, (8,))
        found[f"torch {solver} 8 forward"], found[f"torch {solver} 8 backward"] = forward, backward
    return found


def _append(path: Path) -> None:
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    commit, date = subprocess.run(
        ["git", "log", "-1", "--format=%h %cs"], capture_output=True, text=True, check=True
    ).stdout.split()
    versions = {name: version(name).partition("+")[0] for name in ("numpy", "torch", "jax")}
    entries.append({"commit": commit, "date": date, "versions": versions, "counts": counts()})
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    for name in entries[-1]["counts"]:
        print(f"{name:32}", " -> ".join(str(entry["counts"].get(name, "-")) for entry in entries[-6:]))


def _show(name: str, shape: tuple[int, ...], found: Size, ratio: float) -> None:
    unknowns = " x ".join(map(str, shape))
    print(
        f"| {name} | {unknowns} | {found.copies} | {found.equations} | {found.instructions} | {ratio:.1f} |", flush=True
    )


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
