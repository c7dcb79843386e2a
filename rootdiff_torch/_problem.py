"""A problem as the derivative rule sees it: a residual of plain vectors, how to solve it, and what is found out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from rootdiff._compaction import with_scale
from rootdiff._constraints import Objective
from rootdiff._environment import Environment
from rootdiff._loop import StepInfo
from rootdiff._residual import Residual
from rootdiff._solver import Solver
from rootdiff._sparsity import Pattern
from rootdiff._squares import gradient, minimised
from rootdiff._structure import Structure
from rootdiff.linear import LinearSolver
from rootdiff.solvers import Continuation, InBracket
from rootdiff_torch._backend import BACKEND, TorchBackend
from rootdiff_torch._capture import with_captured
from rootdiff_torch._contexts import in_full_precision
from rootdiff_torch._derivatives import custom_in, graph_of, pullbacks
from rootdiff_torch._watching import Watched
from rootdiff_torch.cuda import isolated

_T = TypeVar("_T", Tensor, tuple[Tensor, ...])


@dataclass
class Outcome:
    """What a solve and its derivatives find out that is no tensor of the rule.

    Attributes
    ----------
    byproduct : Any. The pytree structure of the inverse Jacobian that the solver returned.
    any_failed : bool. Whether a system failed, in the solve or in a linear solve of its derivatives.
    broken : bool. Whether the pullback of the residual is no differentiable operation of its cotangent.
    first_only : bool. Whether the residual has first derivatives only.
    system_data : tuple of int. The parameters that hold data of each system; only known where a system failed.
    constants : tuples of tensors. The data of each system that the residual closes over, and its replacements.
    """

    byproduct: Any = None
    any_failed: bool = False
    broken: bool = False
    first_only: bool = False
    system_data: tuple[int, ...] = ()
    constants: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ())


@dataclass(frozen=True)
class Problem:
    """A residual on flat vectors, ``original(y, *parameters)``, and how to solve it.

    The parameters are those of the residual, those of the correction, and the settings of the solve.

    Attributes
    ----------
    direct : callable or None. The same function for plain parameters, where it need not be told what it closes over.
    arguments : callable. Returns the user's args from the parameters, for messages and for `take`.
    take : callable or None. Returns, from the user's args, what takes some systems out of the batch, for plain
        parameters.
    environment : Environment. Of the modules, containers, objects and arrays that the residual reads.
    watched : Watched. The tensors that it reads.
    follows : bool. Whether a derivative of what the residual closes over may be wanted, so that it must not depend on
        more than its inputs.
    checked : bool. Whether that is checked when the root has been found; else it is when the root is differentiated.
    first : Tensor or None. The value at y0, where it is known.
    fixed_point : bool. Whether the function is that of a fixed point.
    pattern : Pattern or None. Where the Jacobian of each system may have entries.
    correct : callable or None. ``correct(trial, y, *parameters)``, the point to try in place of `trial`.
    observe : callable or None. Called after each step; whether the solve is to stop.
    settings : int. How many parameters, the last ones, are settings of the solve.
    scaled : bool. Whether the last one of these is the size of the unknowns.
    cuda_graph : bool. Whether loops are to be recorded.
    loss : str, Objective or None. Of what of `original` the root is a minimum, see `Residual`; None of nothing.
    bounded : bool. Whether bounds follow the values of `original`.
    outcome : Outcome. What `forward` finds out, for Python to branch on under every transform.
    """

    original: Callable[..., Tensor]
    structure: Structure
    solver: Solver
    adjoint: LinearSolver
    on_failure: str
    direct: Callable[..., Tensor] | None
    arguments: Callable[..., tuple[Any, ...]]
    environment: Environment
    watched: Watched
    follows: bool
    take: Callable[..., Any] | None = None
    checked: bool = True
    first: Tensor | None = None
    fixed_point: bool = False
    pattern: Pattern | None = None
    correct: Callable[..., Tensor] | None = None
    settings: int = 0
    scaled: bool = False
    cuda_graph: bool = False
    loss: str | Objective | None = None
    bounded: bool = False
    observe: Callable[[StepInfo], bool] | None = None
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def backend(self) -> TorchBackend:
        """That of the unknowns."""
        return self.structure.backend  # type: ignore[return-value]

    def function(self, *inputs: Tensor) -> Tensor:
        """Return the residual of y and the parameters; constants of a system that failed are those of a good one."""
        if self.loss is None:
            return self._equations(*inputs)
        return gradient(BACKEND, self._equations, self.loss, self.bounded)(*inputs)  # type: ignore[no-any-return]

    def _equations(self, *inputs: Tensor) -> Tensor:
        found, regular = self.outcome.constants
        return with_captured(self.original, found, len(inputs))(*inputs, *regular)

    def check(self, whole: bool = False) -> None:
        """Raise if a tensor that the residual reads has changed in place, or an array that could be put back too."""
        if whole:
            self.environment.check(whole)
        with self.environment.restored():
            self.watched.check()

    @contextmanager
    def restored(self, y: Tensor) -> Iterator[None]:
        """Bring back the state at the solve, and compute in the precision of `y`."""
        with self.environment.restored(), in_full_precision(y):
            yield

    def alone(self, like: Tensor, solve: Callable[[], _T]) -> _T:
        """Return ``solve()``, apart from a loop around it; with what it raises on all processes that share a batch."""
        return self.backend.alike(lambda: isolated(self.cuda_graph, like, solve))

    def batched(self, dims: Sequence[int | None], randomness: str) -> Problem:
        """Return the problem with one more leading batch axis on y, and on the parameters with a dimension."""
        original = torch.vmap(self.original, in_dims=(0, *dims), randomness=randomness)
        correct = self.correct and torch.vmap(self.correct, in_dims=(0, 0, *dims), randomness=randomness)
        return replace(self, original=original, direct=None, first=None, correct=correct)

    def bound(self, parameters: tuple[Tensor, ...], start: Tensor) -> tuple[Residual, Solver]:
        """Return the residual and the solver, with plain parameters in them, for a solve from `start`."""
        function, first = self.direct or self._equations, self.first

        def known(y: Tensor, *parameters: Tensor) -> Tensor:
            return first if first is not None and y is start else function(y, *parameters)

        backend = self.backend if self.observe is None else replace(self.backend, predicts=False)
        residual: Residual = _FromStart(
            known,
            parameters,
            backend,
            observe=self.observe,
            fixed_point=self.fixed_point,
            pattern=self.pattern,
            start=start,
        )
        if self.loss is not None:
            residual = minimised(residual, self.loss, self.bounded)
        if self.take is not None and self.direct is not None:
            residual = replace(residual, take=self.take(*self.arguments(*parameters)))
        correct, solver = self.correct, self.solver
        if correct is not None:
            residual = replace(residual, correct=lambda trial, y: correct(trial, y, *parameters))
        settings = parameters[len(parameters) - self.settings :]
        if self.scaled:
            residual, settings = with_scale(residual, settings[-1]), settings[:-1]
        if isinstance(solver, InBracket):
            lo, hi = settings
            solver = replace(solver, lo=lo, hi=hi)
        elif isinstance(solver, Continuation):
            solver = replace(solver, start=settings)
        return residual, solver


@dataclass(frozen=True)
class _FromStart(Residual):
    """A residual that is to be solved from `start`."""

    start: Tensor = field(kw_only=True)

    @cached_property
    def differentiable(self) -> bool:
        with torch.enable_grad():
            y = self.start.detach().requires_grad_()
            value = self.function(y, *self.parameters)
        found = value is y or any(getattr(node, "variable", None) is y for node in graph_of(value))
        if found and "torch._library.autograd" in custom_in(value):
            try:  # an operator may have no formula for its derivative
                pullbacks(value, y, torch.zeros_like(value))
            except RuntimeError:
                return False
        return found
