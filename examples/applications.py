"""Equations of the sciences from a user's start, by the default solver: Bratu, Kepler, Colebrook, a diode ladder, ...

Prints for each which method of the chain found the root, its residual, the largest sensitivity to a parameter, and the
deviation from the root that is published, where there is one ("another" where the default start leads to another
root: of propane's combustion the positive one is wanted, which ``bounds=`` finds).

    python examples/applications.py --backend torch
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import rootdiff
from rootdiff import Method
from rootdiff.testing.problems import APPLICATIONS, Problem

HEADER = ("problem", "n", "found by", "steps", "max |f|", "max |dy/dtheta|", "deviation", "source")


def numpy_answer(problem: Problem) -> tuple[Any, Any]:
    sol = rootdiff.root(problem.residual, problem.y0, problem.theta, derivatives="complex-step")
    return sol, sol.jacobian()[0]


def torch_answer(problem: Problem) -> tuple[Any, Any]:
    import torch

    import rootdiff_torch

    y0, theta = torch.tensor(problem.y0), torch.tensor(problem.theta)
    sol = rootdiff_torch.root(problem.residual, y0, theta)
    return sol, torch.func.jacrev(lambda theta: rootdiff_torch.root(problem.residual, y0, theta).y)(theta)


def jax_answer(problem: Problem) -> tuple[Any, Any]:
    import jax

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    y0, theta = jax.numpy.asarray(problem.y0), jax.numpy.asarray(problem.theta)
    sol = rootdiff_jax.root(problem.residual, y0, theta)
    return sol, jax.jacrev(lambda theta: rootdiff_jax.root(problem.residual, y0, theta).y)(theta)


ANSWERS: dict[str, Callable[[Problem], tuple[Any, Any]]] = {
    "numpy": numpy_answer,
    "torch": torch_answer,
    "jax": jax_answer,
}


def row(problem: Problem, backend: str) -> str:
    sol, sensitivity = ANSWERS[backend](problem)
    method = Method(int(sol.method)).name
    deviation = ""
    if problem.root is not None:
        distance = np.max(np.abs(np.asarray(sol.y) - problem.root))
        deviation = f"{distance:.1e}" if distance < 1e-3 else "another"
    return (
        f"{problem.name:<24} {len(problem.y0):>4}  {method:<20} {int(sol.steps):>5}  {float(sol.residual_norm):>8.1e}  "
        f"{np.max(np.abs(np.asarray(sensitivity))):>15.3e}  {deviation:>9}  {problem.source}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [problem.name for problem in APPLICATIONS]
    parser.add_argument("problems", nargs="*", default=names, help=f"default: all of {', '.join(names)}")
    parser.add_argument("--backend", choices=list(ANSWERS), default="torch")
    options = parser.parse_args(arguments)
    print("{:<24} {:>4}  {:<20} {:>5}  {:>8}  {:>15}  {:>9}  {}".format(*HEADER))
    for problem in APPLICATIONS:
        if problem.name in options.problems:
            print(row(problem, options.backend), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
