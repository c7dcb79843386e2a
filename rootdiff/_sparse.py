"""A Jacobian whose pattern is known: its entries from a few products, checked by one more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rootdiff._backend import Array, Backend
from rootdiff._errors import ArgumentError
from rootdiff._inverse import SparseFactors
from rootdiff._operator import LinearOperator
from rootdiff._space import per_system, some, weights
from rootdiff._sparsity import TOGETHER, Pattern

if TYPE_CHECKING:
    from rootdiff._residual import Residual

#: A row of a product may differ from that with the matrix by so many times the errors of both, as far as they are
#: measured, and by the square root of the accuracy of derivatives, relative to its terms.
_MARGIN = 100.0


class WrongPatternError(ArgumentError):
    """The Jacobian at `y`, (*batch, n), has entries outside of the pattern."""

    y: Array


class Entries(NamedTuple):
    """Values on a pattern, (*batch, entries), where they are wrong, (*batch), and their errors, if measured."""

    values: Array
    wrong: Array
    errors: Array | None = None


@dataclass(frozen=True)
class Sparse(LinearOperator):
    """Matrices with a pattern, which a sparse factorisation solves with.

    Attributes
    ----------
    pattern : Pattern
    entries : callable
        Returns the `Entries`.
    """

    pattern: Pattern = field(kw_only=True)
    entries: Callable[[], Entries] = field(kw_only=True)

    def factored(self, library: str = "superlu") -> SparseFactors:
        found, xp = self.entries(), self.backend.xp
        values = xp.where(found.wrong[..., None], xp.nan, found.values)
        return self.pattern.factors(library)(values, found.wrong)

    def error_sizes(self, x: Array, transposed: bool) -> Array | None:
        if not self.backend.measures or self.entries().errors is None:
            return None
        xp = self.backend.xp
        return xp.sqrt(_product(self.backend, self.pattern, transposed, self.entries().errors ** 2, x**2))  # type: ignore[operator]


def sparse(residual: Residual, y: Array, entries: Callable[[], Entries], pattern: Pattern) -> Sparse:
    """Return df/dy at `y` as an operator with a pattern.

    Its products are those of the residual, but where these are measured: then they are those of its entries.
    """
    backend = residual.backend
    if not backend.traced:
        entries = cache(entries)
    matvec, rmatvec, dense, *_ = backend.linearize(residual._of_y, y)
    if backend.measures:
        matvec, rmatvec = (partial(_with_entries, backend, pattern, transpose, entries) for transpose in (False, True))
    return Sparse(
        backend,
        matvec,
        rmatvec,
        dense,
        backend.precision(y.dtype),
        (*y.shape, y.shape[-1]),
        finer=residual.finer(y),
        pattern=pattern,
        entries=entries,
    )


def told(residual: Residual, y: Array, pattern: Pattern) -> Entries:
    """Return the entries of df/dy at `y`, from the products that the colours of a pattern tell, and one that checks.

    Raises
    ------
    ArgumentError
        If the Jacobian has entries outside of the pattern; of a traced one it is told that they are wrong.
    """
    backend, xp = residual.backend, residual.xp
    plan, lengths = pattern.plan(not backend.measures), backend.lengths(y)
    probe = lengths * weights(xp, y, per_system(xp, y, 0, xp.int32) + 1)
    colours, parts, errors = backend.constant(plan.colours, y), [], []

    def take(vectors: Array, places: Any) -> Array:
        flat = xp.reshape(xp.moveaxis(vectors, 0, -2), (*y.shape[:-1], vectors.shape[0] * vectors.shape[-1]))
        return xp.take(flat, backend.constant(places, y), axis=-1)

    for first in range(0, plan.number, TOGETHER):
        seeds = [xp.where(colours == one, lengths, 0 * y) for one in range(plan.number)[first : first + TOGETHER]]
        products, measured = residual.products(y, xp.stack([*seeds, probe]))
        if products.shape[-1] != pattern.shape[0]:
            raise ArgumentError(
                f"jac_sparsity: it has {pattern.shape[0]} rows, but the residual returned {products.shape[-1]} "
                "numbers. Give it a row for each of them, in the order of the flattened residual."
            )
        parts.append(take(products, plan.places[first // TOGETHER]))
        if measured is not None:
            errors.append(take(measured, plan.places[first // TOGETHER]))
    if len(plan.dense):
        numbers, row = backend.constant(np.arange(pattern.shape[0]), y), products[-1, ...]
        units = [xp.where(numbers == int(place), xp.ones_like(row), 0 * row) for place in plan.dense]
        parts.append(take(residual.products(y, xp.stack(units), True)[0], plan.places[-1]))

    def put(parts: list[Array]) -> Array:
        whole = (
            parts[0]
            if plan.order is None
            else xp.take(xp.concat(parts, axis=-1), backend.constant(plan.order, y), axis=-1)
        )
        return whole / xp.take(lengths, backend.constant(pattern.indices, y), axis=-1) if backend.measures else whole

    values, found = put(parts), put(errors) if errors else None
    off = [products[-1, ...]] if measured is None else [products[-1, ...], measured[-1, ...], found]
    compare = partial(_unexplained, pattern, backend.precision(y.dtype) ** 0.5)
    unexplained = backend.by_numpy(compare, y, values, probe, *off)
    wrong = some(xp, unexplained != 0)
    if not backend.traced and bool(xp.any(wrong)):
        error = _error(backend, pattern, unexplained, products[-1, ...])
        error.y = y
        raise error
    return Entries(values, wrong, found)


def normal(backend: Backend, pattern: Pattern, values: Array, shift: Array) -> Array:
    """Return the values of ``A^T A + shift I`` on ``pattern.normal``, (*batch, entries), of matrices with `values`."""

    def of_one(values: Any, shift: Any) -> Any:
        lead = np.broadcast_shapes(values.shape[:-1], shift.shape[:-1])
        values, shift = (np.broadcast_to(part, (*lead, part.shape[-1])) for part in (values, shift))
        found = np.empty((*lead, len(pattern.normal.indices)))
        for index in np.ndindex(lead):
            matrix = pattern.matrix(values[index])
            found[index] = (matrix.T @ matrix).tocsr()[pattern.normal.rows, pattern.normal.indices]
        return found + np.where(pattern.normal.rows == pattern.normal.indices, shift[..., :1], 0)

    like = backend.xp.broadcast_to(shift[..., None], (*shift.shape, len(pattern.normal.indices)))
    return backend.by_numpy(of_one, like, values, like)


def dense(residual: Residual, y: Array, pattern: Pattern) -> Array:
    """Return df/dy at `y`, (*batch, n, n), from what `told` tells."""
    xp, n = residual.xp, y.shape[-1]
    places = np.full(n * n, len(pattern.indices))
    places[pattern.rows * n + pattern.indices] = np.arange(len(pattern.indices))
    entries = xp.concat([told(residual, y, pattern).values, 0 * y[..., :1]], axis=-1)
    return xp.reshape(xp.take(entries, residual.backend.constant(places, y), axis=-1), (*y.shape, n))


def _with_entries(
    backend: Backend, pattern: Pattern, transpose: bool, entries: Callable[[], Entries], x: Array
) -> Array:
    return _product(backend, pattern, transpose, entries().values, x)


def _product(backend: Backend, pattern: Pattern, transpose: bool, values: Array, x: Array) -> Array:
    return backend.by_numpy(partial(times, pattern, transpose), x, values[(None,) * (x.ndim - values.ndim) + (...,)], x)


def times(pattern: Pattern, transpose: bool, values: Any, x: Any) -> Any:
    """Return the products, (..., n), of matrices with these values, (..., entries), with vectors."""
    lead = np.broadcast_shapes(values.shape[:-1], x.shape[:-1])
    values, x = np.broadcast_to(values, (*lead, values.shape[-1])), np.broadcast_to(x, (*lead, x.shape[-1]))
    found = np.empty((*lead, pattern.shape[int(transpose)]), dtype=np.result_type(values, x))
    for index in np.ndindex(lead):
        matrix = pattern.matrix(values[index])
        found[index] = (matrix.T if transpose else matrix) @ x[index]
    return found


def _unexplained(
    pattern: Pattern, rough: float, values: Any, vector: Any, product: Any, off: Any = None, errors: Any = None
) -> Any:
    """Return by how much rows of a product, (..., n), differ from those with the matrix; 0 where errors explain it."""
    terms = times(pattern, False, np.abs(values), np.abs(vector)) + np.abs(product)
    allowed = rough * terms
    if off is not None:
        allowed = allowed + _MARGIN * (off + times(pattern, False, errors, np.abs(vector)))
    difference = product - times(pattern, False, values, vector)
    return np.where(np.abs(difference) > allowed, difference, 0)  # NaN is a matter of the residual


def _error(backend: Backend, pattern: Pattern, unexplained: Array, product: Array) -> WrongPatternError:
    off, whole = backend.to_numpy(unexplained), backend.to_numpy(product)
    place = np.unravel_index(int(np.argmax(np.abs(off))), off.shape)
    count = int(np.count_nonzero(np.any(off != 0, axis=tuple(range(off.ndim - 1)))))
    square = pattern.shape[0] == pattern.shape[1]
    detect = ": detect_sparsity(residual, y0, *args) | detect_sparsity(residual, y1, *args)" if square else ""
    return WrongPatternError(
        f"jac_sparsity: the Jacobian has entries outside of it, in {count} of {off.shape[-1]} rows. In row {place[-1]} "
        f"the derivative along a vector is {whole[place]:.6g}, but {whole[place] - off[place]:.6g} by the entries of "
        f"the pattern. Give a pattern that has them; where entries come and go with y, that of several points{detect}."
    )
