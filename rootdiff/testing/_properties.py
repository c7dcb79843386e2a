"""Properties of the residual itself, before any solve."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from rootdiff.testing._diagnosis import captured_arrays, transposed, with_captured
from rootdiff.testing._oracle import jacobian
from rootdiff.testing._report import Check
from rootdiff.testing._subject import Subject, Vector


def residual_checks(subject: Subject, original: tuple[Any, tuple[Any, ...]]) -> Iterator[Check]:
    """Yield the checks of the residual, the one that makes others pointless first."""
    for name, check in (
        ("inputs not changed", _inputs),
        ("same input, same output", _purity),
        ("structure, dtype and device kept", _kept),
        ("NaN is not swallowed", _nan),
        ("precision of the dtype", _precision),
        ("systems of the batch independent", _coupling),
        ("a system alone is the same", _alone),
        ("permuted batch, permuted residual", _permutation),
        ("given jac", _given_jacobian),
    ):
        outcome = check(subject)
        if outcome is not None:
            yield _row(subject, name, *outcome)
    yield _row(subject, "no parameter captured", *_captured(subject, original))


def _row(subject: Subject, name: str, note: str, error: float | None = None, tolerance: float | None = None) -> Check:
    outcome: Any = "failed" if note and not note.startswith("(") else "passed"
    return Check(name, outcome, error, tolerance, subject.driver.name, note=note)


def _evaluated(subject: Subject, y: Any, args: tuple[Any, ...]) -> list[Any]:
    return subject.driver.backend.flatten(subject.call(y, args))[0]  # type: ignore[no-any-return]


def _inputs(subject: Subject) -> tuple[str]:
    y, args = subject.y_tree(subject.y0), subject.args_tuple(subject.theta)
    _evaluated(subject, y, args)
    flatten = subject.driver.backend.flatten
    if not _same(subject.y.vector(flatten(y)[0]), subject.y0):
        return ("the residual changes y in place; work on a copy",)
    leaves = [flatten(args)[0][place] for place in subject.places]
    if not _same(subject.parameters.vector(leaves), subject.theta):
        return ("the residual changes args in place; work on a copy",)
    return ("",)


def _purity(subject: Subject) -> tuple[str, float, float]:
    runs = [
        np.concatenate([np.ravel(subject.driver.numpy(leaf)) for leaf in _evaluated(subject, *_inputs_of(subject))])
        for _ in range(3)
    ]
    error = max(float(np.max(np.abs(runs[0] - run), initial=0.0)) for run in runs[1:])
    if all(_same(runs[0], run) for run in runs[1:]):
        return "", 0.0, 0.0
    return "the same input gave another output: the residual is random, or keeps state between calls", error, 0.0


def _kept(subject: Subject) -> tuple[str]:
    out = _evaluated(subject, *_inputs_of(subject))
    if len(out) != len(subject.y.shapes):
        return (f"the residual returned {len(out)} leaves, but y0 has {len(subject.y.shapes)}",)
    for leaf, like, shape in zip(out, subject.y.like, subject.y.shapes, strict=True):
        if tuple(leaf.shape) != tuple(shape):
            return (f"the residual returned shape {tuple(leaf.shape)}, but y0 has shape {tuple(shape)}",)
        if leaf.dtype != like.dtype:
            return (f"the residual returned dtype {leaf.dtype}, but y0 has dtype {like.dtype}",)
        if subject.driver.device(leaf) != subject.driver.device(like):
            return (f"the residual returned an array on {subject.driver.device(leaf)}, but y0 is on another device",)
    return ("",)


def _nan(subject: Subject) -> tuple[str] | None:
    f = subject.residual(np.full_like(subject.y0, np.nan), subject.theta)
    if np.all(np.isfinite(f)):
        return (
            "at y = NaN the residual is finite: it swallows NaN (nan_to_num, a comparison), so that a point "
            "outside its domain passes as a root",
        )
    return ("",)


def _precision(subject: Subject) -> tuple[str, float, float] | None:
    """Compare f along a line with a straight line, over steps at which only rounding can differ."""
    f = subject.residual(subject.y0, subject.theta)
    if not np.all(np.isfinite(f)) or not np.any(subject.y0):
        return None
    allowed = subject.eps**0.575  # 1e-9 in float64: noise of float32 is 6e-8
    direction = subject.y0 * np.cos(np.arange(subject.y0.size))
    step = allowed / 2
    points = [subject.residual(subject.y0 + k * step * direction, subject.theta) for k in range(-3, 4)]
    wide = subject.residual(subject.y0 + 1e-3 * direction, subject.theta)
    table = np.stack(points)
    for _ in range(4):  # Hamming's table: the fourth difference of a smooth function vanishes
        table = np.diff(table, axis=0)
    noise = np.max(np.abs(table), axis=0) / math.sqrt(70)  # sqrt of (8 over 4)
    scale = np.maximum(np.abs(f), np.abs(wide - f) * 1e3)
    # a step of the staircase of a lower precision is flat, where f should change by much more than rounding
    flat = np.all(np.stack(points) == points[0], axis=0) & (
        6e3 * step * np.abs(wide - f) > 64 * subject.eps * np.abs(f)
    )
    noise = np.where(flat, 6 * step * scale, noise)
    relative = float(np.max(noise / np.where(scale > 0, scale, np.inf), initial=0.0))
    note = ""
    if relative > allowed:
        note = (
            f"the residual is noisy: relative {relative:.1g}, where {subject.dtype} allows {subject.eps:.1g}; it "
            "computes in a lower precision (float32 inside float64?), or cancels all its digits"
        )
    return note, relative, allowed


def _coupling(subject: Subject) -> tuple[str, float, float] | None:
    if not subject.batch_ndim or math.prod(subject.batch) < 2:
        return None
    f = subject.residual(subject.y0, subject.theta)
    systems = subject.systems
    moved = np.where(systems == 0, subject.y0 * 1.01 + 0.01, subject.y0)
    change = np.abs(subject.residual(moved, subject.theta) - f)[systems != 0]
    allowed = 100 * subject.eps * float(np.max(np.abs(f)))
    error = float(np.max(change))
    if error <= allowed:
        return "", error, allowed
    return (
        "the residual couples systems of the batch: another system changed when the unknowns of the first moved (a "
        "mean or a norm over the batch axis?)",
        error,
        allowed,
    )


def _alone(subject: Subject) -> tuple[str, float, float] | None:
    count = math.prod(subject.batch)
    if subject.batch_ndim != 1 or count < 2:
        return None
    return _compare_batches(subject, np.array([0]), "alone")


def _permutation(subject: Subject) -> tuple[str, float, float] | None:
    count = math.prod(subject.batch)
    if subject.batch_ndim != 1 or count < 2:
        return None
    return _compare_batches(subject, np.arange(count)[::-1], "in another order")


def _compare_batches(subject: Subject, order: Any, words: str) -> tuple[str, float, float]:
    """Evaluate the systems `order` of the batch; which args carry its axis is not said, so both ways are tried.

    So they are for what the residual captures: constants of each system are data as args are.
    """
    f = [subject.driver.numpy(leaf) for leaf in _evaluated(subject, *_inputs_of(subject))]
    count = subject.batch[0]
    allowed = 100 * subject.eps * max(float(np.max(np.abs(leaf))) for leaf in f)

    def taken(leaves: Any, like: Any, wanted: Callable[[Any], bool]) -> list[Any]:
        return [
            subject.driver.native(np.asarray(leaf)[order], native)
            if wanted(np.asarray(leaf))
            else subject.driver.native(leaf, native)
            for leaf, native in zip(leaves, like, strict=True)
        ]

    def picked(value: Any) -> Any:
        carries = subject.driver.backend.is_array(value) and value.ndim > 0 and value.shape[0] == count
        return value[order] if carries else value

    errors = []
    functions = [subject.function, with_captured(subject.driver.backend, subject.function, picked)]
    ys = [subject.driver.numpy(leaf) for leaf in subject.y.like]
    arrays = [subject.driver.numpy(leaf) for leaf in subject.parameters.like]
    ways = (lambda a: a.ndim > 0 and a.shape[0] == count, lambda a: False)
    for function, batched in product(functions, ways):
        y = subject.driver.backend.unflatten(subject._y_tree, taken(ys, subject.y.like, lambda a: True))
        args = subject.rebuild(taken(arrays, subject.parameters.like, batched))
        try:
            out = [subject.driver.numpy(leaf) for leaf in subject.driver.backend.flatten(function(y, *args))[0]]
            errors.append(max(float(np.max(np.abs(a - b[order]))) for a, b in zip(out, f, strict=True)))
        except (ValueError, TypeError, IndexError, RuntimeError):  # this way the shapes do not fit
            continue
    if not errors:
        return f"(the residual takes the whole batch only, so no system could be evaluated {words})", 0.0, allowed
    error = min(errors)
    if error <= allowed:
        return "", error, allowed
    return (
        f"a system {words} has another residual than in the batch: the residual depends on the size or order of the "
        "batch (a mean, a division by its length?)",
        error,
        allowed,
    )


def _given_jacobian(subject: Subject) -> tuple[str, float, float] | None:
    jac = subject.options.get("jac")
    if jac is None:
        return None
    given = np.asarray(jac(subject.y_tree(subject.y0), *subject.args_tuple(subject.theta)))
    expected = jacobian(subject, subject.y0, subject.theta)
    n = subject.y.size // math.prod(subject.batch)
    blocks = expected.reshape(math.prod(subject.batch), n, math.prod(subject.batch), n)
    expected = np.stack([blocks[k, :, k] for k in range(math.prod(subject.batch))])
    if given.size != expected.size:
        return f"the given jac returned shape {given.shape}", math.inf, 0.0
    given = given.reshape(expected.shape)
    allowed = 1e3 * subject.eps ** (2 / 3) * float(np.max(np.abs(expected)))
    error = float(np.max(np.abs(given - expected)))
    return ("" if error <= allowed else transposed(given, expected)), error, allowed


def _captured(subject: Subject, original: tuple[Any, tuple[Any, ...]]) -> tuple[str]:
    captured = captured_arrays(subject.function)
    leaves = subject.driver.backend.flatten(original[1])[0]
    f = subject.residual(subject.y0, subject.theta)
    for place, part, name in zip(subject.places, subject.parameters.slices, subject.names, strict=True):
        moved = subject.theta.copy()
        moved[part] = moved[part] * 1.01 + 0.01
        without_effect = _same(subject.residual(subject.y0, moved), f)
        value = subject.driver.numpy(leaves[place]) if place < len(leaves) else None
        for label, array in captured.items():
            other = np.asarray(subject.driver.numpy(array)) if subject.driver.backend.is_array(array) else None
            if other is None or value is None:
                continue
            same = array is leaves[place] or (isinstance(array, np.ndarray) and np.shares_memory(array, leaves[place]))
            if same or (without_effect and other.shape == value.shape and _same(other, value)):
                return (
                    f"the residual depends on a captured array that is not in args: {label!r} equals {name}, which "
                    f"{'has no effect' if without_effect else 'is passed beside it'}; read it from args",
                )
    if captured and subject.driver.name == "numpy":
        return (f"(constants: no derivative with respect to the captured {', '.join(map(str, captured))})",)
    return ("",)


def _inputs_of(subject: Subject) -> tuple[Any, tuple[Any, ...]]:
    return subject.y_tree(subject.y0), subject.args_tuple(subject.theta)


def _same(a: Vector, b: Vector) -> bool:
    return bool(np.array_equal(a, b, equal_nan=True))
