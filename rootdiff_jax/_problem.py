"""What a solve is compiled for, what goes into its program, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rootdiff._backend import Array, Pick
from rootdiff._compaction import taken
from rootdiff._constraints import Objective
from rootdiff._residual import Residual
from rootdiff._settings import runtime_settings, with_settings
from rootdiff._solution import Status
from rootdiff._sparsity import Pattern
from rootdiff._squares import gradient, minimised
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._trace import Traced

_MISSING = object()


@dataclass(frozen=True)
class Template:
    """A solver without the values of its runtime settings; templates of the same settings are equal."""

    solver: Any = field(compare=False)
    key: Any

    def fill(self, values: Sequence[Any]) -> Any:
        """Return the solver with these runtime settings, in the order of `split`."""
        remaining = iter(values)
        return _replaced(self.solver, lambda _: next(remaining))[0]


def split(solver: Any) -> tuple[Template, tuple[Any, ...]]:
    """Return a solver's template and the values of its runtime settings, those of solvers inside it included."""
    values: list[Any] = []

    def taken(value: Any) -> Any:
        values.append(value)
        return _MISSING  # a template outlives the solve, in the cache of programs, and values may be tracers

    return Template(*_replaced(solver, taken)), tuple(values)


def _replaced(value: Any, replacement: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return a setting with its runtime values replaced, and what tells it from others, whatever these values are."""
    if type(value) is tuple:  # the solvers of a chain
        parts = [_replaced(entry, replacement) for entry in value]
        return tuple(new for new, _ in parts), tuple(key for _, key in parts)
    if not is_dataclass(value) or isinstance(value, type):
        return value, value
    changes: dict[str, Any] = {}
    keys = []
    for name in (f.name for f in fields(value) if f.init):
        old, kind = getattr(value, name), type(value)
        if name in runtime_settings(kind) and old is not None and not isinstance(old, bool | str):
            new, key = replacement(old), type(old)
        else:
            new, key = _replaced(old, replacement)
        changes |= {name: new} if new is not old else {}
        keys.append((name, key))
    return with_settings(value, **changes) if changes else value, (type(value), *keys)


@dataclass(frozen=True)
class Problem:
    """What a solve is compiled for: the residual, both solvers, the failure policy, the correction of the steps.

    `fixed_point` tells that the residual is ``cell(y) - y``. Where it is known which of the operands carry the batch
    axes, `batched`, the residual is traced for one system. So many of the batch axes as `mapped` are those of vmap. The
    `pattern` is that of the Jacobian of each system, if it is known. With a `loss` the residual is the
    gradient of such a sum of the function, see `Residual`, whose values bounds follow if it is `bounded`.
    """

    function: Traced
    solver: Template
    adjoint: Template
    on_failure: str
    correct: Traced | None = None
    fixed_point: bool = False
    batched: tuple[bool, ...] | None = None
    batch_ndim: int = 0
    mapped: int = 0
    pattern: Pattern | None = None
    loss: str | Objective | None = None
    bounded: bool = False
    spread: bool = False

    def call(self, y: Array, *operands: Array) -> Array:
        """Return the residual of all systems, (*batch, n)."""
        if self.loss is None:
            return self._equations(y, *operands)
        return gradient(JaxBackend(), self._equations, self.loss, self.bounded)(y, *operands)

    def _equations(self, y: Array, *operands: Array) -> Array:
        if self.batched is None:
            return self.function(y, *operands)
        lead = self.batch_ndim

        def split(array: Array) -> Array:
            return jnp.reshape(array, (-1, *(1,) * (lead - self.mapped), *array.shape[lead:]))

        parts = [split(part) if flag else part for part, flag in zip(operands, self.batched, strict=True)]
        axes = [0 if flag else None for flag in self.batched]
        found = jax.vmap(self.function, in_axes=(0, *axes))(split(y), *parts)
        return jnp.reshape(found, (*y.shape[:-1], found.shape[-1]))

    def residual(self, operands: tuple[Any, ...]) -> Residual:
        """Return the residual with its parameters bound."""
        backend = JaxBackend(self.function.reverse_only, self.function.differentiable, self.spread)
        residual = Residual(self.call, operands, backend, fixed_point=self.fixed_point, pattern=self.pattern)
        if self.loss is not None:
            return minimised(replace(residual, function=self._equations), self.loss, self.bounded)
        return residual if self.batched is None else replace(residual, take=partial(self._take, operands))

    def _take(self, operands: tuple[Any, ...], pick: Pick, _: int) -> Residual:
        assert self.batched is not None
        pairs = zip(operands, self.batched, strict=True)
        return self.residual(tuple(taken(jnp, part, pick, self.batch_ndim) if flag else part for part, flag in pairs))


class Inputs(NamedTuple):
    """Start, runtime settings of solver and adjoint, what the correction and what the residual depends on.

    `scale` is the size of the unknowns, like `y0`, if the user has told.
    """

    y0: Array
    solver: tuple[Any, ...]
    adjoint: tuple[Any, ...]
    correct: tuple[Any, ...]
    scale: Array | None
    operands: tuple[Any, ...]


def failed(status: Array) -> Array:
    """Return which systems have no root, (*batch)."""
    return status > int(Status.AT_PRECISION)
