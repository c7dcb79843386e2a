"""Conditions of optimality as residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rootdiff._adapter import Adapter, check_function


@dataclass(frozen=True)
class Conditions:
    """Residuals of what minimises an objective, for `root` and `implicit`.

    By these the answer of any optimiser has a derivative. An objective is a function ``(y, *args)`` that returns a
    number, or one per system of a batch. All are conditions of first order: a maximum meets them too.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> condition = rootdiff.conditions.stationarity(lambda y, a: np.sum((y - a) ** 2) + a[0] * np.sum(y**2))
    >>> rootdiff.implicit(condition, np.array([0.5, 1.0]), np.array([1.0, 2.0]), rtol=1e-6).y
    array([0.5, 1. ])
    """

    _adapter: Adapter

    def stationarity(self, objective: Callable[..., Any]) -> Callable[..., Any]:
        """Return the gradient of `objective` with respect to y, a pytree like y.

        In NumPy it is made of differences: write it by hand where more than six digits of a derivative are wanted.
        """
        check_function("objective", objective)

        def residual(y: Any, *args: Any) -> Any:
            return self._gradient(lambda y: objective(y, *args), y)

        return residual

    def projected_gradient(self, objective: Callable[..., Any], projection: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``y - projection(y - gradient, *args)``, zero at a minimum over a convex set.

        `projection` returns the nearest point of the set. Where y is at a kink of it, as at a bound with a gradient of
        zero, there is no derivative.
        """
        check_function("projection", projection)
        gradient, backend = self.stationarity(objective), self._adapter.backend()

        def residual(y: Any, *args: Any) -> Any:
            leaves, tree = backend.flatten(y)
            slopes = backend.flatten(gradient(y, *args))[0]
            moved = backend.unflatten(tree, [a - b for a, b in zip(leaves, slopes, strict=True)])
            back = backend.flatten(projection(moved, *args))[0]
            return backend.unflatten(tree, [a - b for a, b in zip(leaves, back, strict=True)])

        return residual

    def kkt(
        self,
        objective: Callable[..., Any],
        equality: Callable[..., Any] | None = None,
        inequality: Callable[..., Any] | None = None,
    ) -> Callable[..., Any]:
        """Return the conditions of Karush, Kuhn and Tucker for ``equality = 0`` and ``inequality <= 0``.

        The unknown is a tuple: y, then the multipliers of each kind of constraint that is given. Constraints are
        functions ``(y, *args)`` that return one array, (*batch, number). That of an inequality g with its multiplier u
        is the function of Fischer and Burmeister, ``u - g - sqrt(u^2 + g^2)``; where both are zero, weakly active, it
        has no derivative, and neither has y.

        References
        ----------
        Fischer (1992), "A special Newton-type optimization method".
        """
        kinds = [
            (name, kind) for name, kind in (("equality", equality), ("inequality", inequality)) if kind is not None
        ]
        for name, kind in (("objective", objective), *kinds):
            check_function(name, kind)
        xp = self._adapter.backend().xp

        def residual(unknown: Any, *args: Any) -> Any:
            y, *multipliers = unknown

            def lagrangian(y: Any) -> Any:
                terms = (xp.sum(u * kind(y, *args), axis=-1) for (_, kind), u in zip(kinds, multipliers, strict=True))
                return sum(terms, start=objective(y, *args))

            conditions = [self._gradient(lagrangian, y)]
            for (name, kind), u in zip(kinds, multipliers, strict=True):
                value = kind(y, *args)
                conditions.append(value if name == "equality" else u - value - xp.sqrt(u * u + value * value))
            return tuple(conditions)

        return residual

    def _gradient(self, objective: Callable[..., Any], y: Any) -> Any:
        backend = self._adapter.backend()
        backend = backend.refined or backend
        leaves, tree = backend.flatten(y)
        value, pullback = backend.vjp(lambda *leaves: objective(backend.unflatten(tree, leaves))[..., None], leaves)
        return backend.unflatten(tree, pullback(backend.xp.ones_like(value)))
