"""Sparse LU factors on the host, by SciPy's SuperLU or another library.

Factors are those of values on a pattern, and made of them anew where they are not kept: they are no state.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from rootdiff._sparse_libraries import Solve, ways

if TYPE_CHECKING:
    from rootdiff._sparsity import Pattern

#: Backward error by row with which factors are good; SuperLU's own refinement aims at eps.
_GOOD = 1e-12
#: Factors kept for each system of a batch: those of the last step, and those of the root.
_KEPT = 2


@dataclass(frozen=True)
class _Factored:
    """A matrix with its factors; `refine` tells that one step of refinement is needed for a small backward error."""

    matrix: Any
    factors: Solve
    refine: bool

    def solve(self, rhs: Any, transpose: bool) -> Any:
        """Return the solutions, (n, count)."""
        matrix, x = self.matrix.T if transpose else self.matrix, self.factors(rhs, transpose)
        return x + self.factors(rhs - matrix @ x, transpose) if self.refine else x


class _Memory:
    """The factors made last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, Pattern, bytes], _Factored | None] = OrderedDict()
        self._lock = Lock()

    def factored(self, library: str, pattern: Pattern, values: Any, systems: int) -> _Factored | None:
        """Return the factors of one matrix, None if it is singular or not finite; as many are kept as a batch needs."""
        key = library, pattern, values.tobytes()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _factored(library, pattern, pattern.matrix(values))
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT * systems:
                self._kept.popitem(last=False)
        return found


_MEMORY = _Memory()


def solve(pattern: Pattern, library: str, transpose: bool, values: Any, rhs: Any) -> Any:
    """Return the solutions, (..., n), for matrices of the pattern with these values, (..., entries); NaN if singular.

    Leading axes are broadcast: one matrix serves all right-hand sides along an axis of which it has one entry.
    """
    n, values = pattern.size, np.asarray(values, dtype=np.float64)
    lead = np.broadcast_shapes(values.shape[:-1], rhs.shape[:-1])
    rhs = np.broadcast_to(np.asarray(rhs, dtype=np.float64), (*lead, n))
    x = np.full((*lead, n), np.nan)
    systems = int(np.prod(values.shape[:-1]))
    for index in np.ndindex(values.shape[:-1]):
        found = _MEMORY.factored(library, pattern, values[index], systems)
        if found is None:
            continue
        axes = zip(values.shape[:-1], index, strict=True)
        where = tuple(slice(None) if size == 1 else slice(place, place + 1) for size, place in axes)
        columns = rhs[where].reshape(-1, n).T
        x[where] = found.solve(columns, transpose).T.reshape(x[where].shape)
    return x


def _factored(library: str, pattern: Pattern, matrix: Any) -> _Factored | None:
    if not np.all(np.isfinite(matrix.data)):
        return None
    b = 1 + 0.5 * np.sin(np.arange(1.0, matrix.shape[0] + 1) ** 2)
    for factors in ways(library, pattern, matrix):
        for refine in (False, True):
            found = _Factored(matrix, factors, refine)
            x = found.solve(b[:, None], False)[:, 0]
            # the backward error by rows (Oettli & Prager 1964)
            if np.all(np.abs(b - matrix @ x) <= _GOOD * (abs(matrix) @ np.abs(x) + np.abs(b))):
                return found
    return None
