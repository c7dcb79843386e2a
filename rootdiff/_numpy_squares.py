"""What is minimised in NumPy: its gradient from a `jac` that the user gives, or from measured slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rootdiff._arguments import is_parameter
from rootdiff._backend import Array
from rootdiff._bounds import Box, condition, sides
from rootdiff._constraints import Objective
from rootdiff._derivatives import DerivativeRules, GivenResidual, as_array, of_matrix
from rootdiff._errors import ArgumentError
from rootdiff._fixed_steps import FixedSteps, kept
from rootdiff._line import Measured
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._slopes import Slopes
from rootdiff._space import norm2
from rootdiff._squares import flat_bounds, flat_equations, of_what, slopes_of_loss, with_loss
from rootdiff._structure import Structure
from rootdiff._task import Task


def of_squares(task: Task, equations: Residual, structure: Structure, args: tuple[Any, ...]) -> Residual:
    """Return the gradient of what is minimised, of the user's `jac` or of differences of higher order."""
    backend: Any = equations.backend
    loss, (_, rebuild) = task.options.loss, task.split(args)
    assert loss is not None
    within = task.options.within
    if within is not None:
        backend = replace(backend, box=flat_bounds(structure, within, args, task.start, loss))
    without = loss if isinstance(loss, Objective) else "linear"
    count = loss.multipliers if isinstance(loss, Objective) else 0
    inner = replace(backend.refined or replace(backend, quick=True), blind=count)
    rules = DerivativeRules(task.options.jac, None, None, structure, args, is_parameter)
    plain = flat_equations(task.function, structure, rebuild, without, task.options.has_aux)

    def at(*parameters: Any) -> Residual:
        if rules.jac is None:
            return replace(equations, function=plain, parameters=parameters, backend=inner)
        return GivenEquations(plain, parameters, inner, replace(rules, args=rebuild(*parameters)))

    found = at(*equations.parameters)
    if isinstance(loss, str) and loss != "linear":
        found = WithLoss(plain, equations.parameters, inner, plain=found, loss=loss)
    outer = replace(backend, derivatives="finite-difference", diff_step=None)
    measured = None if rules.jac or inner.complex_step else at(*equations.parameters)
    free = Gradient.of(lambda y, *parameters: at(*parameters).with_jacobian(y), loss, found, outer, measured)
    if within is None:
        return free
    return Bounded.of(free, lambda y, *parameters: flat_bounds(structure, within, rebuild(*parameters), y, loss))


@dataclass(frozen=True)
class GivenEquations(GivenResidual):
    """What is minimised, with the Jacobian that the user gives; both are without a loss."""

    def _given(self, y: Array) -> Any:
        structure = self.rules.structure
        assert self.rules.jac is not None
        if len(structure.shapes) > 1 or structure.complex_leaves[0]:
            raise ArgumentError("jac: least_squares and minimize take it only if y0 is one real array. Leave it out.")
        given = as_array(structure.backend.call(self.rules.jac, structure.unravel(y), self.rules.args))
        r = super()._of_y(y)
        batch, shape, size = structure.batch, structure.shapes[0], r.shape[-1] * y.shape[-1]
        inner = given.shape[len(batch) : given.ndim - len(shape)]
        if given.shape != (*batch, *inner, *shape) or given.size != math.prod(batch) * size or np.iscomplexobj(given):
            raise ArgumentError(
                f"jac: it returned {given.dtype} of shape {given.shape}, but must return real numbers: the batch axes, "
                f"those of the residual, {r.shape[-1]} in all, those of y, {shape}."
            )
        return np.astype(given.reshape(*batch, -1, y.shape[-1]), y.dtype)


@dataclass(frozen=True)
class WithLoss(Residual):
    """Equations with a loss, from those without it: a slope of the loss is known, and not that of differences."""

    plain: Residual = field(kw_only=True)
    loss: str = field(kw_only=True)

    def _of_y(self, y: Array) -> Array:
        return with_loss(np, self.loss, self.plain(y))

    def check_rules(self, y: Array, where: Array) -> None:
        self.plain.check_rules(y, where)

    def with_jacobian(self, y: Array) -> tuple[Array, Array]:
        r, matrix = self.plain.with_jacobian(y)
        return with_loss(np, self.loss, r), self._slopes(r)[..., None] * matrix

    def operator(self, y: Array) -> LinearOperator:
        plain, slopes = self.plain.operator(y), self._slopes(self.plain(y))[..., None]
        errors = plain.errors
        return replace(
            of_matrix(self.backend, lambda: slopes * plain.dense(), plain.precision, plain.shape),
            errors=None if errors is None else lambda: np.abs(slopes) * errors(),
        )

    def _slopes(self, r: Array) -> Array:
        value = with_loss(np, self.loss, r)
        return np.where(value == 0, 1, slopes_of_loss(np, self.loss, r)[0] / value)


