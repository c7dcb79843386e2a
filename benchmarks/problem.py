"""What a benchmark is made of: a problem, the rows of its table, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np


class Reference(NamedTuple):
    """The root, the gradients of ``sum(weights * y)`` in each argument, and Newton's steps to a part in 1e9."""

    root: Any
    gradients: tuple[Any, ...]
    steps: int = 0


class Calls(NamedTuple):
    """What is timed. Both return when the device has done its work.

    forward() returns (y, steps or None); gradient() returns (y, gradients), or is None where a library has none.
    """

    forward: Callable[[], tuple[Any, Any]]
    gradient: Callable[[], tuple[Any, tuple[Any, ...]]] | None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A residual with its data, in NumPy.

    Attributes
    ----------
    residual : callable, ``residual(xp, y, *args)`` with any batch axes in front; ``xp`` is numpy, torch or jax.numpy
    y0, weights : arrays, (*batch, *shape); the loss is ``sum(weights * y)``
    args : arrays, all differentiated; `batched` says which have the batch axis
    reference : callable, the `Reference` in float64 by a route that shares no code with a contender
    accuracy : float, relative error of the gradients above which a row does not count
    cell : callable or None, ``cell(xp, y, *args)`` whose fixed point is the root
    equations, objective : callables or None, called alike, of whose least squares, or minimum, the root is one of the
        gradient; ``equations`` returns (*batch, m)
    slopes : callable or None, ``slopes(y, *args)`` in NumPy, the Jacobian of `equations`, (*batch, m, n)
    jacobian : callable or None, ``jacobian(y, *args)`` in NumPy, (*batch, n, n)
    pullback : callable or None, ``pullback(y, u, *args)`` in NumPy, the products of u with df/dargs
    pushforward, transposed : callables or None, ``pushforward(y, v, *args)`` in NumPy, the products of df/dy and its
        transpose with v, where there is no `jacobian`
    args_forward : callable or None, ``args_forward(y, tangents, *args)`` in NumPy, df/dargs times the tangents
    symmetric : bool, whether df/dy is
    bracket : two numbers or None, for problems of one unknown per element
    steps : int, those that every contender takes, where they are prescribed; else 0
    """

    residual: Callable[..., Any]
    y0: Any
    args: tuple[Any, ...]
    weights: Any
    reference: Callable[[Problem], Reference]
    accuracy: float
    batch_ndim: int = 0
    batched: tuple[bool, ...] = ()
    cell: Callable[..., Any] | None = None
    equations: Callable[..., Any] | None = None
    objective: Callable[..., Any] | None = None
    slopes: Callable[..., Any] | None = None
    jacobian: Callable[..., Any] | None = None
    pullback: Callable[..., tuple[Any, ...]] | None = None
    pushforward: Callable[..., Any] | None = None
    transposed: Callable[..., Any] | None = None
    args_forward: Callable[..., Any] | None = None
    symmetric: bool = False
    bracket: tuple[float, float] | None = None
    steps: int = 0

    def function(self, call: str) -> Callable[..., Any]:
        """Return what an entry point of rootdiff, or a peer's like it, is called with."""
        of_entry = {"fixed_point": self.cell, "least_squares": self.equations, "minimize": self.objective}
        found = of_entry.get(call, self.residual)
        assert found is not None
        return found

    @cached_property
    def solved(self) -> Reference:
        """The reference, computed once."""
        return self.reference(self)

    def system(self, index: int) -> tuple[Any, tuple[Any, ...]]:
        """Return y0 and the arguments of one system of a batch."""
        return self.y0[index], tuple(a[index] if b else a for a, b in zip(self.args, self.batched, strict=True))


@dataclass(frozen=True)
class Row:
    """A library with its settings: a line of the table, or the reason why there is none.

    `settings` may depend on the problem. `prepare`, where given, takes the place of the library's own function from the
    problem to its `Calls`. What is `full` is left out of the reduced run; `device` is the only one that the row is for.
    """

    library: str
    configuration: str
    settings: Mapping[str, Any] | Callable[[Problem], Mapping[str, Any]] = field(default_factory=dict)
    cannot: str = ""
    prepare: Callable[..., Calls] | None = None
    full: bool = False
    device: str = ""


@dataclass(frozen=True)
class Workload:
    """Problems of one kind: `cases` maps a name to the arguments of `build`; those in `full` are left out at first."""

    title: str
    build: Callable[..., Problem]
    cases: Mapping[str, Mapping[str, Any]]
    rows: tuple[Row, ...]
    full: tuple[str, ...] = ()
    note: str = ""


def newton_reference(problem: Problem) -> Reference:
    """Solve by Newton's method with the problem's own Jacobian in float64, and differentiate by a dense solve."""
    jacobian, pullback = problem.jacobian, problem.pullback
    assert jacobian is not None
    assert pullback is not None
    y, args = problem.y0.astype(float), tuple(a.astype(float) for a in problem.args)
    sizes = []
    while len(sizes) < 200 and (not sizes or sizes[-1] > 1e-15):
        step = np.linalg.solve(jacobian(y, *args), -problem.residual(np, y, *args)[..., None])[..., 0]
        y = y + step
        sizes.append(float(np.max(np.abs(step) / (1e-30 + np.max(np.abs(y), axis=-1, keepdims=True)))))
        if len(sizes) > 3 and sizes[-1] >= sizes[-2] and sizes[-1] < 1e-10:  # at the rounding noise
            break
    transposed = np.swapaxes(jacobian(y, *args), -1, -2)
    u = np.linalg.solve(transposed, problem.weights.astype(float)[..., None])[..., 0]
    gradients = tuple(-g for g in pullback(y, u, *args))
    return Reference(y, gradients, sum(size > 1e-9 for size in sizes))


def relative_error(value: Any, exact: Any) -> float:
    """Return the 2-norm of the error over that of the exact value."""
    return float(np.linalg.norm(np.ravel(value) - np.ravel(exact)) / np.linalg.norm(np.ravel(exact)))
