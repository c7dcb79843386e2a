"""What is known of an inverse Jacobian, as values: a loop freezes them like any state, derivatives start from them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from rootdiff._host_factors import solve
from rootdiff._space import per_system, projections

if TYPE_CHECKING:
    from rootdiff._backend import Array, Backend


class Inverse(Protocol):
    """An inverse Jacobian, exact or approximate, maybe that of another point: a pytree of arrays (*batch, ...).

    Zeros stand where a solver stopped before it made one.
    """

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        """Return the inverse, or its transpose, times a vector, (*batch, n); not finite where it holds nothing."""


class Factors(NamedTuple):
    """LU factors, (*batch, n, n), and pivots, (*batch, n), as a backend's `lu_factor` returns them."""

    lu: Array
    pivots: Array

    @classmethod
    def zeros(cls, xp: Any, y: Array) -> Factors:
        """Return what stands for the factors of systems with unknowns `y`, (*batch, n), that are not made yet."""
        return cls(xp.zeros_like(y[..., None] * y[..., None, :]), xp.zeros_like(y, dtype=xp.int32))

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        return backend.lu_solve(self, vector, transpose)


class SparseFactors(NamedTuple):
    """The inverse of sparse matrices, known by their values, (*batch, entries), in the order of a pattern.

    That is `pattern`, an attribute of a type that each pattern has of its own for a `library`: `Pattern.factors`. The
    host keeps the LU factors of the values. Where the matrix is `wrong`, (*batch), since the Jacobian has other entries
    too, its values are NaN.
    """

    values: Array
    wrong: Array

    @classmethod
    def zeros(cls, xp: Any, y: Array) -> SparseFactors:
        """Return what stands for the factors of systems with unknowns `y`, (*batch, n), that are not made yet."""
        count = len(cls.pattern.indices)  # type: ignore[attr-defined]
        start = per_system(xp, y, 0)
        return cls(xp.broadcast_to(start[..., None], (*start.shape, count)), start != 0)

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        values = self.values[(None,) * (vector.ndim - self.values.ndim) + (...,)]
        return backend.by_numpy(partial(solve, self.pattern, self.library, transpose), vector, values, vector)  # type: ignore[attr-defined]

    def __reduce__(self) -> Any:
        return _with_pattern, (self.pattern, self.library, *self)  # type: ignore[attr-defined]


def _with_pattern(pattern: Any, library: str, *parts: Any) -> SparseFactors:
    return pattern.factors(library)(*parts)  # type: ignore[no-any-return]


class Eliminated(NamedTuple):
    """What `Backend.eliminate` has kept: the matrices, (*batch, n, n), first."""

    known: Any

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        return backend.eliminate_again(self.known, vector, transpose)


class Scaling(NamedTuple):
    """A diagonal, (*batch, n), or one number of each system, (*batch, 1)."""

    diagonal: Array

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        return self.diagonal * vector


class Equilibrated(NamedTuple):
    """The inverse of a matrix from that of the matrix with its rows divided by `rows`, (*batch, n), all positive."""

    base: Any
    rows: Array

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        if transpose:
            return self.base.apply(backend, vector, transpose) / self.rows
        return self.base.apply(backend, vector / self.rows)


class Updated(NamedTuple):
    """``base + sum_i left_i right_i^T``: another inverse, and vectors `left` and `right`, (*batch, memory, n)."""

    base: Any
    left: Array
    right: Array

    def apply(self, backend: Backend, vector: Array, transpose: bool = False) -> Array:
        left, right = (self.right, self.left) if transpose else (self.left, self.right)
        weights = projections(backend.xp, right, vector)
        return self.base.apply(backend, vector, transpose) + (weights[..., None, :] @ left)[..., 0, :]


def with_base(inverse: Any, base: Any) -> Any:
    """Return an inverse of the structure of `inverse` that is `base`: its updates are zero, its rows undivided."""
    if isinstance(inverse, Equilibrated):
        return Equilibrated(with_base(inverse.base, base), inverse.rows / inverse.rows)
    if not isinstance(inverse, Updated):
        return base
    return Updated(with_base(inverse.base, base), 0 * inverse.left, 0 * inverse.right)
