"""Where a Jacobian has entries, from products with it alone: for each framework, at a cost that does not grow with n.

Columns are thrown into buckets at random. A row that has one entry in a bucket tells its column by the ratio of two
products: one with weights of the columns, one without. What is known is subtracted, so that rows with several entries
in a bucket are told in a later round. Entries too small for a ratio of differences are those columns that are in a
bucket with a product in each of several rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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
#: A product smaller than this part of its row is nothing: of differences, and else.
_NOTHING, _NOTHING_EXACT = 1e-9, 1e-11
#: So is one of differences that is not larger than so many times what another step changes along so many vectors.
_MARGIN, _COMPARED = 8.0, 4
#: A row of which differences tell no more than this part is taken as full.
_COARSE = 1e-3
#: A ratio of differences tells a digit to this base.
_BASE = 256
#: Rounds in which small entries are sifted: a column is left by chance in one of 32^10 rows with one such entry.
_SIFTED = 10
#: Entries of dense rows, at most: if they are more the residual is rounded too coarsely to tell.
_ENTRIES = 2**26
#: A ratio this far from a digit is that of several entries.
_CLOSE = 0.05
#: Part of each unknown by which the point is off the start: there an entry may vanish, as that of a square at zero.
_ASIDE = 1e-3


def detected(residual: Residual, y: Array) -> Pattern:
    """Return the pattern of df/dy next to `y`, (*batch, n), of all systems together; some entries of it may be zero."""
    n, found = y.shape[-1], places(residual, y)
    if found is None:
        raise ArgumentError(
            "jac_sparsity: the Jacobian at y0 tells no pattern: it is not finite, or lost in the rounding of the "
            "residual. Give the pattern, or a y0 (and args) at which the residual is smooth."
        )
    return Pattern.of(Places(found.rows % n, found.columns), n)


def places(residual: Residual, y: Array, buckets: int = _BUCKETS) -> Places | None:
    """Return where df/dy has entries next to `y`, (*batch, n), or at it, the rows of all systems one after the other.

    There are so many `buckets` at first. None where products are not finite, or tell nothing.
    """
    xp = residual.xp
    aside = weights(xp, y, per_system(xp, y, 0, xp.int32))
    lengths = residual.backend.lengths(y)
    moved = y + _ASIDE * xp.where(y == 0, lengths, xp.abs(y)) * aside
    for point in (moved, y):
        found = _Probe(residual, point, np.asarray(residual.backend.to_numpy(lengths), dtype=np.float64)).told(buckets)
        if found is not None:
            return found
    return None


class _Thrown(NamedTuple):
    """Columns in buckets, (n), each with its factor."""

    bucket: Any
    factor: Any
    buckets: int

    def vectors(self, weights: Any = 1) -> Any:
        """Return the vectors, (n, buckets), of which each column is in one."""
        found = np.zeros((len(self.bucket), self.buckets))
        found[np.arange(len(self.bucket)), self.bucket] = self.factor * weights
        return found


@dataclass
class _Probe:
    """The products of a Jacobian at a point, in units of its unknowns; the rows of all systems are one matrix."""

    residual: Residual
    y: Array
    lengths: Any

    def __post_init__(self) -> None:
        backend, self.n = self.residual.backend, self.y.shape[-1]
        eps = float(backend.xp.finfo(self.y.dtype).eps)
        self.differences = backend.precision(self.y.dtype) > eps
        nothing = _NOTHING if self.differences else _NOTHING_EXACT
        self.base: int = _BASE if self.differences or self.n * eps > _CLOSE * nothing else self.n
        self.digits = 1
        while self.base**self.digits < self.n:
            self.digits += 1
        self.step, self.nothing = eps ** (1 / 3), max(nothing, 100 * eps)
        self.random = np.random.default_rng(0)
        self.noise = self._noise()
        self.size, self.known = np.zeros(len(self.noise)), sp.csr_array((len(self.noise), self.n))

    def times(self, vectors: Any, longer: int = 1) -> Any:
        """Return the products with vectors, (n, several), in units of the unknowns."""
        xp, backend, y, step = self.residual.xp, self.residual.backend, self.y, longer * self.step
        parts = []
        for first in range(0, vectors.shape[1], TOGETHER):
            some = vectors[:, first : first + TOGETHER].T
            along = some.reshape(len(some), *(1,) * (y.ndim - 1), self.n) * self.lengths
            if self.differences:  # central ones: one of those that tell their error costs many times as much
                steps = step * np.astype(along, y.dtype)
                found = np.stack([self.residual(y + part) - self.residual(y - part) for part in steps]) / (2 * step)
            else:
                vectors_there = xp.astype(backend.constant(along, y), y.dtype)
                found = backend.to_numpy(self.residual.products(y, vectors_there)[0])
            parts.append(np.asarray(found, dtype=np.float64).reshape(len(some), -1).T)
        return np.concatenate(parts, axis=1)

    def told(self, buckets: int) -> Places | None:
        """Return rows and columns of the entries; None where products are not finite, or tell nothing."""
        for _ in range(_ROUNDS):
            thrown, left = self._left(buckets)
            if not np.all(np.isfinite(left)):
                return None
            # of a smaller one the ratio is too rough
            rows, places = np.nonzero(np.abs(left) > np.maximum(self._least, self.base / _CLOSE * self.noise)[:, None])
            if len(rows) == 0:
                break
            column, single = self._columns(thrown, left[rows, places], rows, places)
            values = left[rows, places][single] / thrown.factor[column[single]]
            new = sp.csr_array((values, (rows[single], column[single])), shape=self.known.shape)
            self.known = self.known + new
            if np.mean(single) < 0.5:
                if buckets >= _MOST:
                    break
                buckets *= 2
        coarse = self.noise > _COARSE * self.size
        open_ = np.flatnonzero(np.any(np.abs(left) > self._least[:, None], axis=1) & ~coarse)
        if (len(open_) + np.sum(coarse)) * self.n > _ENTRIES:
            return None
        dense = self._sifted(open_) if self.residual.backend.measures else self._dense(open_)
        full = ((row, np.arange(self.n)) for row in np.flatnonzero(coarse))
        parts = [(np.full(len(columns), row), columns) for row, columns in (*dense, *full)]
        found = self.known.tocoo()
        return Places(*map(np.concatenate, zip((found.row, found.col), *parts, strict=True)))

    @property
    def _least(self) -> Any:
        """What a product is nothing below, (rows)."""
        return np.maximum(self.nothing * self.size, _MARGIN * self.noise)

    def _noise(self) -> Any:
        """Return how far a product may be off, (rows)."""
        shape = self.n, _COMPARED
        vectors = self.random.uniform(0.5, 1, shape) * self.random.choice([-1.0, 1.0], shape)
        found = self.times(vectors)
        return np.abs(found - (self.times(vectors, 2) if self.differences else found)).max(axis=1)

    def _left(self, buckets: int) -> tuple[_Thrown, Any]:
        """Return columns thrown anew, and of their products, (rows, buckets), what is not known."""
        factor = self.random.uniform(0.5, 1, self.n) * self.random.choice([-1.0, 1.0], self.n)
        thrown = _Thrown(self.random.integers(0, buckets, self.n), factor, buckets)
        vectors = thrown.vectors()
        products = self.times(vectors)
        self.size = np.maximum(self.size, np.abs(products).max(axis=1))
        return thrown, products - self.known @ vectors

    def _columns(self, thrown: _Thrown, left: Any, rows: Any, places: Any) -> tuple[Any, Any]:
        """Return the column of each product that is `left`, and whether it is that of a single entry."""
        column, single = np.zeros(len(rows), dtype=np.int64), np.ones(len(rows), dtype=bool)
        for digit in range(self.digits):
            own = np.arange(self.n) // self.base**digit % self.base
            vectors = thrown.vectors(1 + own / self.base)
            ratio = self.base * ((self.times(vectors) - self.known @ vectors)[rows, places] / left - 1)
            nearest = np.rint(ratio)
            single &= (np.abs(ratio - nearest) < _CLOSE) & (nearest >= 0) & (nearest < self.base)
            column += np.where(single, nearest, 0).astype(np.int64) * self.base**digit
        single &= column < self.n
        column = np.where(single, column, 0)
        return column, single & (thrown.bucket[column] == places)

    def _sifted(self, rows: Any) -> Iterator[tuple[int, Any]]:
        """Yield of rows that were not told the columns that each round leaves possible."""
        rounds = []
        for _ in range(_SIFTED if len(rows) else 0):
            thrown, left = self._left(_BUCKETS)
            rounds.append((thrown.bucket, np.abs(left[rows]) > self._least[rows, None]))
        for place, row in enumerate(rows):
            columns = np.arange(self.n)
            for bucket, there in rounds:
                columns = columns[there[place, bucket[columns]]]
            yield row, columns

    def _dense(self, rows: Any) -> Iterator[tuple[int, Any]]:
        """Yield the entries of rows that were not told, those of a product with the transpose."""
        backend, y = self.residual.backend, self.y
        for row in rows:
            unit = np.arange(self.lengths.size).reshape(1, *self.lengths.shape) == row
            units = self.residual.xp.astype(backend.constant(unit, y), y.dtype)
            found, _ = self.residual.products(y, units, True)
            values = np.asarray(backend.to_numpy(found)).reshape(-1, self.n)
            yield row, np.flatnonzero(np.any(values != 0, axis=0))
