"""A warning points at the user's line; `"keep"` warns, and returns the best iterate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
import rootdiff_torch


def place(call: Callable[[], Any]) -> tuple[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (warning,) = caught
    assert warning.category is rootdiff.ConvergenceWarning
    return warning.filename, warning.lineno


@pytest.mark.parametrize(("rd", "ones"), [(rootdiff, np.ones), (rootdiff_torch, torch.ones), (rootdiff_jax, jnp.ones)])
def test_of_a_solve(rd: ModuleType, ones: Callable[[int], Any]) -> None:
    calls = [
        lambda: rd.root(lambda y: y**2 + 1, ones(1), solver="newton", on_failure="warn"),
        lambda: rd.fixed_point(lambda z: z + 1, ones(1), solver="anderson", on_failure="warn"),
        lambda: rd.root_scalar(lambda y: y**2 + 1, (-ones(1), ones(1)), on_failure="warn"),
    ]
    for call in calls:
        assert place(call) == (__file__, call.__code__.co_firstlineno)


def test_of_a_derivative() -> None:
    singular = lambda y, a: (y - a).sum() + 0 * y  # each equation is the same
    sol = rootdiff.root(singular, np.zeros(2), np.zeros(2), on_failure="warn")
    pull = lambda: sol.vjp(np.ones(2))
    assert place(pull) == (__file__, pull.__code__.co_firstlineno)
    y = rootdiff_torch.root(singular, torch.zeros(2), torch.zeros(2).requires_grad_(), on_failure="warn").y
    pull = lambda: y.sum().backward()
    assert place(pull) == (__file__, pull.__code__.co_firstlineno)


def test_of_a_layer() -> None:
    layer = rootdiff_torch.nn.ImplicitLayer(lambda y, x: y**2 + x, on_failure="warn")
    call = lambda: torch.nn.Sequential(layer)(torch.ones(1, 1))
    assert place(call) == (__file__, call.__code__.co_firstlineno)


#: The second system has no root: |y^2 + 1| is least at 0.
A = [[4.0], [-1.0], [9.0]]


@pytest.mark.parametrize(
    ("rd", "array"), [(rootdiff, np.array), (rootdiff_torch, torch.tensor), (rootdiff_jax, jnp.array)]
)
def test_keep_returns_the_best_iterate(rd: ModuleType, array: Callable[..., Any]) -> None:
    options = {"solver": "newton", "batch_ndim": 1, "on_failure": "keep"}
    call = lambda: rd.root(lambda y, a: y**2 - a, array([[1.0]] * 3), array(A), **options)
    assert place(call) == (__file__, call.__code__.co_firstlineno)
    with pytest.warns(rd.ConvergenceWarning):
        sol = call()
    assert sol.converged.tolist() == [True, False, True]
    np.testing.assert_allclose(np.asarray(sol.y)[[0, 2]], [[2.0], [3.0]], rtol=1e-5)
    assert abs(float(sol.y[1, 0])) < 1


@pytest.mark.filterwarnings("ignore::rootdiff.ConvergenceWarning")
def test_keep_gives_no_derivative_of_what_it_keeps() -> None:
    options = {"solver": "newton", "batch_ndim": 1, "on_failure": "keep"}
    residual = lambda y, a: y**2 - a
    expected = [0.25, np.nan, 1 / 6]
    of_numpy = rootdiff.root(residual, np.ones((3, 1)), np.array(A), **options).vjp(np.ones((3, 1)))[0]
    np.testing.assert_allclose(of_numpy[:, 0], expected, rtol=1e-6)
    a = torch.tensor(A, requires_grad=True)
    rootdiff_torch.root(residual, torch.ones(3, 1), a, **options).y.sum().backward()
    np.testing.assert_allclose(a.grad[:, 0], expected, rtol=1e-4)
    roots = lambda a: rootdiff_jax.root(residual, jnp.ones((3, 1)), a, **options).y.sum()
    np.testing.assert_allclose(jax.grad(roots)(jnp.array(A))[:, 0], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("rd", "array"), [(rootdiff, np.array), (rootdiff_torch, torch.tensor), (rootdiff_jax, jnp.array)]
)
def test_approximate_goes_on_from_the_best_iterate(rd: ModuleType, array: Callable[..., Any]) -> None:
    """Of a short budget: y_1 = (y_0 + a / y_0) / 2 and, by the theorem at it, dy/da = 1 / (2 y_1)."""
    options = {"solver": rd.Newton(max_steps=1), "batch_ndim": 1}
    residual, start, a = lambda y, a: y**2 - a, array([[1.0]] * 2), array([[4.0], [1.0]])
    for policy in ("ignore", "approximate"):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            sol = rd.root(residual, start, a, on_failure=policy, **options)
            assert sol.converged.tolist() == [False, True]
            if rd is rootdiff:
                slopes = sol.vjp(np.ones((2, 1)))[0]
            elif rd is rootdiff_torch:
                tracked = a.clone().requires_grad_()
                y = rd.root(residual, start, tracked, on_failure=policy, **options).y
                slopes = torch.autograd.grad(y.sum(), tracked)[0].numpy()
            else:
                slopes = jax.grad(lambda a: rd.root(residual, start, a, on_failure=policy, **options).y.sum())(a)
        assert bool(told) == (policy == "approximate")
        assert all(warning.category is rd.ConvergenceWarning for warning in told)
        np.testing.assert_allclose(np.asarray(sol.y), [[2.5], [1.0]], rtol=1e-5)
        np.testing.assert_allclose(np.asarray(slopes), [[0.2], [0.5]], rtol=1e-5)


@pytest.mark.filterwarnings("ignore::rootdiff.ConvergenceWarning")
def test_approximate_leaves_out_what_cannot_be_computed() -> None:
    """At the minimum of |f| that a system without a root ends at, df/dy is zero: w, which all share, has a gradient."""
    x = np.array([[0.1], [1.0]])
    expected = (root := (1 - math.sqrt(0.6)) / 2) ** 2 / (1 - 2 * root)
    residual = lambda y, w, x: w * y**2 + x - y
    options = {"batch_ndim": 1, "on_failure": "approximate", "solver": "newton"}
    sol = rootdiff.root(residual, np.zeros((2, 1)), 1.0, x, **options)
    np.testing.assert_allclose(sol.vjp(np.ones((2, 1)))[0], expected, rtol=1e-5)
    w = torch.tensor(1.0, requires_grad=True, dtype=torch.float64)
    y0 = torch.zeros(2, 1, dtype=torch.float64)
    rootdiff_torch.root(residual, y0, w, torch.tensor(x), **options).y.sum().backward()
    np.testing.assert_allclose(w.grad, expected, rtol=1e-5)
