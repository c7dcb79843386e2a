"""From a wrong derivative to its likely cause: the formulas that people write by mistake, compared one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from rootdiff.testing._oracle import Reference, jacobian, newton_path, slopes_at
from rootdiff.testing._subject import Subject, Vector

#: A mistake is named when its formula gives the wrong derivative to this accuracy, relative to its size.
_MATCH = 1e-3

MINUS = "it is minus the expected one: the minus sign of -(df/dy)^-1 (df/dargs) is missing"
INVERSE = "the inverse of df/dy is missing: it equals -(df/dargs) alone, as if df/dy were the identity"
INVERSE_SIGN = "the inverse of df/dy and the minus sign are missing: it equals df/dargs"
TRANSPOSE = "the Jacobian is transposed: it equals the solve with df/dy where (df/dy)^T belongs, or the other way round"
DIAGONAL = "only the diagonal of df/dy is inverted"
BLOCKS = "only the diagonal blocks of df/dy, one per leaf of y, are inverted"
EARLY = "the derivative is taken at an earlier iterate, not at the root"
STALE = "df/dy is stale: its factorisation belongs to an earlier iterate"
CONJUGATE = "it is the complex conjugate of the expected one"
CONJUGATE_RULE = (
    "the complex conjugate is forgotten: the pullback of a holomorphic function multiplies with the conjugate of its "
    "derivative"
)
FLOAT32 = "it has only the accuracy of float32: somewhere precision is lost on the way"


def diagnose(subject: Subject, ref: Reference, got: Vector, expected: Vector, w: Vector | None, v: Any = None) -> str:
    """Return the likely cause of a wrong derivative, in words.

    Parameters
    ----------
    got, expected : array. Of a vjp (k), along ``ref.directions``, with cotangent `w`; of a jvp (N), along `v`, (k).
    """
    if not np.all(np.isfinite(got)):
        return "it is not finite: NaN or infinity at a regular root"
    if _close(got, -expected):
        return MINUS
    lost = _missing_leaves(subject, ref, got, expected, v)
    if lost:
        return lost
    for text, sensitivity in _candidates(subject, ref, transpose=w is not None):
        candidate = w @ sensitivity if w is not None else sensitivity @ v
        if _close(got, candidate) and not _close(expected, candidate):
            # conjugating the derivative of a holomorphic function transposes its real Jacobian
            return CONJUGATE_RULE if text == TRANSPOSE and all(subject.y.complex) else text
        if text == INVERSE and _close(got, -candidate) and not _close(expected, -candidate):
            return INVERSE_SIGN
    if any(subject.y.complex) or any(subject.parameters.complex):
        flipped = _conjugate(subject, got, of_y=w is None)
        if _close(flipped, expected):
            return CONJUGATE
    return _factor(subject, got, expected) or _accuracy(subject, ref, got, expected)


def _candidates(subject: Subject, ref: Reference, transpose: bool) -> Iterator[tuple[str, Any]]:
    """Yield what dy/dtheta, (N, k), would be under each mistake."""
    matrix, slopes = ref.jacobian, ref.slopes
    yield INVERSE, -slopes
    yield TRANSPOSE, -ref.inverse.T @ slopes
    if np.all(np.diag(matrix) != 0):
        yield DIAGONAL, -slopes / np.diag(matrix)[:, None]
    blocks = np.zeros_like(matrix)
    for part in subject.y.slices:
        blocks[part, part] = matrix[part, part]
    if len(subject.y.slices) > 1 and np.linalg.matrix_rank(blocks) == len(blocks):
        yield BLOCKS, -np.linalg.solve(blocks, slopes)
    for y in newton_path(subject, ref):
        early = jacobian(subject, y, subject.theta)
        if not np.all(np.isfinite(early)) or np.linalg.matrix_rank(early) < y.size:
            continue
        yield STALE, -np.linalg.solve(early, slopes)
        yield EARLY, -np.linalg.solve(early, slopes_at(subject, y, ref))


def _missing_leaves(subject: Subject, ref: Reference, got: Vector, expected: Vector, v: Any) -> str:
    if v is None:
        per_leaf: list[tuple[str, Any]] = [
            (name, np.any(ref.directions[part] != 0, axis=0))
            for name, part in zip(subject.names, subject.parameters.slices, strict=True)
        ]
    elif not np.any(got):
        return "it is zero, although y depends on args: a parameter is detached on its way into the residual"
    else:
        return ""
    size = np.max(np.abs(expected), initial=0.0)
    lost = [
        name
        for name, mask in per_leaf
        if not np.any(got[mask]) and np.max(np.abs(expected[mask]), initial=0) > size / 1e6
    ]
    if not lost:
        return ""
    return (
        f"no derivative reaches {' and '.join(lost)}, although the root depends on it: detached, converted, or "
        "forgotten in a custom derivative"
    )


def _factor(subject: Subject, got: Vector, expected: Vector) -> str:
    factor = float(got @ expected / (expected @ expected)) if np.any(expected) else 0.0
    if not _close(got, factor * expected) or abs(factor - 1) < 1e-2:
        return ""
    systems = int(np.prod(subject.batch, dtype=int))
    if systems > 1:
        for power, word in ((systems, "multiplied"), (1 / systems, "divided")):
            if abs(factor / power - 1) < _MATCH:
                return f"it is {word} by the number of systems of the batch, {systems}: a sum and a mean are confused"
    twice = " (counted twice)" if abs(factor - 2) < _MATCH else ""
    return f"it is {factor:.4g} times the expected one{twice}: a constant factor in a derivative"


def _accuracy(subject: Subject, ref: Reference, got: Vector, expected: Vector) -> str:
    error = float(np.max(np.abs(got - expected)) / (np.max(np.abs(expected)) or 1.0))
    if ref.condition > 100 and error < 1:
        return (
            f"the relative error {error:.2g} is within the condition number {ref.condition:.2g} of an inexact linear "
            "solve: tighten the tolerance of the adjoint solver, or use adjoint='lu'"
        )
    if subject.eps < 1e-10 and error < 1e-5:
        return FLOAT32
    return f"the relative error is {error:.2g}; no common mistake explains it"


def transposed(given: Any, expected: Any) -> str:
    """Return the likely cause of a wrong Jacobian that the user gave."""
    if _close(given, -expected):
        return "the given jac is minus the Jacobian of the residual"
    if given.shape == expected.shape and _close(given, np.swapaxes(expected, -1, -2)):
        return "the given jac equals the transpose of the Jacobian of the residual"
    if _close(given, expected * np.eye(given.shape[-1])):
        return "the given jac is the diagonal of the Jacobian of the residual"
    factor = float(np.sum(given * expected) / np.sum(expected**2))
    if _close(given, factor * expected):
        return f"the given jac is {factor:.4g} times the Jacobian of the residual"
    wrong = np.abs(given - expected) > _MATCH * np.max(np.abs(expected))
    places = [tuple(map(int, place)) for place in np.argwhere(np.any(wrong, axis=0))]
    return (
        "the given jac is not the Jacobian of the residual: it differs in "
        f"{', '.join(f'row {i}, column {j}' for i, j in places[:4])}{', ...' if len(places) > 4 else ''}"
    )


def _conjugate(subject: Subject, vector: Vector, of_y: bool) -> Vector:
    leaves = subject.y if of_y else subject.parameters
    flipped = np.array(vector)
    if flipped.size != leaves.size:
        return flipped
    for part, wide in zip(leaves.slices, leaves.complex, strict=True):
        if wide:
            flipped[part.start + (part.stop - part.start) // 2 : part.stop] *= -1
    return flipped


def _close(a: Any, b: Any) -> bool:
    size = max(float(np.max(np.abs(a), initial=0.0)), float(np.max(np.abs(b), initial=0.0)))
    return size > 0 and bool(np.max(np.abs(a - b)) <= _MATCH * size)


def captured_arrays(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the floating arrays that a function reads without being passed them, by name."""
    import functools
    import inspect

    found: dict[str, Any] = {}
    if isinstance(function, functools.partial):
        bound: dict[Any, Any] = {**dict(enumerate(function.args)), **function.keywords}
        found = {f"partial argument {name}": value for name, value in bound.items()}
        function = function.func
    if inspect.ismethod(function):
        found |= (
            {f"self.{name}": value for name, value in vars(function.__self__).items()}
            if hasattr(function.__self__, "__dict__")
            else {}
        )
        function = function.__func__
    if inspect.isfunction(function):
        names = inspect.getclosurevars(function)
        found |= {**names.nonlocals, **names.globals}
        found |= {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is not inspect.Parameter.empty
        }
    return {name: value for name, value in found.items() if _is_floating(value)}


