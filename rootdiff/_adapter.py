"""What a framework supplies to the entry points, and the checked call that they hand it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

from rootdiff._backend import Array, Backend
from rootdiff._compaction import batched_leaves
from rootdiff._detection import detected
from rootdiff._errors import ArgumentError, ArgumentTypeError, RootdiffError
from rootdiff._failure import OnFailure, check_policy
from rootdiff._hooks import Hooks
from rootdiff._names import add_backend
from rootdiff._numbers import as_unknown
from rootdiff._parameters import check_meaning
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._residual import Residual
from rootdiff._solver import Solver
from rootdiff._sparsity import Pattern
from rootdiff._squares import flat_equations, gradient
from rootdiff._structure import Structure, check_args, describe, flat_residual, split_args
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Auto, Nothing

P = ParamSpec("P")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Derivatives = Literal["finite-difference", "complex-step"]
#: The options that one package alone takes.
_OWN = dict.fromkeys(("jac", "jvp", "vjp", "derivatives", "max_evaluations"), "rootdiff") | {
    "cuda_graph": "rootdiff_torch"
}
#: What the arrays that are differentiated may hold.
INEXACT = ("real floating", "complex floating")


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
    loss: str | None = None

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
            return flat_equations(function, structure, rebuild, loss, has_aux)
        return flat_residual(function, structure, rebuild, self.fixed_point, has_aux)

    def residual(self, structure: Structure | None = None, args: tuple[Any, ...] | None = None) -> Residual:
        """Return the residual with its parameters bound, of some of the systems where these are given."""
        parameters, rebuild = self.split(args)
        flat, backend = self.flat(rebuild, structure), self.backend
        found = Residual(flat, tuple(parameters), backend, fixed_point=self.fixed_point, pattern=self.pattern)
        loss = self.options.loss
        if loss is None:
            return found
        return replace(found, function=gradient(backend, flat, loss), equations=found, loss=loss)


class Found(NamedTuple):
    """What a derivative rule returns, on flat vectors: the fields of a `Solution`.

    `best` is `y` without the NaN of failed systems; None where there is no more to report, or nothing can be.
    """

    y: Array
    best: Array | None
    status: Array
    steps: Array
    residual_norm: Array
    method: Any = None
    error: Array | None = None
    sensitivities: Any = None


class Adapter(Protocol):
    """A framework, seen by the entry points; the defaults are for one without tape and trace.

    Attributes
    ----------
    package : str. The package that a user imports.
    words : mapping. What the docstrings of the entry points say of this framework, by the names that they have there.
    nothing : Any. What stands in a `Solution` for a field that there is not.
    """

    package: str
    words: Mapping[str, str]
    nothing: Any = None

    def entered(self, function: F) -> F:
        """Return an entry point, run in the context of a solve."""

    def aside(self, function: F) -> F:
        """Return a function of this library's of plain arrays: no derivative is taken of what it computes."""
        return function

    def backend(self, derivatives: Derivatives = "finite-difference") -> Backend:
        """Return the backend."""

    def lifted(self, tree: Any) -> Any:
        """Return a pytree in which what the framework takes for its own arrays has become such."""
        return tree

    def cut(self, tree: Any) -> Any:
        """Return a pytree of the same values, in none of which a derivative is taken."""
        return tree

    def called(self, function: Callable[..., Any], y: Any, args: tuple[Any, ...]) -> Any:
        """Return ``function(y, *args)``, in which derivatives are taken, once more after the solve."""
        return self.backend().call(function, y, args)

    def unknown(self, y0: Any, args: tuple[Any, ...]) -> Any:
        """Return an initial guess in which numbers, and lists of numbers, have become arrays."""
        check_meaning(self.backend(), "y0", y0)
        return as_unknown(self.backend(), y0, args)

    def counted(self, function: Any) -> Any:
        """Return the user's residual, such that its calls are counted where Python makes all of them."""
        return function

    def evaluations(self, task: Task) -> Any:
        """Return the calls of the residual so far."""
        return self.nothing

    def is_parameter(self, leaf: Any) -> bool:
        """Return whether a leaf of args is handed to the derivative rule."""

    def is_concrete(self, tree: Any) -> bool:
        """Return whether all values are known while Python runs."""
        return True

    def check(self, structure: Structure, y0: Any, args: tuple[Any, ...], options: Options) -> None:
        """Raise if the arguments cannot be used with this framework."""

    def kept(self, structure: Structure, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the arguments as they are kept until a derivative is taken."""
        return args

    def solve(self, task: Task) -> Found:
        """Return the root, with a derivative: in `task.args`, and in what the residual captures, if there is a tape."""

    def measured(self, task: Task) -> Residual:
        """Return the residual on plain arrays, with all parameters that its derivative is one of."""


def bound(function: Callable[Concatenate[Adapter, P], T], adapter: Adapter) -> Callable[P, T]:
    """Return an entry point for one framework, with signature and docstring of its own.

    An option that another framework alone has is refused by its name; an error calls the arguments as the entry does.
    """
    add_backend(adapter.backend().name)
    signature = inspect.signature(function, eval_str=True)
    _, *parameters = signature.parameters.values()  # all but the adapter
    first, start = (p.name for p in parameters[:2])
    foreign = {p.name for p in parameters if _OWN.get(p.name, adapter.package) != adapter.package}

    def entry(*args: P.args, **options: P.kwargs) -> T:
        for name in foreign.intersection(options):
            raise ArgumentTypeError(
                f"{name}: {adapter.package}.{function.__name__} has no such option; only {_OWN[name]} takes it. Leave "
                f"it out, or call {_OWN[name]}.{function.__name__}."
            )
        try:
            return function(adapter, *args, **options)
        except RootdiffError as error:
            if start in ("z0", "y") and not error.named:
                error.args = (re.sub(r"\by0\b", start, str(error)),)
            if first == "objective" and not error.named:
                error.args = (re.sub(r"^residual:", "objective:", str(error)),)
            error.named = True
            raise

    entered = adapter.entered(entry)
    vars(entered).pop("__wrapped__", None)  # or tools for documentation take it for that of `function`
    signature = signature.replace(parameters=[p for p in parameters if p.name not in foreign])
    entered.__signature__ = signature  # type: ignore[attr-defined]
    entered.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    entered.__annotations__["return"] = signature.return_annotation
    entered.__doc__ = filled(function.__doc__, adapter.words)
    entered.__name__ = entered.__qualname__ = function.__name__
    entered.__module__ = adapter.package
    return entered


def filled(doc: str | None, words: Mapping[str, str]) -> str:
    """Return a docstring with words in place of ``$name``, where there are such.

    A line that is one such name alone takes a block of lines, or goes.
    """

    def block(match: re.Match[str]) -> str:
        lines = inspect.cleandoc(words.get(match[2], ""))
        return textwrap.indent(lines + "\n", match[1]) if lines else ""

    text = re.sub(r"^( *)\$(\w+)\n", block, inspect.cleandoc(doc or "") + "\n", flags=re.MULTILINE)
    text = re.sub(r"\$(\w+)", lambda match: words.get(match[1], ""), text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip()


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
    check_policy(options.on_failure)
    check_function("cell" if fixed_point else "residual", function)
    for name in ("verbose", "history", "check", "cuda_graph", "has_aux"):
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
    return made if options.jac_sparsity is None else replace(made, pattern=_pattern(adapter, made))


def _pattern(adapter: Adapter, task: Task) -> Pattern:
    """Return the pattern that `jac_sparsity` tells: that of the residual, or of the cell of a fixed point."""
    given, size = task.options.jac_sparsity, task.structure.size
    if isinstance(given, str) and given == "detect":
        return detect(adapter, task)
    return Pattern.of(given, size, diagonal=task.fixed_point)


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
