"""What a type checker knows of a call. mypy reads this file in `make check`; nothing runs it."""

from __future__ import annotations

from typing import Any, assert_type

import numpy as np
from numpy.typing import NDArray

import rootdiff
import rootdiff_jax
import rootdiff_torch

Vector = NDArray[np.float64]


def root_has_the_type_of_its_start(y0: Vector, pair: tuple[Vector, Vector], named: dict[str, Vector]) -> None:
    assert_type(rootdiff.root(lambda y: y, y0).y, Vector)
    assert_type(rootdiff_torch.root(lambda y: y, pair, solver="newton").y, tuple[Vector, Vector])
    assert_type(rootdiff_jax.fixed_point(lambda z: z, named, solver="mine").y, dict[str, Vector])
    assert_type(rootdiff.least_squares(lambda y: y, y0, adjoint="lu").y, Vector)


def unnamed_is_any(solution: rootdiff.Solution) -> None:
    assert_type(solution.y, Any)
