"""The checked call of an entry point, which an adapter solves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from rootdiff._arguments import check_args, check_meaning, describe
from rootdiff._backend import Array, Backend
from rootdiff._bounds import check_order
from rootdiff._compaction import batched_leaves
from rootdiff._constraints import Constraints, Objective
from rootdiff._detection import detected
from rootdiff._errors import ArgumentError, ArgumentTypeError, check_choice
from rootdiff._failure import POLICIES, OnFailure
from rootdiff._hooks import Hooks
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual, flat_residual, split_args
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import Status
from rootdiff._solver import Solver
from rootdiff._sparse import WrongPatternError
from rootdiff._sparsity import Pattern
from rootdiff._squares import flat_bounds, flat_equations, minimised
from rootdiff._structure import Structure
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto, Nothing

if TYPE_CHECKING:
    from rootdiff._adapter import Adapter, Found

Derivatives = Literal["finite-difference", "forward-difference", "complex-step"]
#: What the arrays that are differentiated may hold.
INEXACT = ("real floating", "complex floating")
#: Points at which a pattern is detected anew, at most.
_REPAIRS = 4
#: Products per unknown below which "auto" takes a Jacobian for sparse.
_SPARSE = 0.25


@dataclass(frozen=True)
class Options:
    """The keyword arguments of the entry points; what a framework does not take keeps its default."""

    solver: str | Solver = "auto"
    adjoint: str | LinearSolver = "auto"
    batch_ndim: int = 0
    on_failure: OnFailure = "raise"
    derivatives: Derivatives = "finite-difference"
    hooks: Hooks = field(default_factory=Hooks)
    batched_args: Any = None
    cuda_graph: bool = False
    y_scale: Any = None
    jac: Callable[..., Any] | None = None
    jvp: Callable[..., Any] | None = None
    vjp: Callable[..., Any] | None = None
    has_aux: bool = False
    jac_sparsity: Any = None
    max_evaluations: int | None = None
    diff_step: float | None = None
    loss: str | Objective | None = None
    constraints: Constraints | None = None
    within: Any = None

    @classmethod
    def of(cls, variables: Mapping[str, Any]) -> Options:
        """Return the options among the variables of an entry point, known by their names."""
        own, hooks = ({f.name: variables[f.name] for f in fields(kind) if f.name in variables} for kind in (cls, Hooks))
        return cls(**own, hooks=Hooks(**hooks))


@dataclass(frozen=True)
class Task:
    """A checked call of an entry point: a problem, and how to solve and differentiate it.

    Attributes
    ----------
    function : callable. The user's residual, or the cell of a fixed point.
    y0, start : pytree, array (*batch, n). The initial guess as the user's pytree, and as flat vectors.
    args : tuple. The arguments as the adapter keeps them.
    is_parameter : callable. Whether a leaf of `args` is handed to the derivative rule.
    batched : list of bool, or None. Which leaves of `args` carry the batch axes, if the user has told.
    scale : array like `start`, or None. The size of each unknown, if the user has told.
    pattern : Pattern or None. Where the Jacobian of each system may have entries, if the user has told.
    """

    function: Callable[..., Any]
    structure: Structure
    y0: Any
    start: Array
    args: tuple[Any, ...]
    is_parameter: Callable[[Any], bool]
    solver: Solver
    adjoint: LinearSolver
    options: Options
    fixed_point: bool
    batched: list[bool] | None
    scale: Array | None = None
    pattern: Pattern | None = None

    @property
    def backend(self) -> Backend:
        """That of the unknown."""
        return self.structure.backend

    def split(self, args: tuple[Any, ...] | None = None) -> tuple[list[Any], Callable[..., tuple[Any, ...]]]:
        """Return the parameters among the leaves of `args`, and what puts others in their place."""
        return split_args(self.backend, self.args if args is None else args, self.is_parameter)

    def leaves(self) -> list[tuple[str, Any]]:
        """Return the leaves of `args`, each with the name of its argument."""
        flatten = self.backend.flatten
        return [(f"args[{place}]", leaf) for place, arg in enumerate(self.args) for leaf in flatten(arg)[0]]

    def flat(
        self,
        rebuild: Callable[..., tuple[Any, ...]],
        structure: Structure | None = None,
        function: Callable[..., Any] | None = None,
    ) -> Callable[..., Array]:
        """Return the residual as a function of a flat vector and the parameters; of squares, what is squared."""
        function = self.function if function is None else function  # a module without layers is false
        structure, has_aux, loss = structure or self.structure, self.options.has_aux, self.options.loss
        if loss is not None:
            return flat_equations(function, structure, rebuild, loss, has_aux, self.options.within)
        return flat_residual(function, structure, rebuild, self.fixed_point, has_aux)

    def residual(self, structure: Structure | None = None, args: tuple[Any, ...] | None = None) -> Residual:
        """Return the residual with its parameters bound, of some of the systems where these are given."""
        parameters, rebuild = self.split(args)
        flat = self.flat(rebuild, structure)
        found = Residual(flat, tuple(parameters), self.backend, fixed_point=self.fixed_point, pattern=self.pattern)
        loss, within = self.options.loss, self.options.within
        return found if loss is None else minimised(found, loss, within is not None)


def of_kind(adapter: Adapter, kinds: str | tuple[str, ...]) -> Callable[[Any], bool]:
    """Return whether a leaf is a parameter of one of the standard's kinds of dtype."""
    backend = adapter.backend()

    def holds(leaf: Any) -> bool:
        if not adapter.is_parameter(leaf):
            return False
        if not backend.is_array(leaf):
            return ("complex floating" if isinstance(leaf, complex) else "real floating") in kinds
        return bool(backend.xp.isdtype(leaf.dtype, kinds))

    return holds


