"""Hard square systems with known answers, for any array-API namespace: the measure of a solver.

`MINPACK` holds the systems of Moré, Garbow & Hillstrom (1981) at the sizes of MINPACK's test driver, with the
extended Rosenbrock and Powell functions; `LIBRARY` the 23 systems of SciML's NonlinearProblemLibrary; `APPLICATIONS`
equations of the sciences with numbers published for them.
"""

from __future__ import annotations

from dataclasses import replace

from rootdiff._errors import UnknownNameError
from rootdiff.testing.problems._fields import field_problems
from rootdiff.testing.problems._laws import law_problems
from rootdiff.testing.problems._library import library_problems
from rootdiff.testing.problems._minpack import minpack_problems
from rootdiff.testing.problems._problem import Problem

__all__ = ["APPLICATIONS", "LIBRARY", "MINPACK", "Problem", "all_problems", "get_problem"]

#: The systems of MINPACK's driver, then the extended functions.
MINPACK: tuple[Problem, ...] = tuple(minpack_problems())
_OWN = tuple(library_problems())
_SHARED = (
    "powell-singular-4",
    "powell-badly-scaled-2",
    "wood-4",
    "helical-valley-3",
    "brown-almost-linear-10",
    "discrete-boundary-value-10",
    "trigonometric-10",
    "variably-dimensioned-10",
    "broyden-tridiagonal-10",
    "broyden-banded-10",
)
#: The systems of NonlinearProblemLibrary: ten are MINPACK's, from the standard start only; the others follow.
LIBRARY: tuple[Problem, ...] = (*(replace(p, tries=1) for p in MINPACK if p.name in _SHARED), *_OWN)
#: Equations of the sciences, one start each.
APPLICATIONS: tuple[Problem, ...] = (*law_problems(), *field_problems())


def all_problems() -> tuple[Problem, ...]:
    """Return every problem once.

    Examples
    --------
    >>> from rootdiff.testing.problems import all_problems
    >>> len(all_problems())
    50
    """
    return (*MINPACK, *_OWN, *APPLICATIONS)


def get_problem(name: str) -> Problem:
    """Return the problem of this name.

    Raises
    ------
    UnknownNameError
        If there is none; the message lists the names.

    Examples
    --------
    >>> from rootdiff.testing.problems import get_problem
    >>> get_problem("watson-6").n
    6
    """
    for problem in all_problems():
        if problem.name == name:
            return problem
    names = ", ".join(problem.name for problem in all_problems())
    raise UnknownNameError(f"get_problem: {name!r} is not among the problems: {names}.")
