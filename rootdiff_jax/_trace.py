"""The residual as a value: its jaxpr with everything that it closes over hoisted, comparable by structure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core
import numpy as np

from rootdiff._backend import Array


class Traced:
    """A function of arrays as a jaxpr without constants; two with the same jaxpr are equal.

    So a program compiled for one serves the other: a lambda made anew in each call does not compile anew.

    Attributes
    ----------
    reverse_only : bool
        Whether a `custom_vjp` is in it, so that it has no forward-mode derivative.
    """

    def __init__(self, jaxpr: Any) -> None:
        self._jaxpr = jaxpr
        self._key = _jaxpr_key(jaxpr)
        self._hash = hash(self._key)
        self.reverse_only = any(name.startswith("custom_vjp") for name in _primitives(jaxpr))

    def __call__(self, *operands: Array) -> Array:
        count = len(operands) - len(self._jaxpr.constvars)
        (value,) = jax.core.eval_jaxpr(self._jaxpr, operands[count:], *operands[:count])
        return value

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traced) and self._hash == other._hash and self._key == other._key


def trace(function: Callable[..., Array], y: Array, parameters: Sequence[Any]) -> tuple[Traced, tuple[Any, ...]]:
    """Return `function` as ``traced(y, *operands)``, and the operands: the parameters, then what it closes over."""
    closed = jax.make_jaxpr(function)(y, *parameters)
    return Traced(closed.jaxpr), (*parameters, *closed.consts)


def _primitives(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _primitives(inner)


def _jaxpr_key(jaxpr: Any) -> Any:
    """Return a hashable value that only jaxprs doing the same have; variables are numbered as they appear."""
    numbers: dict[Any, int] = {}

    def number(variable: Any) -> int:
        return numbers.setdefault(variable, len(numbers))

    def read(atom: Any) -> Any:
        if isinstance(atom, jax.extend.core.Literal):
            return (str(atom.aval), np.asarray(atom.val).tobytes())
        return number(atom)

    heads = tuple((number(variable), variable.aval) for variable in (*jaxpr.constvars, *jaxpr.invars))
    equations = tuple(
        (
            equation.primitive,
            tuple(map(read, equation.invars)),
            tuple(sorted((name, _value_key(value)) for name, value in equation.params.items())),
            tuple((number(variable), variable.aval) for variable in equation.outvars),
            _value_key(getattr(equation, "ctx", None)),
        )
        for equation in jaxpr.eqns
    )
    return len(jaxpr.constvars), heads, equations, tuple(map(read, jaxpr.outvars))


def _value_key(value: Any) -> Any:
    """Return a hashable value for a parameter of an equation; of what cannot be compared, its identity."""
    if isinstance(value, jax.extend.core.ClosedJaxpr):
        return _jaxpr_key(value.jaxpr), tuple(map(_value_key, value.consts))
    if isinstance(value, jax.extend.core.Jaxpr):
        return _jaxpr_key(value)
    if isinstance(value, tuple | list):
        return type(value), tuple(map(_value_key, value))
    if isinstance(value, dict):
        return tuple((key, _value_key(item)) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return type(value), value


class _Identity:
    """A value compared by identity, and kept alive so that its identity stays its own."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value
