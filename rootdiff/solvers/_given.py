"""A root that was found elsewhere: no step, the verdict alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rootdiff._backend import Array, status_where
from rootdiff._residual import Residual
from rootdiff._settings import runtime, with_settings
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver
from rootdiff._space import max_norm, per_system, weights
from rootdiff._verdict import judged, start_scale


@dataclass(frozen=True, kw_only=True)
class Given(Solver):
    """Returns the start, with the status and the error that the verdict finds there.

    Parameters
    ----------
    rtol, atol : float, optional
        The error of each unknown at which the start is a root: at most ``atol + rtol * abs(y)``. Defaults: eps^(3/4) of
        the dtype, and that times `y_scale`, or without it eps times the size of the largest unknown, at most one.
    """

    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)

    #: How messages call what is sought, and causes and remedies in the words of a root that was given.
    sought: ClassVar[tuple[str, str]] = "implicit", "root"
    words: ClassVar[dict[Status, tuple[str, str]]] = {
        Status.STALLED: (
            "y is no root{off}",
            "check that the residual and args are those of which y is the root, or solve for it more accurately; if it "
            "is as accurate as you need it, say so by rtol or atol, and where all of it is zero to rounding by y_scale",
        ),
        Status.NONFINITE_START: (
            "the residual at y has NaN or infinite entries",
            "check y, and that args are those of which it is the root",
        ),
    }

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        xp, eps = residual.xp, float(residual.xp.finfo(y0.dtype).eps)
        norm, largest = max_norm(xp, residual(y0)), max_norm(xp, y0)[..., None]
        steps = xp.zeros_like(norm, dtype=xp.int32)
        status = status_where(xp, xp.isfinite(norm), Status.STALLED, Status.NONFINITE_START)
        # the verdict compares with a start: here a point off by a part of the largest unknown, so near that it is in
        # the domain, and so far that f is more than noise there
        size = xp.zeros_like(y0) + xp.where(largest > 0, largest, xp.ones_like(largest))
        away = eps**0.25 * size * weights(xp, y0, steps)
        first = residual(y0 + xp.where(y0 < 0, -away, away))
        first = xp.where(xp.isfinite(first), first, xp.zeros_like(first))
        rtol = eps**0.75 if self.rtol is None else self.rtol
        atol = eps * start_scale(xp, size) if residual.scale is None else eps**0.75 * residual.scale
        judge = with_settings(self, rtol=rtol, atol=atol if self.atol is None else self.atol)
        return judged(judge, residual, size, first, RawSolution(y0, status, steps, norm), xp.isfinite(norm))


class Nothing(Solver):
    """Returns the empty answer, after a look at the residual's structure."""

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        residual(y0)
        norm = per_system(residual.xp, y0, 0)
        none = residual.xp.astype(norm, residual.xp.int32)
        return RawSolution(y0, none, none, norm)
