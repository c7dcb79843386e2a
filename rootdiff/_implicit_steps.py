"""Implicit steps of differential equations: their formulas, and what is left of their equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._structure import Structure


class Tableau(NamedTuple):
    """A step of length h: Y_i = y + h (first_i f(t, y) + sum_j weights_ij f(t + nodes_j h, Y_j)); the last Y is next.

    With `two_step` it starts from a point beyond y, on the line from the value before, and h is shorter: BDF2.
    """

    nodes: tuple[float, ...]
    weights: tuple[tuple[float, ...], ...]
    first: tuple[float, ...] = ()
    two_step: bool = False

    def widths(self, size: int) -> tuple[int, int]:
        """Return how many diagonals the Jacobian of all steps has below and above the main one, for n of `size`."""
        stages = len(self.nodes)
        return (stages + 1 + self.two_step) * size - 1, stages * size - 1


_S = 6**0.5
#: Hairer & Wanner, "Solving Ordinary Differential Equations II": III.1 for BDF, tables IV.5.5, IV.5.6 and IV.5.9.
METHODS: dict[str, Tableau] = {
    "backward_euler": Tableau((1.0,), ((1.0,),)),
    "bdf2": Tableau((1.0,), ((1.0,),), two_step=True),
    "trapezoid": Tableau((1.0,), ((1 / 2,),), (1 / 2,)),
    "radau3": Tableau((1 / 3, 1.0), ((5 / 12, -1 / 12), (3 / 4, 1 / 4))),
    "radau5": Tableau(
        ((4 - _S) / 10, (4 + _S) / 10, 1.0),
        (
            ((88 - 7 * _S) / 360, (296 - 169 * _S) / 1800, (-2 + 3 * _S) / 225),
            ((296 + 169 * _S) / 1800, (88 + 7 * _S) / 360, (-2 - 3 * _S) / 225),
            ((16 - _S) / 36, (16 + _S) / 36, 1 / 9),
        ),
    ),
    "lobatto4": Tableau((1 / 2, 1.0), ((1 / 3, -1 / 24), (2 / 3, 1 / 6)), (5 / 24, 1 / 6)),
}


def of_vectors(f: Callable[..., Any], structure: Structure) -> Callable[..., Array]:
    """Return f as a function of vectors, (*batch, n)."""

    def rate(t: Array, y: Array, args: tuple[Any, ...]) -> Array:
        output = structure.backend.call(lambda y, *args: f(t, y, *args), structure.unravel(y), args)
        return structure.ravel(structure.check(output, "f"))

    return rate


def of_step(
    rate: Callable[..., Array],
    tableau: Tableau,
    xp: Any,
    changes: Array,
    before: Array,
    y: Array,
    t: Array,
    h: Array,
    ratio: Array,
    args: tuple[Any, ...],
) -> Array:
    """Return what is left of the equations of a step from `y` at t, like `changes`, (*batch, stages, n).

    The unknowns are the stages less `y`, which have their own digits where a step is short. One step earlier the value
    was `before`; `ratio` is h over the length of that step, zero where there is none: then the two-step formula is
    backward Euler.
    """
    moves = [changes[..., i, :] for i in range(len(tableau.nodes))]
    rates = [rate(t + node * h, y + move, args) for node, move in zip(tableau.nodes, moves, strict=True)]
    known, table = None, tableau.weights
    if tableau.two_step:
        known, h = ratio**2 / (1 + 2 * ratio) * (y - before), h * (1 + ratio) / (1 + 2 * ratio)
    if tableau.first:
        rates = [rate(t, y, args), *rates]
        table = tuple((first, *row) for first, row in zip(tableau.first, table, strict=True))
    taken = [h * sum(weight * rate for weight, rate in zip(row, rates, strict=True)) for row in table]
    taken = taken if known is None else [known + part for part in taken]
    return xp.stack([move - part for move, part in zip(moves, taken, strict=True)], axis=-2)


def of_all(residual: Callable[..., Array], structure: Structure, stages: Array, y0: Any, t: Array, *args: Any) -> Array:
    """Return what is left of the equations of all steps, like `stages`, (*batch, times, stages, n).

    At the first time they say that all stages are y0.
    """
    xp, ends = structure.backend.xp, stages[..., -1, :]
    rows = [stages[..., 0, :, :] - structure.ravel(y0)[..., None, :]]
    for k, row in enumerate(zip(*columns(xp, t), strict=True)):
        y = ends[..., k, :]
        rows.append(residual(stages[..., k + 1, :, :] - y[..., None, :], ends[..., max(k - 1, 0), :], y, *row, args))
    return xp.stack(rows, axis=-3)


def columns(xp: Any, t: Array) -> tuple[Array, Array, Array]:
    """Return of each step its first time, its length, and that over the length of the step before, or zero."""
    h = t[1:] - t[:-1]
    return t[:-1], h, xp.concat([xp.zeros_like(h[:1]), h[1:] / h[:-1]])
