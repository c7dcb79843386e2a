"""The implicit function theorem as two operations that differentiate into each other.

`Root` is y(args) with f(y, args) = 0, `LinearSolve` is x with J x = b or J^T x = b, J = df/dy. The derivatives of
each are made of the other and of pullbacks of f, so that they can be differentiated any number of times, in any mode.
Solvers run inside `forward`, where every tensor is plain, whatever transforms are around.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff._errors import ArgumentError
from rootdiff._failure import KEEP, report
from rootdiff._loop import StepInfo
from rootdiff._residual import LinearOperator, Residual
from rootdiff._solution import Solution, Status
from rootdiff._solver import Solver, run
from rootdiff._structure import Structure
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Continuation, InBracket
from rootdiff_torch._backend import BACKEND, Linearization, TorchBackend
from rootdiff_torch._capture import State, check_followed, check_graph, constants, with_captured
from rootdiff_torch._derivatives import (
    FIRST_ONLY,
    FirstOnly,
    breaks_graph,
    dense,
    graph_of,
    hidden,
    in_forward_mode,
    in_full_precision,
    is_differentiable,
    outer_forward_mode,
    pullback,
    pushforward,
    refuse_vectorized,
    rule,
    without_tangents,
)
from rootdiff_torch._loops import by_itself
from rootdiff_torch._watching import Watched, check_still_root, norm_allowed

_DETACHED = (
    "residual: autograd finds no way from y to its value, so that its derivative is zero: it detaches y, or leaves "
    "torch (NumPy, .item()). Use torch's operations on y itself; a gradient inside is torch.autograd.grad(energy, y, "
    "create_graph=True). Or take a solver without derivatives: 'anderson', 'df_sane', 'scipy:krylov'."
)


@dataclass
class Outcome:
    """What is noted beside tensors.

    Attributes
    ----------
    byproduct : Any. The pytree of what the solver knows of the inverse Jacobian.
    any_failed : bool. Whether a system failed, in the solve or in a linear solve of its derivatives.
    first_only : bool. Whether the residual has first derivatives only.
    carriers : tuple of int. The parameters that carry the batch axes, looked for where a system failed.
    constants : tuples of tensors. What the residual closes over of this kind, and what stands in its place.
    """

    byproduct: Any = None
    any_failed: bool = False
    first_only: bool = False
    carriers: tuple[int, ...] = ()
    constants: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())


@dataclass(frozen=True)
class Problem:
    """A residual on flat vectors, ``original(y, *parameters)``, and how to solve it.

    The parameters are those of the residual, those of the correction, and the settings of the solver.

    Attributes
    ----------
    direct : callable or None
        The same function for plain parameters, where it need not be told what it closes over.
    arguments : callable
        Returns the user's args from the parameters, for messages and for `take`.
    take : callable or None
        Returns, from the user's args, what takes some systems out of the batch, for plain parameters.
    state : State
        Of the modules that the residual calls.
    watched : Watched
        What the residual reads beside its inputs, to name what has changed.
    follows : bool
        Whether a derivative of what the residual closes over may be wanted, so that it must not depend on more than
        its inputs.
    checked : bool
        Whether that is checked when the root has been found; else it is when the root is differentiated.
    first : Tensor or None
        The value at y0, where it is known.
    fixed_point : bool
        Whether the function is that of a fixed point.
    correct : callable or None
        ``correct(trial, y, *parameters)``, the point to try in place of `trial`.
    observe : callable or None
        Called after each step.
    settings : int
        How many parameters are settings of the solver.
    cuda_graph : bool
        Whether loops are to be recorded.
    outcome : Outcome
        What `forward` finds out, for Python to branch on under every transform.
    """

    original: Callable[..., Tensor]
    structure: Structure
    solver: Solver
    adjoint: LinearSolver
    on_failure: str
    direct: Callable[..., Tensor] | None
    arguments: Callable[..., tuple[Any, ...]]
    state: State
    watched: Watched
    follows: bool
    take: Callable[..., Any] | None = None
    checked: bool = True
    first: Tensor | None = None
    fixed_point: bool = False
    correct: Callable[..., Tensor] | None = None
    settings: int = 0
    cuda_graph: bool = False
    observe: Callable[[StepInfo], None] | None = None
    outcome: Outcome = field(default_factory=Outcome)

    def function(self, *inputs: Tensor) -> Tensor:
        """Return the residual of y and the parameters; constants of a system that failed are those of a good one."""
        found, regular = self.outcome.constants
        return with_captured(self.original, found, len(inputs))(*inputs, *regular)

    def batched(self, dims: Sequence[int | None], randomness: str) -> Problem:
        """Return the problem with one more leading batch axis on y, and on the parameters with a dimension."""
        original = torch.vmap(self.original, in_dims=(0, *dims), randomness=randomness)
        correct = self.correct and torch.vmap(self.correct, in_dims=(0, 0, *dims), randomness=randomness)
        return replace(self, original=original, direct=None, first=None, correct=correct)

    def bound(self, parameters: tuple[Tensor, ...], start: Tensor) -> tuple[Residual, Solver]:
        """Return the residual and the solver, with plain parameters in them, for a solve from `start`."""
        function, first = self.direct or self.function, self.first

        def known(y: Tensor, *parameters: Tensor) -> Tensor:
            return first if first is not None and y is start else function(y, *parameters)

        backend = BACKEND if self.observe is None else TorchBackend(foresees=False)
        residual: Residual = _FromStart(
            known, parameters, backend, observe=self.observe, fixed_point=self.fixed_point, start=start
        )
        if self.take is not None and self.direct is not None:
            residual = replace(residual, take=self.take(*self.arguments(*parameters)))
        correct, solver = self.correct, self.solver
        if correct is not None:
            residual = replace(residual, correct=lambda trial, y: correct(trial, y, *parameters))
        if isinstance(solver, InBracket):
            lo, hi = parameters[-self.settings :]
            solver = replace(solver, lo=lo, hi=hi)
        elif isinstance(solver, Continuation):
            solver = replace(solver, start=parameters[len(parameters) - self.settings :])
        return residual, solver


class Root(torch.autograd.Function):
    """``(problem, y0, *parameters) -> (y, status, steps, residual_norm, method, allowed, error, *byproduct)``.

    Flat vectors. `allowed` is the norm that f may have at the root when that is differentiated, infinite where a system
    failed.
    """

    @staticmethod
    def forward(problem: Problem, y0: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        return by_itself(problem.cuda_graph, y0, lambda: _find(problem, y0, parameters))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        problem, _, *parameters = inputs
        y, *others = output
        ctx.mark_non_differentiable(*others)
        ctx.set_materialize_grads(False)
        ctx.problem, ctx.count = problem, len(parameters)
        saved = (y, *parameters, *others[4:])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @rule
    def backward(ctx: Any, cotangent: Tensor | None, *_: Any) -> tuple[Any, ...]:
        nothing: tuple[Any, ...] = (None,) * (2 + ctx.count)
        if cotangent is None:
            return nothing
        y, parameters, known = _at_root(ctx, ctx.saved_tensors)
        wanted = [
            place
            for place, parameter in enumerate(parameters, 1)
            if ctx.needs_input_grad[place + 1] and is_differentiable(parameter)
        ]
        plain = not torch.is_grad_enabled() and not hidden((y, cotangent, *parameters))
        with _restored(ctx.problem, y):
            given = (ctx.problem, cotangent, y, known, parameters, wanted)
            if plain:
                found = by_itself(ctx.problem.cuda_graph, y, lambda: _pull_back_once(*given))
            else:
                found = _pull_back(*given)
        gradients = dict(zip(wanted, found, strict=True))
        return None, None, *(gradients.get(place) for place in range(1, 1 + ctx.count))

    @staticmethod
    @rule
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Tensor | None) -> tuple[Any, ...]:
        with outer_forward_mode():
            y, parameters, known = _at_root(ctx, without_tangents(ctx.saved_tensors))
            directions = _directions(parameters, tangents)
            with _restored(ctx.problem, y):
                of_parameters = partial(ctx.problem.function, y)
                rhs = pushforward(of_parameters, parameters, directions, y)
                t = _solve(ctx.problem, False, rhs, y, known, parameters)
                if ctx.problem.outcome.first_only and hidden((rhs, *parameters)):  # found out by the solve alone
                    rhs = in_forward_mode(of_parameters, parameters, directions)
                    t = _solve(ctx.problem, False, rhs, y, known, parameters)
            return -t, None, None, None, None, *(None,) * len(known)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], problem: Problem, y0: Tensor, *parameters: Tensor) -> Any:
        y0 = _leading(y0, in_dims[1], info.batch_size)
        first = len(parameters) - problem.settings
        moved = [
            _front(p, dim) if place < first else _leading(p, dim, info.batch_size)
            for place, (p, dim) in enumerate(zip(parameters, in_dims[2:], strict=True))
        ]
        dims = [None if dim is None and place < first else 0 for place, dim in enumerate(in_dims[2:])]
        output = apply(Root, problem.batched(dims, info.randomness), y0, *moved)
        return output, (0,) * len(output)


class LinearSolve(torch.autograd.Function):
    """``(problem, transpose, rhs, y, count, *known, *parameters) -> x`` with J x = rhs, or J^T x = rhs.

    `known` are the norm of f `allowed` at the root and, flat, what the solver knows of the inverse Jacobian. `rhs` may
    have more leading axes than `y`: several right-hand sides for one matrix.
    """

    @staticmethod
    def forward(problem: Problem, transpose: bool, rhs: Tensor, y: Tensor, count: int, *others: Tensor) -> Tensor:
        return by_itself(problem.cuda_graph, y, lambda: _solve_plain(problem, transpose, rhs, y, others, count))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        problem, transpose, rhs, y, count, *others = inputs
        ctx.problem, ctx.transpose, ctx.count, ctx.extra = problem, transpose, count, rhs.ndim - y.ndim
        saved = (output, y, *others)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    @rule
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        x, y, *others = ctx.saved_tensors
        known, parameters = others[: ctx.count], others[ctx.count :]
        primals = (y, *parameters)
        with _restored(ctx.problem, y):
            u = _solve(ctx.problem, not ctx.transpose, cotangent, y, known, parameters)
            if ctx.problem.outcome.any_failed:
                x, u = _without_idle(x, cotangent), _without_idle(u, cotangent)
            # A x = b: the cotangent of A is -u x^T, so that of what A depends on is the pullback of -u^T A x
            left, right = (x, u) if ctx.transpose else (u, x)
            needed = ctx.needs_input_grad[3], *ctx.needs_input_grad[5 + ctx.count :]
            wanted = [place for place, primal in enumerate(primals) if needed[place] and is_differentiable(primal)]
            found = pullback(_transposed_product(ctx, left), primals, wanted, -right)
        gradients = dict(zip(wanted, found, strict=True))
        return (
            None,
            None,
            u,
            gradients.get(0),
            None,
            *(None,) * ctx.count,
            *(gradients.get(place) for place in range(1, len(primals))),
        )

    @staticmethod
    @rule
    def jvp(ctx: Any, _: Any, __: Any, *tangents: Any) -> Tensor:
        with outer_forward_mode():
            x, y, *others = without_tangents(ctx.saved_tensors)
            rhs, of_y, __, *of_others = tangents
            known, parameters = others[: ctx.count], others[ctx.count :]
            primals = (y, *parameters)
            with _restored(ctx.problem, y):
                # A dx = db - dA x
                directions = _directions(primals, (of_y, *of_others[ctx.count :]))
                product = _transposed_product(ctx, x) if ctx.transpose else _product(ctx, x)
                change = pushforward(product, primals, directions, x)
                b = -change if rhs is None else rhs - change
                return _solve(ctx.problem, ctx.transpose, b, y, known, parameters)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        problem: Problem,
        transpose: bool,
        rhs: Tensor,
        y: Tensor,
        count: int,
        *others: Tensor,
    ) -> Any:
        if in_dims[3] is None and all(dim is None for dim in in_dims[5:]):
            return apply(LinearSolve, problem, transpose, rhs.movedim(in_dims[2], 0), y, count, *others), 0
        batch = info.batch_size
        extra = rhs.ndim - y.ndim - (in_dims[2] is not None) + (in_dims[3] is not None)
        rhs = _leading(rhs, in_dims[2], batch).movedim(0, extra)
        y = _leading(y, in_dims[3], batch)
        known = [_leading(part, dim, batch) for part, dim in zip(others[:count], in_dims[5:], strict=False)]
        dims = in_dims[5 + count :]
        parameters = [_front(part, dim) for part, dim in zip(others[count:], dims, strict=True)]
        problem = problem.batched([None if dim is None else 0 for dim in dims], info.randomness)
        return apply(LinearSolve, problem, transpose, rhs, y, count, *known, *parameters), extra


def _find(problem: Problem, y0: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return what `Root` does, with its outcome noted."""
    with _plain(y0):
        start, *plain = [_normal(tensor) for tensor in (y0, *parameters)]
        if problem.follows and problem.direct is None:
            check_followed(problem.function, (start, *plain))
        residual, solver = problem.bound(tuple(plain), start)
        raw = run(solver, residual, start)
        unravel = problem.structure.unravel
        if bool((raw.status == int(Status.SINGULAR)).any()) and not residual.differentiable:
            raise ArgumentError(_DETACHED)
        solution = Solution(unravel(raw.y), raw.status, raw.steps, raw.residual_norm, raw.method)
        context = (unravel(start), *problem.arguments(*plain))
        any_failed = report(BACKEND, solution, problem.on_failure, solver, context)
        if problem.follows and problem.checked:  # one that branches may use more at the root than at y0
            check_followed(problem.function, (raw.y, *plain))
        known, problem.outcome.byproduct = BACKEND.flatten(raw.factors)
        y = raw.y
        if any_failed:
            problem.outcome.any_failed = True
            if problem.follows:
                _note_carriers(problem, y, plain, ~solution.converged)
            if problem.on_failure not in KEEP:
                y = torch.where(solution.converged[..., None], y, torch.nan)
        error = torch.full_like(y, torch.inf) if raw.error is None else raw.error
        allowed = norm_allowed(raw.status, raw.residual_norm)
        others = (raw.status, raw.steps, raw.residual_norm, raw.method, allowed, error)
        return (y.clone() if y is start else y, *others, *known)


