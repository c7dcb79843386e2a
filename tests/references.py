"""Roots of the test problems and their derivatives, to 80 digits, and the table of them in data/references.json.

The residuals are those of the problems, run on mpmath's numbers; everything else shares no code with rootdiff: Newton's
method and the implicit function theorem with mpmath's matrices. ``python -m tests.references`` writes the table anew.
"""

from __future__ import annotations

import json
from functools import cache, partialmethod
from pathlib import Path

import mpmath
import numpy as np

from rootdiff.testing.problems import Problem, all_problems

DATA = Path(__file__).parent / "data" / "references.json"
DIGITS = 80
#: Unknowns up to which the table holds a problem: 80 digits cost a minute beyond.
LARGEST = 50
#: Central differences with step 10^-90 have an error of 10^-180, and rounding adds 10^-(270 - 90).
_STEP, _WORK = 90, 270


def _context() -> mpmath.MPContext:
    """Return mpmath in working precision, its numbers able to be entries of NumPy's object arrays."""
    mp = mpmath.MPContext()
    mp.dps = _WORK
    names = {"arctan2": "atan2"} | {
        name: name for name in ("exp", "expm1", "log", "sin", "cos", "sinh", "cosh", "sqrt", "erfc")
    }
    for method, function in names.items():
        setattr(mp.mpf, method, partialmethod(_apply, getattr(mp, function)))
    return mp


def _apply(value, function, *others):
    return function(value, *others)


MP = _context()


def exactly(values) -> np.ndarray:
    """Return float64 numbers as an object array of mpmath numbers, without rounding."""
    return np.array([MP.mpf(float(value)) for value in values], dtype=object)


def jacobian(function, x: np.ndarray) -> mpmath.matrix:
    """Return the derivative of `function`, from object array to object array, by central differences."""
    step = MP.mpf(10) ** -_STEP
    columns = []
    for place in range(x.size):
        change = np.array([step if place == other else MP.mpf(0) for other in range(x.size)], dtype=object)
        columns.append((function(x + change) - function(x - change)) / (2 * step))
    return MP.matrix(np.stack(columns, axis=1).tolist())


def reference(problem: Problem, near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the root next to `near`, (n), and dy/dtheta, (n, p), both correct to 80 digits, as float64.

    Raises
    ------
    ValueError
        If Newton's method does not converge: the root is singular, or `near` is not near one.
    """
    y, theta = exactly(near), exactly(problem.theta)
    for _ in range(12):
        slope = jacobian(lambda y: problem.residual(y, theta), y)
        correction = np.array(list(MP.lu_solve(slope, MP.matrix(problem.residual(y, theta).tolist()))), dtype=object)
        y = y - correction
        if max(abs(entry) for entry in correction) < MP.mpf(10) ** -(DIGITS + 10):
            break
    else:
        raise ValueError(f"{problem.name}: no regular root next to {near}.")
    by_theta = jacobian(lambda theta: problem.residual(y, theta), theta)
    slope = jacobian(lambda y: problem.residual(y, theta), y)
    columns = [MP.lu_solve(slope, -by_theta[:, place]) for place in range(theta.size)]
    derivative = np.array([[_rounded(column[row]) for column in columns] for row in range(y.size)])
    return np.array([_rounded(entry) for entry in y]), derivative


def _rounded(value) -> float:
    """Return the nearest float64; zero for what is zero in 80 digits."""
    return float(value) if abs(value) > MP.mpf(10) ** -DIGITS else 0.0


@cache
def stored() -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return the table: the roots of each problem and their derivatives."""
    table = json.loads(DATA.read_text(encoding="utf-8"))
    return {name: [(np.array(y), np.array(dy)) for y, dy in roots] for name, roots in table.items()}


def nearest(problem: Problem, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the root next to `y` and its derivative, from the table where it is there, else computed."""
    for root, derivative in stored().get(problem.name, []):
        if np.allclose(root, y, rtol=1e-6, atol=1e-9):
            return root, derivative
    return reference(problem, y)


def _roots(problem: Problem) -> list[np.ndarray]:
    """Return roots, each once, that SciPy finds from the standard starts."""
    from scipy import optimize

    found: list[np.ndarray] = []
    with np.errstate(all="ignore"):
        for start in problem.starts():
            for method in ("hybr", "lm"):
                y = optimize.root(problem.residual, start, (problem.theta,), method=method, tol=1e-13).x
                small = np.max(np.abs(problem.residual(y, problem.theta))) < 1e-9
                if small and not any(np.allclose(y, other, rtol=1e-6, atol=1e-9) for other in found):
                    found.append(y)
    if problem.root is not None and not any(np.allclose(problem.root, y, rtol=1e-4, atol=1e-9) for y in found):
        found.append(problem.root)
    return found


def main() -> None:
    """Write the table of all problems with regular roots."""
    table = {}
    for problem in all_problems():
        if not (problem.has_root and problem.regular and problem.n <= LARGEST):
            continue
        roots = []
        for near in _roots(problem):
            try:
                y, derivative = reference(problem, near)
            except (ValueError, ZeroDivisionError):
                print(f"{problem.name}: singular next to {near[:3]}")
                continue
            if not any(np.allclose(y, other, rtol=1e-6, atol=1e-9) for other, _ in roots):
                roots.append((y.tolist(), derivative.tolist()))
        print(problem.name, len(roots))
        table[problem.name] = roots
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(roots)}" for name, roots in table.items())
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text("{\n" + rows + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
