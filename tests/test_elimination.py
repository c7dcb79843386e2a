import numpy as np
import pytest

from rootdiff import _numpy_lu
from rootdiff._numpy import NumpyBackend
from rootdiff._sizes import are_better_together

COUNT = 100


def _systems(n, dtype=np.float64):
    rng = np.random.default_rng(n)
    return rng.standard_normal((4, COUNT // 4, n, n)).astype(dtype), rng.standard_normal((4, COUNT // 4, n)).astype(
        dtype
    )


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 8])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_solutions_are_those_of_numpy(n, transpose, dtype):
    matrix, rhs = _systems(n, dtype)
    x = _numpy_lu.substitute(_numpy_lu.eliminate(matrix), rhs, transpose)
    wanted = np.linalg.solve(np.matrix_transpose(matrix) if transpose else matrix, rhs[..., None])[..., 0]
    # rounding, by the condition of these matrices (up to 1e4)
    scale = np.max(np.abs(wanted), axis=-1, keepdims=True) * np.linalg.cond(matrix)[..., None]
    assert x.dtype == dtype
    assert np.max(np.abs(x - wanted) / scale) < 10 * np.finfo(dtype).eps


@pytest.mark.parametrize("n", [2, 5, 8])
def test_factors_and_pivots_are_those_of_lapack(n):
    matrix, rhs = _systems(n)
    assert are_better_together(matrix.shape[:-1])
    factors, pivots = found = _numpy_lu.eliminate(matrix)
    one, swaps = NumpyBackend().lu_factor(matrix[0, 0])
    np.testing.assert_array_equal(pivots[0, 0], swaps)
    np.testing.assert_allclose(factors[0, 0], one, rtol=0, atol=1e-13 * np.max(np.abs(one)))
    x = _numpy_lu.substitute(found, rhs)
    np.testing.assert_allclose(x[0, 0], NumpyBackend().lu_solve((one, swaps), rhs[0, 0]), rtol=1e-9)


@pytest.mark.parametrize("spoilt", [0.0, np.nan, np.inf])
def test_a_matrix_that_cannot_be_factored_leaves_the_others_alone(spoilt):
    matrix, rhs = _systems(3)
    clean = _numpy_lu.substitute(_numpy_lu.eliminate(matrix), rhs)
    matrix[1, 2] = spoilt
    x = _numpy_lu.substitute(_numpy_lu.eliminate(matrix), rhs)
    assert not np.all(np.isfinite(x[1, 2]))
    x[1, 2] = clean[1, 2]
    np.testing.assert_array_equal(x, clean)


def test_inputs_are_left_as_they_are():
    matrix, rhs = _systems(4)
    kept = matrix.copy(), rhs.copy()
    _numpy_lu.substitute(_numpy_lu.eliminate(matrix), rhs)
    np.testing.assert_array_equal(matrix, kept[0])
    np.testing.assert_array_equal(rhs, kept[1])
