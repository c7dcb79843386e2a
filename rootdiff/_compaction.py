"""Batches whose finished systems cost nothing: the others go on as a smaller batch.

The systems that still run are picked from among the systems counted through; the smaller batch has as many axes as the
large one, all but the first of length one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import optree

from rootdiff._backend import Array, Backend, Pick
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._structure import Structure

#: A batch is made smaller when at most one in so many of its systems runs on: where sizes are compiled for, by fixed
#: factors and rarely, else as soon as it pays.
_COMPILED, _EAGER = 8, 2
#: Systems of a smaller batch that a compiled program takes at a time: with fewer, operations cost no less. Of a large
#: batch there are more, so that its systems take at most `_COMPILED` rounds.
_ROUND = 64


def batched_leaves(backend: Backend, args: tuple[Any, ...], batched_args: Any, batch: tuple[int, ...]) -> list[bool]:
    """Return for each leaf of `args` whether it carries the batch axes, as `batched_args` tells.

    `batched_args` has one entry per argument, as the ``in_axes`` of vmap: 0 or None, or containers of these that the
    argument starts with.
    """
    if not isinstance(batched_args, tuple | list) or len(batched_args) != len(args):
        raise ArgumentError(
            f"batched_args: got {batched_args!r}; it must be a tuple with one entry for each of the {len(args)} args: "
            "0 where the batch axes lead, None where there are none."
        )
    leaves, tree = backend.flatten(args)
    flags = [False] * len(leaves)

    def mark(flag: Any, places: Any, index: int) -> None:
        if isinstance(flag, dict) and isinstance(places, dict) and flag.keys() == places.keys():
            for key, part in flag.items():
                mark(part, places[key], index)
        elif isinstance(flag, tuple | list) and isinstance(places, tuple | list) and len(flag) == len(places):
            for part, place in zip(flag, places, strict=True):
                mark(part, place, index)
        elif type(flag) is int and flag == 0:
            for place in backend.flatten(places)[0]:
                _check_leaf(leaves[place], batch, index)
                flags[place] = True
        elif flag is not None:
            raise ArgumentError(
                f"batched_args: entry {index} is or holds {flag!r}; it must be 0, None, or like args[{index}] with 0 "
                "and None for leaves."
            )

    places = backend.unflatten(tree, range(len(leaves)))
    for index, flag in enumerate(batched_args):
        mark(flag, places[index], index)
    return flags


def compactable(
    make: Callable[[Structure, tuple[Any, ...]], Residual],
    structure: Structure,
    args: tuple[Any, ...],
    flags: list[bool],
) -> Residual:
    """Return the residual that `make` makes of a structure and args, such that some of its systems can be taken.

    `flags` tell which leaves of `args` carry the batch axes.
    """
    backend = structure.backend

    def take(pick: Pick, count: int) -> Residual:
        leaves, tree = backend.flatten(args)
        lead = len(structure.batch)
        some = [taken(backend.xp, leaf, pick, lead) if flag else leaf for leaf, flag in zip(leaves, flags, strict=True)]
        smaller = replace(structure, batch=(count, *(1,) * (lead - 1)))
        return compactable(make, smaller, backend.unflatten(tree, some), flags)

    return replace(make(structure, args), take=take)


def with_scale(residual: Residual, scale: Array | None) -> Residual:
    """Return the residual of unknowns whose sizes, (*batch, n), are told, some of its systems included."""
    if scale is None:
        return residual
    take = residual.take

    def take_scaled(pick: Pick, count: int) -> Residual:
        assert take is not None
        return with_scale(take(pick, count), taken(residual.xp, scale, pick, scale.ndim - 1))

    scaled = residual.with_backend(residual.backend.with_scale(scale))
    return replace(scaled, scale=scale, take=take and take_scaled)


def limit(backend: Backend, shape: tuple[int, ...]) -> int:
    """Return how many systems of a batch of this shape may run on in a smaller one."""
    count = math.prod(shape)
    parts = backend.parts(count)
    return count // parts // (_COMPILED if backend.traced else _EAGER) * parts


def round_size(backend: Backend, shape: tuple[int, ...]) -> int:
    """Return how many systems of a batch of this shape a compiled program takes at a time."""
    parts, most = backend.parts(math.prod(shape)), limit(backend, shape)
    return min(most, parts * max(_ROUND, most // parts // _COMPILED))


def in_rounds(
    residual: Residual, need: Array, count: int, attempt: Callable[..., Any], state: Any, *others: Any
) -> Any:
    """Return `state` with what ``attempt(residual, state, need, *others)`` makes of the systems in `need`, (*batch).

    That is called for `count` systems at a time. State and others are nested tuples of arrays with one row per system.
    """
    backend, take = residual.backend, residual.take
    assert take is not None

    def one(carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, need = carry
        some = Chosen(backend, need, count)
        smaller = take(some.pick, count)
        # a compiled program has a copy for each size
        smaller = replace(smaller, take=None) if backend.traced else smaller
        new = attempt(smaller, *some.taken((state, need, *others)))
        return some.put(state, new), need & ~some.mask

    return backend.while_loop(lambda carry: backend.xp.any(carry[1]), one, (state, need))[0]


def room(backend: Backend, mask: Array) -> Array:
    """Return how many systems a smaller batch must have for those of a mask, (*batch)."""
    xp, parts = backend.xp, backend.parts(math.prod(mask.shape))
    each = xp.sum(xp.reshape(xp.astype(mask, xp.int32), (parts, -1)), axis=-1)
    return each[0] if parts == 1 else parts * xp.max(each)


class Chosen:
    """Systems of a batch as a smaller one, of `count` systems: the first of those that a mask, (*batch), names.

    Each part of the batch that may be on a device of its own gives as many, so that none are moved to another.
    """

    def __init__(self, backend: Backend, mask: Array, count: int) -> None:
        xp, flat = backend.xp, backend.xp.reshape(mask, (-1,))
        parts = backend.parts(flat.shape[0])
        share = count // parts
        self._xp, self._lead, self._by_part = xp, mask.ndim, partial(backend.by_part, parts)
        number = self._by_part(lambda flat: xp.cumulative_sum(xp.astype(flat, xp.int32)), flat)
        self._flat = flat & (number <= share)
        self._place = xp.where(self._flat, number - 1, 0)
        self._order = self._by_part(lambda flat: backend.indices(flat, share), self._flat)
        #: The systems that are chosen, (*batch).
        self.mask = xp.reshape(self._flat, mask.shape)

    def pick(self, array: Array) -> Array:
        """Return the entries of the chosen systems, (count, ...), of an array with one per system of the batch."""
        xp = self._xp
        return self._by_part(lambda array, order: xp.take(array, order, axis=0), array, self._order)

    def taken(self, tree: Any) -> Any:
        """Return the chosen systems of a pytree of arrays that start with the batch axes."""
        return taken(self._xp, tree, self.pick, self._lead)

    def put(self, tree: Any, some: Any) -> Any:
        """Return a pytree of arrays, in which the chosen systems are those of `some`."""
        xp = self._xp

        def of(array: Array, smaller: Array) -> Array:
            rest = tuple(array.shape[self._lead :])
            flat = xp.reshape(smaller, (-1, *rest))
            new = self._by_part(lambda flat, place: xp.take(flat, place, axis=0), flat, self._place)
            wide = xp.reshape(self._flat, (-1, *(1,) * len(rest)))
            return xp.reshape(xp.where(wide, new, xp.reshape(array, (-1, *rest))), array.shape)

        return optree.tree_map(of, tree, some)


def taken(xp: Any, tree: Any, pick: Pick, lead: int) -> Any:
    """Return the systems that `pick` takes of a pytree of arrays, each with `lead` batch axes."""

    def of(array: Array) -> Array:
        rest = tuple(array.shape[lead:])
        some = pick(xp.reshape(array, (-1, *rest)))
        return xp.reshape(some, (some.shape[0], *(1,) * (lead - 1), *rest))

    return optree.tree_map(of, tree)


def _check_leaf(leaf: Any, batch: tuple[int, ...], index: int) -> None:
    shape = tuple(getattr(leaf, "shape", ()))
    if shape[: len(batch)] != batch:
        raise ArgumentError(
            f"batched_args: entry {index} says that args[{index}] carries the batch axes {batch} of y0, but it is or "
            f"holds {f'an array of shape {shape}' if shape else repr(leaf)}. Use None for what all systems share."
        )
