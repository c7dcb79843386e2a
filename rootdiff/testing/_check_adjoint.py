"""The conformance suite of adjoint solvers: the one that rootdiff's own go through."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator
from rootdiff._registry import get_adjoint
from rootdiff._solution import Status
from rootdiff.linear import LinearSolver
from rootdiff.linear._contract import checked
from rootdiff.testing._check_residual import run_once
from rootdiff.testing._diagnosis import DIAGONAL, FLOAT32, MINUS, TRANSPOSE
from rootdiff.testing._drivers import Driver, get_driver
from rootdiff.testing._expected import strict
from rootdiff.testing._families import make_case
from rootdiff.testing._report import Check, Report, conclude

_N = 6


@dataclass(frozen=True)
class System:
    """A linear problem: matrices (*batch, n, n), right-hand sides (*batch, n), and which systems have a solution."""

    name: str
    matrix: Any
    rhs: Any
    solvable: Any
    stale: Any = None


def check_adjoint(
    adjoint: str | LinearSolver,
    backends: Sequence[str] = ("numpy",),
    xfail: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Check an adjoint solver on linear systems, plain and transposed, and on gradients; return a report.

    Parameters
    ----------
    adjoint : str or LinearSolver
        A registered name or a value; an approximate one (``exact = False``) is checked for what it promises
        only: finite, linear, the same twice.
    backends : sequence of {"numpy", "torch", "jax"}
    xfail : collection of str
        Names of systems (see the table of a report) that it is known not to solve: it must say so, and a system that it
        does solve on every backend must leave the list.
    seed : int

    Returns
    -------
    Report

    Raises
    ------
    CheckFailed
        If a solution is wrong, a status is not honest, or the list of expected failures is not strict.

    Examples
    --------
    >>> from rootdiff.testing import check_adjoint
    >>> check_adjoint("lu").passed
    True
    """
    value = get_adjoint(adjoint)
    checks: list[Check] = []
    for name in backends:
        driver = get_driver(name)
        with driver.context("float64"), np.errstate(all="ignore"):
            checks += _linear_checks(value, driver, np.random.default_rng(seed))
        if value.exact:
            checks += _gradients(value, name, seed)
    checks = strict(checks, xfail)
    word = adjoint if isinstance(adjoint, str) else type(adjoint).__name__
    call = f"check_adjoint({word!r}" if isinstance(adjoint, str) else f"check_adjoint({adjoint!r}"
    failed = [check.backend for check in checks if check.outcome == "failed"]
    reproduce = f"{call}, backends={failed[:1]!r}, xfail={sorted(xfail)!r}, seed={seed})" if failed else ""
    return conclude(Report(f"check_adjoint of {word}", tuple(checks), reproduce=reproduce))


def systems(rng: np.random.Generator) -> Iterator[System]:
    """Yield the linear problems."""

    def solved(name: str, matrix: Any, **more: Any) -> System:
        rhs = more.pop("rhs", rng.standard_normal(matrix.shape[:-1]))
        return System(name, matrix, rhs, np.ones(matrix.shape[:-2], dtype=bool), **more)

    regular = _regular(rng)
    yield solved("nonsymmetric", regular)
    yield solved("one unknown", np.array([[-2.5]]))
    yield solved("symmetric positive definite", regular @ regular.T)
    yield solved("triangular", np.tril(regular))
    yield solved("right-hand side zero", regular, rhs=np.zeros(_N))
    yield solved("right-hand side 1e-12", regular, rhs=1e-12 * rng.standard_normal(_N))
    yield solved("rows scaled to 1e8", np.geomspace(1, 1e8, _N)[:, None] * regular)
    left, right = (np.linalg.qr(rng.standard_normal((_N, _N)))[0] for _ in range(2))
    yield solved("condition 1e8", left @ np.diag(np.geomspace(1, 1e-8, _N)) @ right)
    yield solved("sixty unknowns", _regular(rng, 60))
    yield solved("batch", np.stack([_regular(rng) for _ in range(4)]))
    yield solved("stale factors", regular, stale=_regular(rng))
    singular = regular.copy()
    singular[2] = 0.0
    singular[:, 3] = 0.0  # so that neither it nor its transpose reaches a general right-hand side
    rhs = rng.standard_normal(_N)
    yield System("singular", singular, rhs, np.array(False))
    broken = regular.copy()
    broken[1, 2] = np.nan
    yield System("NaN in the matrix", broken, rhs, np.array(False))
    mixed = np.stack([_regular(rng), singular, broken, _regular(rng)])
    yield System("batch with failures", mixed, rng.standard_normal((4, _N)), np.array([True, False, False, True]))


def _regular(rng: np.random.Generator, n: int = _N) -> Any:
    """Return a nonsymmetric matrix near minus the identity, as the Jacobian of a contractive cell."""
    weak = rng.standard_normal((n, n))
    return 0.6 * weak / np.linalg.norm(weak, 2) - np.eye(n)


