"""The derivative in a large parameter of which each row of the residual reads a few entries, from a few differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff._detection import places
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._sparse import Entries, times, told
from rootdiff._sparsity import Pattern

#: Entries of a parameter from which it is worth asking where the derivative has entries.
_MANY = 256
#: Entries of the derivative, for each row and entry of the parameter, up to which it is sparse.
_FEW = 64
#: Buckets at first: most parameters stand in a few rows, such as loads.
_BUCKETS = 4


def pulled_back(
    backend: Any,
    function: Callable[..., Array],
    primals: Sequence[Array],
    place: int,
    cotangents: Sequence[Array],
    errors: bool,
) -> list[Array] | None:
    """Return for each cotangent that of the primal at `place`, or the size of its errors; None if it is small or dense.

    The derivative is checked along one direction of no special value.
    """
    primal = primals[place]
    if primal.size < _MANY:
        return None

    def of_one(flat: Array) -> Array:
        moved = [*primals[:place], np.reshape(flat, primal.shape), *primals[place + 1 :]]
        return np.reshape(function(*moved), (-1,))

    residual, flat = Residual(of_one, (), replace(backend, box=None, scale=None)), np.reshape(primal, (-1,))
    where, count = places(residual, flat, _BUCKETS), cotangents[0].size
    if where is None or len(where.rows) > _FEW * (count + flat.size):
        return None
    pattern = Pattern.of(where, flat.size, number=count)
    try:
        found = told(residual, flat, pattern)
    except ArgumentError:
        return None
    return [np.reshape(_pulled(pattern, found, np.reshape(u, (-1,)), errors), primal.shape) for u in cotangents]


def _pulled(pattern: Pattern, found: Entries, cotangent: Array, errors: bool) -> Array:
    values = found.errors if errors else found.values
    values = np.zeros_like(found.values) if values is None else values
    # a row without a cotangent adds nothing, NaN or not
    values = np.where(cotangent[pattern.rows] == 0, 0, values)
    if errors:
        return np.sqrt(times(pattern, True, values**2, cotangent**2))
    return times(pattern, True, values, cotangent)
