"""Layers whose output is a root: deep equilibrium models and other implicit layers."""

from __future__ import annotations

import difflib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rootdiff._errors import ArgumentError, ArgumentTypeError, check_choice
from rootdiff._failure import POLICIES, OnFailure
from rootdiff._operator import LinearOperator
from rootdiff._registry import get_adjoint, get_solver
from rootdiff._solution import Solution, Status
from rootdiff._solver import Solver
from rootdiff.linear import LinearInfo, LinearSolver
from rootdiff.solvers import Given
from rootdiff_torch._adapter import fixed_point, root
from rootdiff_torch._capture import NESTED
from rootdiff_torch._derivatives import is_differentiable, tensors
from rootdiff_torch._distributed import check_captured, is_distributed, localized, raised_alike
from rootdiff_torch._graph import inlined, one_graph, refuse, refuse_tracing
from rootdiff_torch._private import is_wrapped, pytree
from rootdiff_torch._random import drawing_once
from rootdiff_torch._stability import jacobian_penalty, spectral_radius
from rootdiff_torch._transforms import TransformError, has_values, uncompiled

__all__ = ["FixedPointLayer", "ImplicitLayer", "jacobian_penalty", "spectral_radius"]


class _FromLast(LinearSolver):
    """An adjoint solver that starts from its last solution, if it iterates; the result is checked as that of any."""

    def __init__(self, adjoint: LinearSolver) -> None:
        self.adjoint = adjoint
        self.exact, self.direct = adjoint.exact, adjoint.direct  # type: ignore[misc]
        self.last: dict[bool, Tensor] = {}

    def solve(self, operator: LinearOperator, rhs: Tensor) -> tuple[Tensor, LinearInfo]:
        last = self.last.get(operator.transposed)
        if last is not None and (last.shape, last.dtype, last.device) != (rhs.shape, rhs.dtype, rhs.device):
            last = None
        x, info = self.adjoint.starting_from(self.known, last).solve(operator, rhs)
        self.last[operator.transposed] = x
        return x, info

    def tolerance(self, operator: LinearOperator) -> Any:
        return self.adjoint.tolerance(operator)

    def __repr__(self) -> str:
        return repr(self.adjoint)


