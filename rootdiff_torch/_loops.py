"""Loops that wait for a device once a step: what a step depends on is foreseen, and read when it has been taken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rootdiff._backend import Function, in_python
from rootdiff_torch._recording import Recording, is_wanted, kept


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
    """

    def __init__(self) -> None:
        self.assumes, self.asked, self.met, self.away = False, list[Tensor](), False, False
        self.script: Sequence[bool] | None = None
        self.masks = list[Tensor]()

    def taken(self, body: Function, state: Any, assumes: bool) -> tuple[Any, list[Tensor], bool]:
        """Return ``body(state)``, and the conditions it has asked for and met."""
        enclosing = self.assumes, self.asked, self.met, self.away, self.script
        self.assumes, self.asked, self.met, self.away, self.script = assumes, [], False, True, None
        try:
            return body(state), self.asked, self.met
        finally:
            self.assumes, self.asked, self.met, self.away, self.script = enclosing

    def accounted(self, account: Function, new: Any, old: Any, script: Sequence[bool]) -> tuple[Any, list[Tensor]]:
        """Return ``account(new, old)`` with `surely_all` answering by the script, and what that was asked about."""
        enclosing = self.script, self.masks
        self.script, self.masks = script, []
        try:
            return account(new, old), self.masks
        finally:
            self.script, self.masks = enclosing


_foresight = _Foresight()


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
    script = _foresight.script
    if callable(mask):
        if _foresight.away and script is None:
            return False
        mask = mask()
    if is_here(mask):
        return bool(mask.view(torch.uint8).amin())  # a minimum of bytes takes a tenth of the time of all()
    if script is None:
        return False
    place = len(_foresight.masks)
    _foresight.masks.append(mask)
    return place < len(script) and script[place]


def while_loop(cond: Function, body: Function, state: Any, account: Function) -> Any:
    """Apply `body`, then `account` to what it gives and the last state, while `cond` holds.

    On another device, `body` is taken to meet no condition (a line search that need not begin) where it met none in the
    last step, and what all systems had in common then, `account` takes for granted. Whether that was right is read
    together with `cond`; what was done wrongly is done again. Once two steps have gone alike, further ones are those of
    a recording, where that is wanted.
    """
    going = cond(state)
    if is_here(going):
        return in_python(cond, body, state, account)
    if not holds(going):
        return state
    assumes, script, alike = False, list[bool](), False
    recording, replayed = None, False
    while True:
        take = partial(_foreseen, cond, body, account, assumes, script)
        if alike and is_wanted():
            if recording is None or not recording.fits(state):
                recording = Recording(take, state)
            step, state, replayed = recording(state), recording.state, True
        else:
            step, recording = take(state), None
        values: list[bool] = step.flags.tolist()
        more, conditions, common = values[0], values[1 : step.first_mask], values[step.first_mask :]
        result, met = step.result, step.met
        if any(conditions):
            new, _, met = _foresight.taken(body, state, False)
            result, masks = _foresight.accounted(account, new, state, [])
            more, *common = _flags(cond(result), masks).tolist()
        elif (wrong := _first_wrong(script, common)) is not None:
            result, masks = _foresight.accounted(account, step.new, state, common[: wrong + 1])
            more, *common = _flags(cond(result), masks).tolist()
        if not more:
            return kept(result) if replayed else result
        alike = assumes and not met and common == script
        assumes, script, state = not met, common, result


class _Step(NamedTuple):
    """A step and its account; `flags`: whether to go on, which conditions hold, which masks hold everywhere."""

    new: Any
    result: Any
    flags: Tensor
    first_mask: int
    met: bool


def _foreseen(
    cond: Function, body: Function, account: Function, assumes: bool, script: Sequence[bool], state: Any
) -> _Step:
    new, asked, met = _foresight.taken(body, state, assumes)
    result, masks = _foresight.accounted(account, new, state, script)
    return _Step(new, result, _flags(cond(result), masks, asked), 1 + len(asked), met)


def _flags(going: Tensor, masks: Sequence[Tensor], conditions: Sequence[Tensor] = ()) -> Tensor:
    """Return whether a loop goes on, which conditions hold, and which masks hold everywhere: to be read at once."""
    return torch.stack([going, *conditions, *(mask.all() for mask in masks)])


def _first_wrong(script: Sequence[bool], found: Sequence[bool]) -> int | None:
    """Return the first place where something was taken for granted that is not so; what follows it means nothing."""
    pairs = zip(script, found, strict=False)
    return next((place for place, (said, true) in enumerate(pairs) if said and not true), None)
