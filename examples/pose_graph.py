"""A planar pose graph, sparse, and which measurements its last pose hangs on, in PyTorch.

A robot covers a square field in rows, and sees each pose from its neighbours: displacements and turns in its own frame,
with errors, drawn with a fixed seed. The poses (x, y, angle) are the least squares of what they contradict the
measurements by; `jac_sparsity` tells that each equation reads two of them. One cotangent then gives the derivative of
where the last pose is with respect to all measurements. It is compared with differences.

With `--data` the graph is one that the package `gtsam` (extra `graphs`) brings along: w100, 100 poses seen 300 times.

    python examples/pose_graph.py
    python examples/pose_graph.py --data w100
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch

import rootdiff_torch as rd

ERROR = 0.02  # of made displacements in metres, rows being one metre apart, and of turns in radians
TOLERANCE = 1e-6  # relative, of a derivative to differences of a step of 1e-4


class Graph(NamedTuple):
    """Measurements, (pairs, 3), of the second pose of a pair by the first, and poses to start from, (poses, 3)."""

    data: Any
    first: Any
    second: Any
    start: Any


def field(side: int) -> tuple[Any, Any, Any]:
    """Return the true poses, (poses, 3), and the pairs that see one another: neighbours in rows, columns, diagonals."""
    number = np.arange(side**2).reshape(side, side)
    steps = [(slice(None), slice(None, -1), slice(None), slice(1, None))]
    steps += [(slice(None, -1), slice(None), slice(1, None), slice(None))]
    steps += [(slice(None, -1), slice(None, -1), slice(1, None), slice(1, None))]
    steps += [(slice(1, None), slice(None, -1), slice(None, -1), slice(1, None))]
    first, second = (np.concatenate([number[s[k], s[k + 1]].ravel() for s in steps]) for k in (0, 2))
    y, x = np.divmod(np.arange(side**2.0), side)
    return np.stack([x, y, 0.3 * np.sin(0.3 * x)], axis=-1), first, second


def made(side: int, rng: Any) -> tuple[Graph, Any]:
    """Return a graph with errors, and the true poses."""
    truth, first, second = field(side)
    exact = seen(torch.tensor(truth), first, second)
    data = exact + torch.tensor(ERROR * rng.standard_normal(exact.shape))
    return Graph(data, first, second, torch.tensor(truth + [0.2, 0.2, 0.05] * rng.standard_normal(truth.shape))), truth


def read(name: str) -> Graph:
    """Return a graph of the package `gtsam`, in the format of TORO, each measurement of which has the same weight."""
    found = find_spec("gtsam")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("The graphs need the package gtsam: pip install '.[graphs]'")
    lines = (Path(found.submodule_search_locations[0]) / "Data" / f"{name}.graph").read_text().splitlines()
    poses, pairs = (
        np.array([line.split()[1:6] for line in lines if line.startswith(kind)], dtype=float)
        for kind in ("VERTEX2", "EDGE2")
    )
    first, second = pairs[:, :2].astype(int).T
    return Graph(torch.tensor(pairs[:, 2:]), first, second, torch.tensor(poses[:, 1:]))


def seen(poses: Any, first: Any, second: Any) -> Any:
    """Return what each first pose of a pair measures of the second: ahead, to the left, turned by; (pairs, 3)."""
    a, b = poses[first], poses[second]
    (dx, dy, turn), (c, s) = (b - a).T, (torch.cos(a[:, 2]), torch.sin(a[:, 2]))
    return torch.stack([c * dx + s * dy, c * dy - s * dx, turn], dim=-1)


def pattern(count: int, first: Any, second: Any) -> Any:
    """Return where the equations read the poses: three of a pair read both, the last three hold the first pose."""
    pairs = len(first)
    places = sp.csr_array((np.ones(2 * pairs), (np.tile(np.arange(pairs), 2), np.concatenate([first, second]))))
    return sp.vstack([sp.kron(places, np.ones((3, 3))), sp.eye_array(3, 3 * count)])


def residual(poses: Any, data: Any, first: Any, second: Any) -> Any:
    """Return what the poses contradict the measurements by, whole turns aside; the first pose is held at zero."""
    ahead, left, turn = (seen(poses, first, second) - data).T
    return torch.cat([torch.stack([ahead, left, torch.atan2(turn.sin(), turn.cos())], dim=-1).ravel(), poses[0]])


def solve(graph: Graph) -> Any:
    """Return the poses, (poses, 3), of least squares."""
    data, *pairs, start = graph
    entries = pattern(len(start), *pairs)
    return rd.least_squares(lambda y, data: residual(y, data, *pairs), start, data, jac_sparsity=entries).y


def draw(poses: Any, first: Any, second: Any, weight: Any, folder: Path) -> Path:
    """Draw the field: poses, and the pairs, the darker the more the last pose moves with them."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.collections import LineCollection

    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(figsize=(6, 5), layout="constrained")
    lines = LineCollection(np.stack([poses[first, :2], poses[second, :2]], axis=1), cmap="Greys", linewidths=0.8)
    lines.set_array(np.log10(weight + 1e-6))
    axes.add_collection(lines)
    axes.plot(*poses[-1, :2], "o", color="tab:red", label="last pose")
    axes.set(aspect="equal", xlabel="x [m]", ylabel="y [m]", title="What the last pose hangs on")
    axes.legend(loc="upper left")
    figure.colorbar(lines, label="log10 of metres that it moves per unit of a measurement")
    figure.savefig(folder / "pose_graph.png", dpi=100)
    return folder / "pose_graph.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=58, help="poses along a side of the made field (default: 58)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    parser.add_argument("--data", choices=("w100",), help="a graph of gtsam in place of the made one")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    graph, truth = (read(options.data), None) if options.data else made(options.side, rng)
    data, first, second, _ = graph
    data.requires_grad_()
    poses = solve(graph)
    print(f"unknowns {poses.numel()}, equations {data.numel() + 3}")
    if truth is not None:
        off = np.linalg.norm((poses.detach().numpy() - truth)[:, :2], axis=-1)
        print(f"off the truth: mean {off.mean():.3f} m, largest {off.max():.3f} m")
    (of_x,) = torch.autograd.grad(poses[-1, 0], data, retain_graph=True)
    (of_y,) = torch.autograd.grad(poses[-1, 1], data)
    poses = poses.detach()
    error = (residual(poses, data.detach(), first, second).square().sum() / (data.numel() - poses.numel())).sqrt()
    deviation = error * torch.stack([of_x, of_y]).square().sum((1, 2)).sqrt()
    print(f"deviation of a measurement: {error:.4f}")
    print(f"deviation of the last pose: {deviation[0]:.3f} m in x, {deviation[1]:.3f} m in y")
    direction = torch.tensor(rng.standard_normal(data.shape))
    ends = [solve(graph._replace(data=data.detach() + h * direction))[-1, 0] for h in (1e-4, -1e-4)]
    wanted, found = ((ends[0] - ends[1]) / 2e-4).item(), (of_x * direction).sum().item()
    print(f"derivative of x along a direction: {found:.8f}, by differences {wanted:.8f}")
    weight = torch.hypot(of_x, of_y).norm(dim=-1).numpy()
    print(f"figure: {draw(poses.numpy(), first, second, weight, options.output)}")
    if abs(found - wanted) > TOLERANCE * abs(wanted):
        print(f"FAILED: the derivative is off by more than {TOLERANCE}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
