"""What a framework supplies to the entry points."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

from rootdiff._arguments import check_meaning
from rootdiff._backend import Array, Backend
from rootdiff._numbers import as_unknown
from rootdiff._residual import Residual
from rootdiff._structure import Structure
from rootdiff._task import Derivatives, Options, Task

F = TypeVar("F", bound=Callable[..., Any])


class Found(NamedTuple):
    """What a derivative rule returns, on flat vectors: the fields of a `Solution`, of which only `y` has a derivative.

    `best` is `y` without the NaN of failed systems; None where there is no more to report, or nothing can be. `factors`
    is what the solver knows of the inverse Jacobian, for a rule that needs it later.
    """

    y: Array
    best: Any
    status: Array
    steps: Array
    residual_norm: Array
    method: Any = None
    error: Array | None = None
    sensitivities: Any = None
    factors: Any = None


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

    def along(self, step: Callable[..., Any], state: Any, columns: tuple[Array, ...]) -> Any:
        """Return the outputs of ``step(state, row) -> (state, output)``, tuples, stacked, along the rows of columns."""
        outputs = []
        for place in range(columns[0].shape[0]):
            state, output = step(state, tuple(column[place] for column in columns))
            outputs.append(output)
        return tuple(self.backend().xp.stack(parts, axis=0) for parts in zip(*outputs, strict=True))

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
