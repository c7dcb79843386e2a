"""Where a Jacobian has entries, from products with it alone: for each framework, at a cost that does not grow with n.

Columns are thrown into buckets at random. A row that has one entry in a bucket tells its column by the ratio of two
products: one with weights of the columns, one without. What is known is subtracted, so that rows with several entries
in a bucket are told in a later round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._space import per_system, weights
from rootdiff._sparsity import TOGETHER, Pattern, Places

#: Buckets at first, and at most: what is not told by these is a dense row.
_BUCKETS, _MOST = 32, 512
_ROUNDS = 30
#: A product smaller than this part of its row is nothing, where derivatives are exact, and where they are differences.
_NOTHING, _NO_DIFFERENCE = 1e-9, 5e-6
#: So many roundings of f are nothing too, over the step of a difference.
_ROUNDINGS = 10.0
#: A ratio of differences tells a digit to this base.
_BASE = 256
#: Entries of dense rows, at most: if they are more the residual is rounded too coarsely to tell.
_ENTRIES = 2**26
#: A ratio this far from a digit is that of several entries.
_CLOSE = 0.05
#: Part of each unknown by which the point is off the start: there an entry may vanish, as that of a square at zero.
_ASIDE = 1e-3


def detected(residual: Residual, y: Array) -> Pattern:
    """Return the pattern of df/dy next to `y`, (*batch, n), of all systems together; some entries of it may be zero."""
    xp, n = residual.xp, y.shape[-1]
    aside = weights(xp, y, per_system(xp, y, 0, xp.int32))
    lengths = residual.backend.lengths(y)
    moved = y + _ASIDE * xp.where(y == 0, lengths, xp.abs(y)) * aside
    for point in (moved, y):
        found = _Probe(residual, point, np.asarray(residual.backend.to_numpy(lengths), dtype=np.float64)).told()
        if found is not None:
            rows, columns = found
            return Pattern.of(Places(rows % n, columns), n)
    raise ArgumentError(
        "jac_sparsity: the Jacobian at y0 tells no pattern: it is not finite, or lost in the rounding of the residual. "
        "Give the pattern, or a y0 (and args) at which the residual is smooth."
    )


@dataclass
class _Probe:
    """The products of a Jacobian at a point, in units of its unknowns; the rows of all systems are one matrix."""

    residual: Residual
    y: Array
    lengths: Any

    def __post_init__(self) -> None:
        backend, self.n = self.residual.backend, self.y.shape[-1]
        eps = float(backend.xp.finfo(self.y.dtype).eps)
        rough = backend.measures or self.n * eps > _NOTHING
        self.base: int = _BASE if rough else self.n
        self.digits = 1
        while self.base**self.digits < self.n:
            self.digits += 1
        self.step = eps ** (1 / 3)
        self.nothing = max(_NOTHING, 100 * eps) if not backend.measures else max(_NO_DIFFERENCE, eps ** (1 / 2))
        self.known = sp.csr_array((self.lengths.size, self.n))

    def times(self, vectors: Any) -> Any:
        """Return the products with vectors, (n, several), in units of the unknowns."""
        xp, backend, y = self.residual.xp, self.residual.backend, self.y
        parts = []
        for first in range(0, vectors.shape[1], TOGETHER):
            some = vectors[:, first : first + TOGETHER].T
            along = some.reshape(len(some), *(1,) * (y.ndim - 1), self.n) * self.lengths
            if backend.measures:  # by central differences: one of those that tell their error costs many times as much
                steps = self.step * np.astype(along, y.dtype)
                found = np.stack([self.residual(y + step) - self.residual(y - step) for step in steps]) / (
                    2 * self.step
                )
            else:
                vectors_there = xp.astype(backend.constant(along, y), y.dtype)
                found = backend.to_numpy(self.residual.products(y, vectors_there)[0])
            parts.append(np.asarray(found, dtype=np.float64).reshape(len(some), -1).T)
        return np.concatenate(parts, axis=1)

    def noise(self) -> Any:
        """Return what rounding makes of a product, (rows)."""
        if not self.residual.backend.measures:
            return np.zeros(self.lengths.size)
        return _ROUNDINGS * self.step**2 * np.abs(self.residual(self.y)).reshape(-1)

    def told(self) -> tuple[Any, Any] | None:
        """Return rows and columns of the entries; None where products are not finite, or tell nothing."""
        random, buckets, open_ = np.random.default_rng(0), _BUCKETS, np.zeros(0, dtype=int)
        size, noise = np.zeros(self.lengths.size), self.noise()
        for _ in range(_ROUNDS):
            bucket = random.integers(0, buckets, self.n)
            factor = random.uniform(0.5, 1, self.n) * random.choice([-1.0, 1.0], self.n)
            products = self.times(_thrown(bucket, factor, buckets))
            if not np.all(np.isfinite(products)):
                return None
            left = products - self.known @ _thrown(bucket, factor, buckets)
            size = np.maximum(size, np.abs(products).max(axis=1))
            rows, places = np.nonzero(np.abs(left) > np.maximum(self.nothing * size, noise)[:, None])
            open_ = rows
            if len(rows) == 0:
                break
            column, single = self._columns(bucket, factor, buckets, left[rows, places], rows, places)
            values = left[rows, places][single] / factor[column[single]]
            new = sp.csr_array((values, (rows[single], column[single])), shape=self.known.shape)
            self.known = self.known + new
            if np.mean(single) < 0.5:
                if buckets >= _MOST:
                    break
                buckets *= 2
        found, dense = self.known.tocoo(), np.unique(open_)
        if len(dense) * self.n > _ENTRIES:
            return None
        every: Any = zip((found.row, found.col), *self._dense(dense), strict=True)
        rows, columns = map(np.concatenate, every)
        return rows, columns

    def _columns(self, bucket: Any, factor: Any, buckets: int, left: Any, rows: Any, places: Any) -> tuple[Any, Any]:
        """Return the column of each product that is `left`, and whether it is that of a single entry."""
        column, single = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
        for digit in range(self.digits):
            own = np.arange(self.n) // self.base**digit % self.base
            vectors = _thrown(bucket, factor * (1 + own / self.base), buckets)
            ratio = self.base * ((self.times(vectors) - self.known @ vectors)[rows, places] / left - 1)
            nearest = np.rint(ratio)
            single &= (np.abs(ratio - nearest) < _CLOSE) & (nearest >= 0) & (nearest < self.base)
            column += np.where(single, nearest, 0).astype(np.int64) * self.base**digit
        single &= column < self.n
        column = np.where(single, column, 0)
        return column, single & (bucket[column] == places)

    def _dense(self, rows: Any) -> Iterator[tuple[Any, Any]]:
        """Yield the entries of rows that were not told: those of a product with the transpose, or all."""
        for row in rows:
            columns = np.arange(self.n)
            if not self.residual.backend.measures:
                backend, y = self.residual.backend, self.y
                unit = np.arange(self.lengths.size).reshape(1, *self.lengths.shape) == row
                units = self.residual.xp.astype(backend.constant(unit, y), y.dtype)
                found, _ = self.residual.products(y, units, True)
                values = np.asarray(backend.to_numpy(found)).reshape(-1, self.n)
                columns = np.flatnonzero(np.any(values != 0, axis=0))
            yield np.full(len(columns), row), columns


def _thrown(bucket: Any, factor: Any, buckets: int) -> Any:
    """Return the vectors, (n, buckets), of which each column of the Jacobian is in one, with its factor."""
    vectors = np.zeros((len(bucket), buckets))
    vectors[np.arange(len(bucket)), bucket] = factor
    return vectors
