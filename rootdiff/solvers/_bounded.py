"""Steps of a model within bounds of the unknowns."""

from __future__ import annotations

from collections.abc import Callable

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._space import some


def within(
    residual: Residual,
    y: Array,
    held: Array,
    step: Array,
    full: Array,
    beside: Callable[[Array, Array], tuple[Array, Array]],
) -> tuple[Array, Array]:
    """Return a step that leaves no bound, (*batch, n), and whether it is a whole one, (*batch).

    Unknowns that a step would carry out of the box are put on its border, and held there; the others move anew, as long
    as that is so. Short steps are those down the gradient, of which each part that is cut leads down too.

    Parameters
    ----------
    held : boolean array, (*batch, n). Unknowns that the `step` does not move.
    beside : callable
        ``beside(held, step)`` returns the step of the unknowns that are not held, where those that are move by `step`,
        and whether it is a whole one.

    References
    ----------
    Bertsekas (1982), "Projected Newton methods for optimization problems with simple constraints".
    """
    assert residual.box is not None
    xp, (lo, hi) = residual.xp, residual.box.limits(y)

    def cut(step: Array, held: Array) -> tuple[Array, Array]:
        short = xp.minimum(xp.maximum(step, lo - y), hi - y)
        return short, (short != step) & ~held

    def again(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, _, held, leaving = carry
        held = held | leaving
        kept = xp.where(held, step, xp.zeros_like(step))
        free, full = beside(held, kept)
        step, leaving = cut(xp.where(held, kept, free), held)
        return step, full, held, leaving & residual.of_active(some(xp, leaving))[..., None]

    short, leaving = cut(xp.where(held, xp.zeros_like(step), step), held)
    whole = full & ~some(xp, leaving)
    start = short, full, held, leaving & residual.of_active(some(xp, leaving))[..., None]
    return residual.backend.while_loop(lambda carry: xp.any(carry[3]), again, start)[0], whole