def _linear_checks(adjoint: LinearSolver, driver: Driver, rng: np.random.Generator) -> Iterator[Check]:
    for system in systems(rng):
        for transposed in (False, True):
            matrix = np.swapaxes(system.matrix, -1, -2) if transposed else system.matrix
            name = f"{system.name}{', transposed' if transposed else ''}"
            try:
                x, status, relative = _solve(adjoint, driver, system, transposed)
            except ArgumentError as error:  # it needs what only a forward solver can give
                yield Check(name, "skipped", backend=driver.name, note=str(error))
                continue
            if adjoint.exact:
                yield _judged(name, driver, adjoint, system, matrix, x, status, relative)
            elif np.all(system.solvable):
                finite = bool(np.all(np.isfinite(x))) or not np.all(status <= Status.AT_PRECISION)
                note = "" if finite else "a result that is not finite passes as a success"
                yield Check(name, "passed" if finite else "failed", backend=driver.name, note=note)
    yield from _repeated(adjoint, driver, rng)
    if adjoint.exact:
        yield _single(adjoint, driver, rng)


def _solve(
    adjoint: LinearSolver, driver: Driver, system: System, transposed: bool, dtype: Any = np.float64
) -> tuple[Any, Any, Any]:
    arrays = [system.matrix, system.rhs] + ([] if system.stale is None else [system.stale])
    function = _compiled(adjoint, driver, transposed, str(np.dtype(dtype)))
    x, status, relative = function(*(driver.native(np.asarray(array).astype(dtype)) for array in arrays))
    return driver.numpy(x), driver.numpy(status), driver.numpy(relative)


@lru_cache(maxsize=16)
def _compiled(adjoint: LinearSolver, driver: Driver, transposed: bool, dtype: str) -> Callable[..., Any]:
    """Return the solve as a function of arrays, so that it is compiled once for all systems of a shape."""
    backend, xp = driver.backend, driver.backend.xp

    def run(matrix: Any, rhs: Any, stale: Any = None) -> tuple[Any, Any, Any]:
        operator = LinearOperator(
            backend,
            lambda v: (matrix @ v[..., None])[..., 0],
            lambda v: (xp.matrix_transpose(matrix) @ v[..., None])[..., 0],
            lambda: matrix,
            float(np.finfo(dtype).eps),
            tuple(matrix.shape),
        )
        operator = operator.T if transposed else operator
        known = None if stale is None else backend.lu_factor(stale)
        x, info = checked(operator, adjoint.starting_from(known), rhs)
        return x, info.status, info.relative_residual

    return driver.compiled(run)


def _judged(
    name: str, driver: Driver, adjoint: LinearSolver, system: System, matrix: Any, x: Any, status: Any, relative: Any
) -> Check:
    """Compare a solution with NumPy's, and what was said of it with what is so."""
    eps = float(np.finfo(np.float64).eps)
    shape = system.rhs.shape
    if x.shape != shape or status.shape != shape[:-1]:
        note = f"x has shape {x.shape} and status {status.shape}; they must be {shape} and {shape[:-1]}"
        return Check(name, "failed", backend=driver.name, note=note)
    claimed = status <= Status.AT_PRECISION
    solvable = np.broadcast_to(system.solvable, claimed.shape)
    if np.any(claimed & ~solvable):
        note = "success is claimed for a system that has no solution: its status must be a failure"
        return Check(name, "failed", backend=driver.name, note=note)
    if not np.any(solvable):
        return Check(name, "passed", backend=driver.name)
    a, b, got = (np.asarray(array)[solvable] for array in (matrix, system.rhs, x))
    expected = np.linalg.solve(a, b[..., None])[..., 0]
    condition = np.linalg.cond(a)[..., None]
    size = np.maximum(np.max(np.abs(expected), axis=-1, keepdims=True), 1e-300)
    rtol = max(10 * eps, getattr(adjoint, "rtol", None) or 0.0)
    errors = np.abs(got - expected) / size
    allowed = float(np.max(30 * rtol * condition))
    error = float(np.max(np.where(np.isfinite(errors), errors, np.inf)))
    honest = bool(np.all(claimed[solvable]))
    if honest and error <= allowed:
        return Check(name, "passed", error=error, tolerance=allowed, backend=driver.name)
    cause = _diagnosis(a, b, got, expected, system, error) if error > allowed else _REFUSED
    if not honest:
        word = Status(int(np.max(status[solvable])))
        others = " beside one that fails: the systems of a batch must not touch" if not np.all(solvable) else ""
        cause = f"it is not solved{others} ({word.name}: relative residual {np.max(relative[solvable]):.2g}); {cause}"
    where = (
        f"{np.array2string(expected[0], precision=6, threshold=8)}",
        np.array2string(got[0], precision=6, threshold=8),
    )
    return Check(
        name, "failed", error=error, tolerance=allowed, backend=driver.name, note=cause, expected=where[0], got=where[1]
    )


_REFUSED = "x itself is right: the solver reports a failure, or changes the right-hand side in place"