def checked_args(adapter: Adapter, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of an entry point, lifted; raise if they hold another framework's arrays, or more."""
    for index, arg in enumerate(args):
        check_meaning(adapter.backend(), f"args[{index}]", arg)
    args = adapter.lifted(args)
    check_args(adapter.backend(), args)
    return args


def task(
    adapter: Adapter,
    function: Callable[..., Any],
    y0: Any,
    args: tuple[Any, ...],
    options: Options,
    fixed_point: bool = False,
    is_parameter: Callable[[Any], bool] | None = None,
) -> Task:
    """Return a call of an entry point, all of whose arguments have been checked.

    `y0` is that of `Adapter.unknown`, `args` are those of `checked_args`.
    """
    check_choice("on_failure", options.on_failure, POLICIES)
    check_function("cell" if fixed_point else "residual", function)
    for name in ("verbose", "progress", "history", "check", "cuda_graph", "has_aux"):
        value = getattr(options if name in ("cuda_graph", "has_aux") else options.hooks, name)
        if not isinstance(value, bool):
            raise ArgumentTypeError(f"{name}: got {value!r}; it must be True or False.")
    for name in ("correct", "callback"):
        if getattr(options.hooks, name) is not None:
            check_function(name, getattr(options.hooks, name), ", or None")
    backend = adapter.backend(options.derivatives)
    structure = describe(backend, y0, options.batch_ndim, options.derivatives == "complex-step")
    adapter.check(structure, y0, args, options)
    args = adapter.kept(structure, args)
    if options.constraints is not None:
        structure, options = _with_multipliers(adapter, structure, options, options.constraints, (function, y0, args))
    solver = Auto(fixed_point=fixed_point) if options.solver == "auto" else get_solver(options.solver, backend.name)
    given, start = options.batched_args, structure.ravel(y0)
    made = Task(
        function,
        structure,
        y0,
        start,
        args,
        is_parameter or adapter.is_parameter,
        Nothing() if structure.is_empty else solver,
        get_adjoint(options.adjoint, backend.name),
        options,
        fixed_point,
        None if given is None else batched_leaves(backend, args, given, structure.batch),
        None if options.y_scale is None else adapter.aside(_sizes)(adapter, structure, options.y_scale, start),
    )
    if options.within is not None:
        adapter.aside(_check_bounds)(adapter, made, args)
    return made if options.jac_sparsity is None else replace(made, pattern=_pattern(adapter, made))


def _with_multipliers(
    adapter: Adapter, structure: Structure, options: Options, constraints: Constraints, call: tuple[Any, Any, Any]
) -> tuple[Structure, Options]:
    """Return the structure of the unknowns with the multipliers of the constraints, as many as these return numbers."""
    output = adapter.aside(structure.backend.call)(*call)
    if options.has_aux:
        output, _ = structure.with_aux("residual", output)
    pairs = zip(constraints.names, output[1:], strict=True)
    counts = [structure.constraint(name, value, structure.dtypes[0]).shape[-1] for name, value in pairs]
    loss = Objective(**dict(zip(constraints.names, counts, strict=True)))
    return replace(structure, multipliers=loss.multipliers), replace(options, loss=loss)


def _check_bounds(adapter: Adapter, task: Task, args: tuple[Any, ...]) -> None:
    """Raise if the bounds of a minimum are none; where they are traced, a minimum within them is NaN."""
    lo, hi = flat_bounds(task.structure, task.options.within, args, task.start, task.options.loss)
    if adapter.is_concrete((lo, hi)):
        check_order(task.backend.xp, lo, hi)


def _pattern(adapter: Adapter, task: Task) -> Pattern | None:
    """Return the pattern that `jac_sparsity` tells: that of the residual, of equations, or of a cell."""
    given, size = task.options.jac_sparsity, task.structure.size
    if task.options.loss is not None:
        return Pattern.of_equations(given, size)
    if isinstance(given, str) and given == "auto":
        if has_few_unknowns(task.start.shape) or not adapter.is_concrete((task.start, task.args)):
            return None
        found = detect(adapter, task)
        return found if found.products < _SPARSE * size else None
    if isinstance(given, str) and given == "detect":
        return detect(adapter, task)
    return Pattern.of(given, size, diagonal=task.fixed_point)


def solved(adapter: Adapter, task: Task) -> Found:
    """Return what a task leads to; where it is to detect the pattern, with that of other points too as they need it."""
    pattern = task.pattern if isinstance(task.options.jac_sparsity, str) else None
    for _ in range(0 if pattern is None else _REPAIRS):
        try:
            found = adapter.solve(task)
        except WrongPatternError as error:
            point = error.y
        else:
            if found.best is None or not bool(task.backend.xp.any(found.status == int(Status.WRONG_SPARSITY))):
                return found
            point = found.best
        assert pattern is not None
        before, pattern = pattern, pattern | detect(adapter, replace(task, start=point))
        if pattern is before:
            break
        task = replace(task, pattern=pattern)
        task.options.hooks.records.clear()
    return adapter.solve(task)


def detect(adapter: Adapter, task: Task) -> Pattern:
    """Return the pattern of the Jacobian near the start of a task."""
    if not adapter.is_concrete((task.start, task.args)):
        raise ArgumentError(
            "jac_sparsity: 'detect' needs values, but this call is traced or transformed (jit, grad, vmap or another). "
            "Call detect_sparsity(residual, y0, *args) outside of it, and pass what it returns."
        )
    return adapter.aside(detected)(adapter.measured(task), task.start)


def _sizes(adapter: Adapter, structure: Structure, y_scale: Any, start: Array) -> Array:
    """Return the size of each unknown as a vector like `start`; NaN where one that is traced is none."""
    xp = structure.backend.xp
    scale = structure.spread("y_scale", adapter.lifted(y_scale), start)
    valid = (scale > 0) & (scale < xp.inf)
    if not adapter.is_concrete((y_scale, scale)):
        return xp.where(valid, scale, xp.nan)
    if not bool(xp.all(valid)):
        raise ArgumentError(
            f"y_scale: got {y_scale!r}; it must be positive and finite: the size that each unknown may have, in its "
            "own units, such as 1e-6 for microns in metres."
        )
    return scale


def check_function(name: str, value: Any, otherwise: str = "") -> None:
    """Raise unless `value` can be called."""
    if not callable(value):
        raise ArgumentTypeError(f"{name}: got {value!r}; it must be a function{otherwise}.")
