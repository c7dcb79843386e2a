"""Rows and unknowns in other units: an accurate derivative is not refused.

Each oracle is a solve of the same system with its units taken out.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import Status
from rootdiff._operator import by_entries
from rootdiff.linear import _contract
from rootdiff.linear._condition import row_sizes
from tests.harness import HARNESSES


def _scaled(rng: np.random.Generator, count: int, n: int, decades: float) -> tuple[np.ndarray, ...]:
    """Return matrices of a condition below 1e3, and the units of their rows and of their unknowns."""
    plain = rng.standard_normal((count, n, n))
    plain = plain[np.linalg.cond(plain) < 1e3]
    rows, unknowns = 10 ** rng.uniform(-decades, decades, (2, *plain.shape[:2]))
    return rows[..., None] * plain * unknowns[:, None], rows, unknowns


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n", "decades"), [(2, 4.0), (8, 15.0), (30, 6.0), (150, 15.0)])
def test_regular_systems_are_not_refused(arrays: Any, n: int, decades: float, transposed: bool) -> None:
    rng = np.random.default_rng(n)
    matrix, rows, unknowns = _scaled(rng, 100, n, decades)
    if transposed:
        rows, unknowns = unknowns, rows
    rhs = np.ones(rows.shape)
    x, info = arrays.solve(matrix, rhs, "lu", transposed)
    assert np.all(arrays.numpy(info.status) <= Status.AT_PRECISION)
    system = np.swapaxes(matrix, -1, -2) if transposed else matrix
    expected = np.linalg.solve(system / rows[..., None] / unknowns[:, None], (rhs / rows)[..., None])[..., 0] / unknowns
    error = np.max(np.abs(x - expected), axis=-1) / np.max(np.abs(expected), axis=-1)
    assert np.max(error) < 1e-11  # a condition of 1e3, with room for the growth of n numbers in each


def _two(y: Any, a: Any, b: Any) -> Any:
    return (a @ y[..., None])[..., 0] - b


def test_a_row_is_as_large_as_its_right_hand_side(arrays: Any) -> None:
    # unknowns 3 and 4 have opposite signs in every pattern: by the products alone the size of row 3 is zero;
    # unknowns 0 and 3 have them in the first pattern
    matrix = np.eye(8)
    matrix[3, 4] = matrix[0, 3] = 1.0
    rhs = matrix @ np.ones(8)
    sizes = row_sizes(arrays.operator(matrix), arrays.array(np.ones(8)), arrays.array(rhs))
    np.testing.assert_array_equal(arrays.numpy(sizes), [4.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(("form", "shape"), [("products", (80,)), ("entries", (8,)), ("several", (3, 8))])
def test_a_row_without_terms_is_as_large_as_its_right_hand_side(arrays: Any, form: str, shape: tuple[int, ...]) -> None:
    operator = arrays.operator(np.eye(shape[-1]))
    operator = operator if form == "products" else by_entries(operator)
    sizes = row_sizes(operator, arrays.array(np.zeros(shape)), arrays.array(np.ones(shape)))
    np.testing.assert_array_equal(arrays.numpy(sizes), np.ones(shape))


def test_a_row_that_is_looked_at_again_is_as_large_as_its_right_hand_side(numpy_arrays: Any) -> None:
    operator, size = numpy_arrays.operator(np.eye(80)), np.ones(80)  # by the products alone every row is zero
    eps = np.finfo(float).eps
    for part, stable in ((1.0, True), (80.0, False)):
        solved = _contract._Solved(0 * size, residual=part * _contract.MARGIN * eps * size)
        assert _contract._stable_by_row(operator, solved, size, 0 * size, np.True_) == stable


@pytest.mark.parametrize("name", ["numpy", "torch", "jax-jit"])
def test_one_entry_that_is_larger(name: str) -> None:
    harness = HARNESSES[name]()
    matrix = np.array([[-0.4, 0.6], [-0.5, -200.0]])
    b, ones = np.array([1.0, 2.0]), np.ones(2)
    options: dict[str, Any] = {"jac": lambda y, a, b: a} if name == "numpy" else {}
    _, gradient = harness.vjp(_two, np.zeros(2), matrix, b, w=ones, solver="newton", **options).derivative
    rtol = 1e-9 if name == "numpy" else 1e-12  # which takes differences in b
    # by Cramer's rule: the determinant is 80.3
    np.testing.assert_allclose(gradient, [(-200 + 0.5) / 80.3, (-0.4 - 0.6) / 80.3], rtol=rtol)
    tangent = harness.jvp(_two, np.zeros(2), matrix, b, v=(0 * matrix, ones), solver="newton", **options).derivative
    np.testing.assert_allclose(tangent, [(-200 - 0.6) / 80.3, (-0.4 + 0.5) / 80.3], rtol=rtol)


@pytest.mark.parametrize("seed", range(3))
def test_stiff_sources(seed: int) -> None:
    """A y + d sinh(y) = b with d from 1 to 1e6."""
    torch = pytest.importorskip("torch")
    rd = pytest.importorskip("rootdiff_torch")
    rng = np.random.default_rng(seed)
    n = 30
    matrix, d, root = rng.standard_normal((n, n)), 10 ** rng.uniform(0, 6, n), rng.uniform(-1, 1, n)
    b = torch.tensor(matrix @ root + d * np.sinh(root), requires_grad=True)
    a, sources = torch.tensor(matrix), torch.tensor(d)
    sol = rd.root(lambda y, b: a @ y + sources * torch.sinh(y) - b, torch.tensor(root), b)
    (gradient,) = torch.autograd.grad(sol.y.sum(), b)
    jacobian = (matrix + np.diag(d * np.cosh(root))) / d[:, None]
    np.testing.assert_allclose(gradient.numpy() * d, np.linalg.solve(jacobian.T, np.ones(n)), rtol=1e-7, atol=1e-9)


def test_many_small_systems_at_once() -> None:
    jax = pytest.importorskip("jax")
    rd = pytest.importorskip("rootdiff_jax")
    jnp = jax.numpy
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((256, 2, 2))
    matrix[np.arange(256), rng.integers(2, size=256), rng.integers(2, size=256)] *= 1e4
    ones = np.ones((256, 2))

    @jax.jit
    def derivatives(a: Any) -> Any:
        def solve(b: Any) -> Any:
            f = lambda y, b: (a @ y[..., None])[..., 0] - b
            return rd.root(f, jnp.zeros_like(b), b, batch_ndim=1, solver="newton").y

        _, push = jax.linearize(solve, jnp.asarray(ones))
        return jax.linear_transpose(push, jnp.asarray(ones))(jnp.asarray(ones))[0], push(jnp.asarray(ones))

    gradient, tangent = derivatives(jnp.asarray(matrix))
    np.testing.assert_allclose(gradient, np.linalg.solve(np.swapaxes(matrix, -1, -2), ones[..., None])[..., 0], 1e-9)
    np.testing.assert_allclose(tangent, np.linalg.solve(matrix, ones[..., None])[..., 0], 1e-9)


def test_singular_to_the_accuracy_of_differences_is_said() -> None:
    # a condition of 4e12: differences leave no digit, exact derivatives three
    matrix = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-12]])
    f = lambda y, b: matrix @ y - b
    sol = rootdiff.root(f, np.zeros(2), matrix @ np.ones(2))
    with pytest.raises(
        rootdiff.AdjointError, match=r"singular to the accuracy of differences[^.]*\.\s*To do: give jac"
    ):
        sol.vjp(np.ones(2))
    rules: dict[str, Any] = {"jac": lambda y, b: matrix, "vjp": lambda primals, w: (matrix.T @ w, -w)}
    (gradient,) = rootdiff.root(f, np.zeros(2), matrix @ np.ones(2), **rules).vjp(np.array([1.0, 2.0]))
    # by Cramer's rule, with the rounded entry
    np.testing.assert_allclose(gradient[1], 1 / (matrix[1, 1] - 1), rtol=1e-3)
