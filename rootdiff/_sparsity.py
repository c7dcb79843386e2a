"""Where a Jacobian may have entries, and the products that tell them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import scipy.sparse as sp

from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._inverse import SparseFactors

_KINDS = (
    "it must be None, 'auto', 'detect', ('banded', (l, u)), a Pattern of detect_sparsity, or a sparse array of SciPy, "
    "PyTorch or JAX, (n, n), that stores something where df/dy may have entries"
)
#: Products that are made at a time.
TOGETHER = 32
_KNOWN: WeakValueDictionary[bytes, Pattern] = WeakValueDictionary()
_LOCK = Lock()


class Plan(NamedTuple):
    """Which products tell the entries.

    Attributes
    ----------
    colours : integer array, (n,). Columns of one colour share no row but those of `dense`: one product tells them.
    number : int. How many colours there are.
    dense : integer array. The rows that are told by a product with the transpose each.
    places : list of integer arrays
        Where entries stand among products, each of n numbers: those of so many colours at a time as `TOGETHER` says,
        and at last those of the transpose.
    order : integer array, (entries,), or None
        Where each entry of the pattern stands among these; None: in this order.
    """

    colours: Any
    number: int
    dense: Any
    places: list[Any]
    order: Any

    @staticmethod
    def of(pattern: Pattern, colours: Any, dense: Any) -> Plan:
        """Return the plan for columns of these colours."""
        (count, n), number = pattern.shape, int(colours.max(initial=-1)) + 1
        own, is_dense = colours[pattern.indices], np.isin(pattern.rows, dense)
        which, places = [], []
        for first in range(0, number, TOGETHER):
            which.append(np.flatnonzero((own >= first) & (own < first + TOGETHER) & ~is_dense))
            places.append((own[which[-1]] - first) * count + pattern.rows[which[-1]])
        if len(dense):
            which.append(np.flatnonzero(is_dense))
            places.append(np.searchsorted(dense, pattern.rows[which[-1]]) * n + pattern.indices[which[-1]])
        return Plan(colours, number, dense, places, None if len(which) == 1 else np.argsort(np.concatenate(which)))


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """Where the Jacobian of one system may have entries: its structure, (n, n), and a colouring of its columns.

    Patterns of the same entries are the same object. `detect_sparsity` finds one, ``a | b`` has the entries of both.

    Attributes
    ----------
    size : int. The number of unknowns, n.
    indptr, indices : integer arrays, (n + 1,) and (entries,). As in `scipy.sparse.csr_array`, sorted by row and column.

    References
    ----------
    Curtis, Powell & Reid (1974), "On the estimation of sparse Jacobian matrices". Coleman & Moré (1983), "Estimation of
    sparse Jacobian matrices and graph coloring problems".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> pattern = rootdiff.detect_sparsity(lambda y: y**3 - np.roll(y, 1), np.ones(100))
    >>> pattern
    Pattern(100 x 100, 200 entries, 2 products)
    """

    size: int
    indptr: Any
    indices: Any
    _own: dict[bool, Plan] = field(default_factory=dict)
    _kinds: dict[str, type[SparseFactors]] = field(default_factory=dict)

    @staticmethod
    def of(given: Any, size: int, diagonal: bool = False, number: int | None = None) -> Pattern:
        """Return the pattern that an argument `jac_sparsity` tells, for so many unknowns, maybe with the `diagonal`.

        Of another `number` of rows it is given by `Places`.
        """
        if isinstance(given, Pattern) and not diagonal:
            return _checked(given, size)
        rows, columns = _places(given, size)
        if diagonal:
            rows, columns = (np.concatenate([part, np.arange(size)]) for part in (rows, columns))
        keys = np.unique(rows.astype(np.int64) * size + columns)
        counts = np.bincount(keys // size, minlength=size if number is None else number)
        indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        return Pattern.known(size, indptr, (keys % size).astype(np.int32))

    @staticmethod
    def known(size: int, indptr: Any, indices: Any) -> Pattern:
        """Return the one pattern of this structure."""
        key = hashlib.blake2b(indptr.tobytes() + indices.tobytes()).digest() + size.to_bytes(8)
        with _LOCK:
            found = _KNOWN.get(key)
            if found is None:
                for array in (indptr, indices):
                    array.flags.writeable = False
                found = _KNOWN[key] = Pattern(size, indptr, indices)
        return found

    def __or__(self, other: Pattern) -> Pattern:
        if not isinstance(other, Pattern):
            return NotImplemented
        _checked(other, self.size)
        rows = np.concatenate([self.rows, other.rows])
        return Pattern.of(Places(rows, np.concatenate([self.indices, other.indices])), self.size)

    def __reduce__(self) -> Any:
        return Pattern.known, (self.size, np.array(self.indptr), np.array(self.indices))

    def __repr__(self) -> str:
        return f"Pattern({self.shape[0]} x {self.size}, {len(self.indices)} entries, {self.products} products)"

    @cached_property
    def rows(self) -> Any:
        """The row of each entry."""
        return np.repeat(np.arange(self.shape[0], dtype=np.int32), np.diff(self.indptr))

    @staticmethod
    def of_equations(given: Any, size: int) -> Pattern:
        """Return the pattern that `jac_sparsity` of `least_squares` tells, (m, n), for so many unknowns."""
        found = Places(given.rows, given.indices) if isinstance(given, Pattern) else next(_forms(given), None)
        shape = tuple(getattr(given, "shape", ()))
        if found is None or len(shape) != 2 or shape[1] != size:
            got = repr(given) if isinstance(given, str) else f"{type(given).__name__} of shape {shape}"
            raise ArgumentError(
                f"jac_sparsity: got {got}, but least_squares, which detects nothing, needs a sparse array of SciPy, "
                f"PyTorch or JAX, or a Pattern, (m, {size}): a row for each number that the residual returns, a column "
                "for each entry of the flattened y0, that stores something where dr/dy may have entries."
            )
        return Pattern.of(found, size, number=shape[0])

    @cached_property
    def normal(self) -> Pattern:
        """The pattern of A^T A, and of its diagonal, for matrices A of this one."""
        ones = self.matrix(np.ones(len(self.indices)))
        found = (ones.T @ ones + sp.eye_array(self.size)).tocoo()
        return Pattern.of(Places(found.row, found.col), self.size)

    @property
    def products(self) -> int:
        """Number of products that tell the entries."""
        plan = self.plan(True)
        return plan.number + len(plan.dense)

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and of columns."""
        return len(self.indptr) - 1, self.size

    def factors(self, library: str) -> type[SparseFactors]:
        """Return the type of the factors that a library makes of matrices with this pattern."""
        own = {"pattern": self, "library": library, "__slots__": ()}
        return self._kinds.get(library) or self._kinds.setdefault(library, type("SparseFactors", (SparseFactors,), own))

    def matrix(self, values: Any) -> Any:
        """Return the matrix with these values, (entries,), in SciPy's form."""
        return sp.csr_array((values, self.indices, self.indptr), shape=self.shape)

    def plan(self, transposes: bool) -> Plan:
        """Return the products that tell the entries; dense rows by the transpose, if products with it can be had."""
        if transposes not in self._own:
            dense = self._dense_rows() if transposes else np.zeros(0, dtype=np.int64)
            self._own[transposes] = Plan.of(self, self._colours(dense), dense)
        return self._own[transposes]

    def _dense_rows(self) -> Any:
        """Return the rows without which the fewest products are needed: one for each, and the longest of the others."""
        lengths = np.diff(self.indptr)
        order = np.argsort(-lengths, kind="stable")
        needed = np.append(lengths[order], 0) + np.arange(len(lengths) + 1)
        return np.sort(order[: int(np.argmin(needed))])

    def _colours(self, dense: Any) -> Any:
        """Return the greedy colouring of the columns, in their order, without regard to the `dense` rows."""
        columns = self.matrix(np.ones(len(self.indices), dtype=np.int8)).tocsc()
        starts, rows = columns.indptr.tolist(), columns.indices.tolist()
        skipped = set(dense.tolist())
        taken, colours = [0] * self.shape[0], np.empty(self.size, dtype=np.int32)  # the colours in each row, as bits
        for column in range(self.size):
            own = rows[starts[column] : starts[column + 1]]
            if skipped:
                own = [row for row in own if row not in skipped]
            seen = 0
            for row in own:
                seen |= taken[row]
            free = ~seen & (seen + 1)  # the lowest bit that is not set
            colours[column] = free.bit_length() - 1
            for row in own:
                taken[row] |= free
        return colours


