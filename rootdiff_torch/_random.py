"""Residuals that are random: one draw for all evaluations of a solve and of its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor

from rootdiff._errors import ArgumentError
from rootdiff_torch._derivatives import tensors
from rootdiff_torch._transforms import has_values

#: The generators are the process's: only one thread at a time may restore their states and draw.
_drawing = RLock()


def drawing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, each call of which draws the random numbers of the first."""
    states: list[Any] = []  # of the generators before the first call, after it; None if it drew nothing

    def drawn(*inputs: Any, **keywords: Any) -> Any:
        first = tensors(inputs)[0]
        devices = [first.device] if first.device.type == "cuda" else []
        if not has_values(first):
            return function(*inputs, **keywords)
        if not states:
            before = _generators(devices)
            output = function(*inputs, **keywords)
            same = all(map(torch.equal, before, _generators(devices)))
            states.append(None if same else before)
            return output
        if states[0] is None:
            return function(*inputs, **keywords)
        if devices and torch.cuda.is_current_stream_capturing():
            raise ArgumentError(
                "cuda_graph: the residual is random, and what it draws cannot be drawn again. Leave it out."
            )
        with _drawing, torch.random.fork_rng(devices=devices):
            torch.set_rng_state(states[0][0])
            for device, state in zip(devices, states[0][1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return function(*inputs, **keywords)

    return drawn


def _generators(devices: Sequence[torch.device]) -> list[Tensor]:
    """Return the state of the generator of the CPU, and of those of `devices`."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
