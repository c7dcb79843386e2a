"""The public test kit: hard problems with known answers, and the measure of a solver on them."""

from rootdiff.testing import problems
from rootdiff.testing._measure import Attempt, judge, measure, summary

__all__ = ["Attempt", "judge", "measure", "problems", "summary"]
