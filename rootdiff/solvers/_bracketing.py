"""The bracketing methods: where in the bracket to look next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff.solvers._bracket import Bracket, BracketSolver, half_width


@dataclass(frozen=True, kw_only=True)
class Bisection(BracketSolver):
    """Bisection: one bit of the root per step, whatever the function.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the width of the bracket.

    References
    ----------
    Brent (1973), "Algorithms for Minimization Without Derivatives", chapter 4.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root_scalar(lambda y, a: y**2 - a, (0.0, 2.0), np.array([1.0, 2.0]), solver="bisection")
    >>> np.round(sol.y, 6)
    array([1.      , 1.414214])
    """

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        return residual.xp.full_like(at.a, 0.5)


@dataclass(frozen=True, kw_only=True)
class Chandrupatla(BracketSolver):
    """Chandrupatla's method: inverse quadratic interpolation where it is safe, else bisection.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the width of the bracket.

    References
    ----------
    Chandrupatla (1997), "A new hybrid quadratic/bisection algorithm for finding the zero of a nonlinear function
    without using derivatives".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root_scalar(lambda y, a: y**2 - a, (0.0, 2.0), np.array([1.0, 2.0]), solver="chandrupatla").y
    array([1.        , 1.41421356])
    """

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        xp = residual.xp
        a, b, c, f_a, f_b, f_c = at.a, at.b, at.c, at.f_a, at.f_b, at.f_c
        xi, phi = (a - b) / _safe(xp, c - b), (f_a - f_b) / _safe(xp, f_c - f_b)
        # the region of the (xi, phi) plane in which the interpolation is monotone: eq. 5
        monotone = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        slant = f_a / _safe(xp, f_b - f_a) * f_c / _safe(xp, f_b - f_c)
        bend = (c - a) / _safe(xp, b - a) * f_a / _safe(xp, f_c - f_a) * f_b / _safe(xp, f_c - f_b)
        return xp.where(monotone, slant + bend, 0.5)


@dataclass(frozen=True, kw_only=True)
class ITP(BracketSolver):
    """The ITP method: superlinear, and never more than one step behind bisection.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the width of the bracket.

    References
    ----------
    Oliveira & Takahashi (2020), "An enhancement of the bisection method average performance preserving minmax
    optimality", algorithm 1, with kappa_1 = 0.2 per width, kappa_2 = 2 and n_0 = 1.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root_scalar(lambda y, a: y**2 - a, (0.0, 2.0), np.array([1.0, 2.0]), solver="itp").y
    array([1.        , 1.41421356])
    """

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        xp = residual.xp
        width = half_width(xp, at.a, at.b)
        false_position = at.f_a / _safe(xp, at.f_a - at.f_b)  # all as fractions of the way from a to b
        side = xp.sign(0.5 - false_position)
        truncation = 0.2 * width / _safe(xp, at.width)
        truncated = xp.where(truncation <= xp.abs(0.5 - false_position), false_position + side * truncation, 0.5)
        slack = at.pace / _safe(xp, width) - 0.5  # what bisection, one step late, would have left, in half widths
        slack = xp.maximum(slack, xp.zeros_like(slack))
        return xp.where(xp.abs(truncated - 0.5) <= slack, truncated, 0.5 - side * slack)


@dataclass(frozen=True, kw_only=True)
class BracketedNewton(BracketSolver):
    """Newton's method within a bracket: bisection where a step would leave it or converge too slowly.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the width of the bracket.

    References
    ----------
    Dahlquist & Björck (2008), "Numerical Methods in Scientific Computing", volume I, section 6.3.2.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root_scalar(lambda y, a: y**2 - a, (0.0, 2.0), np.array([1.0, 2.0]), solver="bracketed_newton").y
    array([1.        , 1.41421356])
    """

    def fraction(self, residual: Residual, at: Bracket, allowed: Array) -> Array:
        xp = residual.xp
        slope = residual.jacobian(at.a)[..., 0]
        step = -at.f_a / _safe(xp, slope)
        t = step / _safe(xp, at.b - at.a)
        fast = xp.abs(step) <= 0.5 * at.moved
        # Newton's steps narrow the bracket at the end only: they may fall ten steps behind bisection at half pace
        count = xp.astype(at.count, slope.dtype)[..., None]
        fast = fast & (half_width(xp, at.a, at.b) <= at.width * 2.0 ** (10 - 0.5 * count))
        return xp.where((t > 0) & (t < 1) & fast, t, 0.5)


def _safe(xp: Any, value: Array) -> Array:
    """Return `value` with zeros replaced, where a quotient is not used."""
    return xp.where(value == 0, xp.finfo(value.dtype).smallest_normal, value)
