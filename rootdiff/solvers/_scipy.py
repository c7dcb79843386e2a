"""SciPy's `root` methods."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import optimize
from scipy.linalg import LinAlgWarning

from rootdiff._backend import Array, status_where
from rootdiff._residual import Residual
from rootdiff._settings import runtime, runtime_settings, with_settings
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver
from rootdiff._space import max_norm
from rootdiff._verdict import allowed_error, is_deep, judged, start_scale
from rootdiff.solvers._correct import corrected
from rootdiff.solvers._wrapped import check_reach

Method = Literal["hybr", "lm", "krylov", "broyden1", "anderson", "df-sane"]
#: Times SciPy is started again from where it stopped, while our residual test fails and it makes progress.
_ROUNDS = 5
_OnHost = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class SciPy(Solver):
    """A method of `scipy.optimize.root`, run on the host for one system after the other.

    Whether a point is a root is judged by rootdiff: each row of its residual must be one that a change of `y`
    within tolerance explains. SciPy's own flag is not read. Where it stops near a root but not at one, as methods
    without a Jacobian do next to a multiple root, full Newton corrections follow; their steps count too.

    Parameters
    ----------
    method : {"hybr", "lm", "krylov", "broyden1", "anderson", "df-sane"}
        ``hybr`` and ``lm`` use the exact Jacobian, the others the residual alone.
    rtol, atol : float, optional
        Tolerances on `y`, with the meaning and defaults of `IterativeSolver`.
    max_steps : int
        Residual evaluations (hybr, lm, df-sane) or iterations (krylov, broyden1, anderson) allowed per system
        and round.

    Notes
    -----
    In a batch, one residual evaluation computes all systems to use one of them. Batches are for the native solvers.

    References
    ----------
    Virtanen et al. (2020), "SciPy 1.0". Moré, Garbow & Hillstrom (1980), "User Guide for MINPACK-1".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]), solver=rootdiff.SciPy(method="hybr")).y
    array([2.])
    """

    method: Method = "hybr"
    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int = runtime(1000, least=1)
    library = "SciPy"

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        xp = residual.xp
        check_reach(f"{self.method} of {self.library}", residual)
        solver = self.resolved(y0.dtype, xp)
        first = residual(y0)
        first_norm = max_norm(xp, first)
        y, steps = solver.found(residual, y0)
        norm = max_norm(xp, residual(y))
        status = status_where(xp, steps >= self.max_steps, Status.MAX_STEPS, Status.STALLED)
        status = xp.where(xp.isfinite(first_norm), status, int(Status.NONFINITE_START))
        raw = RawSolution(y, xp.where(norm == 0, int(Status.CONVERGED), status), steps, norm)
        started = raw.status != int(Status.NONFINITE_START)
        raw = judged(solver, residual, y0, first, raw, started)
        failed = raw.status > int(Status.RUNNING)
        return judged(
            solver, residual, y0, first, corrected(solver, residual, first_norm, raw, failed), started & failed
        )

    def found(self, residual: Residual, y0: Array) -> tuple[Array, Array]:
        """Return the points, (*batch, n), at which the library stops, and the steps, (*batch)."""
        settings = {name: getattr(self, name) for name in runtime_settings(type(self))}
        settings = {name: value for name, value in settings.items() if value is not None}
        exact = self.method in ("hybr", "lm") and residual.differentiable

        def solve_batch(evaluate: _OnHost, jacobian: _OnHost, y0: Any, *values: Any) -> Any:
            # in a compiled program the settings are known on the host only
            known = with_settings(self, **dict(zip(settings, values, strict=True)))
            return known._solve_batch(evaluate, jacobian if exact else None, y0)

        return residual.backend.on_host(solve_batch, residual, y0, *settings.values())

    def _solve_batch(self, evaluate: _OnHost, jacobian: _OnHost | None, y0: Any) -> tuple[Any, Any]:
        """Return the roots, (*batch, n), and the steps, (*batch); all arrays are NumPy's.

        Without a `jacobian`, methods that want one take SciPy's differences.
        """
        y = np.array(y0)
        steps = np.zeros(y.shape[:-1], dtype=np.int32)
        with np.errstate(all="ignore"):  # a callback runs in a thread of its own, without the caller's setting
            finite = np.isfinite(evaluate(y)).all(axis=-1)
            for index in np.ndindex(steps.shape):
                if finite[index]:
                    y[index], steps[index] = self._solve_one(System(evaluate, jacobian, y, index))
        return y, steps

    def _solve_one(self, system: System) -> tuple[Any, int]:
        """Run SciPy, again from its end point as long as that helps, until our residual test holds."""
        first = system.best_norm
        steps = 0
        goal = max(self._explained(system, first)[1], self.rtol * first)  # type: ignore[operator]
        while system.best_norm > 0:
            before = system.best_norm
            steps += self._run(system, goal)
            done, goal = self._explained(system, first)
            if done or not system.best_norm < 0.5 * before or steps > _ROUNDS * self.max_steps:
                break
        return system.best, steps

    def _explained(self, system: System, first: float) -> tuple[bool, float]:
        """Return whether changes of y within tolerance explain each row of f, and their largest change of f."""
        deep = np.asarray(is_deep(self, system.best_norm, first))
        allowed = allowed_error(np, self, system.best, start_scale(np, system.best), deep)
        f = system.probe(system.best)
        change = np.abs(system.probe(system.best + np.sin(np.arange(1, f.size + 1) ** 2 + 1.0) * allowed) - f)
        return bool(np.all(np.abs(f) <= change)), float(np.max(change))

    def _run(self, system: System, goal: float) -> int:
        """Run SciPy once from the best point so far; return the steps it took."""
        if self.method in ("hybr", "lm"):
            options: dict[str, Any] = {"xtol": self.rtol, "eps": float(np.finfo(system.best.dtype).eps)}
            options |= (
                {"maxfev": self.max_steps} if self.method == "hybr" else {"ftol": self.rtol, "maxiter": self.max_steps}
            )
        elif self.method == "df-sane":
            options = {"fatol": goal, "ftol": 0.0, "maxfev": self.max_steps}
        else:
            options = {"fatol": goal, "maxiter": self.max_steps}
            if (
                self.method in ("broyden1", "anderson") and system.secant > 0
            ):  # else SciPy takes |y| / |f|, absurd near a root
                options["jac_options"] = {"alpha": system.secant}
            if self.method == "krylov":  # the step of its own differences, in the precision of the residual
                options["jac_options"] = {"rdiff": float(np.finfo(system.best.dtype).eps) ** 0.5}
        calls = system.calls
        try:
            with _quiet():
                start = system.best.astype(np.float64)
                result = optimize.root(system, start, method=self.method, jac=system.jacobian, options=options)
        except (ValueError, ArithmeticError, np.linalg.LinAlgError):
            if system.failed:  # the user's residual raised, not SciPy's arithmetic
                raise
            return system.calls - calls
        return int(result.nit if "nit" in result else system.calls - calls)


class _Here(threading.local):
    """The message of a filter: matches each one, but in the threads only that run SciPy at the moment."""

    depth = 0

    def match(self, message: str) -> bool:
        return self.depth > 0


_HERE = _Here()
_FILTER: Any = ("ignore", _HERE, LinAlgWarning, None, 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ignore that SciPy's Anderson mixing is ill-conditioned near convergence, in this thread.

    Filters are those of the whole process: `warnings.catch_warnings` in two threads may leave the wrong ones.
    """
    if _FILTER not in warnings.filters:
        warnings.filters.insert(0, _FILTER)  # type: ignore[attr-defined]
    _HERE.depth += 1
    try:
        yield
    finally:
        _HERE.depth -= 1


