"""Boundary value problems of the sciences, discretised, with numbers published or exact for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff.testing.problems._problem import Problem, after, before, count, like, namespace, split, times, total


def bratu(y: Array, theta: Array) -> Array:
    """Return -laplace(u) - lambda exp(a u) on the unit square, zero around it, by five points times mesh squared."""
    xp = namespace(y)
    parameter, a = split(theta)
    size = round(y.shape[-1] ** 0.5)
    row, column = np.divmod(np.arange(size * size), size)
    distance = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    laplacian = like(y, 4 * (distance == 0) - 1 * (distance == 1))
    return times(laplacian, y) - parameter * xp.exp(a * y) / (size + 1) ** 2


def bratu_fold(y: Array, theta: Array) -> Array:
    """Return the turning point of Bratu's problem: unknowns u, a null vector v of the Jacobian, and lambda.

    Chebyshev collocation in the functions even in both coordinates. At the fold lambda = 6.808124423 / a.
    """
    xp = namespace(y)
    (a,) = split(theta)
    size = round(((y.shape[-1] - 1) / 2) ** 0.5)
    second = like(y, _even_second_derivative(size))
    u, v, parameter = y[..., : size * size], y[..., size * size : -1], y[..., -1:]

    def laplace(field: Array) -> Array:
        grid = xp.reshape(field, (*field.shape[:-1], size, size))
        # the square has sides of length 2 in the coordinates of Chebyshev: a factor 4
        return 4 * xp.reshape(second @ grid + grid @ second.T, field.shape)

    growth = parameter * xp.exp(a * u)
    return xp.concat([laplace(u) + growth, laplace(v) + a * growth * v, total(v) - size * size], axis=-1)


def poisson_boltzmann(y: Array, theta: Array) -> Array:
    """Return psi'' - k^2 sinh(psi) on [0, 8] by central differences; psi at the wall given, and far away exact.

    Gouy and Chapman: tanh(psi / 4) = tanh(psi0 / 4) exp(-k x).
    """
    xp = namespace(y)
    wall, k = split(theta)
    n = y.shape[-1]
    h = 8.0 / (n + 1)
    far = 4 * xp.atanh(xp.tanh(wall / 4) * xp.exp(-8.0 * k))
    return before(y, wall) - 2 * y + after(y, far) - h * h * k * k * xp.sinh(y)


def burgers(y: Array, theta: Array) -> Array:
    """Return (u^2)' / 2 - nu u'' on [-1, 1] by central differences, times the mesh, with u = a at -1 and -a at 1.

    Its root is -c tanh(c x / (2 nu)) with c tanh(c / (2 nu)) = a, up to the square of the mesh.
    """
    viscosity, a = split(theta)
    h = 2.0 / (y.shape[-1] + 1)
    left, right = before(y, a), after(y, -a)
    return (right * right - left * left) / 4 - viscosity * (left - 2 * y + right) / h


def brusselator(y: Array, theta: Array) -> Array:
    """Return the steady Brusselator with a feed, u then v, without flux through the ends of [0, 1].

    b + feed + u^2 v - (a + 1) u + d u'' and a u - u^2 v + d v''. Added and averaged: mean(u) = b + mean(feed).
    """
    xp = namespace(y)
    a, b, d, feed = split(theta)
    n = y.shape[-1] // 2
    u, v = y[..., :n], y[..., n:]

    def diffusion(field: Array) -> Array:
        left = xp.concat([field[..., :1], field[..., :-1]], axis=-1)
        right = xp.concat([field[..., 1:], field[..., -1:]], axis=-1)
        return d * n * n * (left - 2 * field + right)

    x = (count(y, n) - 0.5) / n
    reaction = u * u * v
    first = b + feed * x * (1 - x) + reaction - (a + 1) * u + diffusion(u)
    return xp.concat([first, a * u - reaction + diffusion(v)], axis=-1)


def field_problems() -> list[Problem]:
    """Return the discretised applications, from the starts that a user would take."""

    def entry(name: str, residual: Any, y0: Any, theta: Any, source: str, **facts: Any) -> Problem:
        return Problem(name, residual, y0, theta, source, tries=1, **facts)

    size = 9
    bump = _bump(size)
    fold_start = np.concat([bump, bump / np.mean(bump), [6.0]])
    grid = np.linspace(-1, 1, 81)[1:-1]
    state = np.concat([np.full(16, 1.0), np.full(16, 3.4)])
    return [
        entry("bratu-15", bratu, np.zeros(225), (6.0, 1.0), "Bratu (1914); Doedel & Sun (2000)"),
        entry("bratu-fold", bratu_fold, fold_start, (1.0,), "Mohsen (2014): fold at 6.808124423"),
        entry("poisson-boltzmann", poisson_boltzmann, np.zeros(79), (4.0, 1.0), "Gouy (1910), Chapman (1913)"),
        entry("burgers", burgers, -grid, (0.05, 1.0), "Burgers (1948); steady, viscosity 0.05"),
        entry("brusselator", brusselator, state, (3.4, 1.0, 0.02, 0.6), "Prigogine & Lefever (1968)"),
    ]


@cache
def _even_second_derivative(size: int) -> Any:
    """Return the second derivative, on the `size` positive Chebyshev points, of even functions that vanish at 1.

    Trefethen (2000), "Spectral Methods in MATLAB", chapter 6, for the differentiation matrix.
    """
    order = 2 * size + 1
    x = np.cos(np.pi * np.arange(order + 1) / order)
    scale = np.where((np.arange(order + 1) == 0) | (np.arange(order + 1) == order), 2.0, 1.0)
    scale = scale * (-1.0) ** np.arange(order + 1)
    gap = x[:, None] - x[None, :] + np.eye(order + 1)
    matrix = scale[:, None] / scale[None, :] / gap
    matrix = matrix - np.diag(matrix.sum(axis=1))
    square = (matrix @ matrix)[1 : size + 1]
    return square[:, 1 : size + 1] + square[:, order - 1 : size : -1]  # u(-x) = u(x)


def _bump(size: int) -> Any:
    """Return a first guess of u at the fold, highest 1.39 in the middle, on the positive Chebyshev points."""
    x = np.cos(np.pi * np.arange(1, size + 1) / (2 * size + 1))
    return 1.4 * np.outer(1 - x * x, 1 - x * x).ravel()
