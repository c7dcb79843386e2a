"""Penalties of a logistic regression, found by gradient descent on the validation loss, in PyTorch.

The 30 features of scikit-learn's breast cancer data come in three groups: mean, standard error and worst value over
the cell nuclei of an image. Each group has its own ridge penalty. For given penalties the coefficients are the root of
the gradient of the penalised training loss, so the validation loss has a gradient in the logarithms of the penalties;
it is compared with central differences of solutions by scikit-learn.

    python examples/ridge_hyperparameter.py --steps 60
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from torch.nn.functional import binary_cross_entropy_with_logits

import rootdiff_torch as rd

GROUPS = ("mean", "standard error", "worst")  # ten features each
START = 1e-4  # all penalties; hardly any
LEARNING_RATE = 0.2
TOLERANCE = 1e-7  # relative; the central differences are good to 1e-10
Split = dict[str, tuple[Any, Any]]


class Step(NamedTuple):
    validation: float
    test: float
    penalties: Any
    coefficients: Any


def load(seed: int) -> Split:
    """Return standardised features with a column of ones, (samples, 31), and labels, of three sets of patients."""
    features, labels = load_breast_cancer(return_X_y=True)
    train, rest, train_labels, rest_labels = train_test_split(
        features, labels, train_size=150, random_state=seed, stratify=labels
    )

    def prepared(features: Any, labels: Any) -> tuple[Any, Any]:
        scaled = (features - train.mean(axis=0)) / train.std(axis=0)
        return torch.tensor(np.c_[scaled, np.ones(len(scaled))]), torch.tensor(labels, dtype=torch.float64)

    return {
        "train": prepared(train, train_labels),
        "validation": prepared(rest[::2], rest_labels[::2]),  # shuffled already
        "test": prepared(rest[1::2], rest_labels[1::2]),
    }


def loss(coefficients: Any, data: tuple[Any, Any]) -> Any:
    """Return the mean cross-entropy, in nat."""
    features, labels = data
    return binary_cross_entropy_with_logits(features @ coefficients, labels)


def stationarity(coefficients: Any, log_penalties: Any, features: Any, labels: Any) -> Any:
    """Return the gradient of the penalised training loss, (31); the last coefficient, the offset, is free."""
    penalties = torch.nn.functional.pad(torch.exp(log_penalties).repeat_interleave(10), (0, 1))
    errors = torch.sigmoid(features @ coefficients) - labels
    return features.T @ errors / len(labels) + penalties * coefficients


def fit(log_penalties: Any, data: tuple[Any, Any], start: Any) -> Any:
    """Return the coefficients, (31); the Jacobian is the Hessian of the loss, so conjugate gradients differentiate."""
    return rd.root(stationarity, start, log_penalties, *data, solver="trust_region", adjoint="cg").y


def descend(split: Split, steps: int) -> list[Step]:
    """Descend the validation loss by Adam in the log-penalties, and return what it passes."""
    log_penalties = torch.full((3,), float(np.log(START)), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([log_penalties], lr=LEARNING_RATE)
    coefficients, history = torch.zeros(31, dtype=torch.float64), []
    for _ in range(steps + 1):
        coefficients = fit(log_penalties, split["train"], coefficients.detach())
        validation, test = loss(coefficients, split["validation"]), loss(coefficients, split["test"])
        arrays = (values.detach().numpy() for values in (log_penalties.exp(), coefficients))
        history.append(Step(validation.item(), test.item(), *arrays))
        optimizer.zero_grad()
        validation.backward()
        optimizer.step()
    return history


def hypergradient(split: Split, log_penalties: Any) -> Any:
    """Return the gradient of the validation loss, (3)."""
    log_penalties = torch.tensor(log_penalties, requires_grad=True)
    coefficients = fit(log_penalties, split["train"], torch.zeros(31, dtype=torch.float64))
    return torch.autograd.grad(loss(coefficients, split["validation"]), log_penalties)[0].numpy()


def difference_gradient(split: Split, log_penalties: Any, step: float = 3e-3) -> Any:
    """Return that gradient by central differences of order four of solutions by scikit-learn, (3)."""
    features, labels = (part.numpy() for part in split["train"])

    def validation(log_penalties: Any) -> float:
        scale = np.exp(-0.5 * log_penalties).repeat(10)  # of the features, so that all have the penalty 1
        model = LogisticRegression(C=1 / len(labels), solver="newton-cholesky", tol=1e-12)
        model.fit(features[:, :30] * scale, labels)
        coefficients = np.r_[model.coef_[0] * scale, model.intercept_]
        return loss(torch.tensor(coefficients), split["validation"]).item()

    steps = step * np.eye(3)
    near = np.array([validation(log_penalties + e) - validation(log_penalties - e) for e in steps])
    far = np.array([validation(log_penalties + 2 * e) - validation(log_penalties - 2 * e) for e in steps])
    return (8 * near - far) / (12 * step)


def compare(split: Split, history: list[Step]) -> float:
    """Print the gradient at the first and the last penalties and return its largest relative deviation."""
    print(f"{'d(validation loss)/d ln(penalty)':34s}{'rootdiff':>12s}  {'differences':>12s}  deviation")
    largest = 0.0
    for moment, step in (("first", history[0]), ("last", history[-1])):
        ours = hypergradient(split, np.log(step.penalties))
        theirs = difference_gradient(split, np.log(step.penalties))
        for group, mine, other in zip(GROUPS, ours, theirs, strict=True):
            deviation = abs(mine - other) / np.max(np.abs(theirs))
            print(f"{moment + ', ' + group:34s}{mine:12.4e}  {other:12.4e}  {deviation:.1e}")
            largest = max(largest, deviation)
    return largest


def draw(history: list[Step], folder: Path) -> Path:
    """Save the losses over the steps and the coefficients, and return the path of the figure."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    left.plot([step.validation for step in history], color="#d95f02", label="validation: descended")
    left.plot([step.test for step in history], color="0.5", linestyle="--", label="test: never used")
    left.set(xlabel="outer step", ylabel="cross-entropy (nat)", ylim=(0, None), title="Loss over the descent")
    right.bar(range(30), history[-1].coefficients[:30], color="#d95f02", label="last")
    right.plot(history[0].coefficients[:30], "o", color="0.5", markersize=4, label=f"first: all penalties {START:.0e}")
    right.set_xticks([4.5, 14.5, 24.5])
    labels = zip(GROUPS, history[-1].penalties, strict=True)
    right.set_xticklabels([f"{group}\npenalty {penalty:.1e}" for group, penalty in labels])
    right.set(ylabel="coefficient (dimensionless)", title="Coefficients of the three groups of features")
    right.margins(y=0.2)
    for axes in (left, right):
        axes.grid(linewidth=0.4, axis="y")
        axes.legend(fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "ridge_hyperparameter.png", dpi=100)
    plt.close(figure)
    return folder / "ridge_hyperparameter.png"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of the outer descent (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the split into three sets (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("output"), help="folder of the figure (default: output)")
    options = parser.parse_args(arguments)
    split = load(options.seed)
    history = descend(split, options.steps)
    deviation = compare(split, history)
    for name in ("validation", "test"):
        first, last = (getattr(step, name) for step in (history[0], history[-1]))
        print(f"{name} loss: {first:.4f} -> {last:.4f}")
    print(f"figure: {draw(history, options.output)}")
    good = deviation < TOLERANCE and history[-1].validation < history[0].validation
    if not good:
        print(f"FAILED: the loss has not fallen, or a gradient is off by {TOLERANCE}.", file=sys.stderr)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
