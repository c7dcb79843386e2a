"""Adjoint solves of fixed points: the plain iteration where the cell contracts, a Krylov space or LU where not."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from rootdiff import BiCGStab
from rootdiff._implicit import solve
from rootdiff._operator import OfFixedPoint
from rootdiff._solution import Status
from rootdiff.linear import GMRES, AutoLinear

N = 80
EPS = np.finfo(np.float64).eps


def cells(radii):
    """Return Jacobians G, one per spectral norm, nonsymmetric."""
    g = np.random.default_rng(0).standard_normal((len(radii), N, N))
    return np.array(radii)[:, None, None] * g / np.linalg.norm(g, 2, axis=(-2, -1), keepdims=True)


def counted(arrays, matrix):
    """Return the operator and a list with an entry per product."""
    operator = arrays.operator(matrix)
    products = []

    def matvec(v):
        if arrays.backend.name == "jax":
            jax.debug.callback(lambda: products.append(None))  # as often as the program runs it
        else:
            products.append(v)
        return operator.matvec(v)

    return OfFixedPoint(**{**vars(operator), "matvec": matvec}), products


@pytest.mark.parametrize(
    ("adjoint", "largest"), [(AutoLinear(), 3.0), (GMRES(), 3.0), (BiCGStab(), 1.2)], ids=["auto", "gmres", "bicgstab"]
)
def test_systems_that_contract_and_systems_that_do_not(arrays, adjoint, largest):
    matrix = cells([0.1, 0.5, largest, 0.0]) - np.eye(N)
    x = np.random.default_rng(1).standard_normal((4, N))
    operator, _ = counted(arrays, matrix)
    run = arrays.compiled(lambda b: solve(operator, adjoint, b, "raise"))
    found, info = run(arrays.array((matrix @ x[..., None])[..., 0]))
    condition = np.linalg.cond(matrix)
    error = np.linalg.norm(arrays.numpy(found) - x, axis=-1) / np.linalg.norm(x, axis=-1)
    assert (error <= 20 * EPS * condition).all()
    assert (arrays.numpy(info.status) <= Status.AT_PRECISION).all()


def test_a_contraction_costs_a_product_a_step(arrays):
    """The Neumann series of a cell of norm 0.1 reaches 10 eps after 15 terms; the check costs nothing more."""
    matrix = cells([0.1, 0.05]) - np.eye(N)
    operator, products = counted(arrays, matrix)
    arrays.compiled(lambda b: solve(operator, AutoLinear(), b, "raise"))(arrays.array(np.ones((2, N))))
    jax.effects_barrier()
    assert 0 < len(products) <= 15


def test_a_guess_saves_products(arrays):
    matrix = cells([0.1, 0.05]) - np.eye(N)
    b = np.random.default_rng(2).standard_normal((2, N))
    exact = np.linalg.solve(matrix, b[..., None])[..., 0]
    counts = []
    for guess in (None, 1e6 * exact, exact * (1 + 1e-9)):
        operator, products = counted(arrays, matrix)
        adjoint = GMRES().starting_from(None, None if guess is None else arrays.array(guess))
        run = arrays.compiled(lambda b, operator=operator, adjoint=adjoint: solve(operator, adjoint, b, "raise"))
        found, _ = run(arrays.array(b))
        np.testing.assert_allclose(arrays.numpy(found), exact, rtol=1e-12)
        counts.append(len(products))
    if arrays.backend.name != "jax":
        assert counts[1] == counts[0] + 1  # a bad guess is found out by one product
        assert counts[2] <= 0.6 * counts[0]


def test_a_singular_matrix_is_not_passed_off(arrays):
    matrix = cells([0.3, 0.3]) - np.eye(N)
    matrix[1, 0] = matrix[1, 1]
    operator, _ = counted(arrays, matrix)
    rhs = arrays.array(np.random.default_rng(3).standard_normal((2, N)))
    _, info = arrays.compiled(lambda b: solve(operator, AutoLinear(), b, "nan"))(rhs)
    statuses = arrays.numpy(info.status)
    assert statuses[0] <= Status.AT_PRECISION
    assert statuses[1] == Status.SINGULAR
