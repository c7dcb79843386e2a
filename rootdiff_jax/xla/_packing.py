"""Loops that carry their small arrays as one array.

A program for a CPU copies the arrays of a loop one by one. Where more than eight operations are ready at a time, the
copies at the start of a step among them, it hands half of them to another thread: that costs more than a step of a
small system does.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from rootdiff._backend import Function
from rootdiff_jax._mesh import has_explicit_axes

#: An array of at most so many numbers is packed with others of its type: value and gradient of `auto` at ten unknowns
#: take .8 of the time. The vectors of a larger system are not: unpacking them cost as much as packing saved.
_PACKED = 32


def while_loop(cond: Function, body: Function, state: Any) -> Any:
    """Do what `lax.while_loop` does."""
    leaves, tree = _flattened(state)
    groups = _groups(leaves)

    def packed(state: Any) -> list[Array]:
        new, found = _flattened(state)
        if found != tree:
            raise TypeError(f"a step of the solver returned a state of the structure {found}, not {tree}.")
        return [new[group[0]] if len(group) == 1 else jnp.stack([alike(new[k], k) for k in group]) for group in groups]

    def alike(new: Array, place: int) -> Array:
        old = leaves[place]
        if (new.dtype, new.shape) != (old.dtype, old.shape):
            name = jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(state)[place][0])
            raise TypeError(
                f"a step of the solver returned {name} as {new.dtype}, shape {new.shape}, but it was {old.dtype}, "
                f"shape {old.shape}, before: each step must leave the types as they are."
            )
        return new

    def unpacked(parts: list[Array]) -> Any:
        found: dict[int, Array] = {}
        for part, places in zip(parts, groups, strict=True):
            found |= {places[0]: part} if len(places) == 1 else dict(zip(places, part, strict=True))
        return jax.tree.unflatten(tree, [found[place] for place in range(len(leaves))])

    end = lax.while_loop(
        lambda parts: cond(unpacked(parts)), lambda parts: packed(body(unpacked(parts))), packed(state)
    )
    return unpacked(end)


def _flattened(state: Any) -> tuple[list[Array], Any]:
    return jax.tree.flatten(jax.tree.map(on_mesh, state))


def on_mesh(value: Any) -> Array:
    """Return an array, typed as being on the current mesh of explicit axes, which vmap needs; a number is not."""
    array = jnp.asarray(value)
    if not has_explicit_axes() or not jax.typeof(array).sharding.mesh.empty:
        return array
    placed: Array = jax.sharding.reshard(array, PartitionSpec())  # type: ignore[no-untyped-call]
    return placed


def _groups(leaves: list[Array]) -> list[list[int]]:
    """Return the places of the arrays that are packed together."""
    groups: dict[Any, list[int]] = {}
    # vmap over an explicit axis of a mesh refuses to stack what is spread over it and what is not
    few = 0 if has_explicit_axes() else _PACKED
    for place, leaf in enumerate(leaves):
        kind: Any = jax.typeof(leaf)
        small = leaf.size <= few and not kind.weak_type  # the loop may change the type of a weakly typed number
        groups.setdefault(kind if small else place, []).append(place)
    return list(groups.values())
