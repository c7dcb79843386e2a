"""The public test kit: prove your own residuals, solvers and adjoints."""

from rootdiff.testing._check_residual import check_residual
from rootdiff.testing._report import Check, CheckFailed, Report

__all__ = ["Check", "CheckFailed", "Report", "check_residual"]
