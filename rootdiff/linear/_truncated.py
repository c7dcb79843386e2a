"""Approximate adjoints: a few steps of the fixed-point iteration for the linear system itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator
from rootdiff._settings import limited
from rootdiff.linear._base import LinearInfo, LinearSolver, finite_status


@dataclass(frozen=True, kw_only=True)
class Phantom(LinearSolver):
    """Approximate: k damped steps ``x + damping * (A x - b)`` from zero, for A near minus the identity.

    For a fixed point z = cell(z) the Jacobian of the residual is A = G - I, and the steps sum
    ``-damping * (I + damping * A)^j b`` for j < k: the gradient through k damped steps of the cell, of which the
    rest of the series is the bias. It vanishes with k only if the damped cell is a contraction. The bias is not
    checked, only that the result is finite.

    Parameters
    ----------
    steps : int
        Terms of the sum (k), k - 1 products.
    damping : float
        In (0, 1]. Dimensionless.

    References
    ----------
    Geng et al. (2021), "On Training Implicit Models", eq. 10 ("Neumann-series-based phantom gradient").

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> cell = lambda z, x: 0.1 * z + x
    >>> sol = rootdiff.fixed_point(cell, np.array([1.0]), 1.0, adjoint=rootdiff.Phantom(steps=3, damping=1.0))
    >>> np.round(sol.jvp(1.0), 8)  # exact: 1 / 0.9
    array([1.11])
    """

    steps: int = limited(5, least=1)
    damping: float = limited(0.5, above=0, most=1)

    exact: ClassVar[bool] = False

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        x = -self.damping * rhs
        for _ in range(self.steps - 1):
            x = x + self.damping * (operator.matvec(x) - rhs)
        return x, LinearInfo(finite_status(operator.backend.xp, x))


@dataclass(frozen=True, kw_only=True)
class Neumann(LinearSolver):
    """Approximate: the first terms of the Neumann series ``-(b + G b + ... + G^(k-1) b)`` for ``A = G - I``.

    For a fixed point z = cell(z), G is the Jacobian of the cell; the bias is about the k-th power of its spectral
    radius, and is not checked.

    Parameters
    ----------
    terms : int
        Terms of the series (k), k - 1 products.

    References
    ----------
    Lorraine, Vicol & Duvenaud (2020), "Optimizing millions of hyperparameters by implicit differentiation", eq. 4.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> cell = lambda z, x: 0.1 * z + x
    >>> sol = rootdiff.fixed_point(cell, np.array([1.0]), 1.0, adjoint=rootdiff.Neumann(terms=2))
    >>> np.round(sol.jvp(1.0), 8)  # exact: 1 / 0.9
    array([1.1])
    """

    terms: int = limited(5, least=1)

    exact: ClassVar[bool] = False

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        return Phantom(steps=self.terms, damping=1.0).solve(operator, rhs)


@dataclass(frozen=True)
class OneStep(LinearSolver):
    """Approximate: ``x = -b``, as if the Jacobian were minus the identity ("Jacobian-free").

    For a fixed point this is the gradient through one evaluation of the cell at the root. The bias is about the
    spectral radius of the cell's Jacobian, and is not checked.

    References
    ----------
    Fung et al. (2022), "JFB: Jacobian-free backpropagation for implicit networks". Bolte, Pauwels & Vaiter (2023),
    "One-step differentiation of iterative algorithms".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> cell = lambda z, x: 0.1 * z + x
    >>> sol = rootdiff.fixed_point(cell, np.array([1.0]), 1.0, adjoint="one_step")
    >>> np.round(sol.jvp(1.0), 8)  # exact: 1 / 0.9
    array([1.])
    """

    exact: ClassVar[bool] = False

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        return -rhs, LinearInfo(finite_status(operator.backend.xp, rhs))


@dataclass(frozen=True)
class Reuse(LinearSolver):
    """Approximate: the inverse that the solver ended with, as it stands; no product, no factorisation.

    It is the quasi-Newton estimate after `Broyden`, and the factors of the last Jacobian but one after `Newton`. The
    bias is not checked. A solver that hands over neither is an error; where it stopped before it had one (at a start
    that is a root already), the derivative is NaN with a status.

    References
    ----------
    Ramzi et al. (2022), "SHINE: SHaring the INverse Estimate from the forward pass for bi-level optimization and
    implicit models".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), 4.0, solver="newton", adjoint="reuse")
    >>> bool(abs(sol.jvp(1.0)[0] - 0.25) < 1e-6)
    True
    """

    exact: ClassVar[bool] = False

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        if self.known is None:
            raise ArgumentError(
                "adjoint: 'reuse' needs the inverse of the solver, but this one hands over none. "
                "Use solver='broyden' or 'newton', or adjoint='auto'."
            )
        x = operator.inverted_by(self.known)(rhs)
        return x, LinearInfo(finite_status(operator.backend.xp, x))
