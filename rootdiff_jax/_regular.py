"""Where a derivative of the residual is finite, though some system of a batch has no root.

A failed system that no loss reads has a cotangent of zero. But zero times a derivative that is not finite is NaN, in
what all systems share: so a failed system is looked at where a good one is, with that one's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from rootdiff._backend import Array, Backend
from rootdiff._space import max_norm
from rootdiff_jax._mesh import partition, vary, varying_axes
from rootdiff_jax._trace import of_some

#: How far aside, relative to each number, it is asked what the systems depend on: at a root of zero, or with a
#: parameter of zero, what is multiplied by them has no effect.
_ASIDE = 1e-3

Function = Callable[..., Array]


def regular_point(
    function: Function,
    backend: Backend,
    failed: Array,
    y: Array,
    operands: tuple[Any, ...],
    batched: tuple[bool, ...] | None,
) -> tuple[Array, tuple[Any, ...]]:
    """Return the root and the operands of `function`, with those of a good system where one `failed`, (*batch).

    The operands that are known by system are `batched`. Where that is None, it is found out, in programs in which a
    system has failed where its derivative is not finite; the others are left alone.
    """
    y, *others = _of_vmap(jnp.all(failed), _of_batch(function, backend, failed, (y, *operands), batched))
    return y, tuple(others)


@jax.custom_jvp
def _of_vmap(failed: Array, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arrays of one system, with a good system's among those that `jax.vmap` maps over, where it failed.

    To JAX its derivative is that of the arrays: in a failed system it meets nothing but cotangents of zero, or NaN.
    """
    return _exchanged(failed, values)  # type: ignore[no-any-return]


_of_vmap.defjvp(lambda primals, tangents: (_of_vmap(*primals), tangents[1]), symbolic_zeros=True)


@custom_vmap
def _exchanged(_: Array, values: tuple[Any, ...]) -> tuple[Any, ...]:
    return values


