"""Conditions of optimality as residuals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rootdiff._adapter import Adapter
from rootdiff._errors import ArgumentError, ArgumentTypeError
from rootdiff._task import check_function


@dataclass(frozen=True)
class Conditions:
    """Residuals of what minimises an objective, for `root` and `implicit`.

    By these the answer of any optimiser has a derivative. An objective is a function ``(y, *args)`` of a real y that
    returns a number, or one per system of a batch; several numbers are summed. All are conditions of first order: a
    maximum meets them too.

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

        `projection` returns the nearest point of the set. At a kink of it, as at a bound with a gradient of zero, y has
        one-sided derivatives only: what is returned is one of them, or lies between them.
        """
        check_function("projection", projection)
        gradient, backend = self.stationarity(objective), self._adapter.backend()

        def residual(y: Any, *args: Any) -> Any:
            leaves, tree = backend.flatten(y)
            slopes = backend.flatten(gradient(y, *args))[0]
            moved = backend.unflatten(tree, [a - b for a, b in zip(leaves, slopes, strict=True)])
            back, other = backend.flatten(projection(moved, *args))
            if other != tree or [getattr(a, "shape", None) for a in back] != [a.shape for a in leaves]:
                raise ArgumentError("projection: it returned another structure, or other shapes, than those of y.")
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
        is the function of Fischer and Burmeister, ``u - g - sqrt(u^2 + g^2)``. Where both are zero, weakly active, y
        has one-sided derivatives only: PyTorch and JAX refuse one where both are below the square root of the precision
        times the largest unknown, and NumPy's differences may give one between them.

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
            y, *multipliers = unknown if isinstance(unknown, tuple | list) else (unknown,)
            if len(multipliers) != len(kinds):
                names = ", ".join(["y", *(f"multipliers of {name}" for name, _ in kinds)])
                raise ArgumentError(f"kkt: the unknown has {len(multipliers)} multipliers; give the tuple ({names}).")
            values = [kind(y, *args) for _, kind in kinds]
            for (name, _), u, value in zip(kinds, multipliers, values, strict=True):
                returned, given = getattr(value, "shape", ()), getattr(u, "shape", ())
                if not returned or returned != given:
                    raise ArgumentError(
                        f"kkt: {name} returned an array of shape {returned}, and its multipliers have shape {given}; "
                        "both must be (*batch, number)."
                    )

            def lagrangian(y: Any) -> Any:
                terms = (xp.sum(u * kind(y, *args), axis=-1) for (_, kind), u in zip(kinds, multipliers, strict=True))
                return sum(terms, start=objective(y, *args))

            conditions = [self._gradient(lagrangian, y)]
            for (name, _), u, value in zip(kinds, multipliers, values, strict=True):
                conditions.append(value if name == "equality" else u - value - self._length(u, value, y))
            return tuple(conditions)

        return residual

    def _length(self, u: Any, g: Any, y: Any) -> Any:
        """Return sqrt(u^2 + g^2), (*batch, number); its derivative is NaN where both are zero to half the digits."""
        backend = self._adapter.backend()
        xp, square = backend.xp, u * u + g * g
        sizes = [xp.max(xp.abs(xp.reshape(part, (*u.shape[:-1], -1))), axis=-1) for part in (u, *backend.flatten(y)[0])]
        of_y = xp.max(xp.stack(sizes[1:]), axis=0)
        part = float(xp.finfo(u.dtype).eps) ** 0.5
        least, largest = part * of_y[..., None], part * xp.maximum(sizes[0], of_y)[..., None]
        weak = (xp.abs(g) <= least) & (xp.abs(u) <= largest)
        return xp.sqrt(square) + 0 * xp.sqrt(xp.where(weak, 0 * square, xp.ones_like(square)))

    def _gradient(self, objective: Callable[..., Any], y: Any) -> Any:
        backend = self._adapter.backend()
        backend = backend.refined or backend
        leaves, tree = backend.flatten(y)
        if any(backend.xp.isdtype(leaf.dtype, "complex floating") for leaf in leaves):
            raise ArgumentTypeError("conditions: y is complex; write the objective in its real and imaginary parts.")

        def numbers(*leaves: Any) -> Any:
            value = objective(backend.unflatten(tree, leaves))
            if backend.measures and isinstance(value, Real):  # in NumPy, a number without a dtype
                value = backend.xp.asarray(value)
            if not backend.is_array(value):
                raise ArgumentTypeError(f"objective: it returned {value!r}; it must return an array of numbers.")
            return value[..., None]

        value, pullback = backend.vjp(numbers, leaves)
        return backend.unflatten(tree, pullback(backend.xp.ones_like(value)))