def _diagnosis(a: Any, b: Any, got: Any, expected: Any, system: System, error: float) -> str:
    if not np.any(b):
        return "the solution for a zero right-hand side is not zero"
    candidates = {
        MINUS: -expected,
        TRANSPOSE: np.linalg.solve(np.swapaxes(a, -1, -2), b[..., None])[..., 0],
        "the inverse is missing: x equals the right-hand side": b,
        DIAGONAL: b / np.einsum("...ii->...i", a),
    }
    for part, name in ((np.tril(a), "lower"), (np.triu(a), "upper")):
        candidates[f"only the {name} triangle of df/dy is inverted"] = np.linalg.solve(part, b[..., None])[..., 0]
    if a.ndim > 2:
        one = np.broadcast_to(a[:1], a.shape)
        candidates["the matrix of the first system serves for all"] = np.linalg.solve(one, b[..., None])[..., 0]
        if any(_close(got, np.roll(expected, k, axis=0)) for k in range(1, len(a))):
            return "each system gets the solution of another one of the batch"
    if system.stale is not None:
        for stale in (system.stale, system.stale.T):
            candidates["x solves with the stale factors that were meant as a preconditioner"] = np.linalg.solve(
                stale, b[0]
            )
            if _close(got, np.linalg.solve(stale, b[0])):
                break
    for text, candidate in candidates.items():
        if _close(got, candidate) and not _close(expected, candidate):
            return text
    with np.errstate(all="ignore"):
        factor = float(np.sum(got * expected) / np.sum(expected * expected))
    if _close(got, factor * expected) and abs(factor - 1) > 1e-2:
        count = len(a)
        hint = ": the batch is averaged" if count > 1 and abs(factor * count - 1) < 1e-6 else ""
        return f"x is {factor:.4g} times the solution{hint}"
    if _close(np.abs(got), np.abs(expected)):
        return "x has the wrong sign in some unknowns"
    if not np.all(np.isfinite(got)):
        return "x is not finite, although the system is regular"
    if 1e-9 < error < 1e-5:
        return FLOAT32
    return f"the relative error is {error:.2g}: the tolerance is not kept"


def _close(a: Any, b: Any) -> bool:
    size = float(np.max(np.abs(b)))
    return size > 0 and a.shape == b.shape and bool(np.max(np.abs(a - b)) <= 1e-6 * size)


def _repeated(adjoint: LinearSolver, driver: Driver, rng: np.random.Generator) -> Iterator[Check]:
    matrix = _regular(rng)
    first, second = rng.standard_normal((2, _N))

    def solve(rhs: Any) -> Any:
        return _solve(adjoint, driver, System("", matrix, rhs, np.array(True), matrix + 0.0), False)[0]

    x = solve(first)
    same = bool(np.array_equal(x, solve(first)))
    note = "" if same else "the same system gave another solution the second time"
    yield Check("same input, same output", "passed" if same else "failed", backend=driver.name, note=note)
    gap = float(np.max(np.abs(solve(0.7 * first - 1.3 * second) - (0.7 * x - 1.3 * solve(second)))))
    allowed = 1e3 * float(np.finfo(np.float64).eps) * float(np.max(np.abs(x)) + 1)
    allowed = max(allowed, 30 * (getattr(adjoint, "rtol", None) or 0.0))
    note = "" if gap <= allowed else "the solution is not linear in the right-hand side"
    yield Check("linear", "passed" if gap <= allowed else "failed", gap, allowed, driver.name, note=note)


def _single(adjoint: LinearSolver, driver: Driver, rng: np.random.Generator) -> Check:
    system = System("float32", _regular(rng).astype(np.float32), rng.standard_normal(_N), np.array(True))
    x, status, _ = _solve(adjoint, driver, system, False, np.float32)
    expected = np.linalg.solve(system.matrix.astype(np.float64), system.rhs)
    error = float(np.max(np.abs(x - expected)) / np.max(np.abs(expected)))
    rtol = max(10 * float(np.finfo(np.float32).eps), getattr(adjoint, "rtol", None) or 0.0)
    allowed = 30 * rtol * float(np.linalg.cond(system.matrix))
    if x.dtype != np.float32:
        return Check("float32", "failed", backend=driver.name, note=f"float32 went in, {x.dtype} came out")
    good = error <= allowed and bool(np.all(status <= Status.AT_PRECISION))
    note = "" if good else f"the relative error is {error:.2g}, status {Status(int(status)).name}"
    return Check("float32", "passed" if good else "failed", error, allowed, driver.name, note=note)


def _gradients(adjoint: LinearSolver, backend: str, seed: int) -> Iterator[Check]:
    """Yield the gradient checks of residuals with known derivatives, after a solver that leaves its factors."""
    for family in ("contraction", "triangular"):
        case = make_case(family, np.random.default_rng(seed))
        report = run_once(
            case.f,
            case.y0,
            case.theta,
            backends=[backend],
            solvers=["newton"],
            adjoints=[adjoint],
            modes=("vjp", "jvp"),
        )
        for check in report.checks:
            if check.adjoint:
                yield Check(
                    f"{family}: {check.name}", check.outcome, check.error, check.tolerance, backend,
                    note=check.note, expected=check.expected, got=check.got,
                )  # fmt: skip
