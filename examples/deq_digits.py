"""A deep equilibrium classifier of handwritten digits (scikit-learn's, 8 x 8 pixels), in PyTorch or JAX.

An image drives a cell, z = tanh(W z + U x + b), whose fixed point is read out linearly. W is kept a contraction, so
that there is exactly one. The model is written against the array API; the two frameworks differ in how they train it.

    python examples/deq_digits.py --backend jax --solver anderson --adjoint gmres --epochs 15
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

RATE = 0.9  # largest Lipschitz constant of the cell
WIDTH, BATCH = 64, 64
LEARNING_RATE, DECAY1, DECAY2 = 3e-3, 0.9, 0.999
Tree = dict[str, Any]


@dataclass(frozen=True)
class Model:
    """The classifier, on arrays of any framework; `fixed_point` is that of the framework's rootdiff.

    The parameters are ``W`` (width, width), ``U`` (width, 64), ``b`` (width), ``V`` (10, width) and ``c`` (10).
    """

    fixed_point: Any
    solver: str
    adjoint: str

    def drive(self, parameters: Tree, images: Any) -> tuple[Any, Any]:
        """Return what the cell takes besides its state: U x + b, (batch, width), and the contraction W."""
        xp = array_namespace(images)
        weight = parameters["W"]
        norm = xp.linalg.matrix_norm(weight, ord=2)
        scale = RATE / xp.maximum(norm, RATE * xp.ones_like(norm))
        return images @ parameters["U"].T + parameters["b"], scale * weight

    def cell(self, z: Any, inputs: Any, weight: Any, offset: Any) -> Any:
        """Return the next state, (batch, width); `offset`, zero, is there for `adjoint_residual`."""
        return array_namespace(z).tanh(z @ weight.T + inputs) + offset

    def equilibrium(self, parameters: Tree, images: Any, offset: Any) -> Any:
        """Return the Solution with the fixed points, (batch, width)."""
        return self.fixed_point(
            self.cell,
            array_namespace(offset).zeros_like(offset),
            *self.drive(parameters, images),
            offset,
            solver=self.solver,
            adjoint=self.adjoint,
            batch_ndim=1,
        )

    def logits(self, parameters: Tree, z: Any) -> Any:
        return z @ parameters["V"].T + parameters["c"]

    def loss(self, parameters: Tree, z: Any, one_hot: Any) -> Any:
        """Return the mean cross-entropy."""
        xp = array_namespace(z)
        logits = self.logits(parameters, z)
        shifted = logits - xp.max(logits, axis=-1, keepdims=True)
        return xp.mean(xp.log(xp.sum(xp.exp(shifted), axis=-1)) - xp.sum(one_hot * shifted, axis=-1))


class Step(NamedTuple):
    """What one training step reports; steps and residual norms per image."""

    loss: float
    steps: Any
    residual_norm: Any


class TorchTrainer:
    """The classifier trained with PyTorch's autograd and Adam."""

    def __init__(self, parameters: Tree, solver: str, adjoint: str) -> None:
        import torch

        import rootdiff_torch

        self.torch = torch
        self.model = Model(rootdiff_torch.fixed_point, solver, adjoint)
        self.parameters = {name: torch.tensor(value, requires_grad=True) for name, value in parameters.items()}
        self.optimizer = torch.optim.Adam(self.parameters.values(), lr=LEARNING_RATE, betas=(DECAY1, DECAY2))

    def offset(self, images: Any) -> Any:
        return self.torch.zeros(len(images), WIDTH)

    def step(self, images: Any, one_hot: Any) -> Step:
        images, one_hot = self.torch.asarray(images), self.torch.asarray(one_hot)
        sol = self.model.equilibrium(self.parameters, images, self.offset(images))
        loss = self.model.loss(self.parameters, sol.y, one_hot)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Step(loss.item(), sol.steps.numpy(), sol.residual_norm.numpy())

    def predict(self, images: Any) -> Any:
        images = self.torch.asarray(images)
        with self.torch.no_grad():
            z = self.model.equilibrium(self.parameters, images, self.offset(images)).y
            return self.model.logits(self.parameters, z).argmax(dim=-1).numpy()

    def adjoint_solve(self, images: Any, one_hot: Any) -> tuple[Any, Any, Any]:
        """Return z's cotangent w, the gradient in the offset, -u, and (dcell/dz)^T u, as NumPy arrays."""
        grad = self.torch.autograd.grad
        images, one_hot = self.torch.asarray(images), self.torch.asarray(one_hot)
        offset = self.offset(images).requires_grad_()
        z = self.model.equilibrium(self.parameters, images, offset).y
        w, minus_u = grad(self.model.loss(self.parameters, z, one_hot), (z, offset))
        z = z.detach().requires_grad_()
        (product,) = grad(self.model.cell(z, *self.model.drive(self.parameters, images), offset), z, -minus_u)
        return w.numpy(), minus_u.numpy(), product.numpy()


