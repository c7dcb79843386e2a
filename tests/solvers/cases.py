"""Named cases that every solver must judge rightly: where to start, and whether a root may be claimed."""

from __future__ import annotations

import numpy as np

#: Solvers that this directory tests; each must find the easy roots and claim no false ones.
SOLVERS = ("newton", "trust_region", "levenberg_marquardt", "chord", "newton_krylov", "pseudo_transient", "broyden")
ALL = (*SOLVERS, "df_sane", "auto")


def rosenbrock(y, a):
    return np.stack([10 * (y[..., 1] - y[..., 0] ** 2), a - y[..., 0]], -1)


def powell_singular(y):
    a, b, c, d = (y[..., k] for k in range(4))
    return np.stack([a + 10 * b, 5**0.5 * (c - d), (b - 2 * c) ** 2, 10**0.5 * (a - d) ** 2], -1)


#: name: (residual, start, roots): the roots that may be claimed, to the accuracy that the multiplicity allows
ROOTED = {
    "at the root": (lambda y: y**2 - 4, [2.0], [2.0]),
    "regular": (lambda y: np.exp(y) - 3, [0.5], [np.log(3.0)]),
    "at zero": (np.sin, [0.5], [0.0]),
    "unknown of size 1e-14": (lambda y: y - 1e-14 * (1 + y), [1.0], [1e-14 / (1 - 1e-14)]),
    "double": (lambda y: (y - 1) ** 2, [3.0], [1.0]),
}
#: name: (residual, start): there is no root, and none may be claimed
ROOTLESS = {
    "no root": (lambda y: y**2 + 1, [3.0]),
    "pole, near": (lambda y: 1 / (y - 1), [1 + 1e-6]),
    "pole, far": (lambda y: 1 / (y - 1), [5.0]),
    "falls to zero at infinity": (lambda y: np.exp(-y), [1.0]),
    "jump": (lambda y: np.where(y > 0.3, 1.0, -1.0) * (1 + np.abs(y - 0.3)), [3.0]),
    "hidden behind a stiff row": (lambda y: np.stack([1e12 * (y[0] - 1), 1e-3 + (y[1] - 1) ** 2]), [3.0, 3.0]),
}
