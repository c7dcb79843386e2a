"""A deep equilibrium transformer that reads characters, beside the same block unrolled, in PyTorch.

The text is Python's own, of `help()`, which every Python ships. The state of a system is a sequence, (length, width);
one block of causal attention and a multilayer perceptron maps it and the embedded characters to itself. The equilibrium
gets few steps in training: what has not converged is used as it is, and counted.

    python examples/deq_text.py --batches 300
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import rootdiff_torch.nn

LENGTH, BATCH, HEADS, LEARNING_RATE, TOLERANCE = 64, 16, 4, 3e-3, 1e-2
Find = Callable[[nn.Module, Tensor], Tensor]


class Block(nn.Module):
    """The next states, (batch, length, width), of these and of the embedded characters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        with torch.no_grad():
            for module in (self.out, self.outer):
                module.weight.mul_(0.3)

    def forward(self, z: Tensor, embedded: Tensor) -> Tensor:
        batch, length, width = z.shape
        parts = self.mix(z).reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts, is_causal=True)
        z = self.before(embedded + self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return self.after(z + self.outer(functional.gelu(self.inner(z))))


class Reader(nn.Module):
    """Logits of the next character, (batch, length, characters); `find` makes states of the block and the embedding."""

    def __init__(self, characters: int, width: int, find: Find) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        self.block, self.head, self.find = Block(width), nn.Linear(width, characters), find

    def forward(self, text: Tensor) -> Tensor:
        embedded = self.characters(text) + self.places.weight[: text.shape[-1]]
        return self.head(self.find(self.block, embedded))


class Equilibrium:
    """The fixed point of the block, in so many steps at most."""

    def __init__(self, steps: int) -> None:
        self.layer = rootdiff_torch.nn.FixedPointLayer(
            lambda z, embedded: self.block(z, embedded),
            solver="anderson",
            adjoint=rootdiff_torch.GMRES(rtol=TOLERANCE),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=steps,
            on_failure="ignore",
        )

    def __call__(self, block: nn.Module, embedded: Tensor) -> Tensor:
        self.block = block
        return self.layer(embedded)


def unrolled(steps: int) -> Find:
    """Return so many steps of the block from zero, differentiated through each."""

    def find(block: nn.Module, embedded: Tensor) -> Tensor:
        z = torch.zeros_like(embedded)
        for _ in range(steps):
            z = block(z, embedded)
        return z

    return find


class Result(NamedTuple):
    losses: list[float]
    perplexity: float
    seconds: float
    kept: float


def kept_for_backward(model: Reader, text: Tensor) -> float:
    """Return the MiB of distinct tensors that the states keep for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    embedded = model.characters(text).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.find(model.block, embedded)
    return sum(kept.values()) / 2**20


def pieces(text: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return a batch of pieces, (batch, length), and the characters that follow each of theirs."""
    starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
    chosen = text[starts + torch.arange(LENGTH + 1)]
    return chosen[:, :-1], chosen[:, 1:]


def loss(model: Reader, batch: tuple[Tensor, Tensor]) -> Tensor:
    return functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def train(name: str, model: Reader, text: Tensor, batches: int) -> Result:
    read, unseen = text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :]
    optimizer, generator, losses = torch.optim.Adam(model.parameters(), LEARNING_RATE), torch.Generator(), []
    generator.manual_seed(0)
    kept, start = kept_for_backward(model, pieces(read, generator)[0]), time.perf_counter()
    for _ in tqdm(range(batches), desc=f"{name:>14}", unit="batch"):
        value = loss(model, pieces(read, generator))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.item())
    seconds = (time.perf_counter() - start) / batches
    with torch.no_grad():
        mean = np.mean([loss(model.eval(), pieces(unseen, generator)).item() for _ in range(10)])
    return Result(losses, math.exp(float(mean)), seconds, kept)


def draw(results: dict[str, Result], folder: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, result), color in zip(results.items(), ("#1f77b4", "#d95f02", "#7b3294"), strict=False):
        window = min(20, len(result.losses))
        smooth = np.convolve(result.losses, np.ones(window) / window, "valid")
        axes.plot(np.arange(len(smooth)) + window, np.exp(smooth), color=color, label=name)
    axes.set(title="Perplexity in training", xlabel="batch", ylabel="per character", yscale="log")
    axes.grid(linewidth=0.4)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deq_text.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--steps", type=int, default=8, help="most steps of the equilibrium, and those unrolled")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(set(text))
    numbers = {character: number for number, character in enumerate(alphabet)}
    encoded = torch.tensor([numbers[character] for character in text])
    equilibrium = Equilibrium(options.steps)
    finds = {"equilibrium": equilibrium, f"{options.steps} unrolled": unrolled(options.steps), "one step": unrolled(1)}
    results = {}
    for name, find in finds.items():
        torch.manual_seed(0)
        results[name] = train(name, Reader(len(alphabet), options.width, find), encoded, options.batches)
    print(f"{len(text)} characters, {len(alphabet)} different")
    print("block           perplexity  s per batch  kept for backward, MiB")
    for name, result in results.items():
        print(f"{name:14}  {result.perplexity:10.2f}  {result.seconds:11.3f}  {result.kept:22.2f}")
    systems = (options.batches + 11) * BATCH
    print(f"{int(equilibrium.layer.failures)} of {systems} sequences had not converged after {options.steps} steps")
    print(f"figure: {draw(results, options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
