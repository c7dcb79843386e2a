"""A Jacobian that a NumPy user gives as a `scipy.sparse.linalg.LinearOperator`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator as Products

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator
from rootdiff._sizes import is_dense


class MissingTransposeError(ArgumentError):
    """Products with the transpose are needed, but not given."""


@dataclass(frozen=True)
class ByProducts(LinearOperator):
    """A matrix of which the user gives the products; those with its transpose may be missing."""

    @classmethod
    def of(cls, backend: Any, given: Products, y: Array) -> ByProducts:
        """Return what SciPy's operator tells of df/dy at `y`, (n,)."""
        n = y.shape[-1]

        def matvec(v: Array) -> Array:
            return np.astype(np.apply_along_axis(given.matvec, -1, v), y.dtype)

        def rmatvec(u: Array) -> Array:
            try:
                return np.astype(np.apply_along_axis(given.rmatvec, -1, u), y.dtype)
            except NotImplementedError as error:
                if is_dense(y.shape):
                    return u @ dense()
                raise MissingTransposeError(
                    f"jac: the LinearOperator that it returned has no rmatvec, the product with the transpose, which a "
                    f"vjp of {n} unknowns needs. Give it rmatvec, or give vjp; or take sol.jvp or sol.jacobian."
                ) from error

        dense = cache(lambda: np.matrix_transpose(matvec(np.eye(n, dtype=y.dtype))))
        return cls(backend, matvec, rmatvec, dense, float(np.finfo(y.dtype).eps), (n, n))


def of_parts(given: Products) -> Products:
    """Return a complex operator as one of real and imaginary parts, one after the other."""

    def of(product: Callable[[Array], Array], v: Array) -> Array:
        found = product(v[: len(v) // 2] + 1j * v[len(v) // 2 :])
        return np.concat([np.real(found), np.imag(found)])

    shape = tuple(2 * size for size in given.shape)
    return Products(shape, dtype=float, matvec=partial(of, given.matvec), rmatvec=partial(of, given.rmatvec))
