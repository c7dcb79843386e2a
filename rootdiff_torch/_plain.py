"""What the derivative rule does on plain tensors: find a root, solve with its Jacobian, pull a cotangent back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff._errors import ArgumentError
from rootdiff._failure import GOES_ON, KEEP, report
from rootdiff._operator import LinearOperator
from rootdiff._residual import Residual
from rootdiff._solution import Solution, Status
from rootdiff._solver import run
from rootdiff._space import some
from rootdiff.linear import LinearInfo
from rootdiff_torch import _host
from rootdiff_torch._backend import BACKEND, Linearization
from rootdiff_torch._capture import check_followed, check_graph
from rootdiff_torch._contexts import on_plain_tensors, without_history
from rootdiff_torch._derivatives import breaks_graph, dense, differentiable, has_no_second
from rootdiff_torch._failed import note_system_data, without_masked
from rootdiff_torch._problem import Problem
from rootdiff_torch._watching import check_still_root

_DETACHED = (
    "residual: autograd finds no way from y to its value, so that its derivative is zero: it detaches y, or leaves "
    "torch (NumPy, .item()). Use torch's operations on y itself; a gradient inside is torch.autograd.grad(energy, y, "
    "create_graph=True). Or take a solver without derivatives: 'anderson', 'df_sane', 'scipy:krylov'."
)


def find(problem: Problem, y0: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what `Root` does, with its outcome noted."""
    with on_plain_tensors(y0):
        start, *plain = [without_history(tensor) for tensor in (y0, *parameters)]
        if problem.follows and problem.direct is None:
            check_followed(problem.function, (start, *plain))
        residual, solver = problem.bound(tuple(plain), start)
        watched = problem.observe or problem.correct or problem.loss or problem.pattern
        if watched is None and _host.is_small(start, solver):
            raw = _host.find(solver, residual, start, problem.first)
        else:
            raw = run(solver, residual, start)
        unravel = problem.structure.unravel
        if bool((raw.status == int(Status.SINGULAR)).any()) and not residual.differentiable:
            raise ArgumentError(_DETACHED)
        told = None if raw.error is None else unravel(raw.error)
        solution = Solution(unravel(raw.y), raw.status, raw.steps, raw.residual_norm, raw.method, error=told)
        context = (unravel(start), *problem.arguments(*plain))
        any_failed = report(BACKEND, solution, problem.on_failure, solver, context)
        if problem.follows and problem.checked:  # one that branches may use more at the root than at y0
            check_followed(problem.function, (raw.y, *plain))
        known, problem.outcome.byproduct = BACKEND.flatten(raw.factors)
        y = raw.y
        if any_failed:
            problem.outcome.any_failed = True
            if problem.follows:
                note_system_data(problem, y, plain, ~solution.converged)
            if problem.on_failure not in KEEP:
                y = torch.where(solution.converged[..., None], y, torch.nan)
        error = torch.full_like(y, torch.inf) if raw.error is None else raw.error
        # the largest norm of f that a later evaluation at the root may have
        allowed = torch.where(solution.converged, 2 * raw.residual_norm, torch.inf)
        others = (raw.status, raw.steps, raw.residual_norm, raw.method, allowed, error)
        return (y.clone() if y is start else y, *others, *known)


class Point(NamedTuple):
    """A root to be differentiated; `known` as in `LinearSolve`."""

    problem: Problem
    y: Tensor
    known: Sequence[Tensor]
    parameters: Sequence[Tensor]


def solve(problem: Problem, transpose: bool, rhs: Tensor, y: Tensor, count: int, others: Sequence[Tensor]) -> Tensor:
    """Return what `LinearSolve` does, with its outcome noted."""
    with problem.restored(y), on_plain_tensors(y):
        b, y, *others = [without_history(tensor) for tensor in (rhs, y, *others)]
        primals = (y, *others[count:])
        places = differentiable(primals)
        residual = _AtRoot.of(Point(problem, y, others[:count], primals[1:]), places[1:])
        outcome, of_residual = problem.outcome, (problem.function, primals, places, residual.graph.f)
        outcome.broken = breaks_graph(*of_residual)
        outcome.first_only = outcome.broken or has_no_second(*of_residual)
        x = residual.solve(transpose, b)
        return x.clone() if x is b else x