def _solve_plain(
    problem: Problem, transpose: bool, rhs: Tensor, y: Tensor, others: Sequence[Tensor], count: int
) -> Tensor:
    """Return what `LinearSolve` does, with its outcome noted."""
    with _restored(problem, y), _plain(y):
        b, point, *plain = [_normal(tensor) for tensor in (rhs, y, *others)]
        allowed, error, *known = plain[:count]
        allowed = allowed.expand((*b.shape[: b.ndim - point.ndim], *allowed.shape))
        factors = BACKEND.unflatten(problem.outcome.byproduct, known)
        residual = Residual(problem.function, tuple(plain[count:]), BACKEND, fixed_point=problem.fixed_point)
        _check_root(problem, residual, point, plain[0])

        def at(y: Tensor, factors: Any = None) -> LinearOperator:
            operator = _stacked(residual.operator(y, factors), b, point)
            return operator.T if transpose else operator

        x = _solved(problem, at(point, factors), b, allowed, _implicit.Beside(point, error, at))
        return x.clone() if x is b else x


def _check_root(problem: Problem, residual: Residual, y: Tensor, allowed: Tensor) -> None:
    """Evaluate the residual at its root: raise if it is none any more, and note whether it has second derivatives."""
    primals = [tensor.detach() for tensor in (y, *residual.parameters)]
    wanted = [place for place, primal in enumerate(primals) if is_differentiable(primal)]
    with torch.enable_grad():
        value = problem.function(*[primal.requires_grad_(place in wanted) for place, primal in enumerate(primals)])
    check_still_root(residual, y, value, allowed, problem.watched)
    problem.outcome.first_only = breaks_graph(problem.function, primals, wanted, value)


