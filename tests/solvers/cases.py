"""Named cases that every solver must judge rightly: where to start, and whether a root may be claimed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace as xp

from tests.harness import HARNESSES

#: Solvers that this directory tests; each must find the easy roots and claim no false ones.
SOLVERS = ("newton", "trust_region", "levenberg_marquardt", "chord", "newton_krylov", "pseudo_transient", "broyden")
ALL = (*SOLVERS, "df_sane", "auto")


def on_backends(solvers: Iterable[Any], jax: Iterable[Any] = ()) -> list[Any]:
    """Return the pairs of a harness and a solver; those of JAX wait for test-all, a second each, but for a few."""
    few = list(jax)
    return [
        pytest.param(
            HARNESSES[name](),
            solver,
            id=f"{name}-{solver}",
            marks=[pytest.mark.exhaustive] if name == "jax-jit" and solver not in few else [],
        )
        for solver in solvers
        for name in ("numpy", "torch", "jax-jit")
    ]


def rosenbrock(y, a):
    return xp(y).stack([10 * (y[..., 1] - y[..., 0] ** 2), a - y[..., 0]], axis=-1)


def powell_singular(y):
    a, b, c, d = (y[..., k] for k in range(4))
    rows = [a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2]
    return xp(y).stack(rows, axis=-1)


def _jump(y):
    side = xp(y).where(y > 0.3, xp(y).ones_like(y), -xp(y).ones_like(y))
    return side * (1 + xp(y).abs(y - 0.3))


def _stiff(y):
    return xp(y).stack([1e12 * (y[0] - 1), 1e-3 + (y[1] - 1) ** 2])


#: name: (residual, start, roots): the roots that may be claimed, to the accuracy that the multiplicity allows
ROOTED = {
    "at the root": (lambda y: y**2 - 4, [2.0], [2.0]),
    "regular": (lambda y: xp(y).exp(y) - 3, [0.5], [np.log(3.0)]),
    "at zero": (lambda y: xp(y).sin(y), [0.5], [0.0]),
    "unknown of size 1e-14": (lambda y: y - 1e-14 * (1 + y), [1.0], [1e-14 / (1 - 1e-14)]),
    "double": (lambda y: (y - 1) ** 2, [3.0], [1.0]),
}
#: name: (residual, start): there is no root, and none may be claimed
ROOTLESS = {
    "no root": (lambda y: y**2 + 1, [3.0]),
    "pole, near": (lambda y: 1 / (y - 1), [1 + 1e-6]),
    "pole, far": (lambda y: 1 / (y - 1), [5.0]),
    "falls to zero at infinity": (lambda y: xp(y).exp(-y), [1.0]),
    "jump": (_jump, [3.0]),
    "hidden behind a stiff row": (_stiff, [3.0, 3.0]),
}
