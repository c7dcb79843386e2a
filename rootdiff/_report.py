"""The certificate of a gradient: how large its relative error is, and where it comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from rootdiff._failure import adjoint_words
from rootdiff._solution import Status

#: From this relative error on the gradient has no digit to speak of.
_WORTHLESS = 0.1


@dataclass(frozen=True)
class GradientReport:
    """What is known of the error of a gradient ``w^T dy/dargs``; `print` shows it as a table.

    Attributes
    ----------
    residual_norm : float
        Largest absolute residual at y, in the units of the residual.
    y_error : float
        Estimated ``norm(y - root) / norm(root)``, by Newton's correction and those of rounding in f; the largest in a
        batch. Dimensionless.
    condition : float
        Estimated condition number of the Jacobian in the 1-norm, the largest in a batch; NaN if it is too large to
        be factored.
    adjoint_residual : float
        ``norm(J^T u - w) / norm(w)`` of the adjoint solve, the largest in a batch.
    root_error, adjoint_error, derivative_error, rounding_error : float
        Estimated relative errors of the gradient, in the Euclidean norm over all parameters: because y is not quite the
        root, because the adjoint system is not quite solved, because the derivatives of f are differences (zero where
        they are not), and because y, f and its derivatives are rounded.
    gradient_error : float
        Estimated relative error of the gradient: its distance from the one without the first three errors, which may
        cancel, and the fourth.
    status : integer array, (*batch). `Status` of the adjoint solve: the mask of what failed.
    rank_deficient : bool
        Whether the Jacobian is singular and the gradient is that of minimum norm.
    adjoint : str
        The adjoint solver.
    exact : bool
        Whether it is an exact one.
    verdict, remedy : str
        What this comes to, and what to do about it.
    """

    residual_norm: float
    y_error: float
    condition: float
    adjoint_residual: float
    root_error: float
    adjoint_error: float
    derivative_error: float
    rounding_error: float
    gradient_error: float
    status: Any
    rank_deficient: bool
    adjoint: str
    exact: bool
    verdict: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        rows = [
            ("residual norm", self.residual_norm),
            ("relative error of y", self.y_error),
            ("condition of the Jacobian", self.condition),
            ("relative adjoint residual", self.adjoint_residual),
            ("gradient error from the root", self.root_error),
            ("gradient error from the adjoint", self.adjoint_error),
            ("gradient error from differences", self.derivative_error),
            ("gradient error from rounding", self.rounding_error),
            ("gradient error, estimated", self.gradient_error),
        ]
        kind = "" if self.exact else " (approximate)"
        lines = [f"{name:<33}{value:>10.1e}" for name, value in rows]
        lines += [f"{'adjoint':<33}{self.adjoint}{kind}", f"verdict: {self.verdict}."]
        return "\n".join(lines + ([f"to do: {self.remedy}."] if self.remedy else []))


def concluded(report: GradientReport, rough: bool) -> tuple[str, str]:
    """Return the conclusion and the remedy, in words; `rough` says whether the Jacobian is made of differences."""
    failed = report.status > Status.AT_PRECISION
    if failed.any():
        cause, remedy = adjoint_words(Status(int(report.status[failed].max())), rough)
        return f"no gradient: {cause}", remedy
    total = report.gradient_error
    sources = {
        "the root": (report.root_error, "solve to a tighter tolerance (rtol, atol)"),
        "the adjoint solve": (report.adjoint_error, "use adjoint='lu', or a smaller rtol of the iterative adjoint"),
        "differences": (report.derivative_error, "give jac, jvp or vjp, or use derivatives='complex-step'"),
        "rounding": (report.rounding_error, "use a higher precision, exact derivatives, or rescale the problem"),
    }
    source, (_, remedy) = max(sources.items(), key=lambda item: item[1][0])
    if not total < _WORTHLESS:
        return f"no digit of the gradient can be trusted, because of {source}", remedy
    digits = max(1, math.floor(-math.log10(total)))
    kept = f"about {digits} digit{'s' if digits > 1 else ''} of the gradient can be trusted"
    if report.rank_deficient:
        kept += ", which is that of minimum norm, the Jacobian being singular"
    good = report.rounding_error + report.derivative_error >= 0.5 * total
    return (kept, "") if good else (f"{kept}; the error comes from {source}", remedy)
