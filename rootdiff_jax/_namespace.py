"""The array namespace of JAX as solvers see it: `jax.numpy`, and what costs a compiled program less."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from rootdiff import _space
from rootdiff_jax._precision import for_lapack

#: A program for a CPU reduces one number after the other, and each call of it lists three buffers for each reduction in
#: its text, executed or not, and more for one of over 32 numbers. So up to so many rows of up to this length are
#: folded: cut into pieces, and the sum of these into halves. A compiler makes one loop of it, and may make the result,
#: and the row, anew for each use, with other roundings.
_ROWS, _LENGTH, _PIECE = 64, 128, 8
#: Numbers up to which the copies that this makes cost nothing.
_NUMBERS = 2**11


class _Linalg(_space.Namespace):
    """`eigh` and `svd`; all other functions are those of `jax.numpy.linalg`."""

    module = jnp.linalg

    @staticmethod
    def eigh(x: Array, /) -> Any:
        """Return the eigenvalues and vectors of symmetric matrices."""
        return tuple(part.astype(x.dtype) for part in jnp.linalg.eigh(for_lapack(x)))

    @staticmethod
    def svd(x: Array, /, *, full_matrices: bool = True) -> Any:
        """Return the singular values, and the vectors on both sides."""
        return tuple(part.astype(x.dtype) for part in jnp.linalg.svd(for_lapack(x), full_matrices=full_matrices))


class Namespace(_space.Namespace):
    """Reductions, norms and `numbers`; all other functions are those of `jax.numpy`."""

    module = jnp
    linalg = _Linalg()

    @staticmethod
    def isdtype(dtype: Any, kind: Any) -> bool:
        """Return whether a dtype is of a kind; that of a random key is of none."""
        return not jnp.issubdtype(dtype, jax.dtypes.extended) and jnp.isdtype(dtype, kind)

    @staticmethod
    def sum(x: Array, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False) -> Array:
        """Return the sums along an axis, or of all."""
        if dtype is None and x.dtype != bool and _is_short(x, axis):
            return _folded(jnp.add, x, keepdims)
        return jnp.sum(x, axis=axis, dtype=dtype, keepdims=keepdims)

    @staticmethod
    def max(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
        """Return the largest entries along an axis, or of all."""
        if _is_short(x, axis):
            return _folded(jnp.maximum, x, keepdims)
        return jnp.max(x, axis=axis, keepdims=keepdims)

    @staticmethod
    def all(x: Array, /, *, axis: Any = None, keepdims: bool = False) -> Array:
        """Return whether all entries along an axis hold, or all of them."""
        if _is_short(x, axis):
            return _folded(jnp.logical_and, x.astype(bool), keepdims)
        return jnp.all(x, axis=axis, keepdims=keepdims)

    @staticmethod
    def max_norm(x: Array, _: Callable[[Array], Array], /) -> Array:
        """Return the largest absolute entries over the last axis: a compiler needs no memory for them."""
        return jnp.abs(x[..., 0]) if x.shape[-1] == 1 else Namespace.max(jnp.abs(x), axis=-1)

    @staticmethod
    def norm2(x: Array, careful: Callable[[Array], Array], /) -> Array:
        """Return the Euclidean norms over the last axis; of few numbers by one reduction, not two in a row.

        Of the numbers as they are, made smaller and made larger by a power of two: the squares of one stay in range.
        Each of the three may be of other roundings of `x`, of nothing but rounding too, so none is taken out of its
        range.
        """
        if x.shape[-1] == 1:
            return jnp.abs(x[..., 0])
        if not _is_short(x, -1) or x.dtype not in (jnp.float32, jnp.float64):
            return careful(x)
        limits = np.finfo(x.dtype)
        down, up = 2.0 ** (-limits.maxexp // 2 - 8), 2.0 ** (0.7 * limits.maxexp // 1)
        scaled = jnp.stack([x, x * down, x * up])
        plain, of_large, of_small = jnp.sqrt(Namespace.sum(scaled * scaled, axis=-1))
        high, low = 2.0 ** (limits.maxexp // 2 - 4), 2.0 ** (limits.nmant + 2 - limits.maxexp // 2)
        large, small = jnp.maximum(of_large / down, high), jnp.minimum(of_small / up, low)
        return jnp.where(plain > high, large, jnp.where(plain < low, small, plain))

    @staticmethod
    def numbers(like: Array, dtype: Any, /) -> Array:
        """Return the numbers 1 to n, (n,), in a dtype, None for that of `like`: a constant to a compiler.

        Not one of a program that may be for several devices: what spreads it over them makes a constant vector anew
        for each use, and gathers what shifts it, since it does not see that these are the same.
        """
        n, kind = like.shape[-1], dtype or like.dtype
        if jax.device_count() == 1 and isinstance(n, int) and n <= _LENGTH:  # what is made of these is a constant too
            return jnp.asarray(np.arange(1, n + 1), dtype=kind)
        found = jnp.arange(1, n + 1, dtype=kind)
        return found if jax.device_count() == 1 else lax.optimization_barrier(found)  # type: ignore[no-untyped-call]


def _is_short(x: Array, axis: Any) -> bool:
    few = x.size <= _NUMBERS and math.prod(x.shape[:-1]) <= _ROWS
    return bool(axis == -1 and 1 <= x.shape[-1] <= _LENGTH and few)


def _folded(operation: Callable[[Array, Array], Array], x: Array, keepdims: bool) -> Array:
    """Return what an operation reduces the rows of `x` to."""
    count, parts = x.shape[-1], [x]
    if count > 2 * _PIECE:  # the compiler makes an array that is read at more places than this for itself
        cut = [x[..., k : k + _PIECE] for k in range(0, count, _PIECE)]
        whole = count // _PIECE
        parts = [reduce(operation, cut[:whole]), *cut[whole:]]
    result = reduce(operation, (_halved(operation, part) for part in parts))
    return result if keepdims else result[..., 0]


def _halved(operation: Callable[[Array, Array], Array], x: Array) -> Array:
    """Return what an operation reduces the rows of `x` to, each as a row of one number."""
    count = x.shape[-1]
    if count == 1:
        return x
    even = _halved(operation, operation(x[..., : count // 2], x[..., count // 2 : count // 2 * 2]))
    return operation(even, x[..., -1:]) if count % 2 else even
