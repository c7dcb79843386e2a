"""A multiscale deep equilibrium classifier of handwritten digits (scikit-learn's, 8 x 8 pixels), in PyTorch.

Two states, of 8 x 8 and 4 x 4 pixels, feed each other; the classifier reads their fixed point. Weights are limited, so
that the cell contracts. Beside it: the same weights in an explicit network, once and unrolled, and the same fixed point
by TorchDEQ, if that is installed. One table, and a figure.

    python examples/deq_images.py --epochs 10
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

import rootdiff_torch.nn

BATCH, LEARNING_RATE, TOLERANCE, MOST_STEPS = 64, 1e-2, 1e-3, 30
OWN, OTHER = 0.5, 0.4  # what a state may feel of itself, and of the other one, in the largest norm
States = tuple[Tensor, Tensor]


class Cell(nn.Module):
    """The next states, (batch, width, 8, 8) and (batch, 2 width, 4, 4), of these and of the image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Conv2d(1, width, 3, padding=1)
        self.fine, self.coarse = (nn.Conv2d(n, n, 3, bias=False) for n in (width, 2 * width))
        self.down = nn.Conv2d(width, 2 * width, 2)
        self.up = nn.Conv2d(2 * width, width, 1, bias=False)

    def drive(self, image: Tensor) -> list[Tensor]:
        """Return what the cell takes besides the states: the filtered image, and the limited weights."""
        limits = {self.fine: OWN, self.coarse: OWN, self.down: OTHER, self.up: OTHER}
        weights = [limited(module.weight, rate) for module, rate in limits.items()]
        return [self.image(image), *weights, self.down.bias]

    def forward(self, states: States, image: Tensor, *weights: Tensor) -> States:
        (fine, coarse), (of_fine, of_coarse, down, up, bias) = states, weights
        lifted = functional.interpolate(functional.conv2d(coarse, up), scale_factor=2)
        lowered = functional.conv2d(fine, down, bias, stride=2)
        fine_next = torch.tanh(functional.conv2d(fine, of_fine, padding=1) + lifted + image)
        return fine_next, torch.tanh(functional.conv2d(coarse, of_coarse, padding=1) + lowered)


def limited(weight: Tensor, rate: float) -> Tensor:
    """Return a kernel, (out, in, height, width), the sum of whose absolute values is at most `rate` for each output."""
    return weight * (rate / weight.abs().sum((1, 2, 3), keepdim=True).clamp_min(rate))


class Classifier(nn.Module):
    """Reads logits, (batch, 10), out of the states that `find` makes of the cell and an image."""

    def __init__(self, width: int, find: Callable[..., States]) -> None:
        super().__init__()
        self.cell, self.head, self.find = Cell(width), nn.Linear(32 * width, 10), find

    def forward(self, image: Tensor) -> Tensor:
        states = self.find(self.cell, *self.cell.drive(image))
        return self.head(states[1].flatten(1))


def zeros(image: Tensor, width: int) -> States:
    return image.new_zeros(len(image), width, 8, 8), image.new_zeros(len(image), 2 * width, 4, 4)


class Equilibrium:
    """The fixed point by rootdiff; in training a state that has not converged is used as it is, and counted."""

    def __init__(self, width: int) -> None:
        self.layer = rootdiff_torch.nn.FixedPointLayer(
            lambda states, *drive: self.cell(states, *drive),
            shape=((width, 8, 8), (2 * width, 4, 4)),
            solver="anderson",
            adjoint=rootdiff_torch.GMRES(rtol=TOLERANCE),
            rtol=TOLERANCE,
            atol=TOLERANCE,
            max_steps=MOST_STEPS,
            on_failure="ignore",
        )

    def __call__(self, cell: Cell, *drive: Tensor) -> States:
        self.cell = cell
        return self.layer(*drive)

    @property
    def steps(self) -> float:
        return float(self.layer.last.steps.double().mean())


class Unrolled:
    """A network of so many steps of the cell from zero, differentiated through each."""

    def __init__(self, width: int, steps: int) -> None:
        self.width, self.steps = width, steps

    def __call__(self, cell: Cell, image: Tensor, *weights: Tensor) -> States:
        states = zeros(image, self.width)
        for _ in range(self.steps):
            states = cell(states, image, *weights)
        return states


