"""Loops that wait for a device once a step: what a step depends on is foreseen, and read when it has been taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rootdiff._backend import Function, in_python
from rootdiff_torch._recording import (
    Recording,
    are_alike,
    first_step,
    has_begun,
    is_wanted,
    kept,
    kind_of,
    may_begin_recorded,
    recorded,
)

_T = TypeVar("_T", Tensor, tuple[Tensor, ...])


class _Foresight(threading.local):
    """What the innermost step of this thread takes for granted, and what it has asked for.

    Attributes
    ----------
    assumes : bool. Whether no condition holds, to the mind of `holds`.
    asked : list of boolean tensors, (). The conditions not looked at.
    met : bool. Whether one that was looked at holds.
    away : bool. Whether the step is one on another device.
    script : sequence of bool or None. What `surely_all` is to answer, as far as it goes; None: it is not asked.
    masks : list of boolean tensors. What it was asked about.
    assessing : bool. Whether the step has been taken, and any mask is foreseen; else those that are made when asked.
    """

    def __init__(self) -> None:
        self.assumes, self.asked, self.met, self.away = False, list[Tensor](), False, False
        self.script: Sequence[bool] | None = None
        self.masks = list[Tensor]()
        self.assessing = False

    def taken(
        self, body: Function, state: Any, assumes: bool, script: Sequence[bool] | None
    ) -> tuple[Any, list[Tensor], list[Tensor], bool]:
        """Return ``body(state)``, `surely_all` answering by the script; the conditions and masks asked about; `met`."""
        enclosing = self.assumes, self.asked, self.met, self.away, self.script, self.masks, self.assessing
        self.assumes, self.asked, self.met, self.away = assumes, [], False, True
        self.script, self.masks, self.assessing = script, [], False
        try:
            return body(state), self.asked, self.masks, self.met
        finally:
            self.assumes, self.asked, self.met, self.away, self.script, self.masks, self.assessing = enclosing

    def assessed(self, assess: Function, new: Any, old: Any, script: Sequence[bool] | None) -> tuple[Any, list[Tensor]]:
        """Return ``assess(new, old)`` with `surely_all` answering by the script, and what that was asked about."""
        enclosing = self.script, self.masks, self.assessing
        self.script, self.masks, self.assessing = script, [], True
        try:
            return assess(new, old), self.masks
        finally:
            self.script, self.masks, self.assessing = enclosing


_foresight = _Foresight()


def by_itself(recordable: bool, like: Tensor, solve: Callable[[], _T]) -> _T:
    """Return ``solve()``, a tensor or several, of which the loops are recorded if they are `recordable`.

    To a step around it, one of a residual that holds a solve, its loops are a condition that was met.
    """
    outer = vars(_foresight).copy()
    vars(_foresight).update(vars(_Foresight()))
    try:
        return recorded(recordable, like, solve)
    finally:
        vars(_foresight).update(outer, met=True)


def is_here(tensor: Tensor) -> bool:
    """Return whether to look at a value is to wait for no device."""
    return tensor.device.type == "cpu"


def holds(condition: Tensor) -> bool:
    """Return whether a condition, (), holds; inside a step that assumes so, that it does not."""
    if _foresight.assumes:
        _foresight.asked.append(condition)
        return False
    met = bool(condition)
    _foresight.met |= met
    return met


def surely_all(mask: Tensor | Callable[[], Tensor]) -> bool:
    """Return whether all of a mask is known to hold, or foreseen to; one that is not to be asked about is not made."""
    script, foreseen = _foresight.script, _foresight.assessing or callable(mask)
    if callable(mask):
        if (_foresight.away or _foresight.assessing) and script is None:
            return False
        mask = mask()
    if is_here(mask):
        return bool(mask.view(torch.uint8).amin())  # a minimum of bytes takes a tenth of the time of all()
    if script is None or not foreseen:
        return False
    place = len(_foresight.masks)
    _foresight.masks.append(mask)
    return place < len(script) and script[place]


def while_loop(cond: Function, body: Function, state: Any, assess: Function) -> Any:
    """Apply `body`, then `assess` to what it gives and the last state, while `cond` holds.

    On another device, `body` is taken to meet no condition (a line search that need not begin) where it met none in the
    last step, and what all systems had in common then is taken for granted. Whether that was right is read together
    with `cond`; what was done wrongly is done again.

    Where that is wanted, steps that meet no condition are those of a recording, once a step has led to a state like the
    last one, in this loop or in one of its kind. Nothing is taken for granted of the systems then: what it would spare
    costs a recording next to nothing.
    """
    going = cond(state)
    if is_here(going):
        return in_python(cond, body, state, assess)
    if not holds(going):
        return state
    take = partial(_foreseen, cond, body, assess)
    kind = kind_of(body, state) if is_wanted() else None
    alike = kind is not None and may_begin_recorded(kind)
    assumes, script = alike, [list[bool](), list[bool]()]
    recording: Recording | None = None
    begun = False
    while True:
        if assumes and alike:
            if recording is None or not are_alike(recording.state, state):
                record = Recording if begun else partial(first_step, kind=kind)
                recording = record(partial(take, True, [None, None]), state)
            step = recording(state)
            more, conditions, *_ = step.read()
            if any(conditions):
                step = take(False, [[], []], kept(recording.state))
                more, _, *script = step.read()
        else:
            step = take(assumes, script, state)
            more, conditions, *found = step.read()
            if any(conditions) or _is_wrong(script[0], found[0]):
                step = take(False, [[], []], state)
                more, _, *found = step.read()
            elif _is_wrong(script[1], found[1]):
                known = _right(script[1], found[1])
                result, masks = _foresight.assessed(assess, step.new, state, known)
                step = step._replace(result=result, flags=_flags(cond(result), masks), counts=(0, 0))
                more, *_, found[1] = step.read()
            script = found
        if not more:
            return step.result if recording is None else kept(step.result)
        alike = kind is not None and are_alike(step.result, state)
        assumes, state = not step.met, step.result
        if alike and assumes and not begun:
            has_begun(kind)
        begun = True


#: What `surely_all` is to answer in a step, and where that is assessed; None: nothing is foreseen.
_Script = Sequence[Sequence[bool] | None]


class _Step(NamedTuple):
    """A step, assessed, and what is to be read of them: `flags`, by `counts` of conditions and of masks."""

    new: Any
    result: Any
    flags: Tensor
    counts: tuple[int, int]
    met: bool

    def read(self) -> tuple[bool, list[bool], list[bool], list[bool]]:
        """Return whether to go on, which conditions hold, and which masks hold everywhere: in the step, as assessed."""
        values: list[bool] = self.flags.tolist()
        first, second = 1 + self.counts[0], 1 + sum(self.counts)
        return values[0], values[1:first], values[first:second], values[second:]


def _foreseen(cond: Function, body: Function, assess: Function, assumes: bool, script: _Script, state: Any) -> _Step:
    new, asked, common, met = _foresight.taken(body, state, assumes, script[0])
    result, masks = _foresight.assessed(assess, new, state, script[1])
    return _Step(new, result, _flags(cond(result), [*common, *masks], asked), (len(asked), len(common)), met)


def _flags(going: Tensor, masks: Sequence[Tensor], conditions: Sequence[Tensor] = ()) -> Tensor:
    return torch.stack([going, *conditions, *(mask.all() for mask in masks)])


def _is_wrong(script: Sequence[bool], found: Sequence[bool]) -> bool:
    """Return whether something was taken for granted that is not so."""
    return any(said and not true for said, true in zip(script, found, strict=False))


def _right(script: Sequence[bool], found: Sequence[bool]) -> list[bool]:
    """Return what was found up to the first thing that was wrong; what follows that means nothing."""
    wrong = [said and not true for said, true in zip(script, found, strict=False)]
    return list(found[: wrong.index(True) + 1])
