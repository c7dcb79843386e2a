"""Constraints of a minimum, and the Lagrangian that makes of them unknowns and equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._structure import Structure


@dataclass(frozen=True)
class Constraints:
    """What holds at a minimum: ``equality(y, *args) = 0`` and ``inequality(y, *args) <= 0``.

    Parameters
    ----------
    equality, inequality : callable, optional
        Functions of the unknowns and the arguments of `minimize` that return a real floating array, (*batch, number);
        of one system a number, or a list of numbers, too. The sign is that of `conditions.kkt`.

    Examples
    --------
    >>> import numpy as np, rootdiff as rd
    >>> constraints = rd.Constraints(equality=lambda y, a: y[0] + y[1] - a)
    >>> sol = rd.minimize(lambda y, a: np.sum(y**2), np.ones(2), np.array([1.0]), constraints=constraints)
    >>> sol.y.round(6), sol.multipliers["equality"].round(6)
    (array([0.5, 0.5]), array([-1.]))
    """

    equality: Callable[..., Any] | None = None
    inequality: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name in ("equality", "inequality"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ArgumentTypeError(f"{name}: got {value!r}; it must be a function, or None.")

    @property
    def names(self) -> list[str]:
        """Those of the kinds that there are."""
        return [name for name in ("equality", "inequality") if getattr(self, name) is not None]


def with_constraints(objective: Callable[..., Any], constraints: Any, has_aux: bool) -> Callable[..., Any]:
    """Return the function of the same inputs to a tuple of the objective and what is constrained.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If these are not `Constraints`, or none.
    """
    if not isinstance(constraints, Constraints):
        raise ArgumentTypeError(
            f"constraints: got {constraints!r}; it must be Constraints(equality=..., inequality=...), functions "
            "(y, *args) that are zero, and at most zero. For {'type': 'ineq', 'fun': f} of SciPy, where f is at least "
            "zero, give Constraints(inequality=lambda y, *args: -f(y, *args))."
        )
    if not constraints.names:
        raise ArgumentError("constraints: there are none in it. Give equality, or inequality, or leave it away.")
    return partial(_values, objective, constraints.equality, constraints.inequality, has_aux)


def _values(objective: Any, equality: Any, inequality: Any, has_aux: bool, y: Any, *args: Any) -> Any:
    found = objective(y, *args)
    rest = [function(y, *args) for function in (equality, inequality) if function is not None]
    if has_aux and any(isinstance(values, tuple) for values in rest):
        raise ArgumentError(
            "constraints: one returned a tuple. has_aux=True asks for (value, aux) of the objective only."
        )
    if not has_aux:
        return (found, *rest)
    # what is no pair is told where it is looked at
    return ((found[0], *rest), found[1]) if isinstance(found, tuple) and len(found) == 2 else found


def nearest(
    residual: Callable[..., Any], structure: Structure, near: Array, has_aux: bool
) -> tuple[Callable[..., Any], Constraints]:
    """Return half the square of the distance from a point, as an objective, and a residual as what is zero there."""

    def equations(y: Any, *args: Any) -> Any:
        output = residual(y, *args)
        output = structure.with_aux("residual", output)[0] if has_aux else output
        return structure.equations(output, near.dtype, True)

    def distance(y: Any, *args: Any) -> Any:
        way = structure.ravel(y) - near
        half = structure.backend.xp.sum(way * way, axis=-1) / 2
        return (half, structure.with_aux("residual", residual(y, *args))[1]) if has_aux else half

    return distance, Constraints(equality=equations)


@dataclass(frozen=True)
class Objective:
    """Takes the place of a loss where an objective f is given, followed by so many constraints h = 0, then g <= 0.

    The unknowns are followed by their multipliers, u and v >= 0.
    """

    equality: int = 0
    inequality: int = 0

    @property
    def multipliers(self) -> int:
        """How many there are."""
        return self.equality + self.inequality

    @property
    def names(self) -> list[str]:
        """Those of the kinds of constraints that there are."""
        return [name for name in ("equality", "inequality") if getattr(self, name)]

    def weights(self, xp: Any, values: Array, y: Array) -> Array:
        """Return what the slopes of the values f, h, g sum with to those of the Lagrangian: 1, u, v."""
        return xp.concat([xp.ones_like(values[..., :1]), y[..., y.shape[-1] - self.multipliers :]], axis=-1)

    def rest(self, xp: Any, values: Array, y: Array) -> Array:
        """Return the part of the multipliers in the gradient of the Lagrangian, of which it has a maximum: -h, -g."""
        return xp.concat([xp.zeros_like(y[..., : y.shape[-1] - self.multipliers]), -values[..., 1:]], axis=-1)

    def limits(self, xp: Any, lo: Array, hi: Array) -> tuple[Array, Array]:
        """Return the bounds of the unknowns followed by those of the multipliers: of v it is zero."""
        infinite = xp.full_like(lo[..., :1], xp.inf)
        below = [-infinite] * self.equality + [xp.zeros_like(infinite)] * self.inequality
        return xp.concat([lo, *below], axis=-1), xp.concat([hi, *[infinite] * self.multipliers], axis=-1)

    def parts(self, y: Array) -> dict[str, Array]:
        """Return the multipliers of both kinds."""
        first, last = y.shape[-1] - self.multipliers, y.shape[-1] - self.inequality
        return {"equality": y[..., first:last], "inequality": y[..., last:]}