@_exchanged.def_vmap
def _exchanged_in(_: int, batched: list[Any], failed: Array, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return the arrays with those of a good system where one failed along this axis, then along the others."""
    own, flags = batched
    if own:
        spread = any(flag and partition(value)[0] is not None for value, flag in zip(values, flags, strict=True))
        values, failed = values if spread or failed.size == 0 else _with_rows(values, failed, flags), jnp.all(failed)
    return _exchanged(failed, values), flags


def _of_batch(
    function: Function,
    backend: Backend,
    failed: Array,
    values: tuple[Any, ...],
    batched: tuple[bool, ...] | None,
) -> tuple[Any, ...]:
    """Do what `regular_point` does for the systems of a batch."""
    if batched is not None:
        return _with_rows(values, failed, (True, *batched))
    y = values[0]
    # rows of systems cannot be exchanged in arrays that are spread over devices in another way
    spread = (any(partition(value)) or not varying_axes(value) <= varying_axes(y) for value in values)
    if failed.shape == () or any(spread):
        return values
    candidates = tuple(_is_of_numbers(value) and jnp.shape(value)[: failed.ndim] == failed.shape for value in values)
    fixed = jax.tree.map(lax.stop_gradient, values)

    def look(failed: Array, *values: Any) -> Any:
        found = *_found(function, backend, failed, values, candidates), _rows(values, failed, candidates)
        return jax.tree.map(lambda part: vary(part, varying_axes(y)), found)

    none = [jnp.zeros_like(row) for row in _rows(fixed, failed, candidates)]
    nothing = (jnp.zeros_like(failed), jnp.zeros(len(values), dtype=bool), none)
    wrong, found, rows = backend.when(jnp.any(failed), look, (failed, *fixed), nothing)
    return _with_good(values, rows, wrong, [flag and found[place] for place, flag in enumerate(candidates)])


def _is_of_numbers(value: Any) -> bool:
    """Return whether an array holds no random keys."""
    return not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def _taken(value: Any, failed: Array) -> Array:
    """Return the numbers of one system that has not failed, (1, k), of an array that starts with the batch axes."""
    flat = jnp.reshape(lax.stop_gradient(value), (failed.size, -1))
    # not by argmax, which gathers a batch that is spread over devices
    first = jnp.min(jnp.where(jnp.reshape(failed, -1), failed.size - 1, jnp.arange(failed.size)))
    return jnp.take(flat, first[None], axis=0)


def _rows(values: Sequence[Any], failed: Array, candidates: Sequence[bool]) -> list[Any]:
    """Do what `_taken` does for the candidates."""
    return [_taken(value, failed) if flag else jnp.zeros(()) for value, flag in zip(values, candidates, strict=True)]


def _with_rows(values: Sequence[Any], failed: Array, flags: Sequence[bool]) -> tuple[Any, ...]:
    """Return the arrays; those of numbers whose flag holds, with a good system's rows in the systems that failed."""
    flags = [flag and _is_of_numbers(value) for value, flag in zip(values, flags, strict=True)]
    return _with_good(values, _rows(values, failed, flags), failed, flags)


def _with_good(values: Sequence[Any], rows: Sequence[Any], wrong: Array, flags: Sequence[Any]) -> tuple[Any, ...]:
    """Return the arrays, those whose flag holds with a row in place of their own in the `wrong` systems."""

    def replaced(value: Any, row: Any, flag: Any) -> Any:
        if flag is False:
            return value
        flat = jnp.reshape(value, (*wrong.shape, -1))
        return jnp.reshape(jnp.where((wrong & flag)[..., None], row, flat), jnp.shape(value))

    return tuple(map(replaced, values, rows, flags))


def _found(
    function: Function, backend: Backend, failed: Array, values: tuple[Any, ...], candidates: Sequence[bool]
) -> tuple[Array, Array]:
    """Return the failed systems whose derivative is not finite, (*batch), and the arrays that are data of systems.

    They are those that may have a good system's rows in these systems without any effect on the good systems, on the
    value and a derivative of the residual aside of the point.
    """
    floating = [place for place, value in enumerate(values) if jnp.issubdtype(value.dtype, jnp.floating)]
    steps = {place: _step(values[place]) for place in floating}
    asked = jnp.asarray([place for place, flag in enumerate(candidates) if flag])

    def look(moved: Array, wrong: Array, flags: Array) -> Array:
        """Return value and derivative of the residual, (2, *batch, n), aside of the point if `moved`."""
        aside = [
            value + moved.astype(value.dtype) * steps[place] if place in steps else value
            for place, value in enumerate(values)
        ]
        chosen = [flag and flags[place] for place, flag in enumerate(candidates)]
        point = _with_good(aside, _rows(aside, failed, candidates), wrong, chosen)

        of_floating, primals = of_some(function, point, floating)
        return jnp.stack(backend.jvp(of_floating, primals, [steps[place] for place in floating]))

    def ask(state: tuple[Array, ...]) -> tuple[Array, ...]:
        count, wrong, flags, known = state
        place = asked[jnp.maximum(count - 2, 0)]
        trial = flags | ((jnp.arange(len(values)) == place) & (count >= 2))
        found = look(count > 0, wrong, trial)
        finite = jnp.all(jnp.isfinite(found), axis=(0, -1))
        wrong = jnp.where(count == 0, failed & ~finite, wrong)
        known = jnp.where(count == 1, found, known)
        allowed = float(backend.xp.finfo(known.dtype).eps) ** 0.75 * max_norm(jnp, known)
        same = jnp.all(failed | jnp.all(max_norm(jnp, found - known) <= allowed, axis=0))
        return count + 1, wrong, jnp.where(same, trial, flags), known

    start = (
        jnp.asarray(0),
        jnp.zeros_like(failed),
        jnp.zeros(len(values), dtype=bool),
        jnp.zeros_like(jnp.stack([values[0], values[0]])),
    )
    end = backend.while_loop(lambda state: state[0] < 2 + len(asked), ask, start)
    return end[1], end[2]


def _step(value: Array) -> Array:
    """Return a change of an array by a small part of each number, of no special direction; of zero upwards."""
    kind = jnp.shape(value), value.dtype
    angle = sum(((axis + 2) ** 0.5 * lax.broadcasted_iota(kind[1], kind[0], axis) for axis in range(len(kind[0]))), 1.0)
    pattern = (0.75 + 0.25 * jnp.sin(angle)) * jnp.where(jnp.sin(angle * angle) > 0, 1, -1).astype(value.dtype)
    return _ASIDE * jnp.where(value == 0, jnp.abs(pattern), jnp.abs(value) * pattern)
