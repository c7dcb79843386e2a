"""Loops that wait for a device once a step: what a step mostly does not need is asked for afterwards."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Step(threading.local):
    """The conditions that the innermost step of this thread depends on.

    Attributes
    ----------
    assumes : bool. Whether none is taken to hold, without a look.
    asked : list of boolean tensors, (). Those not looked at.
    met : bool. Whether one that was looked at holds.
    """

    def __init__(self) -> None:
        self.assumes, self.asked, self.met = False, list[Tensor](), False

    def taken(self, body: Callable[[Any], Any], state: Any, assumes: bool) -> tuple[Any, list[Tensor], bool]:
        """Return ``body(state)``, and what it has asked for and met."""
        enclosing = self.assumes, self.asked, self.met
        self.assumes, self.asked, self.met = assumes, [], False
        try:
            return body(state), self.asked, self.met
        finally:
            self.assumes, self.asked, self.met = enclosing


_step = _Step()


def is_here(tensor: Tensor) -> bool:
    """Return whether to look at a value is to wait for no device."""
    return tensor.device.type == "cpu"


def holds(condition: Tensor) -> bool:
    """Return whether a condition, (), holds; inside a step that assumes so, that it does not."""
    if _step.assumes:
        _step.asked.append(condition)
        return False
    met = bool(condition)
    _step.met |= met
    return met


def while_loop(cond: Callable[[Any], Tensor], body: Callable[[Any], Any], state: Any, foresees: bool) -> Any:
    """Apply `body` while `cond` holds.

    With `foresees`, a step after one that met no condition (a line search that need not begin) assumes that it will
    meet none either. Whether that was right is read together with `cond`; if not, the step is taken again.
    """
    going = cond(state)
    foresees = foresees and not is_here(going)
    if not holds(going):
        return state
    assumes = False
    while True:
        new, asked, met = _step.taken(body, state, assumes)
        more, *missed = torch.stack([cond(new), *asked]).tolist() if asked else [bool(cond(new))]
        if any(missed):
            new, _, met = _step.taken(body, state, False)
            more = bool(cond(new))
        if not more:
            return new
        assumes, state = foresees and not met, new
