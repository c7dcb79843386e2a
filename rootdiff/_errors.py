"""The errors of rootdiff.

RootdiffError
├── ArgumentError (ValueError)        an argument has a value that is not allowed
│   ├── UnknownNameError              a solver or adjoint that nobody registered
│   └── UnderdeterminedError          fewer equations than unknowns; `least_squares` then takes the nearest solution
├── ArgumentTypeError (TypeError)     an argument is of the wrong type
├── DuplicateNameError                a name that is registered already
└── ConvergenceError (RuntimeError)   a root was not found; the solution rides on it
    └── AdjointError                  the linear solve of a derivative failed

ConvergenceWarning (UserWarning)      the same, under ``on_failure="warn"``
"""

from __future__ import annotations

from typing import Any


class RootdiffError(Exception):
    """Base class of every error that rootdiff raises itself; a note names the place of the documentation about it."""

    #: Whether it names the unknown as the entry point does that it comes from: `y0`, `z0` or `y`.
    named = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # what a message is about: the statuses that it lists, or else the argument or the class with which it begins
        subject, *parts = (line.partition(":")[0] for line in str(args[0] if args else "").split("\n"))
        subject = subject.partition("[")[0]
        places = [part.strip().lower() for part in parts if part.isupper() and part.strip().isidentifier()]
        if subject.isidentifier():
            places = places or [subject if subject.islower() else "class"]
        if places:
            self.add_note(f"About this: {', '.join(f'docs/failure.md#{place}' for place in places)}")


class ArgumentError(RootdiffError, ValueError):
    """An argument has a value that is not allowed; the message names it."""


class UnknownNameError(ArgumentError):
    """No solver or adjoint is registered under this name; the message lists those that are."""


class UnderdeterminedError(ArgumentError):
    """There are fewer equations than unknowns."""


class ArgumentTypeError(RootdiffError, TypeError):
    """An argument is of the wrong type; the message names it."""


class DuplicateNameError(RootdiffError):
    """A solver or adjoint is registered under this name already."""


class ConvergenceError(RootdiffError, RuntimeError):
    """At least one system has no root that can be vouched for.

    Attributes
    ----------
    solution : Solution
        What the solver reached: its best iterate, with `status`, `steps` and `residual_norm` per system.
    """

    def __init__(self, message: str, solution: Any = None) -> None:
        super().__init__(message)
        self.solution = solution


class AdjointError(ConvergenceError):
    """The linear solve of the implicit rule failed, so the derivative is not known.

    Attributes
    ----------
    solution : LinearInfo
        `status` and `relative_residual` of the linear solve, per system.
    """


class ConvergenceWarning(UserWarning):
    """What `ConvergenceError` says, as a warning (``on_failure="warn"``)."""


def check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise unless an argument is one of some values."""
    if value not in choices:
        raise ArgumentError(f"{name}: got {value!r}; allowed are {', '.join(map(repr, choices))}.")


def with_article(noun: str) -> str:
    """Return a noun of a message with "a" or "an" before it."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"