def _of_smooth(name: str) -> Any:
    """Return the method that asks the residual of `Smoothed.at`."""

    def ask(self: Smoothed, y: Array, *args: Any) -> Any:
        return getattr(self.at(y), name)(y, *args)

    return ask


class Smoothed(Residual):
    """A residual whose derivatives at a point are those of a smoother one, `at` that point."""

    with_jacobian, jvp, vjp, jacobian, products = map(
        _of_smooth, ("with_jacobian", "jvp", "vjp", "jacobian", "products")
    )
    parameter_jvp, parameter_vjps, parameter_errors = map(
        _of_smooth, ("parameter_jvp", "parameter_vjps", "parameter_errors")
    )

    def operator(self, y: Array) -> LinearOperator:
        return replace(self.at(y).operator(y), finer=self.finer(y))


@dataclass(frozen=True)
class Gradient(Smoothed):
    """The gradient J^T psi(r) of a sum of losses of equations r, psi being half the slope of the loss.

    Of an objective with constraints psi are the weights in the Lagrangian, and its gradient has a part without J.

    Attributes
    ----------
    parts : callable. ``parts(y, *parameters)`` returns r, (*batch, m), and J, (*batch, m, n), without the loss.
    loss : str or Objective
    measured : Residual or None. The equations without the loss, where J is that of differences.
    """

    parts: Callable[..., tuple[Array, Array]] = field(kw_only=True)
    loss: str | Objective = field(kw_only=True)
    measured: Residual | None = field(kw_only=True)

    @classmethod
    def of(
        cls,
        parts: Callable[..., tuple[Array, Array]],
        loss: str | Objective,
        equations: Residual,
        backend: Any,
        measured: Residual | None,
    ) -> Gradient:
        def function(y: Array, *parameters: Array) -> Array:
            r, matrix = parts(y, *parameters)
            return _product(matrix, _slopes(loss, r, y)[0]) + _rest(loss, r, y)

        whole = of_what(loss, equations)
        return cls(function, equations.parameters, backend, parts=parts, loss=loss, measured=measured, **whole)

    def only(self, places: Sequence[int]) -> Gradient:
        parts = Residual(self.parts, self.parameters, self.backend).only(places).function
        measured = self.measured and self.measured.only(places)
        return replace(super().only(places), parts=parts, measured=measured)  # type: ignore[return-value, call-arg]

    def at(self, y: Array) -> Residual:
        """Return what has the same derivatives at `y`, and neither kinks of the loss nor measured slopes times J."""
        if self.measured is not None:
            return self._smooth(replace(self.measured, parameters=self.parameters), y)
        r, matrix = self.parts(y, *self.parameters)
        slope, curvature = _slopes(self.loss, r, y)

        def function(y: Array, *parameters: Array) -> Array:
            other, slopes = self.parts(y, *parameters)
            return _product(slopes, slope) + self._moved(matrix, (slope, curvature), r, other, y)

        return Residual(function, self.parameters, self.backend, pattern=self.pattern)

    def _smooth(self, equations: Residual, y: Array) -> Residual:
        """Return what `at` does where J is measured: with fixed steps, the errors of which differences are told."""
        backend: Any = self.backend
        base = y
        near, half = kept(equations._of_y, y), backend.box and tuple(y + 0.49 * (limit - y) for limit in backend.box)
        r = near(y)
        slopes = equations.backend.slopes(near, (y,), r, backend.box, backend.scale)  # type: ignore[attr-defined]
        matrix, off, _ = slopes.jacobian()
        slope, curvature = _slopes(self.loss, r, y)
        gradient = _product(matrix, slope)
        error, noise = norm2(np, np.matrix_transpose(off) * slope[..., None, :]), slopes.noise
        known: dict[str, Any] = {"unit": backend.scale, "told": slopes.told, "blind": slopes.blind}
        probe = Slopes(near, (y,), r, box=half, measured=Measured(noise), **known)
        steps = FixedSteps.found(probe, r, (slope, curvature), gradient, error)
        steps = replace(steps, fine=backend.fine)
        first = steps.jacobian(near, y)

        def function(y: Array, *parameters: Array) -> Array:
            known = all(a is b for a, b in zip(parameters, self.parameters, strict=True))
            # at the base it is called again, which shows whether it is random
            f = near if known and np.any(y != base) else lambda y: equations.function(y, *parameters)
            change = _product(steps.jacobian(f, y) - first, slope)
            return gradient + change + self._moved(matrix, (slope, curvature), r, f(y), y)

        errors, lengths = steps.errors(norm2(np, slope * noise)), np.abs(steps.steps)
        if slopes.blind:  # entries of the gradient that are constraints are no slopes
            errors = np.concat([errors, noise[..., 1:]], axis=-1)
            further = float(np.finfo(y.dtype).eps) ** (1 / 3) * backend.lengths(y)
            lengths = np.concat([lengths, np.moveaxis(further, -1, 0)[len(lengths) :]])
        outer = replace(backend, box=half, measured=Measured(errors, lengths))
        return Residual(function, self.parameters, outer, pattern=self.pattern)

    def _moved(self, matrix: Array, slopes: tuple[Array, Array], r: Array, other: Array, y: Array) -> Array:
        """Return what the gradient has at `y`, where the equations are `other`, by other slopes than those at r."""
        if isinstance(self.loss, Objective):
            return _product(matrix, self.loss.weights(np, other, y) - slopes[0]) + _rest(self.loss, other, y)
        return _product(matrix, slopes[1] * (other - r))