def with_captured(backend: Any, function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return a function whose closure, globals and defaults hold what `change` makes of each leaf; else as it is."""
    import inspect
    from types import CellType, FunctionType

    def changed(value: Any) -> Any:
        if isinstance(value, dict | list | tuple):
            leaves, tree = backend.flatten(value)
            return backend.unflatten(tree, [change(leaf) for leaf in leaves])
        return change(value)

    if not inspect.isfunction(function):
        return function
    named = _names(function.__code__)
    variables = {name: changed(value) if name in named else value for name, value in function.__globals__.items()}
    cells = tuple(CellType(changed(cell.cell_contents)) for cell in function.__closure__ or ())
    defaults = tuple(map(changed, function.__defaults__ or ()))
    new = FunctionType(function.__code__, variables, function.__name__, defaults, cells)
    new.__kwdefaults__ = {name: changed(value) for name, value in (function.__kwdefaults__ or {}).items()}
    return new


def _names(code: Any) -> set[str]:
    """Return the names of globals that a function's code may read, that of functions inside it included."""
    inner = [constant for constant in code.co_consts if hasattr(constant, "co_names")]
    return set(code.co_names).union(*map(_names, inner))


def _is_floating(value: Any) -> bool:
    return hasattr(value, "shape") and any(word in str(getattr(value, "dtype", "")) for word in ("float", "complex"))
