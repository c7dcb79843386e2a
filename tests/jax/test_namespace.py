"""Reductions of few numbers, which a compiled program makes in another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rootdiff._space import norm2
from rootdiff_jax import _namespace
from rootdiff_jax._namespace import Namespace

XP = Namespace()
LENGTHS = (1, 2, 16, 17, 31, 32, 33, 50, 127, 128, 129)


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_reductions_are_those_of_numpy(n, keepdims):
    x = np.random.default_rng(n).integers(-9, 9, (3, n)).astype(np.float64)  # whose sums are exact
    options = {"axis": -1, "keepdims": keepdims}

    @jax.jit
    def reductions(x):
        sums = XP.sum(x, **options), XP.sum(x < 0, dtype=jnp.int32, **options), XP.sum(x < 0, **options)
        return *sums, XP.max(x, **options), XP.all(x < 9, **options), XP.all(x < 5, **options)

    sums = np.sum(x, **options), np.sum(x < 0, **options), np.sum(x < 0, **options)
    wanted = *sums, np.max(x, **options), np.all(x < 9, **options), np.all(x < 5, **options)
    for found, value in zip(reductions(x), wanted, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize("n", LENGTHS)
def test_each_number_counts(n):
    def reductions(x):
        return XP.sum(x, axis=-1), XP.max(x, axis=-1), norm2(XP, x), 3.0 - XP.all(x == 0, axis=-1)

    np.testing.assert_array_equal(jax.jit(jax.vmap(reductions))(3 * np.eye(n)), np.full((4, n), 3.0))


def test_other_axes_and_large_arrays_are_left_to_jax():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((80, 60)))
    assert x.shape[0] > _namespace._ROWS
    np.testing.assert_array_equal(XP.sum(x, axis=-1), jnp.sum(x, axis=-1))
    np.testing.assert_array_equal(XP.max(x, axis=0), jnp.max(x, axis=0))
    np.testing.assert_array_equal(XP.sum(x), jnp.sum(x))
    np.testing.assert_array_equal(XP.all(x > -9), True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("n", [2, 50, 128])
def test_norms_of_numbers_of_any_size(n, dtype):
    limits = jnp.finfo(dtype)
    unit = np.random.default_rng(n).standard_normal(n).astype(dtype)
    unit /= np.abs(unit).max()
    wanted = np.linalg.norm(unit.astype(np.longdouble))
    # every power of two at which no entry is subnormal; those are flushed to zero
    exponents = range(limits.minexp + 20, limits.maxexp - 4, 3)
    scales = np.ldexp(np.ones(len(exponents), dtype), exponents)
    unit[np.abs(unit) < 2.0**-19] = 0
    norms = jax.jit(jax.vmap(lambda scale: norm2(XP, scale * unit)))(scales)
    np.testing.assert_allclose(np.asarray(norms, np.longdouble) / scales, wanted, rtol=8 * limits.eps)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_norms_of_what_is_not_finite_and_of_nothing(dtype):
    norm, place = jax.jit(lambda x: norm2(XP, x)), np.arange(49) == 7
    assert norm(np.zeros(49, dtype)) == 0
    for value, wanted in ((np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)):
        np.testing.assert_equal(float(norm(np.where(place, value, 1).astype(dtype))), wanted)
    assert abs(float(norm(np.ones(49, dtype))) - 7) < 7 * float(jnp.finfo(dtype).eps)
