"""What a test problem is, and the few array helpers that the residuals share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from rootdiff._backend import Array


@dataclass(frozen=True, eq=False)
class Problem:
    """A square system f(y, theta) = 0 from the literature, for any array-API namespace.

    Attributes
    ----------
    name : str
        Unique among all problems; ends in the number of unknowns where the problem has several sizes.
    residual : callable
        ``residual(y, theta)`` takes y, (*batch, n), and theta, (p) or (*batch, p), and returns (*batch, n).
    y0 : sequence of float, (n)
        The standard start; kept as a read-only float64 array.
    theta : sequence of float, (p)
        The constants of the problem, to differentiate the root by; kept as a read-only float64 array.
    source : str
        Author, year and number.
    root : sequence of float, (n), or None
        One root at `theta`, exact or to the digits published, where one is known; there may be others.
    has_root : bool
        Whether there is a real root.
    regular : bool
        Whether the Jacobian is regular at the root that the standard start leads to.
    tries : int
        Starts that the source asks for: y0, 10 y0, 100 y0.

    Examples
    --------
    >>> import rootdiff
    >>> from rootdiff.testing.problems import get_problem
    >>> problem = get_problem("rosenbrock-2")
    >>> rootdiff.root(problem.residual, problem.y0, problem.theta).y
    array([1., 1.])
    """

    name: str
    residual: Callable[[Any, Any], Any] = field(repr=False)
    y0: Any = field(repr=False)
    theta: Any
    source: str
    root: Any = None
    has_root: bool = True
    regular: bool = True
    tries: int = 3

    def __post_init__(self) -> None:
        for name in ("y0", "theta", "root"):
            value = getattr(self, name)
            if value is not None:
                array = np.array(value, dtype=np.float64)
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    @property
    def n(self) -> int:
        """Number of unknowns."""
        return int(self.y0.shape[0])

    def starts(self, tries: int | None = None) -> Array:
        """Return the starts y0, 10 y0, 100 y0, (tries, n); `tries` defaults to those of the source.

        Where y0 is zero, 10 and 100 times the vector of ones stand in, as in MINPACK's driver.
        """
        count = self.tries if tries is None else tries
        base = self.y0 if np.any(self.y0) else np.ones_like(self.y0)
        return np.stack([self.y0, *(base * 10.0**power for power in range(1, count))])


def namespace(y: Array) -> Any:
    """Return the array namespace of `y`."""
    return array_namespace(y)


def like(y: Array, integers: Any) -> Array:
    """Return integers as an array of the dtype and on the device of `y`; exact in any precision."""
    return namespace(y).asarray(np.asarray(integers), dtype=y.dtype, device=device(y))


def count(y: Array, n: int) -> Array:
    """Return 1, 2, ..., n, (n), like `y`."""
    return like(y, np.arange(1, n + 1))


def split(vector: Array) -> list[Array]:
    """Return the entries of vectors, (*batch, k), as k columns, (*batch, 1), which broadcast against vectors."""
    return [vector[..., place : place + 1] for place in range(vector.shape[-1])]


def join(columns: Sequence[Array]) -> Array:
    """Return the vectors, (*batch, k), of these k columns, (*batch, 1)."""
    return namespace(columns[0]).concat(list(columns), axis=-1)


def times(matrix: Array, y: Array) -> Array:
    """Return the product of a matrix, (m, n), with each vector, (*batch, n)."""
    return (matrix @ y[..., None])[..., 0]


def total(y: Array) -> Array:
    """Return the sum of each vector as a column, (*batch, 1)."""
    return namespace(y).sum(y, axis=-1, keepdims=True)


def before(y: Array, first: Any = 0.0) -> Array:
    """Return the left neighbours y[k-1], with `first` for that of the first unknown."""
    return namespace(y).concat([0.0 * y[..., :1] + first, y[..., :-1]], axis=-1)


def after(y: Array, last: Any = 0.0) -> Array:
    """Return the right neighbours y[k+1], with `last` for that of the last unknown."""
    return namespace(y).concat([y[..., 1:], 0.0 * y[..., :1] + last], axis=-1)
