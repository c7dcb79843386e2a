"""Numbers and lists of numbers where users of SciPy pass them: as y0, as a bracket, as what a residual returns."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
import rootdiff_torch

#: The Dottie number, cos(y) = y.
DOTTIE = 0.7390851332151607


@pytest.mark.parametrize("y0", [[1.0, 2.0], [1, 2], (1, 2), np.array([1.0, 2.0])])
@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_numpy_takes_lists_of_numbers(y0, form):
    sol = rootdiff.root(lambda y, a: form([y[0] ** 2 - a, y[1] - 3]), y0, 2.0)
    assert sol.y.dtype == np.float64
    np.testing.assert_allclose(sol.y, [math.sqrt(2), 3.0], rtol=1e-11)
    np.testing.assert_allclose(sol.jacobian()[0], [0.5 / math.sqrt(2), 0.0], atol=1e-8)


def test_numpy_takes_numbers():
    for y0 in (1, 1.0):
        sol = rootdiff.root(lambda y: math.cos(y) - y, y0)
        assert sol.y.shape == ()
        np.testing.assert_allclose(sol.y, DOTTIE, rtol=1e-11)
    np.testing.assert_allclose(rootdiff.root(lambda y: math.cos(y[0]) - y[0], [1]).y, [DOTTIE], rtol=1e-11)
    np.testing.assert_allclose(rootdiff.root(lambda y: [math.cos(y[0]) - y[0]], [1]).y, [DOTTIE], rtol=1e-11)
    np.testing.assert_allclose(rootdiff.root_scalar(lambda y: math.cos(y) - y, [0, 1]).y, DOTTIE, rtol=1e-11)
    np.testing.assert_allclose(rootdiff.fixed_point(lambda y: [math.cos(y[0])], [1]).y, [DOTTIE], rtol=1e-11)
    np.testing.assert_allclose(rootdiff.continuation(lambda y, a: y**3 + y - a, 0, 0.0, 10.0).y, 2.0, rtol=1e-11)


def test_a_nested_list_is_a_matrix():
    sol = rootdiff.root(lambda y: [[y[0, 0] - 1, y[0, 1] - 2], [y[1, 0] - 3, y[1, 1] - 4]], [[0, 0], [0, 0]])
    np.testing.assert_allclose(sol.y, [[1, 2], [3, 4]])


def test_a_list_of_arrays_stays_a_pytree():
    for rd, ones in ((rootdiff, np.ones), (rootdiff_torch, torch.ones)):
        sol = rd.root(lambda y: [y[0] - 1, y[1] - 2], [ones(1), ones(2)])
        assert isinstance(sol.y, list)
        assert [tuple(leaf.shape) for leaf in sol.y] == [(1,), (2,)]
    sol = rootdiff.root(lambda y: {"u": y["u"] - 1, "v": y["v"] - 2}, {"u": 0.5, "v": [1, 1]})
    assert sol.y["u"].shape == ()
    assert sol.y["v"].tolist() == [2.0, 2.0]


def test_bounds_are_lists_too():
    for bounds in (([0.0, 0.0], [5, 5]), [[0, 0], None], [0, 5]):
        sol = rootdiff.root(lambda y: [y[0] ** 2 - 2, y[1] - 3], [1, 1], bounds=bounds)
        np.testing.assert_allclose(sol.y, [math.sqrt(2), 3.0], rtol=1e-11)
    y0 = torch.ones(2, dtype=torch.float64)
    sol = rootdiff_torch.root(lambda y: [y[0] ** 2 - 2, y[1] - 3], y0, bounds=([0, 0], [5, 5]))
    np.testing.assert_allclose(sol.y, [math.sqrt(2), 3.0], rtol=1e-11)


def test_pairs_of_bounds_one_for_each_unknown_are_refused():
    """Two of them would be taken for the lower and the upper bounds."""
    pairs = [(0.0, 1.0), (0.0, 2.0)]
    for wrong in (pairs, tuple(pairs)):
        with pytest.raises(rootdiff.ArgumentTypeError, match=r"list\(map\(list, zip\(\*pairs\)\)\)"):
            rootdiff.minimize(lambda y: np.sum((y - 3) ** 2), [0.5, 0.5], bounds=wrong)
    limits = list(map(list, zip(*pairs, strict=True)))
    sol = rootdiff.minimize(lambda y: np.sum((y - 3) ** 2), [0.5, 0.5], bounds=limits)
    np.testing.assert_allclose(sol.y, [1.0, 2.0])


def test_torch_takes_lists_and_numbers_and_keeps_the_tape():
    a = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    y = rootdiff_torch.root(lambda y, a: [y[0] ** 2 - a, y[1] - 3.0], [1, 1], a).y
    assert y.dtype == torch.float64  # that of the parameters, as a number has
    (slope,) = torch.autograd.grad(y.sum(), a)
    np.testing.assert_allclose(slope, 0.5 / math.sqrt(2), rtol=1e-10)
    assert rootdiff_torch.root(lambda y: y**2 - 2, 1.0).y.dtype == torch.get_default_dtype()
    np.testing.assert_allclose(rootdiff_torch.root_scalar(lambda y: y**2 - 2, [0, 2]).y, math.sqrt(2), rtol=1e-5)


def test_torch_refuses_numbers_that_have_left_the_tape():
    with pytest.raises(rootdiff.ArgumentError, match="residual: it returned"):
        rootdiff_torch.root(lambda y: [y[0].item() ** 2 - 2, 0.5], torch.ones(2))
    with pytest.raises(rootdiff.ArgumentTypeError, match="residual: it returned a float"):
        rootdiff_torch.root(lambda y: y.item() ** 2 - 2, torch.ones(()))


def test_jax_takes_lists_and_numbers_under_jit():
    @jax.jit
    def solve(a):
        return jnp.sum(rootdiff_jax.root(lambda y, a: [y[0] ** 2 - a, y[1] - 3], [1, 1], a).y)

    np.testing.assert_allclose(jax.value_and_grad(solve)(4.0), (5.0, 0.25), rtol=1e-5)


def test_a_batch_does_not_guess_which_axis_a_list_is():
    with pytest.raises(rootdiff.ArgumentError, match="stack"):
        rootdiff.root(lambda y: [y[:, 0] - 1, y[:, 1] - 2], np.ones((2, 2)), batch_ndim=1)


def test_numpy_rounds_a_result_of_more_digits_than_y0():
    sol = rootdiff.root(lambda y, a: y.astype(np.float64) ** 2 - a, np.ones(1, np.float32), 2.0)
    assert sol.y.dtype == np.float32
    np.testing.assert_allclose(sol.y, math.sqrt(2), rtol=1e-5)
    with pytest.raises(rootdiff.ArgumentTypeError, match=r"float32.*float64"):  # but it does not make digits up
        rootdiff.root(lambda y: (y**2 - 2).astype(np.float32), np.ones(1))


def test_integer_arrays_are_refused_still():
    with pytest.raises(rootdiff.ArgumentTypeError, match="int64"):
        rootdiff.root(lambda y: y**2 - 2, np.ones(1, np.int64))
