"""The state of an iterative solver: the iterate that is judged, what the solver remembers, its inverse Jacobian."""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._errors import ArgumentTypeError, with_article
from rootdiff._inverse import Inverse
from rootdiff._solution import Status
from rootdiff._space import per_system


class Iterate(NamedTuple):
    """What the loop judges after each step; once a system has finished, its part stays as it is, bit for bit.

    Attributes
    ----------
    y, f : array, (*batch, n). The iterate and its residual.
    error : array, (*batch, n)
        Estimate of the error of `y`, in its units; infinite where the solver has no estimate it trusts.
    status : integer array, (*batch). `Status.RUNNING`, or why the solver cannot go on.
    norm : array, (*batch), or None
        The largest absolute entry of `f`, where the solver has it at hand; else the loop computes it.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> rootdiff.Iterate.start(np, np.array([1.0]), np.array([-2.0])).error
    array([inf])
    """

    y: Array
    f: Array
    error: Array
    status: Array
    norm: Array | None = None

    @classmethod
    def start(cls, xp: Any, y: Array, f: Array) -> Iterate:
        """Return the iterate before the first step: its error is not known."""
        return cls(y, f, xp.full_like(y, xp.inf), running(xp, y))


class Search(NamedTuple):
    """Where the search along the step of each system is, all (*batch).

    Attributes
    ----------
    trying : boolean array. Whether the step needs another trial: the iterate is the old one.
    length : array. Fraction of the full step of the next trial.
    count : integer array. Trials that were rejected.
    noise : integer array. Whether f at `y` may be nothing but rounding, if that was asked; see `backtrack`.
    """

    trying: Array
    length: Array
    count: Array
    noise: Array

    @classmethod
    def start(cls, xp: Any, y: Array) -> Search:
        """Return the search before a first trial from `y`."""
        zeros = per_system(xp, y, 0, xp.int32)
        return cls(zeros > 0, per_system(xp, y, 1), zeros, zeros)


class State(NamedTuple):
    """What `IterativeSolver.init` and `IterativeSolver.step` return.

    Attributes
    ----------
    iterate : Iterate
    memory : pytree of arrays, (*batch, ...)
        What the next step needs besides, under any names; of the same structure and types in each step, since JAX
        compiles the loop. That of a finished system changes while others go on: no step that reads it is taken.
    inverse : Inverse or None
        What the solver knows of the inverse Jacobian, for itself and for the adjoint solve. That of a finished system
        may be of a step that it did not take.
    search : Search or None
        The loop's, for solvers whose step may need several calls, one for each trial point; others leave it out.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> start = rootdiff.Iterate.start(np, np.array([1.0]), np.array([-2.0]))
    >>> rootdiff.State(start, memory={"damping": np.array(1.0)}).memory
    {'damping': array(1.)}
    """

    iterate: Iterate
    memory: Any = None
    inverse: Inverse | None = None
    search: Search | None = None


def running(xp: Any, y: Array) -> Array:
    """Return the status `Status.RUNNING` for every system of `y`, (*batch, n)."""
    return per_system(xp, y, int(Status.RUNNING), xp.int32)


def first_state(solver: Any, residual: Any, y: Array) -> State:
    """Return what an iterative `solver` starts with; in a compiled program for one system a call is one trial.

    In a batch each trial of one system would form the Jacobians of all anew.
    """
    state = _checked(solver, "init", solver.init(residual, y), y)
    one = residual.backend.traced and y.ndim == 1
    return state._replace(search=Search.start(residual.xp, y)) if one else state


def next_state(solver: Any, residual: Any, state: State) -> State:
    """Return the state after a step of all systems, or after a trial of one."""
    new = _checked(solver, "step", solver.step(residual, state), state.iterate.y)
    return new if new.search is not None else new._replace(search=state.search)


def _checked(solver: Any, method: str, state: Any, y: Array) -> State:
    """Return what a method of a solver returned, if that is a state whose iterate is like `y`, (*batch, n)."""
    if not isinstance(state, State):
        raise ArgumentTypeError(
            f"solver: {type(solver).__name__}.{method} returned {with_article(type(state).__name__)}, but must return "
            "a rootdiff.State: State(Iterate(y, f, error, status), memory, inverse)."
        )
    shape = tuple(y.shape)
    for name, expected in (("y", shape), ("f", shape), ("error", shape), ("status", shape[:-1])):
        part = getattr(state.iterate, name)
        if getattr(part, "shape", None) != expected:
            got = f"of shape {tuple(part.shape)}" if hasattr(part, "shape") else with_article(type(part).__name__)
            raise ArgumentTypeError(
                f"solver: {type(solver).__name__}.{method} returned an iterate whose {name} is {got}, but must be an "
                f"array of shape {expected}{', as the start is' if expected == shape else ', one per system'}."
            )
    return state