class Places(NamedTuple):
    """Rows and columns of entries."""

    rows: Any
    columns: Any


def _checked(pattern: Pattern, size: int) -> Pattern:
    if pattern.size != size:
        raise ArgumentError(
            f"jac_sparsity: the Pattern is of {pattern.size} unknowns, but one system has {size}, those of the "
            "flattened y0. Take detect_sparsity(residual, y0, *args) with this y0."
        )
    return pattern


def _places(given: Any, size: int) -> Places:
    """Return the entries that an argument `jac_sparsity` tells."""
    if isinstance(given, Pattern):
        return Places(_checked(given, size).rows, given.indices)
    if isinstance(given, Places):
        return given
    if isinstance(given, tuple):
        return _band(given, size)
    shape = tuple(getattr(given, "shape", ()))
    found = next(_forms(given), None)
    if found is None:
        raise ArgumentTypeError(f"jac_sparsity: got {type(given).__name__}; {_KINDS}.")
    if shape != (size, size):
        raise ArgumentError(
            f"jac_sparsity: its shape is {shape}, but must be {(size, size)}: one row and column for each entry of the "
            "flattened y0 of one system, in its order (real parts before imaginary ones)."
        )
    inside = (found.rows < size) & (found.columns < size)  # JAX fills its indices up with larger ones
    return Places(found.rows[inside], found.columns[inside])


