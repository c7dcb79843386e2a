"""A multiple root is no function of the parameters, wherever the solve came from; a simple one beside it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff


def _square(y: Any, a: Any) -> Any:
    return y**2 - a


def _tangent(y: Any, a: Any) -> Any:
    return xp(y).exp(y - 1) - y - a


def _pair(y: Any, a: Any) -> Any:
    return xp(y).stack([y[0] ** 2 - 2 * y[0] * y[1] + y[1] ** 2 - a[0], y[1] ** 3 + y[1] - 2])


def _exact_pair(y: Any, a: Any) -> Any:
    return xp(y).stack([(y[0] - y[1]) ** 2 - a[0], y[0] + y[1] - 2])


DOUBLE = {
    "at zero": (_square, [1.0], [0.0]),
    "at zero, from zero": (_square, [0.0], [0.0]),
    "at one, by rounding": (_tangent, [2.0], [0.0]),
    "of two unknowns": (_pair, [3.0, 0.5], [0.0]),
    "of two unknowns, without rounding": (_exact_pair, [3.0, 1.0], [0.0]),
}


@pytest.mark.parametrize("case", DOUBLE)
def test_a_double_root_has_no_derivative(backend: Any, case: str) -> None:
    f, y0, a = DOUBLE[case]
    if backend.name == "jax-jit" and case != "at zero":
        pytest.skip("compiled anew, to the same statuses as eagerly")
    try:
        out = backend.vjp(f, np.array(y0), np.array(a), w=np.arange(1.0, len(y0) + 1), on_failure="nan")
    except rootdiff.AdjointError:
        return
    assert np.isnan(out.derivative[0]).all()


@pytest.mark.parametrize("adjoint", ["auto", "gmres"])
def test_two_roots_close_by_have_one_each(backend: Any, adjoint: str) -> None:
    # the roots of y^2 - 2 y + 1 - a are 2e-4 apart, and known to 1e-12
    def f(y: Any, a: Any) -> Any:
        return y**2 - 2 * y + 1 - a

    out = backend.vjp(f, np.array([2.0]), np.array([1e-8]), w=np.ones(1), adjoint=adjoint)
    np.testing.assert_allclose(out.derivative[0], 0.5e4, rtol=1e-4)


def test_a_root_at_zero_has_a_derivative(backend: Any) -> None:
    out = backend.vjp(lambda y, a: xp(y).sin(y) - a * y**2, np.array([0.5]), np.array([0.1]), w=np.ones(1))
    np.testing.assert_allclose(out.y, 0.0, atol=1e-12)
    np.testing.assert_allclose(out.derivative[0], 0.0, atol=1e-12)


def test_an_ill_conditioned_root_has_one_too(backend: Any) -> None:
    # its error, 1e-7, is far from what would change the Jacobian
    matrix = np.array([[1.0, 1.0], [1.0, 1.0 + 1e-8]])
    out = backend.vjp(
        lambda y, m, b: m @ y - b, np.array([0.3, 0.1]), matrix, matrix @ np.array([2.0, 1.0]), w=np.array([1.0, 1.0])
    )
    np.testing.assert_allclose(out.derivative[1], [1.0, 0.0], atol=1e-3)
