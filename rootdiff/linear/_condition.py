"""Condition estimates from products and solves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rootdiff._backend import Array, Backend
from rootdiff._inverse import Eliminated, Inverse
from rootdiff._operator import Dense, LinearOperator
from rootdiff._sizes import has_few_unknowns
from rootdiff._space import max_norm, norm2, numbers, per_system, signs, waves

#: The estimate is exact or nearly so after two or three rounds (Higham 2002, section 15.3); LAPACK stops after five.
_MAX_ROUNDS = 5
#: Changes of sign by which rows are looked at again.
FLIPS = 3

Product = Callable[[Array], Array]


def one_norm(backend: Backend, product: Product, transposed: Product, like: Array) -> Array:
    """Return an estimate from below, (*batch), of the 1-norm of a matrix known by products with it and its transpose.

    References
    ----------
    Hager (1984), "Condition estimates". Higham (1988), "FORTRAN codes for estimating the one-norm", algorithm 4.1.
    """
    xp, n = backend.xp, like.shape[-1]
    index = xp.zeros_like(like) + (numbers(xp, like) - 1)

    def body(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        x, estimate, active, count = state
        y = product(x)
        size = xp.sum(xp.abs(y), axis=-1)
        z = transposed(xp.where(y >= 0, xp.ones_like(y), -xp.ones_like(y)))
        place = xp.astype(xp.argmax(xp.abs(z), axis=-1), z.dtype)
        improved = (size > estimate) & (max_norm(xp, z) > xp.sum(z * x, axis=-1))
        column = xp.astype(index == place[..., None], z.dtype)
        larger = xp.where(active & ~(size <= estimate), size, estimate)
        return column, larger, active & improved & (count < _MAX_ROUNDS), count + 1

    zero = per_system(xp, like, 0)
    start = (xp.ones_like(like) / n, zero, zero == 0, xp.zeros_like(zero, dtype=xp.int32))
    estimate = backend.while_loop(lambda state: xp.any(state[2]), body, start)[1]
    # Higham's alternative, for matrices that hide from the iteration by cancellation
    parity = 1 - 2 * (index % 2)
    other = xp.sum(xp.abs(product(parity * (1 + index / max(n - 1, 1)))), axis=-1) * (2 / (3 * n))
    return xp.where(xp.isfinite(estimate), xp.maximum(estimate, other), xp.full_like(estimate, xp.inf))


def row_sizes(operator: LinearOperator, x: Array, rhs: Array) -> Array:
    """Return the size of the terms of each row of ``A x - b``, (*batch, n): their root sum of squares, plus abs(b).

    So large are sums of the terms with random signs: the typical effect of roundings. Where the entries of A are not
    at hand it is estimated from products of A with x under changes of sign. Among few unknowns a pattern may change no
    sign that matters: there three more are taken.
    """
    xp = operator.backend.xp
    if isinstance(operator.original, Dense):
        matrix = operator.dense()
        if operator.several(x):
            return _sizes_of_several(xp, matrix, x) + xp.abs(rhs)
        return norm2(xp, matrix * x[..., None, :]) + xp.abs(rhs)
    largest = xp.abs(operator.matvec(signs(xp, x, 4) * x)) + xp.abs(rhs)
    if x.shape[-1] == 1 or not has_few_unknowns(x.shape):
        return largest
    for count in range(FLIPS):
        largest = xp.maximum(largest, xp.abs(operator.matvec(flipped(xp, x, count))) + xp.abs(rhs))
    return largest


def flipped(xp: Any, x: Array, count: Array | int) -> Array:
    """Return `x`, (*batch, n), under the change of sign of this number, below `FLIPS`.

    Under a single one the terms of one row of many may cancel by chance. These tell any two of eight neighbours apart.
    """
    return (1 - 2 * (xp.floor((numbers(xp, x) - 1) / 2**count) % 2)) * x


def _sizes_of_several(xp: Any, matrix: Array, x: Array) -> Array:
    """Return the root sums of squares of ``A_ij x_j`` for several x of each matrix, in the memory of these x."""
    a, sizes = xp.abs(matrix), xp.abs(x)
    row, largest = xp.max(a, axis=-1), max_norm(xp, x)[..., None]
    row, largest = (xp.where((part > 0) & xp.isfinite(part), part, xp.ones_like(part)) for part in (row, largest))
    squares = ((a / row[..., None]) ** 2 @ ((sizes / largest) ** 2)[..., None])[..., 0]
    # where the squares are too small for the dtype, the sum of absolute values bounds them from below
    return xp.maximum(xp.sqrt(squares) * row * largest, (a @ sizes[..., None])[..., 0] / x.shape[-1] ** 0.5)


def skeel_condition(
    operator: LinearOperator,
    inverse: Inverse,
    x: Array,
    sizes: Array,
    screen: float,
    suspicious: Array | None = None,
) -> Array:
    """Return ``max(abs(A^-1) sizes) / max(abs(x))``, (*batch), the condition of x against changes of each entry of A.

    The `inverse` is that of the matrix that is not transposed. With ``sizes = abs(A) abs(x)`` the condition does not
    depend on the scaling of rows, so that units do not look like singularity. One solve bounds it from
    below; only where that exceeds `screen`, or in `suspicious` systems, (*batch), it is estimated properly. For one
    unknown that solve tells it.

    References
    ----------
    Skeel (1979). Arioli, Demmel & Duff (1989), section 2, for the reduction to a 1-norm. Higham (2002), section 7.2.
    """
    backend, xp = operator.backend, operator.backend.xp
    size = max_norm(xp, x)
    safe = xp.where(size > 0, size, xp.ones_like(size))
    solve = operator.inverted_by(inverse)
    if x.shape[-1] == 1:
        return max_norm(xp, solve(sizes)) / safe
    weights = sizes / safe[..., None]
    for _ in range(operator.several(x)):  # one probe for all right-hand sides of a matrix
        weights = xp.max(weights, axis=0)
    probe = waves(xp, weights, per_system(xp, weights, 5)) * weights
    bound = max_norm(xp, solve(probe)) + xp.zeros_like(size)
    unclear = ~(bound <= screen) if suspicious is None else suspicious | ~(bound <= screen)

    def estimate(x: Array, sizes: Array) -> Array:
        known, original = inverse, operator.original
        if isinstance(inverse, Eliminated):  # LU factors, where it would eliminate anew for each vector
            known = backend.lu_factor(original.remade() if isinstance(original, Dense) else original.dense())
        solve, solve_transposed = operator.inverted_by(known), operator.T.inverted_by(known)
        # max(|A^-1| g) is the 1-norm of diag(g) A^-T
        norm = one_norm(backend, lambda v: sizes * solve_transposed(v), lambda v: solve(sizes * v), x)
        return xp.where(unclear, norm / safe, bound)

    return backend.when(xp.any(unclear), estimate, (x, sizes), bound)
