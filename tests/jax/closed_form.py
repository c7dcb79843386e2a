"""A residual with a root in closed form, with every derivative of it that matters present.

f(y, theta) = M(theta) d + 0.3 d (P d) + 0.2 d sin(d) with d = y - c(theta): the root is c(theta). There
df/dy is M(theta), nonsymmetric, and neither d2f/dy2 nor d2f/dy dtheta is zero. The oracles are derivatives of `c`, of
all orders in one program.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.harness import THOROUGH

M0 = np.array([[2.0, -0.7, 0.1], [0.4, 1.8, 0.5], [-0.3, 0.2, 2.2]])
M1 = np.array([[0.1, 0.3, 0.0], [-0.2, 0.1, 0.2], [0.0, -0.4, 0.1]])
START = np.array([0.5, 0.9, 0.0])
THETA = np.array([0.7, -0.4])
#: The root is exact to 1e-11 or better (rtol 1.8e-12), derivatives cost a factor of condition and curvature below 100.
EXACT = {"rtol": 1e-9, "atol": 1e-9}

#: Stands for the default solver, whose program is five times that of Newton's method and compiles as much longer.
SOLVER = "auto" if THOROUGH else "newton"
NEWTON, HYBR = "newton", "scipy:hybr"
SOLVERS = (NEWTON, HYBR)
ADJOINTS = ("lu", "gmres")


#: Of the solvers of other libraries, which differ in their own code alone: one on the host, one in JAX, a minimiser.
PEERS = ("scipy:hybr", "optimistix:Dogleg", "optimistix:BFGS")


def of_peers_a_few(names: Iterable[str]) -> list[Any]:
    """Return the names; of the solvers of other libraries all but a few wait for test-all."""
    rare = [pytest.mark.exhaustive]
    return [pytest.param(name, marks=rare if ":" in name and name not in PEERS else []) for name in names]


#: Eagerly one program, for one of each operation; inside another program no call.
inline = partial(jax.jit, inline=True)


@inline
def c(theta: Any) -> Any:
    """Return the root, (*batch, 3), for parameters (*batch, 2)."""
    a, b = theta[..., 0], theta[..., 1]
    return jnp.stack([a**2 * b, jnp.sin(b) + a, a * b**2 + jnp.exp(0.3 * a)], axis=-1)


def f(y: Any, theta: Any) -> Any:
    """Return the residual, (*batch, 3)."""
    d = y - c(theta)
    matrix = M0 + theta[..., :1, None] * M1
    return (matrix @ d[..., None])[..., 0] + 0.3 * d * jnp.roll(d, 1, axis=-1) + 0.2 * d * jnp.sin(d)


@inline
def loss(y: Any) -> Any:
    """Return a scalar with all derivatives."""
    return jnp.sum(jnp.array([1.0, -2.0, 0.5]) * y + jnp.sin(y))


class Derivatives(NamedTuple):
    """The root of one theta, (3,), its first two derivatives, and its loss with the first three of that."""

    y: np.ndarray
    jacobian: np.ndarray
    curvature: np.ndarray
    loss: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray
    third: np.ndarray


@jax.jit
def _derivatives(theta: Any) -> Derivatives:
    def total(theta: Any) -> Any:
        return loss(c(theta))

    hessian = jax.hessian(total)
    of_root, of_total = (c, jax.jacfwd(c), jax.hessian(c)), (total, jax.grad(total), hessian, jax.jacfwd(hessian))
    return Derivatives(*(function(theta) for function in (*of_root, *of_total)))


def exact(theta: Any) -> Derivatives:
    """Return what is exact for parameters (2,), or for several, (count, 2)."""
    if np.ndim(theta) == 2:
        return Derivatives(*map(np.stack, zip(*map(exact, theta), strict=True)))
    return Derivatives(*map(np.asarray, _derivatives(jnp.asarray(theta))))