class ImplicitLayer(nn.Module):
    """A layer whose output y solves ``residual(y, *inputs, **keywords) = 0``.

    Parameters
    ----------
    residual : nn.Module or callable
        Its parameters are those of the layer.
    shape : tuple of int, or pytree of such, optional
        Shape of the unknown of one system: ``((64, 32, 32), (128, 16, 16))`` is that of a pair of tensors. Default:
        that of the first tensor among the inputs.
    parameters : mapping of str to tensor, optional
        Parameters of the layer that a function gets as keyword arguments, by these names.
    start : callable or pytree of tensors, optional
        The initial guess, or ``start(*inputs, **keywords)``, which returns it. Default: zero.
    batch_ndim : int
        Leading axes of the first tensor among the inputs that index independent systems.
    solver, adjoint
        As for `root`.
    on_failure : str
        As for `root`, but "warn" is its "approximate": a system that fails keeps its best iterate, and training goes on
        with the derivatives at that.
    warm_start : bool
        Start from the last root, where it has the right shapes.
    warm_adjoint : bool
        Start the linear solve of a backward pass from the last solution, where it has the right shape: for adjoints
        that iterate, in training on the same batch or with slowly changing gradients. The derivatives stay exact.
    budget : int, optional
        Stop after so many steps of the solver, which is no failure then: the iterate is used as it is, with the
        derivatives at it, and is not looked at any further.
    intermediate : sequence of int
        The steps after which, in training, the iterate is kept in `states`.
    **options
        All others of `root`: `rtol`, `max_steps`, `bounds`, `callback`, `batched_args`, ... With `has_aux` the layer
        returns the pair (y, aux).

    Attributes
    ----------
    last : Solution or None
        That of the last call, detached, of DTensors that of the local systems; None before the first and under a
        transform of torch.func.
    failures : int or integer tensor, ()
        How many systems have failed in all calls; set it to 0 to count anew.
    states : list of pytrees like y
        The iterates of the last call that `intermediate` names, or the last one before: for losses on the way. They
        have the derivative that a root there has, by `adjoint`.

    Raises
    ------
    UnknownNameError, ArgumentError, ArgumentTypeError
        If a solver, an adjoint, a policy or an option is not known.

    Notes
    -----
    Every option is an attribute, to be set from call to call: ``layer.rtol = 1e-2``.

    A residual that is random, by dropout or noise, draws once per call of the layer: all evaluations of one solve and
    of its derivatives have the same mask. In one graph it does not, and the solve fails as RANDOM. Normalisation over
    the batch (`BatchNorm` in training) is refused: the systems of a batch must be independent, which ``check=True``
    tests. With ``batch_ndim=0`` the batch is one system: its running statistics move once per call, by the root.

    A call in one graph (``torch.compile(fullgraph=True)``, `torch.export`) leaves all attributes as they are.

    Examples
    --------
    >>> import torch, rootdiff_torch.nn
    >>> layer = rootdiff_torch.nn.ImplicitLayer(lambda y, x: y**3 + y - x)
    >>> layer(torch.tensor([[2.0, 10.0]]))
    tensor([[1., 2.]])
    """

    _solve: Callable[..., Solution] = staticmethod(root)

    def __init__(
        self,
        residual: Callable[..., Any],
        *,
        shape: Any = None,
        parameters: Mapping[str, Tensor] | None = None,
        start: Any = None,
        batch_ndim: int = 1,
        solver: str | Solver = "auto",
        adjoint: str | LinearSolver = "auto",
        on_failure: OnFailure = "raise",
        warm_start: bool = False,
        warm_adjoint: bool = False,
        budget: int | None = None,
        intermediate: Sequence[int] = (),
        **options: Any,
    ) -> None:
        super().__init__()
        check_choice("on_failure", on_failure, POLICIES)
        get_solver(solver, "torch")
        linear = get_adjoint(adjoint, "torch")
        self.residual, self.named = residual, nn.ParameterDict(_mapping(parameters))
        self.shape, self.start, self.intermediate = shape, start, intermediate
        self._check()
        self.warm_start, self.warm_adjoint = warm_start, warm_adjoint
        self.solver, self.adjoint = solver, _FromLast(linear) if warm_adjoint else adjoint
        self.batch_ndim, self.on_failure, self.budget = batch_ndim, on_failure, budget
        signature = inspect.signature(self._solve)
        defaults = {p.name: p.default for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
        for name in options.keys() - defaults.keys():
            close = _like(name, defaults)
            raise ArgumentTypeError(
                f"{type(self).__name__}: it has no option {name!r}.{close} Those of {self._solve.__name__} are "
                f"{', '.join(defaults)}."
            )
        for name in defaults.keys() - vars(self).keys():
            setattr(self, name, options.get(name, defaults[name]))
        self.last: Solution | None = None
        self.failures: Any = 0
        self.states: list[Any] = []
        self._defaults = defaults

    def _check(self) -> None:
        """Raise unless shapes, steps and parameters are such."""
        shapes = pytree.tree_leaves(self.shape, is_leaf=_is_shape)
        if not all(_is_shape(shape) and min(shape, default=1) >= 0 for shape in shapes if shape is not None):
            raise ArgumentTypeError(f"shape: got {self.shape!r}; it is a tuple of sizes, or a pytree of such.")
        steps = self.intermediate
        if not (isinstance(steps, Sequence) and all(isinstance(step, int) and step > 0 for step in steps)):
            raise ArgumentTypeError(f"intermediate: got {steps!r}; it is a sequence of steps, such as (1, 5).")
        for name, parameter in self.named.items():
            if not isinstance(parameter, Tensor):
                raise ArgumentTypeError(f"parameters: {name!r} is of type {type(parameter).__name__}; give a tensor.")

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; raise where a new one is called almost as an option is: it would do nothing."""
        known, is_state = vars(self), isinstance(value, nn.Module | nn.Parameter)
        if "_defaults" in known and not (is_state or name in known or name[0] == "_" or hasattr(type(self), name)):
            close = _like(name, (option for option in known if option[0] != "_"))
            if close:
                raise ArgumentTypeError(
                    f"{type(self).__name__}: it has no attribute {name!r}.{close} One of your own needs another name."
                )
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"states": []}  # they have a history, which is not copied

    @inlined
    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Return the root for these inputs; its dtype is that of the layer's parameters, also under autocast."""
        refuse_tracing(type(self).__name__)
        if not one_graph():
            return self._now(inputs, keywords)
        for name in ("warm_start", "warm_adjoint", "budget", "intermediate"):
            if getattr(self, name):
                refuse(f"{name}: one graph keeps nothing from call to call. Leave it out.")
        return self._output(self._root(self.residual, self._begin(inputs, keywords), inputs, keywords, self._options()))

    @uncompiled
    def _now(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if is_distributed((inputs, keywords)):
            given = inputs, keywords
            weights = dict((*self.named_parameters(), *self.named_buffers()))
            names = ("inputs", "inputs", "parameters")
            (inputs, keywords, weights), spread = localized((inputs, keywords, weights), self.batch_ndim, names)

            def solve() -> Any:
                if not isinstance(self.residual, nn.Module):
                    named = {name.removeprefix("named."): weight for name, weight in weights.items()}
                    residual = partial(self.residual, **named, **keywords)
                    check_captured(residual, [self._begin(inputs, keywords), *inputs])
                return torch.func.functional_call(self, weights, inputs, keywords)

            return spread(raised_alike(solve, given))
        residual, start, options = drawing_once(self.residual), self._begin(inputs, keywords), self._options()
        batches = {leaf.shape[: self.batch_ndim] for leaf in tensors((inputs, keywords))}
        for leaf in tensors(start):
            if batches and leaf.shape[: self.batch_ndim] not in batches:
                raise ArgumentError(
                    f"start: it has shape {tuple(leaf.shape)}, but must begin with the {self.batch_ndim} axes of the "
                    f"batch, {' or '.join(str(tuple(batch)) for batch in batches)}. For the same start in all systems "
                    "write start=lambda x: start.expand(len(x), -1)."
                )
        kept = dict.fromkeys(self.intermediate if self.training else (), start)
        if kept or self.budget is not None:
            options["callback"] = self._keeping(kept)
        if self.budget is not None:
            options["on_failure"] = "ignore"
        solution = self._root(residual, start, inputs, keywords, options)
        leaves = (solution.status, *pytree.tree_leaves(solution.y))
        self.last, self.states = None, []
        if has_values(leaves[-1]) and not any(map(is_wrapped, leaves)):
            self.last = pytree.tree_map_only(Tensor, Tensor.detach, solution)
            stopped = (solution.status == int(Status.STOPPED)) & (self.budget is not None)
            self.failures = self.failures + (~(solution.converged | stopped)).sum()
        as_root: dict[str, Any] = {"solver": Given(), "on_failure": "ignore"}
        as_root |= {name: options[name] for name in ("adjoint", "batch_ndim", "has_aux") if name in options}
        self.states = [self._root(residual, y, inputs, keywords, as_root).y for y in kept.values()]
        return self._output(solution)

    def _output(self, solution: Solution) -> Any:
        return (solution.y, solution.aux) if self.has_aux else solution.y

    def _options(self) -> dict[str, Any]:
        """Return the options of the solve that are not those that it has by itself."""
        given = {name: getattr(self, name) for name in self._defaults}
        if self.on_failure == "warn":
            given["on_failure"] = "approximate"
        return {name: value for name, value in given.items() if value is not self._defaults[name]}

    def _root(
        self,
        residual: Callable[..., Any],
        start: Any,
        inputs: tuple[Any, ...],
        keywords: dict[str, Any],
        options: dict[str, Any],
    ) -> Solution:
        named = dict(**self.named, **keywords)
        count, names = len(inputs), tuple(named)

        def by_name(y: Any, *args: Any) -> Any:
            return residual(y, *args[:count], **dict(zip(names, args[count:], strict=True)))

        return self._solve(by_name if names else residual, start, *inputs, *named.values(), **options)

    def _begin(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Return the initial guess."""
        if callable(self.start):
            start = self.start(*inputs, **keywords)
        else:
            start = self._zeros(inputs, keywords) if self.start is None else self.start
        if self.warm_start and self.last is not None:
            (old, of_old), (new, of_new) = (pytree.tree_flatten(tree) for tree in (self.last.y, start))
            if of_old == of_new and all(map(_fits, old, new)):
                return self.last.y
        return start

    def _zeros(self, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        x = next((leaf for leaf in pytree.tree_leaves((inputs, keywords)) if isinstance(leaf, Tensor)), None)
        if x is None:
            raise ArgumentTypeError(
                f"{type(self).__name__}: there is no tensor among its inputs, which would tell the batch and the "
                "device. Give the layer a start."
            )
        if x.is_nested:
            raise ArgumentError(f"{type(self).__name__}: of its inputs: {NESTED}")
        batch, shape = x.shape[: self.batch_ndim], x.shape[self.batch_ndim :] if self.shape is None else self.shape
        floating = (p.dtype for p in self.parameters() if p.is_floating_point())
        dtype = next(floating, x.dtype if is_differentiable(x) else torch.get_default_dtype())
        return pytree.tree_map(
            lambda shape: torch.zeros((*batch, *shape), dtype=dtype, device=x.device), shape, is_leaf=_is_shape
        )

    def _keeping(self, kept: dict[int, Any]) -> Callable[[Any], Any]:
        """Return the callback, which keeps the iterates after these steps, or the last ones before, and a budget."""
        steps, further = itertools.count(1), vars(self)["callback"]

        def keep(info: Any) -> Any:
            step = next(steps)
            kept.update((wanted, info.y) for wanted in kept if step <= wanted)
            told = None if further is None else further(info)
            return True if self.budget is not None and step >= self.budget else told

        return keep

    def __prepare_scriptable__(self) -> NoReturn:
        raise TransformError(f"{type(self).__name__}: torch.jit.script cannot hold a solve. Take torch.export.")

    def extra_repr(self) -> str:
        own = {
            name: getattr(self, name)
            for name in ("shape", "start", "warm_start", "warm_adjoint", "budget", "intermediate")
        }
        function = {} if isinstance(self.residual, nn.Module) else {"residual": self.residual}
        shown = {"solver": self.solver, "adjoint": self.adjoint} | self._options() | {"on_failure": self.on_failure}
        parts = function | own | {"batch_ndim": self.batch_ndim} | shown
        return ", ".join(f"{name}={value!r}" for name, value in parts.items())


def _like(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    return f" Did you mean {close[0]!r}?" if close else ""


def _mapping(parameters: Any) -> Mapping[str, Any]:
    if not isinstance(parameters, Mapping | None):
        raise ArgumentTypeError(f"parameters: got {type(parameters).__name__}; it is a mapping of names to tensors.")
    for name in parameters or ():
        if not name.isidentifier():
            raise ArgumentError(f"parameters: the function cannot have an argument of the name {name!r}.")
    return parameters or {}


def _is_shape(part: Any) -> bool:
    return isinstance(part, tuple | list) and all(isinstance(size, int | torch.SymInt) for size in part)


def _fits(last: Tensor, start: Tensor) -> bool:
    alike = (last.shape, last.dtype, last.device) == (start.shape, start.dtype, start.device)
    return alike and bool(torch.isfinite(last).all())


class FixedPointLayer(ImplicitLayer):
    """A layer whose output z solves ``z = cell(z, *inputs, **keywords)``: a deep equilibrium layer.

    Parameters
    ----------
    cell : nn.Module or callable
        Its parameters are those of the layer.
    **options
        As for `ImplicitLayer`, and of `fixed_point` where that takes those of `root`.

    Examples
    --------
    >>> import torch, rootdiff_torch.nn
    >>> layer = rootdiff_torch.nn.FixedPointLayer(lambda z, x: 0.5 * z + x, solver="anderson")
    >>> layer(torch.tensor([[1.0, 2.0]])).round(decimals=3)
    tensor([[2., 4.]])
    """

    _solve = staticmethod(fixed_point)

    def __init__(self, cell: Callable[..., Any], **options: Any) -> None:
        super().__init__(cell, **options)