def pull_back_once(point: Point, cotangent: Tensor, wanted: Sequence[int]) -> tuple[Tensor, ...]:
    """Return ``-u^T (df/dargs)`` for the `wanted` parameters, counted from 1, by one evaluation of the residual."""
    problem, y, known, parameters = point
    with on_plain_tensors(y):
        y, b = without_history(y), without_history(cotangent)
        known, parameters = ([*map(without_history, part)] for part in (known, parameters))
        residual = _AtRoot.of(Point(problem, y, known, parameters), wanted)
        u = residual.solve(True, b)
        if not problem.outcome.any_failed:
            return residual.parameter_vjp(y, -u)
        u = without_masked(u, b)
        # the loss reads no root; if all systems failed, any pullback may be NaN
        if not bool(some(residual.xp, u != 0).any()):
            return tuple(map(torch.zeros_like, residual.inputs))
        return _implicit.pullback(residual, y, u, known[0].isinf())


@dataclass(frozen=True)
class _AtRoot(Residual):
    """A residual with its `graph` at a root, which leads to the `inputs` among its parameters."""

    point: Point
    graph: Linearization
    inputs: tuple[Tensor, ...]

    @staticmethod
    def of(point: Point, wanted: Sequence[int]) -> _AtRoot:
        """Evaluate the residual, with the `wanted` parameters, counted from 1, as inputs; raise if `y` is no root."""
        problem, y, known, parameters = point
        inputs = tuple(parameters[place - 1].requires_grad_() for place in wanted)
        graph = problem.backend.graph(lambda y: problem.function(y, *parameters), y)
        if problem.follows and not problem.checked:
            check_graph(graph.f, problem.function, (graph.y, *parameters))
        bound, pattern = (problem.function, tuple(parameters), problem.backend), problem.pattern
        if pattern is not None and problem.loss is not None:
            pattern = pattern.normal
        residual = _AtRoot(*bound, point, graph, inputs, fixed_point=problem.fixed_point, pattern=pattern)
        check_still_root(residual, y, graph.f, known[0])
        return residual

    def solve(self, transpose: bool, rhs: Tensor) -> Tensor:
        """Return x with J x = rhs, or J^T x = rhs, checked; note in the outcome whether a system failed."""
        if rhs.numel() == 0:
            return rhs
        problem, y, (allowed, error, *known), _ = self.point
        lead = rhs.shape[: rhs.ndim - y.ndim]
        failed = allowed.expand((*lead, *allowed.shape)).isinf() if problem.outcome.any_failed else None
        if problem.adjoint.direct and self.pattern is None and _host.is_small(y, problem.adjoint):
            given = (y, error, transpose, problem.adjoint, rhs, problem.on_failure, failed)
            return self._noted(*_host.solve(self.operator, *given))

        def at(y: Tensor) -> LinearOperator:
            operator = self.operator(y)
            if lead and not problem.adjoint.direct:  # each right-hand side has the matrix as a view, not as a copy
                one, shape = operator.dense, (*lead, *operator.shape)
                operator = replace(operator, dense=lambda: one().expand(shape), shape=shape)
            return operator.T if transpose else operator

        adjoint = problem.adjoint.starting_from(BACKEND.unflatten(problem.outcome.byproduct, known))
        beside = _implicit.Beside(y, error, at)
        return self._noted(*_implicit.solve(at(y), adjoint, rhs, problem.on_failure, failed, beside))

    def _noted(self, x: Tensor, info: LinearInfo) -> Tensor:
        """Return the solution of a linear solve; note in the outcome whether a system failed."""
        problem = self.point.problem
        if problem.on_failure not in GOES_ON and bool((info.status > int(Status.AT_PRECISION)).any()):
            problem.outcome.any_failed = True
        return x

    def products(self, y: Tensor, vectors: Tensor, transpose: bool = False) -> tuple[Tensor, Tensor | None]:
        if y is not self.point.y:
            return super().products(y, vectors, transpose)
        return (self.graph.rmatvec if transpose else self.graph.matvec)(vectors), None

    def operator(self, y: Tensor) -> LinearOperator:
        found, graph = super().operator(y), self.graph
        if y is not self.point.y:
            return found
        return replace(found, matvec=graph.matvec, rmatvec=graph.rmatvec, dense=lambda: graph.matrix)

    def parameter_vjps(self, y: Tensor, *cotangents: Tensor) -> list[tuple[Tensor, ...]]:
        graph = self.graph if y is self.point.y else self.point.problem.backend.graph(self._of_y, y)
        if not self.inputs or not graph.f.requires_grad:
            return [tuple(map(torch.zeros_like, self.inputs))] * len(cotangents)
        pull = partial(torch.autograd.grad, graph.f, self.inputs, retain_graph=True, materialize_grads=True)
        return [tuple(map(dense, pull(cotangent))) for cotangent in cotangents]
