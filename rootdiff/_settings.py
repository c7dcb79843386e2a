"""Settings of solvers: whether each has the type that its field is annotated with, and solvers with other settings."""

from __future__ import annotations

import inspect
import math
import operator
import sys
from collections.abc import Callable
from copy import copy
from dataclasses import field, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from rootdiff._errors import ArgumentError, ArgumentTypeError, with_article

T = TypeVar("T")

#: The packages of this library.
_OURS = ("rootdiff", "rootdiff_torch", "rootdiff_jax")

#: The least values of settings that all solvers share, if a mark tells no other.
_LEAST = {"rtol": 0, "atol": 0, "max_steps": 0}
#: The marks of a field that its numbers must keep to; with a least one, infinite ones are refused.
_LIMITS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def is_ours(value: Any) -> bool:
    """Return whether a class or a function is one of this library, not a user's."""
    return value.__module__.partition(".")[0] in _OURS


def runtime(default: T, **marks: Any) -> T:
    """Return a dataclass field for a setting that only scales numbers: a compiled solve takes it as an input."""
    return field(default=default, metadata={"runtime": True, **marks})


def limited(default: T, **limits: float) -> T:
    """Return a dataclass field for a number within limits: `least`, `above`, `most`, `below`."""
    return field(default=default, metadata=limits)


@cache
def _marks(kind: Any) -> dict[str, dict[str, Any]]:
    """Return the metadata of each field, by the class or one that it derives from: another default needs no mark."""
    marks: dict[str, dict[str, Any]] = {}
    for base in kind.__mro__:
        for f in base.__dict__.get("__dataclass_fields__", {}).values():
            marks[f.name] = {**f.metadata, **marks.get(f.name, {})}
    return marks


@cache
def runtime_settings(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields that are marked ``metadata={"runtime": True}``."""
    return tuple(name for name, marks in _marks(kind).items() if marks.get("runtime"))


def check_settings(solver: Any) -> None:
    """Raise unless each field of a solver, a dataclass, holds what its annotation allows.

    Looked at are numbers (float, int, bool), literals, None, solvers, and unions of these; other annotations allow
    everything. A number may be an array without axes, traced or not, where the solver takes it as a number.

    Raises
    ------
    ArgumentTypeError
        If a setting is of another type.
    ArgumentError
        If it is of the right type, but a value that is not allowed.
    """
    kind: Any = type(solver)
    for name, arms in _annotations(kind):
        value = getattr(solver, name)
        if not any(_allows(arm, value, name in runtime_settings(kind)) for arm in arms):
            error = ArgumentError if any(_is_alike(arm, value) for arm in arms) else ArgumentTypeError
            raise error(f"{kind.__name__}: {name} is {_shown(value)}; it must be {_words(arms)}.")
        if _is_number(value, Real):
            _check_limits(kind.__name__, name, value, arms, {"least": _LEAST.get(name)} | _marks(kind)[name])


def _check_limits(owner: str, name: str, value: Any, arms: tuple[Any, ...], marks: dict[str, Any]) -> None:
    limits = [(*_LIMITS[mark], marks[mark]) for mark in _LIMITS if marks.get(mark) is not None]
    infinite = math.isinf(value) and marks.get("least") is not None
    if math.isnan(value) or infinite or not all(holds(value, limit) for holds, _, limit in limits):
        allowed = " and ".join(f"{words} {limit}" for _, words, limit in limits) or "a number"
        allowed += ", and finite" if allowed.startswith("at least") and len(limits) == 1 and float in arms else ""
        none = ", or None" if NoneType in arms else ""
        raise ArgumentError(f"{owner}: {name} is {value!r}; it must be {allowed}{none}.")


def with_settings(solver: T, /, **changes: Any) -> T:
    """Return a copy of a solver with other settings, which are not checked: they may be arrays, or nothing yet.

    Its ``__post_init__`` is not run again. So it sees what the user gave, whatever a backend puts in its place.
    """
    new = copy(solver)
    for name, value in changes.items():
        object.__setattr__(new, name, value)
    return new


@cache
def _annotations(kind: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Return the fields of a dataclass, each with the types that its annotation is a union of."""
    found = []
    for setting in fields(kind):
        owner = [c for c in kind.__mro__ if c.__dict__.get("__dataclass_fields__", {}).get(setting.name) is setting][-1]
        hint = setting.type
        if isinstance(hint, str):
            try:
                hint = eval(hint, vars(sys.modules[owner.__module__]))  # as typing.get_type_hints does
            except Exception:  # of names that are there for the type checker only
                continue
        arms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if all(map(_is_known, arms)):
            found.append((setting.name, tuple(NoneType if arm is None else arm for arm in arms)))
    return tuple(found)


def _is_known(arm: Any) -> bool:
    return arm in (float, int, bool, None, NoneType) or get_origin(arm) is Literal or _is_solver(arm)


def _is_solver(arm: Any) -> bool:
    return isinstance(arm, type) and callable(getattr(arm, "solve", None))


def _allows(arm: Any, value: Any, runtime: bool) -> bool:
    if get_origin(arm) is Literal:
        return isinstance(value, str) and value in get_args(arm)
    if arm is float:
        return _is_number(value, Real) or _is_scalar_array(value, ("float", "int"))
    if arm is int:  # shapes and Python loops need one, a limit on steps does not
        return _is_number(value, Integral) or (runtime and _is_scalar_array(value, ("int",)))
    return isinstance(value, arm)


def _is_alike(arm: Any, value: Any) -> bool:
    """Return whether a value that is not allowed is of the right type all the same: another name, another solver."""
    return (get_origin(arm) is Literal and isinstance(value, str)) or (_is_solver(arm) and _is_solver(type(value)))


def _is_number(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_scalar_array(value: Any, kinds: tuple[str, ...]) -> bool:
    dtype = str(getattr(value, "dtype", "")).removeprefix("torch.")
    return tuple(getattr(value, "shape", (0,))) == () and dtype.lstrip("bu").startswith(kinds)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)} and dtype {value.dtype}"
    hint = " (a class: call it to make one)" if isinstance(value, type) else ""
    return f"{value!r}, {with_article(type(value).__name__)}{hint}"


def _words(arms: tuple[Any, ...]) -> str:
    words = []
    for arm in arms:
        if get_origin(arm) is Literal:
            words += [repr(choice) for choice in get_args(arm)]
        else:
            names = {float: "a number", int: "an integer", bool: "True or False", NoneType: "None"}
            words.append(names.get(arm) or with_article(arm.__name__) + _examples(arm))
    return " or ".join(words)


def _examples(kind: Any) -> str:
    """Return how to make solvers of an abstract kind, in words."""
    concrete = sorted(f"{sub.__name__}()" for sub in kind.__subclasses__() if not inspect.isabstract(sub))
    return f" such as {', '.join(concrete[:4])}" if inspect.isabstract(kind) and concrete else ""
