"""Continuation in PyTorch and JAX: past folds, differentiable at the end, under transforms."""

from __future__ import annotations

import numpy as np
import pytest

from rootdiff import ArgumentError

#: y^3 - y = a turns back twice between a = -1 and a = 1; the only root at the end is the plastic number.
PLASTIC = np.cbrt((9 + np.sqrt(69)) / 18) + np.cbrt((9 - np.sqrt(69)) / 18)
SLOPE = 1 / (3 * PLASTIC**2 - 1)
#: The solver at the end stops at an error of eps^(3/4) = 2e-12.
TOL = 1e-10


def cubic(y, a, power):
    return y**power - y - a


def test_torch_follows_the_root_past_folds():
    torch = pytest.importorskip("torch")
    import rootdiff_torch as rd

    start, one = torch.tensor([-PLASTIC]), torch.ones(1, dtype=torch.float64)

    def solve(a):
        return rd.continuation(cubic, start, (-a, 3), (a, 3)).y

    a = one.clone().requires_grad_()
    y = solve(a)
    y.sum().backward()
    np.testing.assert_allclose(y.detach(), PLASTIC, rtol=TOL)
    np.testing.assert_allclose(a.grad, SLOPE, rtol=TOL)
    y, tangent = torch.func.jvp(solve, (one,), (one,))
    np.testing.assert_allclose([y, tangent], [[PLASTIC], [SLOPE]], rtol=TOL)
    with pytest.raises(rd.ConvergenceError):  # the natural parameter ends at the first fold
        rd.continuation(cubic, start, (-one, 3), (one, 3), method="natural")
    with pytest.raises(ArgumentError, match="floating"):
        rd.continuation(cubic, start, (-1.0, 3), (1.0, 3))
    fold = torch.tensor(3.0**-0.5, dtype=torch.float64)  # y^3 - y turns there
    sol = rd.continuation(cubic, -fold, (2 * fold**3, 3), (one[0], 3), history=True)
    np.testing.assert_allclose(sol.y, PLASTIC, rtol=TOL)
    np.testing.assert_allclose(
        cubic(sol.history.y, 2 * fold**3 + sol.history.fraction * (1 - 2 * fold**3), 3), 0.0, atol=1e-6
    )


def test_jax_follows_the_root_past_folds():
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    import rootdiff_jax as rd

    with jax.enable_x64(True):
        start = jnp.array([-PLASTIC])

        def solve(a):
            return rd.continuation(cubic, start, (-a, 3), (a, 3))

        def value(a):
            sol = solve(a)
            return sol.y[0], sol.converged

        grad = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
        (y, converged), slope = grad(jnp.array([1.0, 1.0]))
        assert converged.all()
        np.testing.assert_allclose([y, slope], [[PLASTIC] * 2, [SLOPE] * 2], rtol=TOL)
        sol = rd.continuation(cubic, start, (-1.0, 3), (1.0, 3), history=True, solver="newton")
        np.testing.assert_allclose(sol.y, PLASTIC, rtol=TOL)
        np.testing.assert_allclose(cubic(sol.history.y[:, 0], 2 * sol.history.fraction - 1, 3), 0.0, atol=1e-6)
        with pytest.raises(ArgumentError, match="history"):
            jax.jit(lambda a: rd.continuation(cubic, start, (-a, 3), (a, 3), history=True).y)(1.0)
