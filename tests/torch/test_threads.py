"""Threads that solve at once leave nothing behind in the process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

import rootdiff_torch as rd


def slope(at: int, reached: Event, awaited: Event, done: Event) -> float:
    """Return dy/da of y^2 = a at 4; the residual's call number `at` sets an event, and waits for another."""
    calls, a = [], torch.tensor([4.0], dtype=torch.float64, requires_grad=True)

    def residual(y: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == at:
            reached.set()
            assert awaited.wait(60)
        return y**2 - a

    rd.root(residual, torch.ones_like(a), solver="newton").y.sum().backward()
    done.set()
    return float(a.grad)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_compilation_is_on_after_threads_have_solved(at: int) -> None:
    """The second thread begins a call while the first is in one, and ends it after that one has finished."""
    first_there, second_there, first_done = Event(), Event(), Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slope, at, first_there, second_there, first_done)
        assert first_there.wait(60)
        second = pool.submit(slope, at, second_there, first_done, Event())
        assert first.result() == second.result() == pytest.approx(0.25)
    compiled = []

    def backend(module: Any, inputs: Any) -> Any:
        compiled.append(module)
        return module.forward

    torch.compile(lambda x: 2 * x, backend=backend)(torch.ones(2))
    assert len(compiled) == 1
