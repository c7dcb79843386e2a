"""The square systems of Moré, Garbow & Hillstrom (1981) at the sizes of MINPACK's test driver.

Equations are ordered as in that driver. The constants of each problem are its parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff.testing.problems._problem import Problem, after, before, count, join, like, namespace, split, times, total


def rosenbrock(y: Array, theta: Array) -> Array:
    """Return a - y1, b (y2 - y1^2 - c), and so on in pairs."""
    a, b, c = split(theta)
    odd, even = y[..., 0::2], y[..., 1::2]
    return _interleave([a - odd, b * (even - odd * odd - c)])


def powell_singular(y: Array, theta: Array) -> Array:
    """Return Powell's singular function, in blocks of four; its Jacobian has rank 2 at the root 0."""
    xp = namespace(y)
    a, b, c, d = split(theta)
    y1, y2, y3, y4 = (y[..., place::4] for place in range(4))
    return _interleave([y1 + a * y2, xp.sqrt(b) * (y3 - y4), (y2 - c * y3) ** 2, xp.sqrt(d) * (y1 - y4) ** 2])


def powell_badly_scaled(y: Array, theta: Array) -> Array:
    """Return a y1 y2 - b and exp(-y1) + exp(-y2) - c."""
    xp = namespace(y)
    a, b, c = split(theta)
    y1, y2 = split(y)
    return join([a * y1 * y2 - b, xp.exp(-y1) + xp.exp(-y2) - c])


def wood(y: Array, theta: Array) -> Array:
    """Return the gradient of Wood's function, as scaled in the driver."""
    a, b, c, d, e = split(theta)
    y1, y2, y3, y4 = split(y)
    left, right = y2 - y1 * y1, y4 - y3 * y3
    return join(
        [
            -a * y1 * left - (e - y1),
            a * left + b * (y2 - e) + c * (y4 - e),
            -d * y3 * right - (e - y3),
            d * right + b * (y4 - e) + c * (y2 - e),
        ]
    )


def helical_valley(y: Array, theta: Array) -> Array:
    """Return the helix through (r cos(2 pi s / b), r sin(2 pi s / b), s), which is the root."""
    xp = namespace(y)
    a, b, r, s = split(theta)
    y1, y2, y3 = split(y)
    eighth = xp.atan2(0 * y1 + 1, 0 * y1 + 1)  # of a turn, in the precision of y
    turns = 0.25 + xp.atan2(-y1, y2) / (8 * eighth)  # the driver's branch: from -1/4 to 3/4
    return join([a * (y3 - b * turns), a * (xp.sqrt(y1 * y1 + y2 * y2) - r), y3 - s])


def watson(y: Array, theta: Array) -> Array:
    """Return the gradient (halved) of Watson's sum of 31 squares."""
    a, b, c = split(theta)
    values, slopes = _watson_basis(y, 0)
    fitted = times(values, y)
    misfit = times(slopes, y) - fitted * fitted - a
    last = y[..., 1:2] - y[..., :1] ** 2 - b
    gradient = times(slopes.T, misfit) - 2 * times(values.T, misfit * fitted)
    return gradient + join([y[..., :1] * (c - 2 * last), last, 0.0 * y[..., 2:]])


def chebyquad(y: Array, theta: Array) -> Array:
    """Return the errors of the quadrature with nodes y and equal weights, for the Chebyshev polynomials of a y - b."""
    a, b, c = split(theta)
    n = y.shape[-1]
    previous, current = 0 * y + 1, a * y - b
    twice = 2 * current
    rows = []
    for degree in range(1, n + 1):
        moment = c / (degree * degree - 1) if degree % 2 == 0 else 0.0
        rows.append(total(current) / n + moment)
        previous, current = current, twice * current - previous
    return join(rows)


def brown_almost_linear(y: Array, theta: Array) -> Array:
    """Return y_k + c sum(y) - a, and prod(y) - b for the last."""
    xp = namespace(y)
    a, b, c = split(theta)
    return xp.concat([y[..., :-1] + c * total(y) - a, xp.prod(y, axis=-1, keepdims=True) - b], axis=-1)


def discrete_boundary_value(y: Array, theta: Array) -> Array:
    """Return central differences for u'' = a (u + t + b)^3 with u(0) = c, u(1) = d."""
    a, b, c, d = split(theta)
    n = y.shape[-1]
    t = count(y, n) / (n + 1)
    return 2 * y - before(y, c) - after(y, d) + a * (y + t + b) ** 3 / (n + 1) ** 2


def discrete_integral(y: Array, theta: Array) -> Array:
    """Return the trapezoidal rule for the integral equation, with Green's function, of the same problem."""
    return _integral_equation(y, theta, repeated=0)


def trigonometric(y: Array, theta: Array) -> Array:
    """Return a - sum(cos(y)) + k (b - cos(y_k)) - c sin(y_k)."""
    xp = namespace(y)
    a, b, c = split(theta)
    cosine = xp.cos(y)
    return a - total(cosine) + count(y, y.shape[-1]) * (b - cosine) - c * xp.sin(y)


def variably_dimensioned(y: Array, theta: Array) -> Array:
    """Return y_k - a + k s (b + c s^2) with s = sum of j (y_j - d)."""
    a, b, c, d = split(theta)
    k = count(y, y.shape[-1])
    s = total(k * (y - d))
    return y - a + k * (s * (b + c * s * s))