class JaxTrainer:
    """The classifier trained with JAX and Adam in a few lines (Kingma & Ba 2015, algorithm 1)."""

    def __init__(self, parameters: Tree, solver: str, adjoint: str) -> None:
        import jax

        import rootdiff_jax

        self.jax = jax
        self.model = Model(rootdiff_jax.fixed_point, solver, adjoint)
        self.parameters = jax.tree.map(jax.numpy.asarray, parameters)
        zeros = jax.tree.map(jax.numpy.zeros_like, self.parameters)
        self.moments = (zeros, zeros, 0)
        self.update = jax.jit(self._update)
        self.compiled_adjoint_solve = jax.jit(self._adjoint_solve)
        self.compiled_predict = jax.jit(self._predict)

    def offset(self, images: Any) -> Any:
        return self.jax.numpy.zeros((len(images), WIDTH))

    def step(self, images: Any, one_hot: Any) -> Step:
        self.parameters, self.moments, report = self.update(self.parameters, self.moments, images, one_hot)
        return Step(float(report[0]), np.asarray(report[1]), np.asarray(report[2]))

    def predict(self, images: Any) -> Any:
        return np.asarray(self.compiled_predict(self.parameters, images))

    def adjoint_solve(self, images: Any, one_hot: Any) -> tuple[Any, Any, Any]:
        """Return z's cotangent w, the gradient in the offset, -u, and (dcell/dz)^T u, as NumPy arrays."""
        w, minus_u, product = self.compiled_adjoint_solve(self.parameters, images, one_hot)
        return np.asarray(w), np.asarray(minus_u), np.asarray(product)

    def _update(self, parameters: Tree, moments: Any, images: Any, one_hot: Any) -> Any:
        def objective(parameters: Tree) -> Any:
            sol = self.model.equilibrium(parameters, images, self.offset(images))
            return self.model.loss(parameters, sol.y, one_hot), (sol.steps, sol.residual_norm)

        (loss, report), gradient = self.jax.value_and_grad(objective, has_aux=True)(parameters)
        mean, square, count = moments
        count = count + 1
        mean = self.jax.tree.map(lambda m, g: DECAY1 * m + (1 - DECAY1) * g, mean, gradient)
        square = self.jax.tree.map(lambda s, g: DECAY2 * s + (1 - DECAY2) * g**2, square, gradient)

        def moved(p: Any, m: Any, s: Any) -> Any:
            return p - LEARNING_RATE * (m / (1 - DECAY1**count)) / ((s / (1 - DECAY2**count)) ** 0.5 + 1e-8)

        return self.jax.tree.map(moved, parameters, mean, square), (mean, square, count), (loss, *report)

    def _predict(self, parameters: Tree, images: Any) -> Any:
        z = self.model.equilibrium(parameters, images, self.offset(images)).y
        return self.model.logits(parameters, z).argmax(axis=-1)

    def _adjoint_solve(self, parameters: Tree, images: Any, one_hot: Any) -> Any:
        offset = self.offset(images)
        z, pull = self.jax.vjp(lambda offset: self.model.equilibrium(parameters, images, offset).y, offset)
        w = self.jax.grad(lambda z: self.model.loss(parameters, z, one_hot))(z)
        (minus_u,) = pull(w)
        inputs = self.model.drive(parameters, images)
        (product,) = self.jax.vjp(lambda z: self.model.cell(z, *inputs, offset), z)[1](-minus_u)
        return w, minus_u, product


def adjoint_residual(w: Any, minus_u: Any, product: Any) -> float:
    """Return the largest ``|J^T u - w| / |w|`` among the images, with J = dcell/dz - 1.

    The residual of the equilibrium is cell(z) + offset - z, so its derivative in the offset is the identity, and the
    gradient that rootdiff returns for the offset is -u itself, the solution of its adjoint solve.
    """
    apart = np.linalg.norm(product + minus_u - w, axis=-1)
    size = np.linalg.norm(w, axis=-1)
    return float(np.max(apart[size > 0] / size[size > 0], initial=0.0))


class Epoch(NamedTuple):
    loss: float
    accuracy: float
    steps: float
    residual_norm: float
    adjoint_residual: float


