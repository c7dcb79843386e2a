"""Expected failures, strict both ways."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from rootdiff._errors import UnknownNameError
from rootdiff.testing._report import Check


def strict(checks: Sequence[Check], xfail: Collection[str]) -> list[Check]:
    """Return the checks, in which an expected failure is skipped, and one that did not happen fails.

    A name stands for its transposed variant too, and for all backends.
    """
    names = {_base(check) for check in checks}
    unknown = set(xfail) - names
    if unknown:
        raise UnknownNameError(f"xfail: {sorted(unknown)} are not among the checks: {', '.join(sorted(names))}.")
    failing = {_base(check) for check in checks if check.outcome == "failed"}
    out = []
    for check in checks:
        if _base(check) in xfail and check.outcome == "failed":
            check = replace(check, outcome="skipped", note=f"expected failure: {check.note}")
        elif _base(check) in xfail and _base(check) not in failing:
            note = "it passes, although it stands in xfail: take it off the list"
            check = replace(check, outcome="failed", note=note)
        out.append(check)
    return out


def _base(check: Check) -> str:
    return check.name.removesuffix(", transposed")