class System:
    """One system of a batch as SciPy wants it, with the best point that it was asked about."""

    def __init__(self, evaluate: _OnHost, jacobian: _OnHost | None, y: Any, index: Any) -> None:
        self._evaluate, self._jacobian, self._y, self._index = evaluate, jacobian, np.array(y), index
        self.calls, self.failed = 0, False
        self.best, self.best_norm = np.array(y[index]), np.inf
        self(self.best)
        self._start, self._start_norm = self.best, self.best_norm

    def __call__(self, y: Any) -> Any:
        self.calls += 1
        f = self.probe(y)
        norm = float(np.max(np.abs(f)))
        if norm < self.best_norm:
            self.best, self.best_norm = np.array(y, dtype=self._y.dtype), norm
        return f.astype(np.float64)

    @property
    def secant(self) -> float:
        """Distance that the best point has moved over the residual at the start: the size of an inverse Jacobian."""
        return float(np.max(np.abs(self.best - self._start))) / (self._start_norm or 1.0)

    def probe(self, y: Any) -> Any:
        """Return the residual at `y`, without taking note of it."""
        return np.asarray(self._guarded(self._evaluate, y))[self._index]

    @property
    def jacobian(self) -> _OnHost | None:
        """What returns the Jacobian, (n, n), at `y`, if it is known."""
        known = self._jacobian
        return known and (lambda y: np.asarray(self._guarded(known, y), dtype=np.float64)[self._index])

    def _guarded(self, function: _OnHost, y: Any) -> Any:
        batch = self._y.copy()
        batch[self._index] = y
        try:
            return function(batch)
        except BaseException:
            self.failed = True
            raise
