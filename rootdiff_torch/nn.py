"""Layers whose output is a root: deep equilibrium models and other implicit layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from rootdiff._errors import ArgumentError
from rootdiff._failure import OnFailure
from rootdiff._operator import LinearOperator
from rootdiff._registry import get_adjoint
from rootdiff._solution import Solution
from rootdiff._solver import Solver
from rootdiff.linear import LinearInfo, LinearSolver
from rootdiff_torch._adapter import fixed_point, root
from rootdiff_torch._graph import inlined, one_graph
from rootdiff_torch._stability import jacobian_penalty, spectral_radius
from rootdiff_torch._transforms import TransformError, has_values, is_wrapped, uncompiled

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


#: The generators are the process's: only one thread at a time may restore their states and draw.
_drawing = RLock()


def _drawing_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, each call of which draws the random numbers of the first."""
    states: list[Any] = []  # of the generators before the first call, after it; None if it drew nothing

    def drawn(y: Tensor, *inputs: Any) -> Any:
        devices = [y.device] if y.device.type == "cuda" else []
        if not has_values(y):
            return function(y, *inputs)
        if not states:
            before = _generators(devices)
            output = function(y, *inputs)
            same = all(map(torch.equal, before, _generators(devices)))
            states.append(None if same else before)
            return output
        if states[0] is None:
            return function(y, *inputs)
        if devices and torch.cuda.is_current_stream_capturing():
            raise ArgumentError(
                "cuda_graph: the residual is random, and what it draws cannot be drawn again. Leave it out."
            )
        with _drawing, torch.random.fork_rng(devices=devices):
            torch.set_rng_state(states[0][0])
            for device, state in zip(devices, states[0][1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            return function(y, *inputs)

    return drawn


def _generators(devices: Sequence[torch.device]) -> list[Tensor]:
    """Return the state of the generator of the CPU, and of those of `devices`."""
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]


class ImplicitLayer(nn.Module):
    """A layer whose output y solves ``residual(y, *inputs) = 0``.

    Parameters
    ----------
    residual : nn.Module or callable
        Its parameters are those of the layer.
    shape : tuple of int, optional
        Shape of the unknown of one system; default that of the first input.
    batch_ndim : int
        Leading axes of the first input that index independent systems.
    solver, adjoint, on_failure
        As for `root`.
    warm_start : bool
        Start from the last root, where it has the right shape, instead of from zero.
    warm_adjoint : bool
        Start the linear solve of a backward pass from the last solution, where it has the right shape: for adjoints
        that iterate, in training on the same batch or with slowly changing gradients. The derivatives stay exact.
    cuda_graph, check : bool
        As for `root`.

    Attributes
    ----------
    last : Solution or None
        That of the last call, detached; None before the first and under a transform of torch.func. A call in one
        graph (``torch.compile(fullgraph=True)``, `torch.export`) leaves it as it is.

    Notes
    -----
    A residual that is random, by dropout or noise, draws once per call of the layer: all evaluations of one solve and
    of its derivatives have the same mask. In one graph it does not, and the solve fails as RANDOM. Normalisation over
    the batch (`BatchNorm` in training) is refused: the systems of a batch must be independent, which ``check=True``
    tests. With ``batch_ndim=0`` the batch is one system: its running statistics move once per call, by the root.

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
        shape: tuple[int, ...] | None = None,
        batch_ndim: int = 1,
        solver: str | Solver = "auto",
        adjoint: str | LinearSolver = "auto",
        on_failure: OnFailure = "raise",
        warm_start: bool = False,
        warm_adjoint: bool = False,
        cuda_graph: bool = False,
        check: bool = False,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.shape, self.batch_ndim = shape, batch_ndim
        self.solver, self.adjoint, self.on_failure = solver, adjoint, on_failure
        self.warm_start, self.warm_adjoint, self.cuda_graph = warm_start, warm_adjoint, cuda_graph
        self.check = check
        if warm_adjoint:
            self.adjoint = _FromLast(get_adjoint(adjoint, "torch"))
        self.last: Solution | None = None

    @inlined
    def forward(self, *inputs: Any) -> Any:
        """Return the root for these inputs; its dtype is that of the layer's parameters, also under autocast."""
        if not one_graph():
            return self._now(*inputs)
        if self.warm_start or self.warm_adjoint:
            raise TransformError(
                "warm_start: one graph keeps nothing from call to call, for warm_adjoint either. Leave both out."
            )
        return self._root(self.residual, *inputs).y

    def _root(self, residual: Callable[..., Any], *inputs: Any) -> Solution:
        return self._solve(
            residual,
            self._start(inputs[0]),
            *inputs,
            solver=self.solver,
            adjoint=self.adjoint,
            batch_ndim=self.batch_ndim,
            on_failure=self.on_failure,
            cuda_graph=self.cuda_graph,
            check=self.check,
        )

    @uncompiled
    def _now(self, *inputs: Any) -> Any:
        solution = self._root(_drawing_once(self.residual), *inputs)
        transformed = is_wrapped(solution.y) or is_wrapped(solution.status) or not has_values(solution.y)
        self.last = None if transformed else solution._replace(y=solution.y.detach())
        return solution.y

    def extra_repr(self) -> str:
        warm = f"warm_start={self.warm_start}, warm_adjoint={self.warm_adjoint}"
        return f"solver={self.solver!r}, adjoint={self.adjoint!r}, {warm}"

    def _start(self, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        shape = x.shape if self.shape is None else (*x.shape[: self.batch_ndim], *self.shape)
        if self.warm_start and self.last is not None:
            y = self.last.y
            if (y.shape, y.dtype, y.device) == (shape, dtype, x.device) and bool(torch.isfinite(y).all()):
                return y  # type: ignore[no-any-return]
        return torch.zeros(shape, dtype=dtype, device=x.device)


class FixedPointLayer(ImplicitLayer):
    """A layer whose output z solves ``z = cell(z, *inputs)``: a deep equilibrium layer.

    Parameters
    ----------
    cell : nn.Module or callable
        Its parameters are those of the layer.
    **options
        As for `ImplicitLayer`.

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
