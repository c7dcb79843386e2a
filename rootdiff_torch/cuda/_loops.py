"""Loops that wait for a device once a step: values that Python branches on are predicted, and read after the step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from rootdiff._backend import Function, in_python
from rootdiff_torch.cuda._recording import (
    THREAD,
    Recording,
    are_alike,
    copied,
    first_step,
    loop_kind,
    recorded,
)

_T = TypeVar("_T", Tensor, tuple[Tensor, ...])
#: Whether Python can read the values of a tensor without waiting for a device.
is_on_cpu: Callable[[Tensor], bool] = attrgetter("is_cpu")


class _Predictions(threading.local):
    """What the innermost step of this thread predicts, and which values it must be checked against.

    Attributes
    ----------
    predicts : bool. Whether `holds` predicts False without reading its condition.
    conditions : list of boolean tensors, (). The conditions that it has not read.
    met : bool. Whether a condition that it has read holds.
    on_device : bool. Whether the step is one on another device than the CPU.
    answers : sequence of bool or None. The predictions of `surely_all`, in order; False after the last. None: it
        predicts nothing, and answers False.
    masks : list of boolean tensors. The masks that it has answered for.
    assessing : bool. Whether the step has been taken and is assessed: then every mask has a prediction, and before
        that only a mask that is computed on demand.
    """

    def __init__(self) -> None:
        self.predicts, self.conditions, self.met, self.on_device = False, list[Tensor](), False, False
        self.answers: Sequence[bool] | None = None
        self.masks = list[Tensor]()
        self.assessing = False

    def step(
        self, body: Function, state: Any, predicts: bool, answers: Sequence[bool] | None
    ) -> tuple[Any, list[Tensor], list[Tensor], bool]:
        """Return ``body(state)`` with these predictions, the conditions and masks to check, and `met`."""
        outer = vars(self).copy()
        self.predicts, self.conditions, self.met, self.on_device = predicts, [], False, True
        self.answers, self.masks, self.assessing = answers, [], False
        try:
            return body(state), self.conditions, self.masks, self.met
        finally:
            vars(self).update(outer)

    def assess(self, assess: Function, new: Any, old: Any, answers: Sequence[bool] | None) -> tuple[Any, list[Tensor]]:
        """Return ``assess(new, old)`` with these predictions, and the masks to check."""
        outer = self.answers, self.masks, self.assessing
        self.answers, self.masks, self.assessing = answers, [], True
        try:
            return assess(new, old), self.masks
        finally:
            self.answers, self.masks, self.assessing = outer


_predictions = _Predictions()


def isolated(recordable: bool, like: Tensor, solve: Callable[[], _T]) -> _T:
    """Return ``solve()``, a tensor or several, apart from the step of a loop around it.

    Its loops are recorded if they are `recordable`. A step around it, of a residual that holds a solve, counts as one
    that has met a condition.
    """
    outer = vars(_predictions).copy()
    vars(_predictions).update(vars(_Predictions()))
    try:
        return recorded(recordable, like, solve)
    finally:
        vars(_predictions).update(outer, met=True)


def holds(condition: Tensor) -> bool:
    """Return whether a condition, (), holds; inside a step that predicts so, False."""
    if _predictions.predicts:
        _predictions.conditions.append(condition)
        return False
    met = bool(condition)
    _predictions.met |= met
    return met


def surely_all(mask: Tensor | Callable[[], Tensor]) -> bool:
    """Return whether all of a mask is known, or predicted, to hold; a function that makes one is called on demand."""
    answers, predictable = _predictions.answers, _predictions.assessing or callable(mask)
    if callable(mask):
        if (_predictions.on_device or _predictions.assessing) and answers is None:
            return False
        mask = mask()
    if is_on_cpu(mask):
        return bool(mask.view(torch.uint8).amin())  # a minimum of bytes takes a tenth of the time of all()
    if answers is None or not predictable:
        return False
    place = len(_predictions.masks)
    _predictions.masks.append(mask)
    return place < len(answers) and answers[place]


def while_loop(cond: Function, body: Function, state: Any, assess: Function) -> Any:
    """Apply `body`, then `assess` to its result and the last state, while `cond` holds.

    On another device than the CPU a step predicts what the last step found: that `body` meets no condition (a line
    search need not begin), and which masks hold for all systems. The predictions are read together with `cond`, in one
    wait for the device; a step with a wrong one is taken again.

    Where recordings are wanted, steps that meet no condition are replayed from one recording, as soon as a step of this
    loop, or of its kind, has led to a state of the same shapes. A recorded step predicts no masks: what they spare
    costs a replay next to nothing.
    """
    going = cond(state)
    if is_on_cpu(going):
        return in_python(cond, body, state, assess)
    if not holds(going):
        return state
    take = partial(_predicted_step, cond, body, assess)
    kind = loop_kind(body, state) if THREAD.wanted else None
    alike = kind is not None and THREAD.recordable.get(kind, False)
    predicts, answers = alike, [list[bool](), list[bool]()]
    recording: Recording | None = None
    has_stepped = False
    while True:
        if predicts and alike:
            if recording is None or not are_alike(recording.state, state):
                record = Recording if has_stepped else partial(first_step, kind=kind)
                recording = record(partial(take, True, [None, None]), state)
            step = recording(state)
            more, conditions, *_ = step.read()
            if any(conditions):
                step = take(False, [[], []], copied(recording.state))
                more, _, *answers = step.read()
        else:
            step = take(predicts, answers, state)
            more, conditions, *found = step.read()
            if any(conditions) or _is_wrong(answers[0], found[0]):
                step = take(False, [[], []], state)
                more, _, *found = step.read()
            elif _is_wrong(answers[1], found[1]):
                known = _up_to_first_wrong(answers[1], found[1])
                result, masks = _predictions.assess(assess, step.new, state, known)
                step = step._replace(result=result, flags=_flags(cond(result), masks), counts=(0, 0))
                more, *_, found[1] = step.read()
            answers = found
        if not more:
            return step.result if recording is None else copied(step.result)
        alike = kind is not None and are_alike(step.result, state)
        predicts, state = not step.met, step.result
        if alike and predicts and not has_stepped:
            THREAD.recordable.setdefault(kind, True)
        has_stepped = True


#: The predictions of `surely_all` in a step, and in its assessment; None: it predicts nothing.
_Answers = Sequence[Sequence[bool] | None]


class _Step(NamedTuple):
    """A step, assessed, with the `flags` to read: whether to go on, conditions, masks; `counts` of these two."""

    new: Any
    result: Any
    flags: Tensor
    counts: tuple[int, int]
    met: bool

    def read(self) -> tuple[bool, list[bool], list[bool], list[bool]]:
        """Return whether to go on, which conditions hold, and which masks of the step and of its assessment do."""
        values: list[bool] = self.flags.tolist()
        first, second = 1 + self.counts[0], 1 + sum(self.counts)
        return values[0], values[1:first], values[first:second], values[second:]


def _predicted_step(
    cond: Function, body: Function, assess: Function, predicts: bool, answers: _Answers, state: Any
) -> _Step:
    new, conditions, masks, met = _predictions.step(body, state, predicts, answers[0])
    result, further = _predictions.assess(assess, new, state, answers[1])
    flags = _flags(cond(result), [*masks, *further], conditions)
    return _Step(new, result, flags, (len(conditions), len(masks)), met)


def _flags(going: Tensor, masks: Sequence[Tensor], conditions: Sequence[Tensor] = ()) -> Tensor:
    return torch.stack([going, *conditions, *(mask.all() for mask in masks)])


def _is_wrong(answers: Sequence[bool], found: Sequence[bool]) -> bool:
    """Return whether a mask was predicted to hold that does not."""
    return any(said and not true for said, true in zip(answers, found, strict=False))


def _up_to_first_wrong(answers: Sequence[bool], found: Sequence[bool]) -> list[bool]:
    """Return what was found up to the first wrong prediction; the masks after it come from a wrong branch."""
    wrong = [said and not true for said, true in zip(answers, found, strict=False)]
    return list(found[: wrong.index(True) + 1])
