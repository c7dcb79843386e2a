"""Solvers of other libraries: what they cannot be asked for, and how one for minima is run and ended."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver
from rootdiff._space import is_finite, max_norm
from rootdiff.solvers._correct import corrected_minimum


def imported(library: str, title: str) -> Any:
    """Return the module of another library, an extra of this one; raise where it is not installed."""
    try:
        return import_module(library)
    except ImportError as error:
        raise ArgumentError(
            f"solver: {title} is not installed. Install it with `pip install 'rootdiff[{library}]'`, or take 'auto'."
        ) from error


def check_reach(solver: str, residual: Residual, takes_bounds: bool = False) -> None:
    """Raise if a call asks for what the steps of another library, named `solver`, do not do."""
    if residual.box is not None and not takes_bounds:
        bounded = "scipy:least_squares:trf" if residual.objective is None else "scipy:minimize:L-BFGS-B"
        raise ArgumentError(f"solver: {solver} takes no bounds. Take {bounded!r}, or 'auto'.")
    corrects = residual.correct is not None and residual.box is None
    if corrects or residual.observe is not None:
        of_roots = residual.equations is None
        hooks = f"{'correct, bounds, ' if of_roots else ''}callback, progress, verbose and history"
        advice = "a native solver such as 'newton' or 'trust_region'" if of_roots else "'auto'"
        raise ArgumentError(f"solver: {solver} takes its own steps, which {hooks} do not reach. Take {advice}.")


@dataclass(frozen=True, kw_only=True)
class WrappedMinimizer(Solver):
    """A minimiser of another library: it goes as far as it does, Newton corrections of the gradient follow."""

    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int = 1000

    @property
    @abstractmethod
    def title(self) -> str:
        """How messages call it."""

    #: Whether it is one for sums of squares, not for an objective; and whether it takes bounds, and constraints.
    of_squares = False
    takes_bounds = False
    takes_constraints = False

    @abstractmethod
    def descend(self, minimised: Residual, residual: Residual, y0: Array) -> tuple[Array, Array]:
        """Return the minima, (*batch, n), of what is `minimised`, and the steps, (*batch) or a number."""

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        minimised = residual.squares if self.of_squares else residual.objective
        if residual.constrained is not None and not self.takes_constraints:
            raise ArgumentError(f"solver: {self.title} takes no constraints. Take 'scipy:minimize:SLSQP', or 'auto'.")
        minimised = minimised if residual.constrained is None else residual.constrained
        if minimised is None:
            entry = "least_squares" if self.of_squares else "minimize"
            raise ArgumentError(f"solver: {self.title} is one for {entry}. Call that, or take 'auto'.")
        check_reach(self.title, residual, self.takes_bounds)
        solver = self.resolved(y0.dtype, residual.xp)
        return ended(solver, residual, y0, *solver.descend(minimised, residual, y0))


def ended(solver: Any, residual: Residual, y0: Array, y: Array, steps: Any) -> RawSolution:
    """Return the solution after a minimiser has come to `y` in so many steps; whether it is one is not judged yet."""
    xp, norm = residual.xp, max_norm(residual.xp, residual(y))
    steps = xp.zeros_like(norm, dtype=xp.int32) + steps
    status = xp.where(steps >= solver.max_steps, int(Status.MAX_STEPS), int(Status.STALLED))
    status = xp.where(xp.isfinite(norm), status, int(Status.NONFINITE))
    known = is_finite(xp, residual(y0))
    known = known if residual.equations is None else known & is_finite(xp, residual.equations(y0))
    status = xp.where(known, status, int(Status.NONFINITE_START))
    raw = RawSolution(y, xp.astype(status, xp.int32), steps, norm, error=xp.full_like(y, xp.inf))
    return corrected_minimum(solver, residual, raw)
