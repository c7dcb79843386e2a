"""What is minimised: equations as a vector with their loss, or an objective, and the gradient, whose root it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

from rootdiff._backend import Array, Backend, Function
from rootdiff._bounds import Box, bound_vectors, condition
from rootdiff._constraints import Objective
from rootdiff._residual import Residual
from rootdiff._structure import Structure

Loss = Literal["linear", "soft_l1", "huber", "cauchy", "arctan"]
LOSSES: tuple[str, ...] = get_args(Loss)


def with_loss(xp: Any, loss: str | Objective, r: Array) -> Array:
    """Return what to square in place of `r`, elementwise, so that the squares are the loss rho(r^2).

    The names and their rho are SciPy's. So a robust loss is another residual. No r is squared that is larger than 1.
    """
    if loss == "linear" or isinstance(loss, Objective):
        return r
    one, size = xp.ones_like(r), xp.abs(r)
    large, small = size > 1, size < float(xp.finfo(r.dtype).eps) ** 0.5  # where rho(z) is z to rounding
    z, above = xp.where(large, one, r) ** 2, xp.where(large, size, one)
    if loss == "huber":
        return r * xp.sqrt((2 - 1 / above) / above)
    over = (1 / above) ** 2
    if loss == "soft_l1":
        return r * xp.sqrt(2 / (1 + xp.where(large, above * xp.sqrt(1 + over), xp.sqrt(1 + z))))
    z = xp.where(small, one, z)
    if loss == "cauchy":
        rho = xp.where(large, 2 * xp.log(above) + xp.log1p(over), xp.log1p(z))
    else:
        rho = xp.where(large, math.pi / 2 - xp.atan(over), xp.atan(z))
    return xp.where(small, r, xp.sign(r) * xp.sqrt(rho))


def slopes_of_loss(xp: Any, loss: str, r: Array) -> tuple[Array, Array]:
    """Return the first and the second derivative of half the loss, rho(r^2) / 2, elementwise."""
    if loss == "linear":
        return r, xp.ones_like(r)
    large = xp.abs(r) > 1
    above = xp.where(large, xp.abs(r), xp.ones_like(r))
    cut, inverse = r / above, 1 / above
    if loss == "huber":
        return cut, xp.where(large, xp.zeros_like(r), xp.ones_like(r))
    if loss == "soft_l1":
        size = xp.sqrt(cut**2 + inverse**2)
        return cut / size, (inverse / size) ** 3
    k = 2 if loss == "cauchy" else 4
    whole = cut**k + inverse**k
    return cut * inverse ** (k - 1) / whole, inverse**k * (inverse**k - (k - 1) * cut**k) / whole**2


def flat_equations(
    function: Callable[..., Any],
    structure: Structure,
    rebuild: Callable[..., tuple[Any, ...]],
    loss: str | Objective,
    has_aux: bool = False,
    bounds: Any = None,
) -> Function:
    """Return the user's equations, of any structure, as a function of a flat vector to (*batch, m), with their loss.

    Of an objective it is that, followed by the constraints. With `bounds` the lower ones follow, then the upper ones,
    (*batch, m + 2 n).
    """

    def flat(y: Array, *parameters: Array) -> Array:
        args = rebuild(*parameters)
        output = structure.backend.call(function, structure.unravel(y), args)
        if has_aux:
            output, _ = structure.with_aux("residual", output)
        if isinstance(loss, Objective):
            value, *rest = output if loss.multipliers else (output,)
            rest = [structure.constraint(*each, y.dtype) for each in zip(loss.names, rest, strict=True)]
            found = structure.backend.xp.concat([structure.objective(value, y.dtype), *rest], axis=-1)
        else:
            found = with_loss(structure.backend.xp, loss, structure.equations(output, y.dtype))
        if bounds is None:
            return found
        return structure.backend.xp.concat([found, *flat_bounds(structure, bounds, args, y, loss)], axis=-1)

    return flat


def flat_bounds(
    structure: Structure, bounds: Any, args: tuple[Any, ...], y: Array, loss: str | Objective | None
) -> tuple[Array, Array]:
    """Return the bounds of a minimum, given or a function of `args`, as vectors like `y`."""
    if callable(bounds):
        bounds = structure.backend.call(lambda _, *args: bounds(*args), (), args)
    if not isinstance(loss, Objective):
        return bound_vectors(structure, bounds, y)
    unknowns = y[..., : y.shape[-1] - loss.multipliers]
    return loss.limits(structure.backend.xp, *bound_vectors(replace(structure, multipliers=0), bounds, unknowns))


def of_what(loss: str | Objective, minimised: Residual) -> dict[str, Any]:
    """Return the field of a gradient, a `Residual`, that holds what is minimised."""
    if not isinstance(loss, Objective):
        return {"squares": minimised}
    return {"constrained" if loss.multipliers else "objective": minimised}


def gradient(backend: Backend, equations: Function, loss: str | Objective, bounded: bool = False) -> Function:
    """Return J^T r of equations r, or the gradient of an objective, as a function of the same inputs.

    With constraints it is that of the Lagrangian, which has a maximum along the multipliers: there its sign is another.

    It is differentiable in all of them. The derivative of its root has the whole Hessian, J^T J + sum r_i H_i. Where
    the equations are followed by bounds, it is what is zero at a minimum within these.
    """
    xp = backend.xp

    def function(y: Array, *parameters: Array) -> Array:
        value, pullback = backend.vjp(lambda y: equations(y, *parameters), (y,))
        r, *limits = _parted(value, y) if bounded else (value,)
        weights = loss.weights(xp, r, y) if isinstance(loss, Objective) else r
        found = pullback(xp.concat([weights, *map(xp.zeros_like, limits)], axis=-1) if limits else weights)[0]
        if isinstance(loss, Objective) and loss.multipliers:
            found = found + loss.rest(xp, r, y)
        return condition(xp, y, found, *limits) if limits else found

    return function


def _parted(value: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return equations, lower and upper bounds of unknowns `y` that follow one another."""
    n = y.shape[-1]
    return value[..., : -2 * n], value[..., -2 * n : -n], value[..., -n:]


def minimised(found: Residual, loss: str | Objective, bounded: bool = False) -> Residual:
    """Return the gradient of the equations, or the objective, that `found` is, which may be followed by bounds."""
    flat, backend = found.function, found.backend
    pattern = None if found.pattern is None else found.pattern.normal
    whole = replace(found, function=gradient(backend, flat, loss, bounded), pattern=pattern)
    if not bounded:
        return replace(whole, **of_what(loss, found))

    def of_y(y: Array, *parameters: Array) -> Array:
        return _parted(flat(y, *parameters), y)[0]

    def limits(y: Array) -> tuple[Array, Array]:
        return _parted(flat(y, *found.parameters), y)[1:]

    box = Box(replace(found, function=gradient(backend, of_y, loss), pattern=pattern), limits)
    return replace(whole, **of_what(loss, replace(found, function=of_y)), box=box)