class TorchDEQ:
    """The fixed point by TorchDEQ, to the same tolerance."""

    def __init__(self, width: int) -> None:
        from torchdeq import get_deq

        self.width = width
        options = {"f_max_iter": MOST_STEPS, "b_max_iter": MOST_STEPS, "f_tol": TOLERANCE, "b_tol": TOLERANCE}
        self.deq = get_deq(f_solver="anderson", b_solver="anderson", ift=True, **options)

    def __call__(self, cell: Cell, image: Tensor, *weights: Tensor) -> States:
        found, info = self.deq(lambda *states: cell(states, image, *weights), zeros(image, self.width))
        self.steps = float(info["nstep"].double().mean())
        return found[-1][0], found[-1][1]


class Epoch(NamedTuple):
    loss: float
    accuracy: float
    seconds: float
    steps: float
    kept: float


def kept_for_backward(model: Classifier, image: Tensor) -> float:
    """Return the MiB of distinct tensors that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.find(model.cell, *model.cell.drive(image))
    return sum(kept.values()) / 2**20


def batches(images: Tensor, labels: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled batches; what does not fill one is left out."""
    for chosen in torch.randperm(len(images), generator=generator).split(BATCH):
        if len(chosen) == BATCH:
            yield images[chosen], labels[chosen]


def train(name: str, model: Classifier, data: list[Tensor], epochs: int) -> list[Epoch]:
    train_images, test_images, train_labels, test_labels = data
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    generator, history = torch.Generator().manual_seed(0), []
    kept = kept_for_backward(model, train_images[:BATCH])
    for _ in tqdm(range(epochs), desc=f"{name:>12}", unit="epoch"):
        start, losses, steps = time.perf_counter(), [], []
        model.train()
        for images, labels in batches(train_images, train_labels, generator):
            loss = functional.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            steps.append(model.find.steps)
        seconds = time.perf_counter() - start
        model.eval()
        with torch.no_grad():
            accuracy = float((model(test_images).argmax(-1) == test_labels).double().mean())
        history.append(Epoch(float(np.mean(losses)), accuracy, seconds, float(np.mean(steps)), kept))
    return history


def digits() -> list[Tensor]:
    """Return images (n, 1, 8, 8) and labels, to train and to test with."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    return [torch.from_numpy(part) for part in split]


def draw(histories: dict[str, list[Epoch]], folder: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for (name, history), color in zip(histories.items(), ("#1f77b4", "#d95f02", "#7b3294", "#1b9e77"), strict=False):
        epochs = np.arange(1, len(history) + 1)
        left.plot(epochs, [100 * epoch.accuracy for epoch in history], "o-", color=color, label=name)
        right.plot(epochs, [epoch.steps for epoch in history], "o-", color=color, label=name)
    left.set(title="Test accuracy", xlabel="epoch", ylabel="correct (%)", ylim=(None, 100))
    right.set(title="Evaluations of the cell in a forward pass", xlabel="epoch", ylim=(0, None))
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(linewidth=0.4, axis="y")
    left.legend(loc="lower right")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "deq_images.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--width", type=int, default=16, help="channels of the fine state (default: 16)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    width, data = options.width, digits()
    finds = {"rootdiff": Equilibrium(width), "explicit": Unrolled(width, 2), "unrolled": Unrolled(width, 12)}
    if importlib.util.find_spec("torchdeq"):
        finds["TorchDEQ"] = TorchDEQ(width)
    histories = {}
    for name, find in finds.items():
        torch.manual_seed(0)
        histories[name] = train(name, Classifier(width, find), data, options.epochs)
    print("network     weights  test accuracy  s per epoch  evaluations  kept for backward, MiB")
    weights = sum(parameter.numel() for parameter in Classifier(width, Unrolled(width, 2)).parameters())
    for name, history in histories.items():
        last, seconds = history[-1], float(np.median([epoch.seconds for epoch in history]))
        print(
            f"{name:10}  {weights:7d}  {100 * last.accuracy:11.2f} %  {seconds:11.2f}  {last.steps:11.1f}  "
            f"{last.kept:22.2f}"
        )
    print(f"figure: {draw(histories, options.output)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