@dataclass(frozen=True)
class Bounded(Smoothed):
    """What is zero at a minimum within bounds: the gradient, or how far y is from the bound that takes its place.

    Attributes
    ----------
    limits : callable. ``limits(y, *parameters)`` returns the lower and the upper bounds, both like y.
    """

    limits: Callable[..., tuple[Array, Array]] = field(kw_only=True)

    @classmethod
    def of(cls, free: Residual, limits: Callable[..., tuple[Array, Array]]) -> Bounded:
        def function(y: Array, *parameters: Array) -> Array:
            return condition(np, y, free.function(y, *parameters), *limits(y, *parameters))

        box = Box(free, lambda y: limits(y, *free.parameters))
        whole = {name: getattr(free, name) for name in ("squares", "objective", "constrained")}
        return cls(function, free.parameters, free.backend, limits=limits, box=box, **whole)

    def only(self, places: Sequence[int]) -> Bounded:
        limits = Residual(self.limits, self.parameters, self.backend).only(places).function
        return Bounded.of(self.free.only(places), limits)

    def at(self, y: Array) -> Residual:
        """Return what has the same derivatives at `y`, where each bound stays what it is, active or not."""
        free = replace(self.free, parameters=self.parameters)
        smooth = free.at(y)
        lower, upper = sides(y, smooth(y), *self.limits(y, *self.parameters))

        def function(y: Array, *parameters: Array) -> Array:
            lo, hi = self.limits(y, *parameters)
            return np.where(lower, y - lo, np.where(upper, y - hi, smooth.function(y, *parameters)))

        backend: Any = smooth.backend
        if backend.measured is not None:
            errors = np.where(lower | upper, np.finfo(y.dtype).eps * np.abs(y), backend.measured.errors)
            backend = replace(backend, measured=backend.measured._replace(errors=errors))
        return replace(smooth, function=function, backend=backend)


def _slopes(loss: str | Objective, r: Array, y: Array) -> tuple[Array, Array]:
    """Return psi at r, and its derivative, elementwise."""
    if isinstance(loss, Objective):
        return loss.weights(np, r, y), np.zeros_like(r)
    return slopes_of_loss(np, loss, r)


def _rest(loss: str | Objective, r: Array, y: Array) -> Any:
    """Return the part of the gradient without J."""
    return loss.rest(np, r, y) if isinstance(loss, Objective) and loss.multipliers else 0


def _product(matrix: Array, vector: Array) -> Array:
    return np.matvec(np.matrix_transpose(matrix), vector)
