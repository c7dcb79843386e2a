"""The residual on flat vectors with its derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from operator import attrgetter
from typing import Any, ClassVar

from rootdiff._backend import Array, Backend, Function, Pick
from rootdiff._bounds import Box
from rootdiff._operator import LinearOperator, OfFixedPoint
from rootdiff._solution import Status
from rootdiff._sparse import dense, sparse, told
from rootdiff._sparsity import Pattern
from rootdiff._structure import Structure


@dataclass(frozen=True)
class Residual:
    """A residual with its parameters bound: what a solver sees.

    Attributes
    ----------
    function : callable
        ``function(y, *parameters)`` with `y` and its value (*batch, n); the parameters are any arrays.
    parameters : tuple of arrays
        What the root is differentiated with respect to.
    backend : Backend
    correct : callable, optional
        ``correct(trial, y)`` returns the point, (*batch, n), to try in place of `trial`, a step away from `y`.
    observe : callable, optional
        Called by the loop after each step with the step's record, of concrete arrays; whether the solve is to stop.
    spent : callable, optional
        ``spent()`` returns whether a solve has made the evaluations that it may make.
    take : callable, optional
        ``take(pick, count)`` returns the residual of the systems of the batch, so many, that `pick` picks; see
        `rootdiff._compaction`.
    active : boolean array, (*batch), or None
        The systems whose next step is wanted, None for all: a line search does not wait for the others.
    fixed_point : bool
        Whether the residual is ``cell(y) - y``.
    scale : array, (*batch, n), or None
        The size of each unknown, positive, in its own units, if the user tells it.
    known : pair of arrays, (*batch, n), or None
        A point, and the residual there, which is not evaluated again at this very array.
    pattern : Pattern or None
        Where the Jacobian of each system may have entries, if that is known.
    squares, objective, constrained : Residual or None
        Where this is the gradient of half a sum of squares: what is squared, (*batch, m). Where it is that of an
        objective: this, (*batch, 1). Where it is that of a Lagrangian: an objective, followed by the constraints.
    box : Box or None
        The bounds of a minimum, where this is the condition within them.
    """

    function: Function
    parameters: tuple[Array, ...]
    backend: Backend
    correct: Callable[[Array, Array], Array] | None = field(default=None, kw_only=True)
    observe: Callable[[Any], bool] | None = field(default=None, kw_only=True)
    spent: Callable[[], bool] | None = field(default=None, kw_only=True)
    take: Callable[[Pick, int], Residual] | None = field(default=None, kw_only=True)
    active: Array | None = field(default=None, kw_only=True)
    fixed_point: bool = field(default=False, kw_only=True)
    scale: Array | None = field(default=None, kw_only=True)
    known: tuple[Array, Array] | None = field(default=None, kw_only=True)
    pattern: Pattern | None = field(default=None, kw_only=True)
    squares: Residual | None = field(default=None, kw_only=True)
    objective: Residual | None = field(default=None, kw_only=True)
    constrained: Residual | None = field(default=None, kw_only=True)
    box: Box | None = field(default=None, kw_only=True)

    #: The array namespace.
    xp: ClassVar[Any] = property(attrgetter("backend.xp"))

    @property
    def equations(self) -> Residual | None:
        """What is minimised, where this is its gradient: what is squared, or an objective and its constraints."""
        return self.squares or self.objective or self.constrained

    @property
    def free(self) -> Residual:
        """The same without bounds, the gradient itself."""
        return self if self.box is None else self.box.free

    @property
    def gives_jacobian(self) -> bool:
        """Whether the user has written out the Jacobian."""
        return False

    @property
    def may_end(self) -> bool:
        """Whether the user, or a limit on evaluations, may end a solve between two steps."""
        return self.observe is not None or self.spent is not None

    def check_rules(self, y: Array, where: Array) -> None:
        """Raise ArgumentError if a rule that the user gave is not the derivative at `y` of the systems `where`."""
        if self.equations is not None:
            self.equations.check_rules(y, where)

    @property
    def differentiable(self) -> bool:
        """Whether it has a derivative as far as is known: one that calls out of a JAX program has none."""
        return self.backend.differentiable

    @property
    def divisible(self) -> bool:
        """Whether some of the systems can be solved by themselves; not if a user watches or corrects their steps."""
        return self.take is not None and self.correct is None and self.observe is None

    def __call__(self, y: Array) -> Array:
        """Return the residual, (*batch, n), at `y`, (*batch, n)."""
        if self.known is not None and y is self.known[0]:
            return self.known[1]
        return self.backend.evaluated_once(self._of_y, y) if self.backend.traced else self._of_y(y)

    def _of_y(self, y: Array) -> Array:
        if self.backend.measures and self.known is not None and y is self.known[0]:
            return self.known[1]
        return self.function(y, *self.parameters)

    def with_jacobian(self, y: Array) -> tuple[Array, Array]:
        """Return the residual, (*batch, n), and its Jacobian, (*batch, n, n), by one evaluation where that is known."""
        return self.backend.with_jacobian(self._of_y, y)

    def with_jacobian_where(self, needed: Array, y: Array, otherwise: Array) -> tuple[Array, Array]:
        """Return the residual at `y`, and its Jacobian there if `needed`, a boolean scalar, holds, else `otherwise`.

        In a compiled program, where one copy serves both.
        """
        f, form = self.backend.linearized(self.at(y)._of_y, y)
        return f, self.backend.when(needed, form, (), otherwise)

    def at(self, y: Array) -> Residual:
        """Return the residual whose derivatives at `y` are taken for those of this one: a smoother one, if measured."""
        return self

    def seen(self, info: Any) -> Array:
        """Return the statuses, (*batch), after a step, once the user has seen its record."""
        if self.observe is None or not self.observe(info):
            return info.status
        status = self.xp.where(info.status == int(Status.RUNNING), int(Status.STOPPED), info.status)
        return self.xp.astype(status, self.xp.int32)

    def moved(self, y: Array, step: Array) -> Array:
        """Return the trial point ``y + step``, corrected as the user asked."""
        trial = y + step
        return trial if self.correct is None else self.correct(trial, y)

    def of_active(self, mask: Array) -> Array:
        """Return a mask, (*batch), without the systems whose next step is not wanted."""
        return mask if self.active is None else mask & self.active

    def with_parameters(self, *parameters: Array) -> Residual:
        """Return the same residual with other parameters."""
        return replace(self, parameters=parameters)

    def with_backend(self, backend: Backend) -> Residual:
        """Return the same residual of another backend, without its bounds too."""
        box = self.box and self.box._replace(free=replace(self.box.free, backend=backend))
        return replace(self, backend=backend, box=box)

    def only(self, places: Sequence[int]) -> Residual:
        """Return the same residual with the parameters at `places`; the others are constants."""
        function, parameters = self.function, self.parameters
        if len(places) == len(parameters):
            return self

        def of_some(y: Array, *some: Array) -> Array:
            chosen = dict(zip(places, some, strict=True))
            return function(y, *(chosen.get(place, parameter) for place, parameter in enumerate(parameters)))

        return replace(self, function=of_some, parameters=tuple(parameters[place] for place in places))

    def jvp(self, y: Array, tangent: Array) -> Array:
        """Return (df/dy) v, (*batch, n)."""
        return self.backend.jvp(self._of_y, (y,), (tangent,))[1]

    def vjp(self, y: Array, cotangent: Array) -> Array:
        """Return (df/dy)^T u, (*batch, n)."""
        return self.backend.vjp(self._of_y, (y,))[1](cotangent)[0]

    def jacobian(self, y: Array) -> Array:
        """Return df/dy, (*batch, n, n)."""
        if self.pattern is not None and not self.backend.traced:  # a compiled program could not raise if it is wrong
            return dense(self, y, self.pattern)
        return self.backend.linearize(self._of_y, y)[2]()

    def parameter_jvp(self, y: Array, tangents: tuple[Array, ...]) -> Array:
        """Return (df/dargs) v, (*batch, n), with one tangent per parameter."""
        return self.backend.parameter_jvp(self.function, y, self.parameters, tangents)

    def parameter_vjp(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        """Return (df/dargs)^T u, one array per parameter."""
        return self.parameter_vjps(y, cotangent)[0]

    def parameter_vjps(self, y: Array, *cotangents: Array) -> list[tuple[Array, ...]]:
        """Return what `parameter_vjp` does for each cotangent; where derivatives are measured, they are so once."""
        return self.backend.parameter_vjps(self.function, y, self.parameters, cotangents)

    def parameter_errors(self, y: Array, cotangent: Array) -> tuple[Array, ...]:
        """Return the size of the errors of `parameter_vjp`, where they are measured; else nothing."""
        return self.backend.parameter_errors(self.function, y, self.parameters, cotangent)

    def products(self, y: Array, vectors: Array, transpose: bool = False) -> tuple[Array, Array | None]:
        """Return what `Backend.products` does for this residual."""
        return self.backend.products(self._of_y, y, vectors, transpose)

    def finer(self, y: Array) -> Callable[[], LinearOperator] | None:
        """Return what makes `operator` from more accurate derivatives; None where they are exact to rounding."""
        finer = self.backend.refined
        return None if finer is None else cache(lambda: self.with_backend(finer).operator(y))

    def operator(self, y: Array) -> LinearOperator:
        """Return df/dy at `y` as a linear operator."""
        if self.pattern is not None:
            return sparse(self, y, partial(told, self, y, self.pattern), self.pattern)
        kind = OfFixedPoint if self.fixed_point else LinearOperator
        matvec, rmatvec, dense, *errors = self.backend.linearize(self._of_y, y)
        return kind(
            self.backend,
            matvec,
            rmatvec,
            dense,
            self.backend.precision(y.dtype),
            (*y.shape, y.shape[-1]),
            errors=errors[0] if errors else None,
            finer=self.finer(y),
        )


def split_args(
    backend: Backend, args: tuple[Any, ...], is_parameter: Callable[[Any], bool]
) -> tuple[list[Any], Callable[..., tuple[Any, ...]]]:
    """Return the leaves of `args` that are differentiated, and the function that puts others in their place."""
    leaves, tree = backend.flatten(args)
    places = [place for place, leaf in enumerate(leaves) if is_parameter(leaf)]
    if len(places) == len(args) == len(leaves) and all(arg is leaf for arg, leaf in zip(args, leaves, strict=True)):
        return leaves, lambda *parameters: parameters

    def rebuild(*parameters: Any) -> tuple[Any, ...]:
        merged = list(leaves)
        for place, parameter in zip(places, parameters, strict=True):
            merged[place] = parameter
        return backend.unflatten(tree, merged)  # type: ignore[no-any-return]

    return [leaves[place] for place in places], rebuild


def flat_residual(
    function: Callable[..., Any],
    structure: Structure,
    rebuild: Callable[..., tuple[Any, ...]],
    fixed_point: bool = False,
    has_aux: bool = False,
) -> Function:
    """Return the user's residual as a function of a flat vector and the differentiated leaves of args.

    That of a `fixed_point` is ``function(z, *args) - z``.
    """
    role = "cell" if fixed_point else "residual"
    call, is_vector = structure.backend.call, structure.is_vector

    def flat(y: Array, *parameters: Array) -> Array:
        output = call(function, y if is_vector else structure.unravel(y), rebuild(*parameters))
        if has_aux:
            output, _ = structure.with_aux(role, output)
        if not (is_vector and type(output) is type(y) and output.dtype == y.dtype and output.shape == y.shape):
            output = structure.ravel(structure.check(output, role))
        return output - y if fixed_point else output

    return flat
