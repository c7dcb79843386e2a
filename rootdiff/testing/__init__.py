"""The public test kit: prove your own residuals, solvers and adjoints; hard problems with known answers."""

from rootdiff.testing import problems
from rootdiff.testing._check_adjoint import check_adjoint
from rootdiff.testing._check_residual import check_residual
from rootdiff.testing._check_solver import check_solver
from rootdiff.testing._families import Case, make_case
from rootdiff.testing._measure import Attempt, judge, measure, summary
from rootdiff.testing._report import Check, CheckFailed, Report
from rootdiff.testing._strategies import parameters, residuals, starts

__all__ = [
    "Attempt",
    "Case",
    "Check",
    "CheckFailed",
    "Report",
    "check_adjoint",
    "check_residual",
    "check_solver",
    "judge",
    "make_case",
    "measure",
    "parameters",
    "problems",
    "residuals",
    "starts",
    "summary",
]
