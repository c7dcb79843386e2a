"""Sparse LU factors on the host, by SciPy's SuperLU.

Factors are those of values on a pattern, and made of them anew where they are not kept: they are no state.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse.linalg import splu

if TYPE_CHECKING:
    from rootdiff._sparsity import Pattern

#: Backward error by row with which factors are good; SuperLU's own refinement aims at eps.
_GOOD = 1e-12
#: Columns in an order that few entries fill, with a pivot from the diagonal unless it is a thousand times too small: of
#: a circuit or a grid that takes a hundredth of the time of the default order. Then any order, and the largest pivot.
_WAYS: tuple[dict[str, Any], ...] = (
    {"permc_spec": "MMD_AT_PLUS_A", "diag_pivot_thresh": 1e-3, "options": {"SymmetricMode": True}},
    {"permc_spec": "COLAMD", "diag_pivot_thresh": 1.0},
)
#: Factors kept for each system of a batch: those of the last step, and those of the root.
_KEPT = 2


@dataclass(frozen=True)
class _Factored:
    """A matrix with its factors; `refine` tells that one step of refinement is needed for a small backward error."""

    matrix: Any
    factors: Any
    refine: bool

    def solve(self, rhs: Any, transpose: bool) -> Any:
        """Return the solutions, (n, count)."""
        matrix, mode = (self.matrix.T, "T") if transpose else (self.matrix, "N")
        x = self.factors.solve(rhs, trans=mode)
        return x + self.factors.solve(rhs - matrix @ x, trans=mode) if self.refine else x


class _Memory:
    """The factors made last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Pattern, bytes], _Factored | None] = OrderedDict()
        self._lock = Lock()

    def factored(self, pattern: Pattern, values: Any, systems: int) -> _Factored | None:
        """Return the factors of one matrix, None if it is singular or not finite; as many are kept as a batch needs."""
        key = pattern, values.tobytes()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        found = _factored(pattern.matrix(values).tocsc())
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT * systems:
                self._kept.popitem(last=False)
        return found


_MEMORY = _Memory()


def solve(pattern: Pattern, transpose: bool, values: Any, rhs: Any) -> Any:
    """Return the solutions, (..., n), for matrices of the pattern with these values, (..., entries); NaN if singular.

    Leading axes are broadcast: one matrix serves all right-hand sides along an axis of which it has one entry.
    """
    n, values = pattern.size, np.asarray(values, dtype=np.float64)
    lead = np.broadcast_shapes(values.shape[:-1], rhs.shape[:-1])
    rhs = np.broadcast_to(np.asarray(rhs, dtype=np.float64), (*lead, n))
    x = np.full((*lead, n), np.nan)
    systems = int(np.prod(values.shape[:-1]))
    for index in np.ndindex(values.shape[:-1]):
        found = _MEMORY.factored(pattern, values[index], systems)
        if found is None:
            continue
        axes = zip(values.shape[:-1], index, strict=True)
        where = tuple(slice(None) if size == 1 else slice(place, place + 1) for size, place in axes)
        columns = rhs[where].reshape(-1, n).T
        x[where] = found.solve(columns, transpose).T.reshape(x[where].shape)
    return x


def _factored(matrix: Any) -> _Factored | None:
    if not np.all(np.isfinite(matrix.data)):
        return None
    b = 1 + 0.5 * np.sin(np.arange(1.0, matrix.shape[0] + 1) ** 2)
    for way in _WAYS:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                factors = splu(matrix, **way)
        except RuntimeError:  # "Factor is exactly singular"
            continue
        for refine in (False, True):
            found = _Factored(matrix, factors, refine)
            x = found.solve(b, False)
            # the backward error by rows (Oettli & Prager 1964)
            if np.all(np.abs(b - matrix @ x) <= _GOOD * (abs(matrix) @ np.abs(x) + np.abs(b))):
                return found
    return None
