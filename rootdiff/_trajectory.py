"""The derivatives of a trajectory in NumPy, where all steps are one root."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._sensitivities import apart
from rootdiff._solution import RawSolution
from rootdiff._solver import Solver
from rootdiff._space import max_norm
from rootdiff._structure import Structure, flat_cotangent


@dataclass(frozen=True)
class Judged(Solver):
    """Returns the start: the stages of all steps, which have been judged one by one."""

    status: Array

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        return RawSolution(y0, self.status, 0 * self.status, max_norm(residual.xp, residual(y0)))


@dataclass(frozen=True, repr=False)
class AtTimes:
    """The derivatives of values at times, which are the last `stages` of a root of all stages.

    Of the root's unknowns, (*batch, times, stages, n), of which `structure` has the first two for batch axes.
    """

    of_stages: Any
    structure: Structure
    stages: Array

    def vjp(self, cotangent: Any, several: bool = False, **options: Any) -> Any:
        """Return the cotangents of y0, t and args."""
        given = apart("vjp", cotangent) if several else [cotangent]
        w = np.zeros((len(given), *self.stages.shape), dtype=self.stages.dtype)
        for row, each in zip(w, given, strict=True):
            row[..., -1, :] = flat_cotangent("vjp", self.structure, each, self.stages)
        return self.of_stages.vjp(w if several else w[0], several=several, **options)

    def jvp(self, *tangents: Any, **options: Any) -> Any:
        """Return the derivative of y along tangents of y0, t and args."""
        return self.structure.unravel(self.of_stages.jvp(*tangents, **options)[..., -1, :])

    def jacobian(self, **options: Any) -> Any:
        """Return the derivatives of y in y0, t and args."""
        return optree.tree_map(self._block, self.of_stages.jacobian(**options))

    def _block(self, block: Array) -> Any:
        last = block.take(-1, axis=self.stages.ndim - 2)
        axes = range(last.ndim - self.stages.ndim + 1), range(self.stages.ndim - 1 - last.ndim, 0)
        found = self.structure.unravel(np.moveaxis(last, axes[1], axes[0]))
        return optree.tree_map(lambda leaf: np.moveaxis(leaf, *axes), found)
