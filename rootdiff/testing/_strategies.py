"""Hypothesis strategies for residuals, parameters and starts; hypothesis is imported on their first call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rootdiff.testing._families import FAMILIES, Case, make_case

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def residuals(
    families: Sequence[str] | None = None,
    unknowns: tuple[int, int] = (1, 6),
    parameters: tuple[int, int] = (1, 5),
    dtype: Any = np.float64,
    condition: float = 100.0,
) -> SearchStrategy[Case]:
    """Return a strategy for residuals with known roots and derivatives; it shrinks to few unknowns and parameters.

    Parameters
    ----------
    families : sequence of str, optional
        Among those of `make_case`; default all.
    unknowns, parameters : (int, int)
        Smallest and largest number, both included.
    dtype : floating dtype
    condition : float
        Largest condition number of "linear".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> from hypothesis import given
    >>> from rootdiff.testing import residuals
    >>> @given(residuals(["contraction"]))
    ... def test(case):
    ...     np.testing.assert_allclose(rootdiff.root(case.f, case.y0, case.theta).y, case.root, atol=1e-10)
    """
    from hypothesis import strategies as st

    return st.builds(
        lambda family, seed, n, p, decades: make_case(
            family, np.random.default_rng(seed), n, p, dtype, min(10.0**decades, condition)
        ),
        st.sampled_from(list(families or FAMILIES)),
        st.integers(0, 2**16),
        st.integers(*unknowns),
        st.integers(*parameters),
        st.integers(0, max(0, int(np.ceil(np.log10(condition))))),
    )


def parameters(
    shape: int | tuple[int, ...], low: float = -1.0, high: float = 1.0, dtype: Any = np.float64
) -> SearchStrategy[Any]:
    """Return a strategy for parameter arrays, uniform between bounds; it shrinks towards round numbers near zero.

    Parameters
    ----------
    shape : int or tuple of int
    low, high : float
    dtype : floating dtype

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given
    >>> from rootdiff.testing import parameters
    >>> @given(parameters((2, 3), low=1.0, high=2.0))
    ... def test(theta):
    ...     assert theta.shape == (2, 3) and np.all(theta >= 1)
    """
    from hypothesis import strategies as st

    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    width: Any = 16 if np.dtype(dtype).itemsize < 4 else 32 if np.dtype(dtype).itemsize < 8 else 64
    low, high = (float(np.dtype(dtype).type(bound)) for bound in (low, high))
    entry = st.floats(low, high, width=width, allow_subnormal=False)
    size = int(np.prod(shape, dtype=int))
    return st.lists(entry, min_size=size, max_size=size).map(lambda values: np.array(values, dtype).reshape(shape))


def starts(near: Any, radius: float = 0.1) -> SearchStrategy[Any]:
    """Return a strategy for starts around a root, at most `radius` times its size away; it shrinks to the root.

    Parameters
    ----------
    near : array, (*batch, n), floating. The root.
    radius : float
        Relative to the largest unknown, at least relative to one where all are zero. Dimensionless.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given
    >>> from rootdiff.testing import starts
    >>> @given(starts(near=np.array([2.0]), radius=0.5))
    ... def test(y0):
    ...     assert abs(y0[0] - 2) <= 1
    """
    root = np.asarray(near)
    size = float(np.max(np.abs(root), initial=0.0)) or 1.0
    return parameters(root.shape, -1.0, 1.0, root.dtype).map(lambda way: root + root.dtype.type(radius * size) * way)
