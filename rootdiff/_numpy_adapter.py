"""NumPy, seen by the entry points, and its entry points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, cast, get_args

import numpy as np

from rootdiff import _entry, _ode
from rootdiff._adapter import Adapter, F, Found
from rootdiff._arguments import frozen, is_parameter
from rootdiff._bound import bound
from rootdiff._compaction import compactable, with_scale
from rootdiff._conditions import Conditions
from rootdiff._coupling import check_independent
from rootdiff._derivatives import DerivativeRules, GivenResidual
from rootdiff._entry import with_wrap
from rootdiff._environment import Environment
from rootdiff._errors import ArgumentError, check_choice
from rootdiff._failure import GOES_ON, KEEP
from rootdiff._freezing import Freezer
from rootdiff._loop import IterativeSolver
from rootdiff._numpy import Calls, NumpyBackend
from rootdiff._numpy_squares import of_squares
from rootdiff._numpy_words import WORDS
from rootdiff._ode import Ode
from rootdiff._residual import Residual
from rootdiff._sensitivities import Binding, Sensitivities
from rootdiff._solution import Status
from rootdiff._solver import Solver, run
from rootdiff._sparse import Sparse
from rootdiff._sparse_parameters import pulled_back
from rootdiff._squares import flat_bounds
from rootdiff._structure import Structure
from rootdiff._task import Derivatives, Options, Task, check_function, task
from rootdiff.solvers import Auto, Chain, Nothing

_DERIVATIVES: tuple[str, ...] = get_args(Derivatives)
#: Calls of the residual that "auto" makes for one system: per unknown and one more, and at least so many. Powell's
#: singular function takes 150 per unknown; of the starts of the problem set that lead to a root the dearest takes 7200
#: to 9400 calls, by the rounding of the machine, for 6 or 7 unknowns.
_PER_UNKNOWN, _AT_LEAST = 200, 12_000


class NumpyAdapter(Adapter):
    """NumPy, which has no tape: the derivatives are methods of the solution."""

    package = "rootdiff"
    words: Mapping[str, str] = WORDS

    def entered(self, function: F) -> F:
        @wraps(function)
        def quiet(*args: Any, **options: Any) -> Any:  # NumPy's own decorator is a frame that warnings would point at
            with np.errstate(all="ignore"):
                return function(*args, **options)

        return cast(F, quiet)

    def backend(self, derivatives: Derivatives = "finite-difference") -> NumpyBackend:
        check_choice("derivatives", derivatives, _DERIVATIVES)
        return NumpyBackend(derivatives)

    def counted(self, function: Any) -> Any:
        return Calls(function) if callable(function) else function

    def evaluations(self, task: Task) -> int:
        return cast(Calls, task.function).count

    def is_parameter(self, leaf: Any) -> bool:
        return is_parameter(leaf)

    def check(self, structure: Structure, y0: Any, args: tuple[Any, ...], options: Options) -> None:
        if options.loss is not None and options.jac_sparsity is not None:
            raise ArgumentError(
                "jac_sparsity: in NumPy least_squares does not take it, since its Hessian is made of differences of a "
                "whole Jacobian. Call rootdiff_torch.least_squares or rootdiff_jax.least_squares, or leave it out."
            )
        otherwise = ", or None. Without it derivatives are those of derivatives='finite-difference', or 'complex-step'"
        for name in ("jac", "jvp", "vjp"):
            if getattr(options, name) is not None:
                check_function(name, getattr(options, name), otherwise)
        step, least = options.diff_step, 2 * max((float(np.finfo(dtype).eps) for dtype in structure.dtypes), default=0)
        if step is not None and not (isinstance(step, int | float | np.floating) and least <= step < 1):
            raise ArgumentError(
                f"diff_step: got {step!r}; it must be a number between 0 and 1, of {least:.2g} or more: the step of "
                "differences as a part of each unknown, or None. Sizes of their own are told by y_scale."
            )

    def kept(self, structure: Structure, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return frozen(structure, args)

    def measured(self, task: Task) -> Residual:
        spent = task.function.spent if isinstance(task.function, Calls) else None

        def make(structure: Structure, args: tuple[Any, ...]) -> Residual:
            return replace(_with_rules(task, structure, args), spent=spent)

        if task.batched is None:
            return with_scale(make(task.structure, task.args), task.scale)
        return with_scale(compactable(make, task.structure, task.args, task.batched), task.scale)

    def solve(self, task: Task) -> Found:
        task = _with_pattern_of_jac(self, task)
        options, structure, start, hooks = task.options, task.structure, task.start, task.options.hooks
        # the gradient of what is minimised holds differences, or complex steps, which have no complex step of their own
        derivatives = options.derivatives if options.loss is None else "finite-difference"
        sparsely, within = None if task.pattern is None else pulled_back, options.within
        box = hooks.box(structure, start)
        if within is not None:
            box = flat_bounds(structure, within, task.args, start, options.loss)
        step = options.diff_step if options.loss is None else None
        backend = NumpyBackend(derivatives, box, task.scale, sparsely=sparsely, diff_step=step)
        problem = self.measured(task).with_backend(replace(backend, quick=True))
        freezer, rules = Freezer(), ("jac", "jvp", "vjp", "within")
        calls = cast(Calls, task.function)
        calls.most, function = _most_evaluations(task), calls.function
        functions = [("the residual", function), *((name, getattr(options, name)) for name in rules)]
        as_now, *given = [freezer.freeze(function) for _, function in functions]
        at_solve = replace(task, function=as_now, options=replace(options, **dict(zip(rules, given, strict=True))))
        objects = [pair for pair in task.leaves() if not isinstance(pair[1], np.ndarray)]  # arrays are copies of ours
        environment = Environment.of([*functions, *objects], freezer.made)
        if hooks.check:
            check_independent(problem, start)
        raw = run(task.solver, hooks.attach(problem, structure, start), start)
        raw = raw._replace(y=np.array(raw.y))  # after no step it is y0, which the user may change
        failed = (raw.status > Status.AT_PRECISION) & (options.on_failure not in GOES_ON)
        # a wrong rule explains more than a status, and it moves a minimum
        doubted = failed if options.loss is None else np.isfinite(raw.residual_norm)
        if np.any(doubted):
            problem.check_rules(raw.y, doubted)
        again = replace(options, solver="auto", hooks=type(hooks)(), batched_args=None, jac_sparsity=task.pattern)
        sensitivities = Sensitivities(
            self.measured(at_solve).with_backend(backend),
            structure,
            task.adjoint,
            raw.y,
            raw.factors,
            task.args,
            options.on_failure,
            failed,
            raw.residual_norm,
            raw.error,
            Binding(_bind, function, again, task.fixed_point),
            environment.lasting(),
        )
        y = raw.y if options.on_failure in KEEP else np.where(failed[..., None], np.nan, raw.y)
        return Found(
            y, raw.y, raw.status, raw.steps, raw.residual_norm, raw.method, error=raw.error, sensitivities=sensitivities
        )


def _most_evaluations(task: Task) -> int | None:
    """Return how many calls of the residual a solve may make, None if that is not limited."""
    most, solver = task.options.max_evaluations, task.solver
    if most is None:  # a system of a batch without a root is not to end the others
        default = max(_PER_UNKNOWN * (task.structure.size + 1), _AT_LEAST)
        return default if isinstance(solver, Auto) and not task.structure.batch else None
    if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
        raise ArgumentError(f"max_evaluations: got {most!r}; it must be a positive integer, or None.")
    if not _is_limited(solver):
        raise ArgumentError(
            f"max_evaluations: {type(solver).__name__} does not stop in its solve. Use 'auto' or a native solver like "
            "'newton', or a limit of its own, such as max_steps."
        )
    return int(most)


def _is_limited(solver: Solver) -> bool:
    """Return whether a solver asks after each step whether it may go on."""
    if isinstance(solver, Chain):
        return all(map(_is_limited, solver.solvers))
    looped = isinstance(solver, IterativeSolver) and type(solver).solve is IterativeSolver.solve
    return looped or isinstance(solver, Auto | Nothing)


def _with_pattern_of_jac(adapter: NumpyAdapter, task: Task) -> Task:
    """Return the task with the pattern of a `jac` that is sparse at the start."""
    if task.options.jac is None or task.structure.is_empty or task.options.loss is not None:
        return task
    found = adapter.measured(task).operator(task.start)
    return replace(task, pattern=found.pattern) if isinstance(found, Sparse) else task


def _with_rules(task: Task, structure: Structure, args: tuple[Any, ...]) -> Residual:
    """Return the residual of some systems, with the user's rules for its derivatives."""
    residual, rules = task.residual(structure, args), task.options
    backend: Any = residual.backend
    residual = residual.with_backend(replace(backend, diff_step=rules.diff_step))
    if residual.equations is not None:
        return of_squares(task, residual.equations.with_backend(residual.backend), structure, args)
    if not any((rules.jac, rules.jvp, rules.vjp)):
        return residual
    given = DerivativeRules(rules.jac, rules.jvp, rules.vjp, structure, args, is_parameter)
    plain = (residual.function, residual.parameters, residual.backend)
    return GivenResidual(*plain, given, pattern=residual.pattern)


def _bind(
    function: Any, y: Any, args: tuple[Any, ...], options: Options, fixed_point: bool
) -> tuple[Residual, Structure, tuple[Any, ...]]:
    """Return the residual, its structure and the arguments that it keeps, where a solution has been pickled."""
    again = task(NUMPY, function, y, args, options, fixed_point)
    return NUMPY.measured(again), again.structure, again.args


NUMPY = NumpyAdapter()
root = bound(_entry.root, NUMPY)
fixed_point = bound(_entry.fixed_point, NUMPY)
root_scalar = bound(_entry.root_scalar, NUMPY)
implicit = with_wrap(bound(_entry.implicit, NUMPY), NUMPY)
least_squares = bound(_entry.least_squares, NUMPY)
minimize = bound(_entry.minimize, NUMPY)
conditions = Conditions(NUMPY)
ode = Ode(bound(_ode.integrate, NUMPY), NUMPY)
continuation = bound(_entry.continuation, NUMPY)
gradient_report = bound(_entry.gradient_report, NUMPY)
detect_sparsity = bound(_entry.detect_sparsity, NUMPY)
