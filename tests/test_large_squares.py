"""`least_squares` of many unknowns: by products with the Jacobian, and by its pattern."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from array_api_compat import array_namespace
from scipy.sparse.linalg import spsolve

import rootdiff
from rootdiff import ArgumentError, ConvergenceError, Status
from tests.harness import HARNESSES

SMALL, LARGE = 60, 1100


def residual(y: Any, a: Any) -> Any:
    """A cubic law at each node, a spring to the next one, and one equation that reads all of them."""
    xp = array_namespace(y)
    return xp.concat([y**3 / 3 + y - a, (y[1:] - y[:-1]) / 2, xp.reshape(xp.mean(y), (1,))])


def pattern(n: int) -> Any:
    springs = sp.diags_array([np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    return sp.vstack([sp.eye_array(n), springs, sp.csr_array(np.ones((1, n)))])


def loads(n: int) -> np.ndarray:
    return 2 * np.cos(np.arange(n) ** 2)


def by_hand(a: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum, by Newton's method with the Hessian written out, and w^T dy/da."""
    n, y = len(a), np.zeros(len(a))
    difference = sp.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    rest = difference.T @ difference / 4 + sp.csr_array(np.full((n, n), 1 / n**2))
    for _ in range(50):
        law, slope = y**3 / 3 + y - a, y**2 + 1
        hessian = (sp.diags_array(slope**2 + 2 * y * law) + rest).tocsc()
        y = y - spsolve(hessian, slope * law + rest @ y)
    return y, (y**2 + 1) * spsolve(hessian, w)


@pytest.mark.parametrize(
    ("backend", "sparse"),
    [("torch", True), ("torch", False), *(pytest.param("jax", s, marks=pytest.mark.exhaustive) for s in (True, False))],
)
def test_minimum_and_derivative_at_a_residual_that_is_not_zero(backend: str, sparse: bool) -> None:
    n = SMALL if sparse else LARGE
    a, w = loads(n), np.sin(np.arange(n))
    options = {"jac_sparsity": pattern(n)} if sparse else {"adjoint": "cg"}
    found = HARNESSES[backend]().vjp(residual, np.ones(n), a, w=w, entry="least_squares", **options)
    y, slope = by_hand(a, w)
    assert found.status <= Status.AT_PRECISION
    np.testing.assert_allclose(found.y, y, atol=1e-12)
    np.testing.assert_allclose(found.derivative[0], slope, atol=1e-11)


def test_batches_and_robust_losses_of_a_pattern_are_those_of_the_whole_matrix() -> None:
    import torch

    import rootdiff_torch

    a = torch.tensor(np.stack([loads(SMALL), 3 - loads(SMALL)]), requires_grad=True)

    def of_batch(y: Any, a: Any) -> Any:
        return torch.cat([y**3 / 3 + y - a, (y[:, 1:] - y[:, :-1]) / 2, y.mean(-1, keepdim=True)], dim=-1)

    def solved(**options: Any) -> Any:
        start = torch.ones_like(a).detach()
        y = rootdiff_torch.least_squares(of_batch, start, a, loss="soft_l1", batch_ndim=1, **options).y
        return y.detach().numpy(), torch.autograd.grad((y**2).sum(), a)[0].numpy()

    for sparse, whole in zip(solved(jac_sparsity=pattern(SMALL)), solved(), strict=True):
        np.testing.assert_allclose(sparse, whole, atol=1e-9)


@pytest.mark.parametrize("sparse", [True, False])
def test_bounds_hold_unknowns_of_which_the_others_know(sparse: bool) -> None:
    """The minimum, and the derivative in loads and bounds: by Newton's method for those between the bounds."""
    import torch

    import rootdiff_torch

    n = SMALL if sparse else LARGE
    a, lo = (torch.tensor(x, requires_grad=True) for x in (loads(n), np.full(n, -0.3)))
    options = {"jac_sparsity": pattern(n)} if sparse else {"adjoint": "gmres"}
    sol = rootdiff_torch.least_squares(
        lambda y, a, lo: residual(y, a), torch.ones_like(a), a, lo, bounds=lambda a, lo: (lo, 0.5), **options
    )
    w, y = np.sin(np.arange(n)), np.clip(sol.y.detach().numpy(), -0.3, 0.5)
    found = torch.autograd.grad((sol.y * torch.tensor(w)).sum(), (a, lo))
    difference = sp.diags_array([-np.ones(n - 1), np.ones(n - 1)], offsets=[0, 1], shape=(n - 1, n))
    rest, load = difference.T @ difference / 4 + sp.csr_array(np.full((n, n), 1 / n**2)), a.detach().numpy()
    law, slope = y**3 / 3 + y - load, y**2 + 1
    gradient, free = slope * law + rest @ y, (y > -0.3) & (y < 0.5)
    assert np.count_nonzero(y == -0.3) > n / 10
    assert np.count_nonzero(free) > n / 10
    assert np.max(np.abs(gradient[free])) < 1e-11
    assert np.all(gradient[y == -0.3] > 0)
    assert np.all(gradient[y == 0.5] < 0)
    hessian = (sp.diags_array(slope**2 + 2 * y * law) + rest).tocsc()
    u = np.where(free, 0.0, w)
    u[free] = spsolve(hessian[free][:, free], w[free])
    np.testing.assert_allclose(found[0], np.where(free, slope * u, 0.0), atol=1e-10)
    of_bound = np.where(y == -0.3, w - hessian[:, free] @ u[free], 0.0)
    np.testing.assert_allclose(found[1], of_bound, atol=1e-10)


def test_what_is_no_minimum_or_no_pattern_says_so() -> None:
    import torch

    import rootdiff_torch

    y0, a = torch.ones(SMALL, dtype=torch.float64), torch.tensor(loads(SMALL))
    whole = pattern(SMALL)
    for given, match in (
        (whole[:-1], r"^jac_sparsity: it has 119 rows, but the residual returned 120 numbers"),
        (whole[:, :-1], r"^jac_sparsity: got coo_array of shape \(120, 59\), but least_squares, .* needs .*\(m, 60\)"),
        ("detect", r"^jac_sparsity: got 'detect', but least_squares, which detects nothing, needs .*\(m, 60\)"),
        (
            sp.vstack([whole[:-1], sp.csr_array((1, SMALL))]),
            r"^jac_sparsity: the Jacobian has entries .* of several points\.\s",
        ),
    ):
        with pytest.raises(ArgumentError, match=match):
            rootdiff_torch.least_squares(residual, y0, a, jac_sparsity=given)
    with pytest.raises(ArgumentError, match=r"^jac_sparsity: in NumPy least_squares does not take it"):
        rootdiff.least_squares(residual, np.ones(SMALL), loads(SMALL), jac_sparsity=whole)
    with pytest.raises(ConvergenceError, match="SADDLE"):
        rootdiff_torch.least_squares(lambda y: y**2 - 1, torch.zeros(4).double(), jac_sparsity=sp.eye_array(4))
