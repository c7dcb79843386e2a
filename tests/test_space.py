"""One vector in parts on several processes: solvers ask of all unknowns at once through the space alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy.sparse import diags_array
from scipy.sparse.linalg import spsolve

from rootdiff import Status, _implicit
from rootdiff._numpy import Namespace, NumpyBackend
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual
from rootdiff._solver import run

#: Unknowns of one process: so many that no matrix is formed.
PART = 1100
PROCESSES = 2
#: So that the plain iteration contracts.
SCALE = 0.15
_PLACE = np.arange(PROCESSES * PART)
#: Parameters, cotangent and tangent of the whole vector.
GIVEN = np.sin(_PLACE) + _PLACE / PART, np.cos(_PLACE), np.sin(3 * _PLACE)
SOLVERS = ["auto", "newton_krylov", "df_sane", "anderson", "fixed_point"]
ADJOINTS = ["gmres", "auto", "bicgstab", "lsmr"]


class Processes:
    """Threads that stand for the processes of an MPI program: each calls `gather` as often as the others."""

    def __init__(self, count: int) -> None:
        self.count, self.shared = count, [None] * count
        self.barrier = threading.Barrier(count, timeout=60)

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.shared[rank] = value
        self.barrier.wait()
        values = list(self.shared)
        self.barrier.wait()
        return values


class Parts(Namespace):
    """NumPy for the part of each vector that one process has."""

    def __init__(self, processes: Processes, rank: int) -> None:
        self.gather, self.offset = partial(processes.gather, rank), rank * PART

    def max_norm(self, x: Any, _: Any) -> Any:
        return np.max(self.gather(np.max(np.abs(x), axis=-1)), axis=0)

    def norm2(self, x: Any, _: Any) -> Any:
        return np.linalg.norm(self.gather(np.linalg.norm(x, axis=-1)), axis=0)

    def inner_product(self, a: Any, b: Any) -> Any:
        return np.sum(self.gather(np.sum(a * b, axis=-1)), axis=0)

    def projections(self, vectors: Any, vector: Any) -> Any:
        return np.sum(self.gather(vectors @ vector), axis=0)

    def every(self, mask: Any) -> Any:
        return np.all(self.gather(np.all(mask, axis=-1)), axis=0)

    def first_of(self, x: Any) -> Any:
        return self.gather(x[..., 0])[0]

    def is_within(self, x: Any, allowed: Any) -> Any:
        return self.every(np.abs(x) <= allowed)


class PartBackend(NumpyBackend):
    """Complex steps along vectors; the transposed product is that of the residual, written by hand."""

    def __init__(self, xp: Parts) -> None:
        super().__init__("complex-step")
        object.__setattr__(self, "xp", xp)

    def jvp(self, function: Any, primals: Any, tangents: Any) -> Any:
        moved = [primal + 1e-30j * tangent for primal, tangent in zip(primals, tangents, strict=True)]
        return function(*primals), function(*moved).imag / 1e-30

    def linearize(self, function: Any, y: Any) -> Any:
        def forward(v: Any) -> Any:
            return self.jvp(function, [y], [v])[1]

        def backward(w: Any) -> Any:
            left, right = _neighbours(self.xp, w)
            return SCALE * (left + 0.5 * right - (4 + 3 * y**2) * w)

        return forward, backward, lambda: pytest.fail("a matrix was formed")

    def parameter_jvp(self, function: Any, y: Any, parameters: Any, tangents: Any) -> Any:
        return SCALE * tangents[0]

    def parameter_vjps(self, function: Any, y: Any, parameters: Any, cotangents: Any) -> Any:
        return [(SCALE * cotangent,) for cotangent in cotangents]


def _neighbours(xp: Parts, y: Any) -> tuple[Any, Any]:
    """Return the neighbours of each unknown in the whole vector, which is a ring."""
    ends = xp.gather((y[0], y[-1]))
    rank, count = xp.offset // PART, len(ends)
    return np.concat([[ends[rank - 1][1]], y[:-1]]), np.concat([y[1:], [ends[(rank + 1) % count][0]]])


def _solved(processes: Processes, solver: str, adjoint: str, rank: int) -> tuple[Any, ...]:
    """Return the part of the root that one process has, its status and steps, and the parts of two derivatives."""
    xp = Parts(processes, rank)

    def residual(y: Any, a: Any) -> Any:
        left, right = _neighbours(xp, y)
        return SCALE * (a + 0.5 * left + right - 4 * y - y**3)

    a, w, v = (vector[xp.offset : xp.offset + PART] for vector in GIVEN)
    problem = Residual(residual, (a,), PartBackend(xp))
    raw = run(get_solver(solver), problem, np.zeros(PART))
    linear, known = get_adjoint(adjoint), {"factors": raw.factors, "error": raw.error}
    ((gradient,),) = _implicit.vjps(problem, linear, raw.y, [w], **known)
    (tangent,) = _implicit.jvps(problem, linear, raw.y, [(v,)], **known)
    return raw.y, raw.status, raw.steps, gradient, tangent


def _together(count: int, solver: str, adjoint: str) -> list[tuple[Any, ...]]:
    processes = Processes(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(partial(_solved, processes, solver, adjoint), range(count)))


def _expected() -> tuple[Any, Any, Any]:
    """Return the root and its two derivatives by Newton's method with sparse matrices of the whole vector."""
    a, w, v = GIVEN
    n = len(a)
    ring = [np.full(n - 1, 0.5), np.ones(n - 1), [0.5], [1.0]]
    coupling = diags_array(ring, offsets=[-1, 1, n - 1, 1 - n], shape=(n, n))
    y = np.zeros(n)
    for _ in range(20):
        jacobian = (coupling - diags_array(4 + 3 * y**2)).tocsc()
        y = y - spsolve(jacobian, a + coupling @ y - 4 * y - y**3)
    return y, -spsolve(jacobian.T.tocsc(), w), -spsolve(jacobian, v)


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [*((solver, "gmres") for solver in SOLVERS), *(("newton_krylov", adjoint) for adjoint in ADJOINTS[1:])],
)
def test_a_vector_in_parts_is_solved_for_as_if_it_were_in_one(solver: str, adjoint: str) -> None:
    parts = _together(PROCESSES, solver, adjoint)
    assert all(part[1] <= Status.AT_PRECISION and part[2] == parts[0][2] for part in parts)
    for found, expected in zip((0, 3, 4), _expected(), strict=True):
        np.testing.assert_allclose(np.concat([part[found] for part in parts]), expected, rtol=0, atol=1e-9)
