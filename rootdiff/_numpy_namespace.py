"""The array namespace of NumPy as solvers see it: quicker than `array_api_compat` for extremes of short vectors."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy
import numpy as np

from rootdiff import _backend
from rootdiff._backend import Array

#: Entries of a vector up to which a loop over them beats NumPy's own reduction, which is one loop per vector...
_SHORT = 16
#: ... from so many vectors on.
_MANY = 32


class Namespace(_backend.Namespace):
    """The functions that differ from those of `array_api_compat.numpy`; the others are found there."""

    module = array_api_compat.numpy

    @staticmethod
    def max(x: Array, /, *, axis: int | None = None) -> Array:
        """Return the largest entries along an axis, or of all."""
        return _reduce(np.maximum, x, axis)

    @staticmethod
    def min(x: Array, /, *, axis: int | None = None) -> Array:
        """Return the smallest entries along an axis, or of all."""
        return _reduce(np.minimum, x, axis)


def _reduce(ufunc: np.ufunc, x: Array, axis: int | None) -> Any:
    n = x.shape[-1] if x.ndim else 0
    if axis != -1 or not 0 < n <= _SHORT or x.size < _MANY * n:
        return ufunc.reduce(x, axis=axis)
    result = x[..., 0].copy()
    for k in range(1, n):
        ufunc(result, x[..., k], out=result)
    return result
