"""Whether the rules that a NumPy user gave are the derivatives of the residual: one product along a vector tells."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from rootdiff._backend import Array
from rootdiff._by_products import ByProducts, MissingTransposeError
from rootdiff._errors import ArgumentError
from rootdiff._line import Slope
from rootdiff._sizes import is_dense
from rootdiff._space import waves

if TYPE_CHECKING:
    from rootdiff._derivatives import GivenResidual

#: A product may be off by so many times the estimated error of the difference that it is compared with.
_MARGIN = 100.0
#: Sizes that an unknown may have that is zero, besides one.
_SIZES = 1e-4, 1e-8, 1e-12, 1e-16
#: What was compared, and how its place is called.
_PRODUCT, _ENTRY = ("Along a vector it gives", "in equation"), ("It has the entry", "at index")


def check_rules(residual: GivenResidual, y: Array, where: Array) -> None:
    """Raise if a rule contradicts the residual at `y`, along vectors of no special value.

    Parameters
    ----------
    y : array, (*batch, n). The root, or the end of a solve.
    where : boolean array, (*batch). The systems that count.

    Raises
    ------
    ArgumentError
        If a product differs from a difference of the residual by more than the error of this; the message names the
        rule. Finer differences must tell the same, and those for an unknown of another size, where it is zero.
    """
    contradiction: ArgumentError | None = None
    for backend in _closer(residual.backend, y):
        try:
            return _look(residual, backend, y, where)
        except ArgumentError as error:
            contradiction = contradiction or error
    assert contradiction is not None
    raise contradiction


def _closer(backend: Any, y: Array) -> Iterator[Any]:
    """Yield the backend, one of finer differences and, where a zero of `y` tells no size, some for smaller sizes."""
    yield backend
    fine = backend.refined or backend
    yield fine
    if backend.scale is None and np.any(y == 0):
        yield from (fine.with_scale(np.full_like(y, size)) for size in _SIZES)


def _look(residual: GivenResidual, backend: Any, y: Array, where: Array) -> None:
    """Raise if a rule contradicts the differences that a backend takes."""
    rules, parameters = residual.rules, residual.parameters
    value = residual(y)
    slopes = backend.slopes(residual._of_y, (y,), value, backend.box, backend.scale)
    along_y, along_args = _weights(y, 1, backend.scale), tuple(_weights(p, 2) for p in parameters)
    of_y = slopes.along((along_y,))
    counts = where[..., None]
    by_jac = residual.by_jac(y)
    if by_jac is not None:
        product = by_jac.matvec(along_y)
        _compare("jac", "y", product, of_y, counts)
        doubtful = counts & _differs(product, of_y) & is_dense(y.shape)
        if np.any(doubtful):  # a small entry among large ones is seen by itself, if two differences tell the same of it
            entries = slopes.jacobian()
            known = doubtful & ~_differs(np.matvec(entries.value, along_y), of_y)
            unseen = _rough(y) * _size(product, of_y)[..., None] / np.abs(along_y)[..., None, :]
            _compare("jac", "y", by_jac.dense(), entries._replace(noise=unseen), known[..., None], _ENTRY)
        if isinstance(by_jac, ByProducts) and rules.vjp is None:
            u = _row_weights(y, of_y, counts)
            with suppress(MissingTransposeError):
                _compare("jac", "y", np.sum(by_jac.rmatvec(u) * along_y), _weighed(u, of_y))
    if rules.jvp is not None:
        _compare("jvp", "y", residual.jvp(y, along_y), of_y, counts)
    if rules.vjp is not None:
        u = _row_weights(y, of_y, counts)
        _compare("vjp", "y", np.sum(residual.vjp(y, u) * along_y), _weighed(u, of_y))
    if not parameters or rules.jvp is rules.vjp is None:
        return
    by_args = backend.parameter_slopes(residual.function, y, parameters)
    of_args = by_args.along((np.zeros_like(y), *along_args))
    if rules.jvp is not None:
        _compare("jvp", "args", residual.parameter_jvp(y, along_args), of_args, counts)
    if rules.vjp is not None:
        u = _row_weights(y, of_args, counts)
        products = [np.sum(g * t) for g, t in zip(residual.parameter_vjp(y, u), along_args, strict=True)]
        _compare("vjp", "args", sum(products), _weighed(u, of_args))


def _weights(array: Array, phase: int, unit: Array | None = None) -> Array:
    """Return a vector as large as `array`, in its units, with no special relation between its entries."""
    flat = array.reshape(-1)
    of_zero = np.ones_like(flat) if unit is None else np.broadcast_to(unit, array.shape).reshape(-1)
    size = np.where(flat != 0, np.abs(flat), of_zero)
    return np.astype(size * waves(np, flat, np.asarray(float(phase))), array.dtype).reshape(array.shape)


def _row_weights(y: Array, of: Slope, counts: Array) -> Array:
    """Return a cotangent that weighs each equation in its own units; none where the derivative is not finite.

    Each may add to the allowed error of the sum no more than it would be off by alone: so an equation whose derivative
    is zero up to its error does not hide the others.
    """
    size = np.abs(of.value) + of.error * (_MARGIN / _rough(of.value))
    known = np.isfinite(size) & counts
    return np.where(known, _weights(np.ones_like(y), 3) / np.where(known & (size > 0), size, 1), 0)


def _weighed(u: Array, of: Slope) -> Slope:
    terms = np.where(u == 0, 0, u * of.value)
    return Slope(np.sum(terms), np.sum(np.where(u == 0, 0, np.abs(u) * of.error)), np.sum(np.abs(terms)))


def _differs(given: Array, difference: Slope) -> Array:
    """Return whether a product is off by more than the difference of a smooth function is."""
    off = np.abs(given - difference.value)
    return off > _MARGIN * difference.error + _rough(given) ** 2 * _size(given, difference)


def _size(given: Array, difference: Slope) -> Array:
    return np.maximum(np.maximum(np.abs(given), np.abs(difference.value)), difference.noise)


def _rough(like: Array) -> float:
    """Return the relative difference from a product that counts as none, whatever the estimated error."""
    return float(np.finfo(like.dtype).eps ** (1 / 4))


def _compare(
    rule: str, of: str, given: Array, difference: Slope, counts: Array | bool = True, words: tuple[str, str] = _PRODUCT
) -> None:
    given = np.asarray(given)
    off = np.abs(given - difference.value)
    allowed = _MARGIN * difference.error + _rough(given) * _size(given, difference)
    wrong = counts & np.isfinite(difference.value) & ~(off <= allowed)
    if np.any(wrong):
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        where = f", {words[1]} {place[0] if len(place) == 1 else place}" if place else ""
        raise ArgumentError(
            f"{rule}: it is not the derivative of the residual with respect to {of}. {words[0]} "
            f"{given[place]:.6g}{where}; differences of the residual give {difference.value[place]:.6g}, with an error "
            f"of about {difference.error[place]:.1g}. Check the rule, or leave it out: then differences are taken."
        )