def broyden_tridiagonal(y: Array, theta: Array) -> Array:
    """Return (a - b y_k) y_k - c y_(k-1) - d y_(k+1) + e."""
    a, b, c, d, e = split(theta)
    return (a - b * y) * y - c * before(y) - d * after(y) + e


def broyden_banded(y: Array, theta: Array) -> Array:
    """Return y_k (a + b y_k^2) + c - sum of y_j (d + y_j) over the five before and the one after."""
    a, b, c, d = split(theta)
    row, column = np.indices((y.shape[-1],) * 2)
    band = like(y, (column >= row - 5) & (column <= row + 1) & (column != row))
    return y * (a + b * y * y) + c - times(band, y * (d + y))


def _integral_equation(y: Array, theta: Array, repeated: int) -> Array:
    """Return the integral equation; the diagonal of its kernel counts `repeated` times more."""
    a, b = split(theta)
    n = y.shape[-1]
    row, column = np.indices((n, n)) + 1
    kernel = np.minimum(row, column) * (n + 1 - np.maximum(row, column)) * (1 + repeated * (row == column))
    t = count(y, n) / (n + 1)
    return y + times(like(y, kernel), a * (y + t + b) ** 3) / (n + 1) ** 3


def _watson_basis(y: Array, shift: int) -> tuple[Array, Array]:
    """Return the powers t_i^(j-1) and their slopes (j - 1 + shift) t_i^(j-2), both (29, n)."""
    xp = namespace(y)
    t = count(y, 29) / 29
    powers = [t * 0 + 1]
    for _ in range(1, y.shape[-1]):
        powers.append(powers[-1] * t)
    slopes = [(j + shift) * power / t for j, power in enumerate(powers)]
    return xp.stack(powers, axis=-1), xp.stack(slopes, axis=-1)


def _interleave(parts: Sequence[Array]) -> Array:
    """Return vectors whose entries come from each of the parts, (*batch, k), in turn."""
    xp = namespace(parts[0])
    stacked = xp.stack(parts, axis=-1)
    return xp.reshape(stacked, (*stacked.shape[:-2], -1))


def _minpack(residual: Any, n: int, y0: Any, theta: Any, number: int, **facts: Any) -> Problem:
    name = f"{residual.__name__.replace('_', '-')}-{n}"
    return Problem(name, residual, y0, theta, f"Moré, Garbow & Hillstrom (1981), problem {number}", **facts)


def _nodes(n: int) -> Any:
    return np.arange(1, n + 1) / (n + 1)


def minpack_problems() -> list[Problem]:
    """Return the 22 problems of MINPACK's driver, then the extended Rosenbrock and Powell functions."""
    singular = {"regular": False}
    powell = (10.0, 5.0, 2.0, 10.0)
    return [
        _minpack(rosenbrock, 2, (-1.2, 1.0), (1.0, 10.0, 0.0), 1, root=np.ones(2)),
        _minpack(powell_singular, 4, (3.0, -1.0, 0.0, 1.0), powell, 13, root=np.zeros(4), **singular),
        _minpack(powell_badly_scaled, 2, (0.0, 1.0), (1e4, 1.0, 1.0001), 3, root=(1.098159e-5, 9.106146), tries=2),
        _minpack(wood, 4, (-3.0, -1.0, -3.0, -1.0), (200.0, 20.2, 19.8, 180.0, 1.0), 14, root=np.ones(4)),
        _minpack(helical_valley, 3, (-1.0, 0.0, 0.0), (10.0, 10.0, 1.0, 0.0), 7, root=(1.0, 0.0, 0.0)),
        *(_minpack(watson, n, np.zeros(n), (1.0, 1.0, 1.0), 20, tries=2) for n in (6, 9)),
        *(
            _minpack(chebyquad, n, _nodes(n), (2.0, 1.0, 1.0), 35, tries=3 if n < 8 else 1, has_root=n != 8)
            for n in (5, 6, 7, 8, 9)
        ),
        *(
            _minpack(brown_almost_linear, n, np.full(n, 0.5), (n + 1.0, 1.0, 1.0), 27, root=np.ones(n), tries=tries)
            for n, tries in ((10, 3), (30, 1), (40, 1))
        ),
        _minpack(discrete_boundary_value, 10, _nodes(10) * (_nodes(10) - 1), (0.5, 1.0, 0.0, 0.0), 28),
        *(_minpack(discrete_integral, n, _nodes(n) * (_nodes(n) - 1), (0.5, 1.0), 29) for n in (1, 10)),
        _minpack(trigonometric, 10, np.full(10, 0.1), (10.0, 1.0, 1.0), 26, root=np.zeros(10)),
        _minpack(variably_dimensioned, 10, 1 - np.arange(1, 11) / 10, (1.0, 1.0, 2.0, 1.0), 25, root=np.ones(10)),
        _minpack(broyden_tridiagonal, 10, -np.ones(10), (3.0, 2.0, 1.0, 2.0, 1.0), 30),
        _minpack(broyden_banded, 10, -np.ones(10), (2.0, 5.0, 1.0, 1.0), 31),
        _minpack(rosenbrock, 20, np.tile((-1.2, 1.0), 10), (1.0, 10.0, 0.0), 21, root=np.ones(20), tries=1),
        _minpack(
            powell_singular, 20, np.tile((3.0, -1.0, 0.0, 1.0), 5), powell, 22, root=np.zeros(20), tries=1, **singular
        ),
    ]
