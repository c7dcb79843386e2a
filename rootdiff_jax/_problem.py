"""What a solve is compiled for, what goes into its program, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rootdiff._backend import Array, Pick
from rootdiff._compaction import taken
from rootdiff._residual import Residual
from rootdiff._solution import Status
from rootdiff._sparsity import Pattern
from rootdiff_jax._backend import JaxBackend
from rootdiff_jax._settings import Template
from rootdiff_jax._trace import Traced


@dataclass(frozen=True)
class Problem:
    """What a solve is compiled for: the residual, both solvers, the failure policy, the correction of the steps.

    `fixed_point` tells that the residual is ``cell(y) - y``. Where it is known which of the operands carry the batch
    axes, `batched`, the residual is traced for one system. So many of the batch axes as `mapped` are those of vmap. The
    `pattern` is that of the Jacobian of each system, if it is known.
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

    def call(self, y: Array, *operands: Array) -> Array:
        """Return the residual of all systems, (*batch, n)."""
        if self.batched is None:
            return self.function(y, *operands)
        lead = self.batch_ndim

        def split(array: Array) -> Array:
            return jnp.reshape(array, (-1, *(1,) * (lead - self.mapped), *array.shape[lead:]))

        parts = [split(part) if flag else part for part, flag in zip(operands, self.batched, strict=True)]
        axes = [0 if flag else None for flag in self.batched]
        return jnp.reshape(jax.vmap(self.function, in_axes=(0, *axes))(split(y), *parts), y.shape)

    def residual(self, operands: tuple[Any, ...]) -> Residual:
        """Return the residual with its parameters bound."""
        backend = JaxBackend(self.function.reverse_only, self.function.differentiable)
        residual = Residual(self.call, operands, backend, fixed_point=self.fixed_point, pattern=self.pattern)
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


class Outputs(NamedTuple):
    """What a solve returns: `y` is `best`, the best iterate, but NaN in failed systems unless that is to be kept.

    Only `y` has a derivative.
    """

    y: Array
    best: Array
    status: Array
    steps: Array
    residual_norm: Array
    method: Array | None
    factors: Any
    error: Any


def failed(status: Array) -> Array:
    """Return which systems have no root, (*batch)."""
    return status > int(Status.AT_PRECISION)
