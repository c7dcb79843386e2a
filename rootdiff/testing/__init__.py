"""The public test kit: hard problems with known answers."""

from rootdiff.testing import problems

__all__ = ["problems"]
