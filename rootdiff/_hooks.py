"""What a user hangs into a solve: corrections of the trial points, and eyes on the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._bounds import bound_vectors, check_order
from rootdiff._errors import ArgumentError
from rootdiff._loop import StepInfo
from rootdiff._residual import Residual
from rootdiff._structure import Structure


class History(NamedTuple):
    """What each step of a solve did, in order, the steps of all methods of a chain one after the other.

    Attributes
    ----------
    residual_norm, step_norm : array, (steps, *batch)
        Largest absolute residual after, and largest change of an unknown in, each step.
    method : tuple of str, (steps)
        Name of the solver's class that took it.
    """

    residual_norm: Array
    step_norm: Array
    method: tuple[str, ...]


@dataclass(frozen=True)
class Hooks:
    """The keyword arguments of `root` that look into a solve or reach into its steps; `records` gathers a history."""

    correct: Callable[[Any, Any], Any] | None = None
    bounds: tuple[Any, Any] | None = None
    callback: Callable[[StepInfo], Any] | None = None
    verbose: bool = False
    progress: bool = False
    history: bool = False
    check: bool = False
    records: list[StepInfo] = field(default_factory=list, compare=False)

    def attach(self, residual: Residual, structure: Structure, y: Array) -> Residual:
        """Return the residual with these hooks, for unknowns shaped like the flat vector `y`."""
        correct = self._correction(structure, y)
        watched = self.callback or self.verbose or self.progress or self.history
        observe = self._observer(structure) if watched else None
        return replace(residual, correct=correct, observe=observe)

    def box(self, structure: Structure, y: Array) -> tuple[Array, Array] | None:
        """Return the bounds as vectors like `y`, if there are any."""
        return None if self.bounds is None else _checked(structure, self.bounds, y)

    def recorded(self, xp: Any) -> History | None:
        """Return the history, where it was asked for."""
        if not self.history or not self.records:
            return None
        norms = xp.stack([info.residual_norm for info in self.records])
        moves = xp.stack([info.step_norm for info in self.records])
        return History(norms, moves, tuple(info.method for info in self.records))

    def _correction(self, structure: Structure, y: Array) -> Callable[[Array, Array], Array] | None:
        user = self.correct
        if user is None and self.bounds is None:
            return None
        xp = structure.backend.xp
        lo, hi = _checked(structure, self.bounds, y)

        def correct(trial: Array, y: Array) -> Array:
            if user is not None:
                output = structure.backend.call(user, structure.unravel(trial), (structure.unravel(y),))
                trial = structure.ravel(structure.check(output, "correct"))
            return xp.minimum(xp.maximum(trial, lo), hi)

        return correct

    def _observer(self, structure: Structure) -> Callable[[StepInfo], bool]:
        show = _shown_by_tqdm() if self.progress else None

        def observe(info: StepInfo) -> bool:
            info = info._replace(y=structure.unravel(info.y))
            if self.history:
                self.records.append(info)
            if self.verbose:
                print(line(structure.backend, info))
            if show is not None:
                part = getattr(info, "fraction", None)  # of a path
                show(line(structure.backend, info).strip(), None if part is None else float(part))
            told: Any = None if self.callback is None else self.callback(_copied(structure.backend, info))
            if not structure.backend.is_array(told):
                return told is True
            return told.ndim == 0 and bool(structure.backend.xp.isdtype(told.dtype, "bool") and told)

        return observe


def _copied(backend: Any, info: Any) -> Any:
    """Return a record with copies of its arrays: what a callback writes into is not the solver's."""
    leaves, structure = backend.flatten(info)
    own = [backend.xp.asarray(leaf, copy=True) if backend.is_array(leaf) else leaf for leaf in leaves]
    return backend.unflatten(structure, own)


def line(backend: Any, info: StepInfo) -> str:
    """Return one line about a step: the worst system's residual and change, and how many systems run on."""
    steps, norms, moves, status = map(backend.to_numpy, (info.steps, info.residual_norm, info.step_norm, info.status))
    running = f"  {int((status == 2).sum())} of {status.size} running" if status.ndim else ""
    return f"{info.method:>20} {int(steps.max()):5d}  |f| {norms.max():10.3e}  |dy| {moves.max():10.3e}{running}"


def _shown_by_tqdm() -> Callable[[str, float | None], None]:
    """Return what shows the words about a step, and which part of the way is behind it where there is a way."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        raise ArgumentError(
            "progress: it is shown by tqdm, which is not installed. Install it: pip install tqdm. Or take a callback."
        ) from None
    bar = tqdm(unit="step")  # it closes when the solve lets go of it

    def show(words: str, part: float | None) -> None:
        if part is None:
            bar.update()
        else:
            bar.total, bar.n, bar.unit = 100, round(100 * part), "%"
        bar.set_postfix_str(words)

    return show


def _checked(structure: Structure, bounds: Any, y: Array) -> tuple[Array, Array]:
    lo, hi = bound_vectors(structure, bounds, y)
    if not structure.backend.traced:
        check_order(structure.backend.xp, lo, hi)
    return lo, hi
