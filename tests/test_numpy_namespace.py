"""NumPy's namespace as solvers see it: the values of NumPy's own functions, for short vectors too."""

import numpy as np
import pytest

from rootdiff._numpy import Namespace
from rootdiff._space import max_norm, norm2

XP = Namespace()
SHAPES = [(3,), (16,), (50, 1), (2, 3), (50, 3), (7, 9, 16), (50, 17)]


def entries(shape, dtype="float64"):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["max", "min"])
def test_extremes(name, shape, dtype):
    x = entries(shape, dtype)
    ours, numpys = getattr(XP, name), getattr(np, name)
    for axis in (-1, 0, None):
        found, expected = ours(x, axis=axis), numpys(x, axis=axis)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == dtype
        assert np.shape(found) == np.shape(expected)


def test_extremes_of_no_entries_are_refused():
    with pytest.raises(ValueError, match="zero-size"):
        XP.max(entries((50, 0)), axis=-1)


@pytest.mark.parametrize("name", ["max", "min"])
def test_a_nan_shows_and_the_array_is_left_alone(name):
    x = entries((50, 3))
    x[4, 0] = x[5, 2] = np.nan
    before = x.copy()
    found = getattr(XP, name)(x, axis=-1)
    assert np.flatnonzero(np.isnan(found)).tolist() == [4, 5]
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape):
    x = entries(shape)
    # the rounding of a sum of at most 17 squares, in an order that NumPy chooses by the processor
    np.testing.assert_allclose(norm2(XP, x), np.linalg.norm(x, axis=-1), rtol=20 * np.finfo(float).eps)
    np.testing.assert_array_equal(max_norm(XP, x), np.abs(x).max(axis=-1))


def test_norms_where_squares_leave_their_range():
    x = np.array([3.0, 4.0]) * np.array([1.0, 1e-200, 1e200, 0.0, np.inf, np.nan])[:, None]
    np.testing.assert_allclose(norm2(XP, x), [5.0, 5e-200, 5e200, 0.0, np.inf, np.nan])


@pytest.mark.parametrize("n", [2, 3, 8, 16, 33])
def test_a_norm_does_not_depend_on_the_batch_bit_for_bit(n):
    x = entries((200, n))
    whole = norm2(XP, x)
    for start, stop in ((0, 2), (3, 10), (17, 150), (50, 51)):
        np.testing.assert_array_equal(norm2(XP, x[start:stop]), whole[start:stop])
        np.testing.assert_array_equal(norm2(XP, np.array(x[start:stop])), whole[start:stop])
    np.testing.assert_array_equal([norm2(XP, row) for row in x], whole)
