"""The reference: central differences of re-solves, by a Newton iteration that shares nothing with the solvers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rootdiff.testing._subject import Subject, Vector

#: Parameter directions that are compared: all unit vectors up to this many, random ones beyond.
_DIRECTIONS = 12
#: Steps of a ladder of differences, each an eighth of the last.
_LADDER = 6


@dataclass(frozen=True)
class Difference:
    """A central difference: value, error estimate per entry, step, and whether the two sides disagree."""

    value: Vector
    error: Vector
    step: float
    kink: bool


@dataclass(frozen=True)
class Reference:
    """A root and its derivatives, known without the package under check.

    Attributes
    ----------
    y : array, (N). The root that Newton's method refines to rounding; `accuracy` its error, (N).
    jacobian, inverse : array, (N, N). By central differences of f.
    condition : float. Of the Jacobian, in the 2-norm, once its rows and columns are scaled.
    directions : array, (p, k)
    slopes : array, (N, k). (df/dtheta) directions, by central differences of f.
    sensitivity, uncertainty : array, (N, k)
        (dy/dtheta) directions by central differences of re-solves, and their error estimate.
    step : float. The largest relative step that was taken.
    kink : bool. Whether the two one-sided differences of a re-solve disagree.
    """

    y: Vector
    accuracy: Vector
    jacobian: Any
    inverse: Any
    condition: float
    directions: Any
    slopes: Any
    sensitivity: Any
    uncertainty: Any
    step: float
    kink: bool

    def implicit(self) -> Any:
        """Return -J^-1 (df/dtheta) directions, (N, k), from differences of f alone."""
        return -self.inverse @ self.slopes


def ladder(function: Callable[[float], Vector], unit: float, noise: Any, eps: float) -> Difference:
    """Return the derivative of `function` at 0, with the step at which its error estimate is least.

    Steps fall from 8 eps^(1/3) `unit`. The estimate is the change from one step to the next, which sees the
    truncation, plus `noise`, the error of `function`, over the step.
    """
    middle = function(0.0)
    best: Difference | None = None
    last: Any = None
    gaps: list[float] = []
    for rung in range(_LADDER):
        step = unit * 8 * eps ** (1 / 3) * 8.0**-rung
        plus, minus = function(step), function(-step)
        value = (plus - minus) / (2 * step)
        gaps.append(float(np.max(np.abs(plus - 2 * middle + minus), initial=0.0)) / step)
        if last is not None and np.all(np.isfinite(value)) and np.all(np.isfinite(last)):
            error = np.abs(value - last) + (noise + eps * np.abs(middle)) / step
            largest = float(np.max(error, initial=0.0))
            if best is None or largest < float(np.max(best.error, initial=0.0)):
                best = Difference(value, error, step, False)
            elif largest > 100 * float(np.max(best.error, initial=0.0)):
                break  # rounding has taken over
        last = value
    if best is None:
        return Difference(np.full_like(middle, np.nan), np.full_like(middle, np.inf), step, False)
    size = float(np.max(np.abs(best.value), initial=0.0))
    rounding = float(np.max(noise + eps * np.abs(middle), initial=0.0)) / best.step
    # the gap of a smooth function falls with the step, that of a kink stays
    kink = len(gaps) > 2 and min(gaps[:3]) > max(0.3 * gaps[0], 1e-3 * size, 100 * rounding)
    return Difference(best.value, best.error, best.step, kink)


def jacobian(subject: Subject, y: Vector, theta: Vector) -> Any:
    """Return df/dy, (N, N), by central differences, each with its own step."""
    scale = scale_of(subject, y)
    f = subject.residual(y, theta)
    noise = subject.eps * np.max(np.abs(f), initial=0.0)
    columns = []
    for place in range(y.size):
        unit = np.zeros(y.size)
        unit[place] = 1.0

        def along(step: float, unit: Vector = unit) -> Vector:
            moved = subject.y.vector(subject.y.native(y + step * unit))
            change = float((moved - y) @ unit)
            f = subject.residual(moved, theta)
            return f if change == 0 or step == 0 else f_at(f, change / step)

        middle = f

        def f_at(f: Vector, ratio: float, middle: Vector = middle) -> Vector:
            return middle + (f - middle) / ratio  # the step that rounding left

        columns.append(ladder(along, scale[place], noise, subject.eps).value)
    return np.stack(columns, axis=-1)


def refine(subject: Subject, y: Vector, theta: Vector, inverse: Any, rounds: int = 40) -> tuple[Vector, Vector]:
    """Return the root near `y` by chord steps with this inverse, and its error, (N): the least correction seen."""
    best, correction = y, np.full_like(y, np.inf)
    idle = 0
    for _ in range(rounds):
        change = inverse @ subject.residual(y, theta)
        if not np.all(np.isfinite(change)):
            break
        if np.max(np.abs(change)) < 0.5 * np.max(np.abs(correction)):
            best, correction, idle = y, np.abs(change), 0
        else:
            idle += 1
        if idle > 2 or not np.any(change):
            break
        y = y - change
    return best, correction + subject.eps * np.abs(best)


def reference(subject: Subject, y: Vector, rng: np.random.Generator) -> Reference:
    """Return the reference at the root near `y`; one with an infinite condition where there is none."""
    theta = subject.theta
    directions = _directions(subject, rng)
    for _ in range(3):
        matrix = jacobian(subject, y, theta)
        if not np.all(np.isfinite(matrix)):
            return _singular(y, matrix, directions)
        inverse, condition = _inverse(matrix, scale_of(subject, y))
        if not condition < 1 / subject.eps:
            return _singular(y, matrix, directions)
        refined, accuracy = refine(subject, y, theta, inverse)
        # rounding in f, which the corrections may miss where f is zero by luck
        accuracy = accuracy + 2 * subject.eps * np.abs(inverse) @ (np.abs(matrix) @ np.abs(refined))
        moved = np.max(np.abs(refined - y) / scale_of(subject, y))
        y = refined
        if moved < 1e-6:
            break
    slopes, columns, errors = [], [], []
    steps, kink = [], False
    middle = subject.residual(y, theta)
    for direction in directions.T:
        unit = theta_unit(subject, direction)

        def re_solve(step: float, direction: Vector = direction) -> Vector:
            if step == 0:
                return y
            moved, ratio = _moved(subject, direction, step)
            root, error = refine(subject, y, moved, inverse)
            near = np.max(error, initial=0.0) <= 1e3 * max(np.max(accuracy), subject.eps * np.max(scale_of(subject, y)))
            return y + (root - y) / ratio if near else np.full_like(y, np.nan)

        def of_f(step: float, direction: Vector = direction) -> Vector:
            moved, ratio = _moved(subject, direction, step)
            return middle + (subject.residual(y, moved) - middle) / ratio

        found = ladder(re_solve, unit, np.max(accuracy), subject.eps)
        columns.append(found.value)
        errors.append(found.error + 64 * subject.eps * scale_of(subject, y) / unit)
        steps.append(found.step / unit)
        kink = kink or found.kink
        slopes.append(ladder(of_f, unit, 0.0, subject.eps).value)
    stack = (lambda parts: np.stack(parts, axis=-1)) if columns else (lambda parts: np.zeros((y.size, 0)))
    return Reference(
        y,
        accuracy,
        matrix,
        inverse,
        condition,
        directions,
        stack(slopes),
        stack(columns),
        stack(errors),
        max(steps, default=0.0),
        kink,
    )


def second_difference(subject: Subject, ref: Reference, direction: Vector) -> Difference:
    """Return the second derivative of y along a direction of theta, (N), by differences of re-solves."""
    unit = theta_unit(subject, direction)
    best: Difference | None = None
    last: Any = None
    for rung in range(5):
        step = unit * 4 * subject.eps**0.25 * 4.0**-rung
        sides = []
        for sign in (1.0, -1.0):
            moved, ratio = _moved(subject, direction, sign * step)
            root, _ = refine(subject, ref.y, moved, ref.inverse)
            sides.append((root, ratio))
        value = sum(root - ref.y for root, _ in sides) / step**2
        noise = (
            np.max(ref.accuracy) * 4 / step**2
            + np.abs(ref.sensitivity).max(initial=0.0) * max(abs(ratio - 1) for _, ratio in sides) / step
        )
        if last is not None and np.all(np.isfinite(value)):
            error = np.abs(value - last) + noise + 64 * subject.eps * scale_of(subject, ref.y) / unit**2
            if best is None or np.max(error) < np.max(best.error):
                best = Difference(value, error, step, False)
        last = value
    return best or Difference(np.full_like(ref.y, np.nan), np.full_like(ref.y, np.inf), step, False)


def newton_path(subject: Subject, ref: Reference, steps: int = 6) -> list[Vector]:
    """Return the points of a plain Newton iteration from y0: where an early derivative may have been taken."""
    path = [subject.y0]
    for _ in range(steps):
        y = path[-1]
        matrix = jacobian(subject, y, subject.theta)
        f = subject.residual(y, subject.theta)
        if not np.all(np.isfinite(matrix)) or np.linalg.matrix_rank(matrix) < y.size:
            break
        path.append(y - np.linalg.solve(matrix, f))
        if np.max(np.abs(path[-1] - ref.y)) <= 1e-9 * np.max(np.abs(ref.y), initial=1e-300):
            break
    return path[:-1] if len(path) > 1 else path


def slopes_at(subject: Subject, y: Vector, ref: Reference) -> Any:
    """Return (df/dtheta) directions, (N, k), at another point than the root."""
    columns = []
    for direction in ref.directions.T:

        def of_f(step: float, direction: Vector = direction) -> Vector:
            moved, _ = _moved(subject, direction, step)
            return subject.residual(y, moved)

        columns.append(ladder(of_f, theta_unit(subject, direction), 0.0, subject.eps).value)
    return np.stack(columns, axis=-1) if columns else np.zeros((y.size, 0))


def _inverse(matrix: Any, size: Vector) -> tuple[Any, float]:
    """Return the inverse and the condition of a matrix whose units have been taken out: of unknowns and equations."""
    rows = np.max(np.abs(matrix) * size, axis=1)
    if not np.all(rows > 0):
        return np.full_like(matrix, np.inf), np.inf
    scaled = matrix * size / rows[:, None]
    condition = float(np.linalg.cond(scaled))
    if not np.isfinite(condition):
        return np.full_like(matrix, np.inf), np.inf
    return size[:, None] * np.linalg.inv(scaled) / rows, condition


def _singular(y: Vector, matrix: Any, directions: Any) -> Reference:
    nothing = np.full((y.size, directions.shape[1]), np.nan)
    inverse = np.full_like(matrix, np.nan)
    return Reference(
        y, np.full_like(y, np.inf), matrix, inverse, np.inf, directions, nothing, nothing, nothing, 0.0, False
    )


def _directions(subject: Subject, rng: np.random.Generator) -> Any:
    """Return unit vectors of theta, (p, k), or where there are too many random signs, leaf by leaf."""
    p = subject.theta.size
    if p <= _DIRECTIONS:
        return np.eye(p)
    columns = []
    slices = subject.parameters.slices
    for part in slices * max(1, _DIRECTIONS // max(1, len(slices))):
        column = np.zeros(p)
        column[part] = rng.choice([-1.0, 1.0], size=column[part].size)
        columns.append(column)
    return np.stack(columns, axis=-1)


def theta_unit(subject: Subject, direction: Vector) -> float:
    """Return the step along a direction that changes theta by about its own size."""
    touched = np.abs(subject.theta[direction != 0])
    size = float(np.max(touched, initial=0.0))
    return size if size > 0 else 1.0


def _moved(subject: Subject, direction: Vector, step: float) -> tuple[Vector, float]:
    """Return theta moved along a direction, as the framework holds it, and the fraction of the step that is left."""
    moved = subject.rounded(subject.theta + step * direction)
    if step == 0:
        return moved, 1.0
    ratio = float((moved - subject.theta) @ direction / (step * (direction @ direction)))
    return moved, ratio if ratio > 0 else 1.0


def scale_of(subject: Subject, y: Vector) -> Vector:
    """Return the size of each unknown, by which its step is chosen: its own, else that of the way from y0."""
    size = np.maximum(np.abs(y), np.abs(subject.y0 - y))
    largest = float(np.max(size, initial=0.0)) or 1.0
    return np.where(size > 0, size, largest)
