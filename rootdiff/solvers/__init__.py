"""Solvers: one method, one file."""

from rootdiff.solvers._anderson import Anderson
from rootdiff.solvers._auto import Auto
from rootdiff.solvers._broyden import Broyden
from rootdiff.solvers._fixed_point import FixedPoint
from rootdiff.solvers._newton import Newton
from rootdiff.solvers._scipy import SciPy

__all__ = ["Anderson", "Auto", "Broyden", "FixedPoint", "Newton", "SciPy"]