def apply(function: type[torch.autograd.Function], *inputs: Any) -> Any:
    """Return ``function.apply(*inputs)``, which torch leaves untyped."""
    return function.apply(*inputs)  # type: ignore[no-untyped-call]


def _solve(
    problem: Problem,
    transpose: bool,
    rhs: Tensor,
    y: Tensor,
    known: Sequence[Tensor],
    parameters: Sequence[Tensor],
) -> Tensor:
    return apply(LinearSolve, problem, transpose, rhs, y, len(known), *known, *parameters)  # type: ignore[no-any-return]


def _pull_back(
    problem: Problem,
    cotangent: Tensor,
    y: Tensor,
    known: Sequence[Tensor],
    parameters: Sequence[Tensor],
    wanted: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return ``-u^T (df/dargs)`` for the `wanted` parameters, counted from 1, with J^T u the cotangent of y."""
    if problem.follows and not problem.checked:
        check_followed(problem.function, [tensor.detach() for tensor in (y, *parameters)])
    u = _solve(problem, True, cotangent, y, known, parameters)
    residual = _Rule(problem.function, tuple(parameters), BACKEND, tuple(wanted))
    if problem.outcome.any_failed:
        found = _implicit.pullback_of_good(residual, y, _without_idle(u, cotangent))
    else:
        found = residual.parameter_vjp(y, -u)
    if problem.outcome.first_only:
        return apply(FirstOnly, len(found), *found, cotangent, y, *parameters)  # type: ignore[no-any-return]
    return found


def _pull_back_once(
    problem: Problem,
    cotangent: Tensor,
    y: Tensor,
    known: Sequence[Tensor],
    parameters: Sequence[Tensor],
    wanted: Sequence[int],
) -> tuple[Tensor, ...]:
    """Return what `_pull_back` does, without a derivative of its own, by one evaluation of the residual."""
    with _plain(y):
        b, point, allowed, error, *rest = [_normal(tensor) for tensor in (cotangent, y, *known)]
        values = [_normal(tensor) for tensor in parameters]
        inputs = [values[place - 1].requires_grad_() for place in wanted]
        graph = Linearization(lambda y: problem.function(y, *values), point)
        if problem.follows and not problem.checked:
            check_graph(graph.f, problem.function, (graph.y, *values))
        bound = Residual(problem.function, tuple(values), BACKEND)
        check_still_root(bound, point, graph.f, allowed, problem.watched)
        factors = BACKEND.unflatten(problem.outcome.byproduct, rest)
        precision = BACKEND.precision(point.dtype)
        operator = LinearOperator(
            BACKEND, graph.matvec, graph.rmatvec, graph.dense, precision, factors, fixed_point=problem.fixed_point
        )
        u = _solved(problem, operator.T, b, allowed, _implicit.Beside(point, error, lambda y: bound.operator(y).T))
        residual = _OfGraph(problem.function, tuple(values), BACKEND, graph.f, tuple(inputs))
        if problem.outcome.any_failed:
            u = _without_idle(u, b)
            if not bool(u.any()):  # all that failed are masked out, and where none is good all derivatives may be NaN
                return tuple(map(torch.zeros_like, inputs))
            return _implicit.pullback_of_good(residual, point, u)
        return residual.parameter_vjp(point, -u)


def _solved(
    problem: Problem, operator: LinearOperator, rhs: Tensor, allowed: Tensor, beside: _implicit.Beside
) -> Tensor:
    """Return the checked solution for plain tensors; it is noted if a system failed."""
    if rhs.numel() == 0:
        return rhs
    failed = allowed.isinf() if problem.outcome.any_failed else None
    x, info = _implicit.solve(operator, problem.adjoint, rhs, problem.on_failure, failed, beside)
    if problem.on_failure != "ignore" and bool((BACKEND.to_numpy(info.status) > Status.AT_PRECISION).any()):
        problem.outcome.any_failed = True
    return x  # type: ignore[no-any-return]


def _transposed_product(ctx: Any, u: Tensor) -> Callable[..., Tensor]:
    """Return J^T u as a function of y and the parameters, for one or more vectors u."""
    if ctx.problem.outcome.first_only:
        raise ArgumentError(FIRST_ONLY)

    def product(y: Tensor, *parameters: Tensor) -> Tensor:
        def one(vector: Tensor) -> Tensor:
            return pullback(ctx.problem.function, (y, *parameters), [0], vector)[0]

        return _mapped(one, ctx.extra)(u)

    return product


def _product(ctx: Any, v: Tensor) -> Callable[..., Tensor]:
    """Return J v as a function of y and the parameters, for one or more vectors v."""
    if ctx.problem.outcome.first_only:
        raise ArgumentError(FIRST_ONLY)

    def product(y: Tensor, *parameters: Tensor) -> Tensor:
        def of_y(point: Tensor) -> Tensor:
            return ctx.problem.function(point, *parameters)  # type: ignore[no-any-return]

        return _mapped(lambda vector: pushforward(of_y, (y,), (vector,), y), ctx.extra)(v)

    return product


def _mapped(function: Callable[..., Tensor], times: int) -> Callable[..., Tensor]:
    for _ in range(times):
        function = torch.vmap(function)
    return function


@dataclass(frozen=True)
class _FromStart(Residual):
    """A residual that is to be solved from `start`."""

    start: Tensor = field(kw_only=True)

    @cached_property
    def differentiable(self) -> bool:
        with torch.enable_grad():
            y = self.start.detach().requires_grad_()
            value = self.function(y, *self.parameters)
        return value is y or any(getattr(node, "variable", None) is y for node in graph_of(value))


@dataclass(frozen=True)
class _Rule(Residual):
    """A residual whose pullback is differentiable, to the `wanted` parameters, counted from 1."""

    wanted: tuple[int, ...]

    def parameter_vjp(self, y: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        return pullback(self.function, (y, *self.parameters), self.wanted, cotangent)


@dataclass(frozen=True)
class _OfGraph(Residual):
    """A residual whose `value` at the root has been computed, as a function of the parameters `inputs`."""

    value: Tensor
    inputs: tuple[Tensor, ...]

    def parameter_vjp(self, y: Tensor, cotangent: Tensor) -> tuple[Tensor, ...]:
        if not self.inputs:
            return ()
        if not self.value.requires_grad:
            return tuple(map(torch.zeros_like, self.inputs))
        found = torch.autograd.grad(self.value, self.inputs, cotangent, retain_graph=True, materialize_grads=True)
        return tuple(map(dense, found))


def _at_root(ctx: Any, saved: Sequence[Tensor]) -> tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]:
    """Return y, the parameters, and what is known of the root, from what `Root` saved."""
    y, *others = saved
    parameters, known = others[: ctx.count], others[ctx.count :]
    if ctx.problem.outcome.any_failed:
        failed = known[0].isinf()
        y = _implicit.regular_point(BACKEND.xp, y, failed)
        for place in ctx.problem.outcome.carriers:
            parameters[place] = _regular(parameters[place], failed)
    return y, parameters, known


def _regular(parameter: Tensor, failed: Tensor) -> Tensor:
    """Return a parameter that carries the batch axes, with those of a good system where a system failed."""
    rows = parameter.reshape(*failed.shape, -1)
    return _implicit.regular_point(BACKEND.xp, rows, failed).reshape(parameter.shape)  # type: ignore[no-any-return]


def _note_carriers(problem: Problem, y: Tensor, parameters: Sequence[Tensor], failed: Tensor) -> None:
    """Note which parameters and constants carry the batch axes, where some systems `failed`, (*batch).

    They are shaped so, and what they hold for a failed system has no effect on the others, neither at the roots of
    those nor nearby. It may make a derivative of the failed system infinite or NaN, and zero times that is NaN in a
    gradient that the systems share; so a good system's takes its place, whose derivative counts for nothing.
    """
    if failed.ndim == 0 or bool(failed.all()):
        return
    y = _implicit.regular_point(BACKEND.xp, y, failed)
    closed_over = constants(problem.original, (y, *parameters), failed.shape)
    function = with_captured(problem.original, closed_over, 1 + len(parameters))
    values, found = [*parameters, *closed_over], list[int]()

    def of_good() -> list[Tensor]:
        # at a root that is zero, and with a parameter that is, much has no effect
        points = ([y, *values], [*map(_nudged, (y, *values))])
        return [torch.where(failed[..., None], 0, function(*point)) for point in points]

    before = of_good()
    for place, value in enumerate(values):
        if value.shape[: failed.ndim] == failed.shape and is_differentiable(value):
            values[place] = _regular(value, failed)
            if all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(of_good(), before, strict=True)):
                found.append(place)
            else:
                values[place] = value
    count = len(parameters)
    problem.outcome.carriers = tuple(place for place in found if place < count)
    places = [place for place in found if place >= count]
    problem.outcome.constants = tuple(closed_over[p - count] for p in places), tuple(values[p] for p in places)


def _nudged(tensor: Tensor) -> Tensor:
    """Return a point near `tensor`, where no entry is zero."""
    if not is_differentiable(tensor):
        return tensor
    weights: Tensor = torch.cos(torch.arange(tensor.numel()) ** 2).to(tensor).reshape(tensor.shape)
    step: Tensor = torch.finfo(tensor.dtype).eps ** 0.25 * (1 + tensor.abs()) * weights
    return tensor + step


def _without_idle(u: Tensor, cotangent: Tensor) -> Tensor:
    """Return `u` with zeros for the systems whose cotangent is zero, which may have failed."""
    return torch.where((cotangent == 0).all(-1, keepdim=True), torch.zeros_like(u), u)


def _stacked(operator: LinearOperator, rhs: Tensor, y: Tensor) -> LinearOperator:
    """Return `operator` as a batch of it, where `rhs` has more leading axes than `y`; its matrix is not copied."""
    lead = rhs.shape[: rhs.ndim - y.ndim]
    if not lead:
        return operator

    def dense() -> Tensor:
        matrix: Tensor = operator.dense()
        return matrix.expand((*lead, *matrix.shape))

    return replace(operator, dense=dense, several=len(lead))


def _directions(primals: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
    return [
        torch.zeros_like(primal) if tangent is None else tangent
        for primal, tangent in zip(primals, tangents, strict=True)
    ]


def _front(tensor: Tensor, dim: int | None) -> Tensor:
    return tensor if dim is None else tensor.movedim(dim, 0)


def _leading(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    return tensor.expand(size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _normal(tensor: Tensor) -> Tensor:
    """Return `tensor` without history; a copy of one made in inference mode, with which autograd does not work."""
    refuse_vectorized(tensor)
    return tensor.clone() if tensor.is_inference() else tensor.detach()


@contextmanager
def _restored(problem: Problem, y: Tensor) -> Iterator[None]:
    """Bring back the state of the modules, and compute in the precision of `y`."""
    with problem.state.restored(), in_full_precision(y):
        yield


@contextmanager
def _plain(y: Tensor) -> Iterator[None]:
    """Work on plain tensors, without a graph and apart from the user's contexts."""
    with ExitStack() as stack:
        stack.enter_context(in_full_precision(y))
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        # hooks on saved tensors, such as those of a checkpoint, are not for the solver's own graphs; and one that keeps
        # a tensor with its graph would keep it for ever
        if _may_have_hooks():
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(Tensor.detach, lambda tensor: tensor))
        stack.enter_context(torch.no_grad())
        yield


def _may_have_hooks() -> bool:
    """Return whether a user may have hooks on saved tensors; before PyTorch 2.7: whether there may be any."""
    autograd: Any = torch._C._autograd
    if hasattr(autograd, "_top_saved_tensors_default_hooks"):
        return autograd._top_saved_tensors_default_hooks(False) is not None
    return bool(autograd._saved_tensors_hooks_is_enabled())
