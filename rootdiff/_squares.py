"""Sums of squares: the user's equations as a vector, their loss, and the gradient, whose root the minimum is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from rootdiff._backend import Array, Backend, Function
from rootdiff._errors import ArgumentError
from rootdiff._structure import Structure

Loss = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]
_LOSSES: tuple[str, ...] = get_args(Loss)


def check_loss(loss: Any) -> None:
    """Raise unless `loss` is the name of one."""
    if loss not in _LOSSES:
        raise ArgumentError(f"loss: got {loss!r}; allowed are {', '.join(map(repr, _LOSSES))}.")


def with_loss(xp: Any, loss: str, r: Array) -> Array:
    """Return what to square in place of `r`, elementwise, so that the squares are the loss rho(r^2).

    The names and their rho are SciPy's. So a robust loss is another residual, and has no rule of its own.
    """
    if loss == "linear":
        return r
    small = xp.abs(r) < float(xp.finfo(r.dtype).eps) ** 0.5  # there rho(z) is z to rounding
    z = xp.where(small, xp.ones_like(r), r * r)
    if loss == "soft_l1":
        part = 2 / (1 + xp.sqrt(1 + r * r))
    elif loss == "huber":
        large = xp.where(xp.abs(r) > 1, z, xp.ones_like(r))
        part = (2 * xp.sqrt(large) - 1) / large
    else:
        part = (xp.log1p(z) if loss == "cauchy" else xp.atan(z)) / z
        part = xp.where(small, xp.ones_like(r), part)
    return r * xp.sqrt(part)


def flat_equations(
    function: Callable[..., Any],
    structure: Structure,
    rebuild: Callable[..., tuple[Any, ...]],
    loss: str,
    has_aux: bool = False,
) -> Function:
    """Return the user's equations, of any structure, as a function of a flat vector to (*batch, m), with their loss."""

    def flat(y: Array, *parameters: Array) -> Array:
        output = structure.backend.call(function, structure.unravel(y), rebuild(*parameters))
        if has_aux:
            output, _ = structure.with_aux("residual", output)
        return with_loss(structure.backend.xp, loss, structure.equations(output, y.dtype))

    return flat


def gradient(backend: Backend, equations: Function) -> Function:
    """Return J^T r of equations r as a function of the same inputs, differentiable in all of them.

    The derivative of its root has the whole Hessian, J^T J + sum r_i H_i.
    """

    def function(y: Array, *parameters: Array) -> Array:
        value, pullback = backend.vjp(lambda y: equations(y, *parameters), (y,))
        return pullback(value)[0]

    return function