def initial_parameters(seed: int) -> Tree:
    rng = np.random.default_rng(seed)

    def weights(rows: int, columns: int, scale: float) -> Any:
        return (scale / np.sqrt(columns) * rng.standard_normal((rows, columns))).astype(np.float32)

    zeros = np.zeros(WIDTH, np.float32)
    return {
        "W": weights(WIDTH, WIDTH, 0.5),
        "U": weights(WIDTH, 64, 1.0),
        "b": zeros,
        "V": weights(10, WIDTH, 1.0),
        "c": zeros[:10],
    }


def batches(images: Any, labels: Any, rng: Any) -> Iterator[tuple[Any, Any]]:
    """Yield shuffled batches of images and one-hot labels; what does not fill a batch is left out."""
    one_hot = np.eye(10, dtype=np.float32)[labels]
    order = rng.permutation(len(images))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        chosen = order[start : start + BATCH]
        yield images[chosen], one_hot[chosen]


def train(trainer: Any, epochs: int, seed: int) -> list[Epoch]:
    images, labels = load_digits(return_X_y=True)
    images = (images / 8 - 1).astype(np.float32)
    split = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = split
    rng = np.random.default_rng(seed)
    history = []
    bar = tqdm(total=epochs * (len(train_images) // BATCH), unit="batch", smoothing=0.1)
    bar.write("epoch    loss   test accuracy   solver steps   residual norm   adjoint residual")
    for epoch in range(1, epochs + 1):
        steps, checked = [], 0.0
        for index, batch in enumerate(batches(train_images, train_labels, rng)):
            if index == 0:
                checked = adjoint_residual(*trainer.adjoint_solve(*batch))
            steps.append(trainer.step(*batch))
            bar.update()
        summary = Epoch(
            float(np.mean([step.loss for step in steps])),
            float(np.mean(trainer.predict(test_images) == test_labels)),
            float(np.mean([step.steps for step in steps])),
            float(np.max([step.residual_norm for step in steps])),
            checked,
        )
        bar.write(
            f"{epoch:5d}  {summary.loss:6.4f}  {100 * summary.accuracy:12.2f} %  {summary.steps:13.1f}  "
            f"{summary.residual_norm:14.1e}  {summary.adjoint_residual:17.1e}"
        )
        history.append(summary)
    bar.close()
    return history


def draw(history: list[Epoch], options: argparse.Namespace) -> Path:
    """Save the learning curve and return its path."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    epochs = np.arange(1, len(history) + 1)
    columns = Epoch(*(np.array(column) for column in zip(*history, strict=True)))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    left.plot(epochs, 100 * columns.accuracy, "o-", color="#1b9e77")
    left.axhline(95, color="0.5", linestyle=":", linewidth=1)
    left.set(title=f"Test accuracy: {100 * columns.accuracy[-1]:.1f} %", ylabel="correct (%)", ylim=(None, 100))
    middle.plot(epochs, columns.loss, "o-", color="#d95f02")
    middle.set(title="Training loss", ylabel="mean cross-entropy (nat)", ylim=(0, None))
    right.semilogy(epochs, columns.residual_norm, "o-", color="#1f77b4", label="residual of the equilibrium, largest")
    right.semilogy(epochs, columns.adjoint_residual, "s-", color="#7b3294", label="adjoint residual, relative")
    right.set(title=f"Solves: {columns.steps[-1]:.1f} steps at the end", ylabel="residual (dimensionless)")
    residuals = np.log10(np.maximum([columns.residual_norm, columns.adjoint_residual], 1e-16))
    right.set_ylim(10 ** (np.floor(np.min(residuals)) - 1), 10 ** (np.ceil(np.max(residuals)) + 1))
    right.legend(fontsize=9, loc="upper right")
    for axes in (left, middle, right):
        axes.set(xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(linewidth=0.4, axis="y")
    names = {"torch": "PyTorch", "jax": "JAX"}
    figure.suptitle(
        f"Deep equilibrium classifier of digits in {names[options.backend]}: "
        f"solver {options.solver}, adjoint {options.adjoint}"
    )
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"deq_digits_{options.backend}.png"
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=["torch", "jax"], default="torch")
    parser.add_argument("--solver", default="anderson", help="registered name (default: anderson)")
    parser.add_argument("--adjoint", default="gmres", help="registered name (default: gmres)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    rd = import_module(f"rootdiff_{options.backend}")
    rd.get_solver(options.solver, options.backend), rd.get_adjoint(options.adjoint, options.backend)
    trainer = {"torch": TorchTrainer, "jax": JaxTrainer}[options.backend]
    start = time.perf_counter()
    history = train(
        trainer(initial_parameters(options.seed), options.solver, options.adjoint), options.epochs, options.seed
    )
    print(f"{100 * history[-1].accuracy:.2f} % of the test images are right, after {time.perf_counter() - start:.0f} s")
    print(f"figure: {draw(history, options)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
