"""The state of a user's solver: an iterate that is judged and frozen, a memory under any names, an inverse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentTypeError, Iterate, IterativeSolver, State
from rootdiff._solver import unjudged
from tests.harness import HARNESSES

BACKENDS = ("numpy", "torch", "jax-jit")
A = np.array([[0.5, 3.0], [2.0, -1.0], [1.0, 40.0]])


class Names(NamedTuple):
    """Names that the library gives to things of its own."""

    factors: object
    inverse: object
    f_norm: object
    status: object


class Slope(NamedTuple):
    """An inverse of a diagonal matrix, a value of the user's own."""

    diagonal: object

    def apply(self, backend, vector, transpose=False):
        return vector / self.diagonal


@dataclass(frozen=True, kw_only=True)
class Diagonal(IterativeSolver):
    """Newton's method for a diagonal Jacobian, with a memory that goes bad a few steps after f has become small."""

    max_steps: int = 200
    kind: str = "tuple"

    def init(self, residual, y):
        ones = residual.xp.ones_like(y)
        return State(Iterate.start(residual.xp, y, residual(y)), self._memory(ones), Slope(ones))

    def step(self, residual, state):
        xp, at = residual.xp, state.iterate
        memory = state.memory["factors"] if self.kind == "dict" else state.memory.factors
        slope = xp.linalg.diagonal(residual.jacobian(at.y))
        move = -at.f / slope
        y = at.y + move + 0 * memory
        small = xp.all(xp.abs(at.f) < 1e-6, axis=-1, keepdims=True)
        memory = xp.where(small, 1e100 * memory, memory)
        return State(Iterate(y, residual(y), xp.abs(move), at.status), self._memory(memory), Slope(slope))

    def _memory(self, value):
        if self.kind == "dict":
            return {"factors": value, "status": [value], "f_norm": None}
        return Names(value, (value,), None, value)


def f(y, a):
    return y**3 + y - a


@pytest.mark.parametrize("kind", ["tuple", "dict"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_memory_may_have_any_names_and_structure(backend, kind):
    for options in ({}, {"batched_args": (0,)}):  # a batch that becomes smaller too
        out = HARNESSES[backend]().solve(f, np.ones_like(A), A, solver=Diagonal(kind=kind), batch_ndim=1, **options)
        np.testing.assert_allclose(f(out.y, A), 0, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_finished_iterate_is_frozen_whatever_becomes_of_its_memory(backend):
    def solve(a):
        with unjudged():  # the verdict on solvers of others looks at y alone
            return HARNESSES[backend]().solve(f, np.ones_like(a), a, solver=Diagonal(), batch_ndim=1)

    alone, together = solve(A[:1]), solve(np.stack([A[0], [1e12, 1e12]]))
    assert together.steps[1] > 40 > 10 > alone.steps[0] == together.steps[0]
    for name in ("y", "status", "residual_norm", "error"):
        first, only = (np.asarray(getattr(out.solution, name))[0] for out in (together, alone))
        np.testing.assert_array_equal(first, only, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_inverse_of_the_state_reaches_the_adjoint(backend):
    options = {"solver": Diagonal(), "adjoint": "reuse", "batch_ndim": 1}
    out = HARNESSES[backend]().vjp(f, np.ones_like(A), A, w=np.ones_like(A), **options)
    np.testing.assert_allclose(out.derivative[0], 1 / (3 * out.y**2 + 1), rtol=1e-5)


def test_another_state_is_refused_by_name():
    class Old(Diagonal):
        def init(self, residual, y):
            return {"y": y, "f": residual(y)}

    class Bare(Diagonal):
        def step(self, residual, state):
            return tuple(state)

    for solver, what in ((Old(), "Old.init returned a dict"), (Bare(), "Bare.step returned a tuple")):
        with pytest.raises(ArgumentTypeError, match=f"{what}, but must return a rootdiff.State"):
            rootdiff.root(f, np.ones(2), A[0], solver=solver)


@pytest.mark.each_in_jax
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("part", "got"), [("y", r"of shape \(4,\)"), ("f", r"of shape \(4,\)"), ("status", "of shape .* one per system")]
)
def test_an_iterate_of_another_shape_is_refused_by_name(backend, part, got):
    class Doubled(Diagonal):
        def step(self, residual, state):
            at = super().step(residual, state).iterate
            twice = residual.xp.concat([at.y, at.y])
            return rootdiff.State(at._replace(**{part: twice}))

    with pytest.raises(ArgumentTypeError, match=f"Doubled.step returned an iterate whose {part} is {got}"):
        HARNESSES[backend]().solve(f, np.ones(2), A[0], solver=Doubled())