def _forms(given: Any) -> Iterator[Places]:
    """Yield the stored entries of a sparse array of SciPy, PyTorch or JAX."""
    if sp.issparse(given):
        coordinates = given.tocoo()
        yield Places(coordinates.row.astype(np.int64), coordinates.col.astype(np.int64))
    elif hasattr(given, "to_sparse_coo"):  # PyTorch
        indices = given.detach().to_sparse_coo().coalesce().indices().cpu().numpy()
        yield Places(*indices) if len(indices) == 2 else Places(np.zeros(0, int), np.zeros(0, int))
    elif hasattr(given, "indptr"):  # JAX, BCSR
        starts = np.asarray(given.indptr).astype(np.int64)
        columns = np.asarray(given.indices).astype(np.int64)[: starts[-1]]
        yield Places(np.repeat(np.arange(len(starts) - 1), np.diff(starts)), columns)
    elif getattr(getattr(given, "indices", None), "ndim", 0) == 2:  # JAX, BCOO
        yield Places(*np.asarray(given.indices).astype(np.int64).T)


def _band(given: tuple[Any, ...], size: int) -> Places:
    """Return the entries of ``("banded", (l, u))``: so many diagonals below, and above, the main one."""
    widths = given[1] if len(given) == 2 and given[0] == "banded" and isinstance(given[1], tuple | list) else ()
    if len(widths) != 2 or not all(isinstance(width, int | np.integer) and width >= 0 for width in widths):
        raise ArgumentError(f"jac_sparsity: got {given!r}; {_KINDS}.")
    offsets = np.arange(-widths[0], widths[1] + 1)
    rows = np.repeat(np.arange(size), len(offsets))
    columns = rows + np.tile(offsets, size)
    inside = (columns >= 0) & (columns < size)
    return Places(rows[inside], columns[inside])
