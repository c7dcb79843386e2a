"""A warning points at the user's line."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
import rootdiff_torch


def place(call: Callable[[], Any]) -> tuple[str, int]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (warning,) = caught
    assert warning.category is rootdiff.ConvergenceWarning
    return warning.filename, warning.lineno


@pytest.mark.parametrize(("rd", "ones"), [(rootdiff, np.ones), (rootdiff_torch, torch.ones), (rootdiff_jax, jnp.ones)])
def test_of_a_solve(rd: ModuleType, ones: Callable[[int], Any]) -> None:
    calls = [
        lambda: rd.root(lambda y: y**2 + 1, ones(1), solver="newton", on_failure="warn"),
        lambda: rd.fixed_point(lambda z: z + 1, ones(1), solver="anderson", on_failure="warn"),
        lambda: rd.root_scalar(lambda y: y**2 + 1, (-ones(1), ones(1)), on_failure="warn"),
    ]
    for call in calls:
        assert place(call) == (__file__, call.__code__.co_firstlineno)


def test_of_a_derivative() -> None:
    singular = lambda y, a: (y - a).sum() + 0 * y  # each equation is the same
    sol = rootdiff.root(singular, np.zeros(2), np.zeros(2), on_failure="warn")
    pull = lambda: sol.vjp(np.ones(2))
    assert place(pull) == (__file__, pull.__code__.co_firstlineno)
    y = rootdiff_torch.root(singular, torch.zeros(2), torch.zeros(2).requires_grad_(), on_failure="warn").y
    pull = lambda: y.sum().backward()
    assert place(pull) == (__file__, pull.__code__.co_firstlineno)


def test_of_a_layer() -> None:
    layer = rootdiff_torch.nn.ImplicitLayer(lambda y, x: y**2 + x, on_failure="warn")
    call = lambda: torch.nn.Sequential(layer)(torch.ones(1, 1))
    assert place(call) == (__file__, call.__code__.co_firstlineno)
