"""A root as one node of a graph of PyTorch, and as two operators where the graph is compiled further.

The node, `SOLVE`, takes the graph of the residual beside the tensors that this uses, so that an exported program
carries it. Operators take no graphs: they get a name of this process in its place.
"""

from __future__ import annotations

import pickle
import warnings
from base64 import b85decode, b85encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NoReturn
from uuid import uuid4
from weakref import WeakKeyDictionary
from zlib import compress, decompress

import torch
from torch import Tensor, fx

from rootdiff._arguments import describe
from rootdiff._errors import ArgumentError
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Solution
from rootdiff._solver import Solver
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._private import (
    BaseHOP,
    BaseHOPVariable,
    Unsupported,
    V,
    as_constant,
    below_autograd,
    detect_fake_mode,
    get_proxy_mode,
    trace_as,
)
from rootdiff_torch._transforms import TransformError, levels, uncompiled

#: The entry points by name, filled where they are made.
ENTRIES: dict[str, Callable[..., Solution]] = {}
#: Solvers and adjoints that were given as values, by the words for them in a graph.
_VALUES: dict[str, Any] = {}
_MARK = " of process "
#: The strides of what an operator returns: they must not be left to the values.
_PLAIN = torch.contiguous_format
#: Beside roots and errors: status, steps, method, residual_norm, approximate.
_COUNTS = 5


@as_constant
def word(value: Any) -> str:
    """Return a word for a solver or an adjoint, which a graph can hold."""
    found = f"{value!r}{_MARK}{uuid4().hex}"
    _VALUES[found] = value
    return found


def _value(option: str, word: Any) -> Any:
    """Return the solver or adjoint that a word stands for; all else is what it is."""
    if not isinstance(word, str):
        return word
    value, mark, _ = word.rpartition(_MARK)
    if mark and word not in _VALUES:
        raise ArgumentError(
            f"{option}: the graph was made in another process, with {value}, which its file does not hold. Make the "
            f"graph with a name: call register_{option}(name, factory) in both processes."
        )
    return _VALUES.get(word, word)


@dataclass(frozen=True)
class _Call:
    """A node: the graph of a residual, of so many `unknowns`, and how the entry point is called.

    Its operands are tensors, the unknowns first, and sizes; `places` tells where the tensors are among them. `graph`
    returns the values of the residual; `given` are the options, with words for what they hold.
    """

    function: fx.GraphModule
    places: Sequence[bool]
    entry: str
    unknowns: int
    given: dict[str, Any]

    @staticmethod
    def of(body: fx.GraphModule, places: Sequence[bool], entry: str, unknowns: int, **options: Any) -> _Call:
        graph = fx.Graph()
        values: Any = graph.graph_copy(body.graph, {})
        graph.output(values[2 * unknowns + _COUNTS :] or values[:unknowns])
        graph.eliminate_dead_code()
        return _Call(fx.GraphModule(body, graph), places, entry, unknowns, options)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options, with the solvers and adjoints that the words stand for."""
        return {option: _value(option, value) for option, value in self.given.items()}

    @cached_property
    def name(self) -> str:
        """A name for this process, or, for a program that AOTInductor makes, all of it as a text."""
        if not V.aot_compilation:
            return uuid4().hex
        return b85encode(compress(pickle.dumps([getattr(self, f.name) for f in fields(self)]))).decode()

    @staticmethod
    def named(name: str) -> _Call:
        """Return the node of this name."""
        if name not in _NAMED:
            _NAMED[name] = _Call(*pickle.loads(decompress(b85decode(name))))
        return _NAMED[name]

    def __call__(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Return what the node returns, on tensors that have values."""
        s = self._solution(tensors, sizes)
        found = [*_leaves(s.y), *_leaves(s.error), s.status, s.steps, s.method, s.residual_norm, s.approximate]
        return [*found, *self.beside(tensors, sizes)]

    def beside(self, tensors: Sequence[Tensor], sizes: Sequence[int]) -> Sequence[Tensor]:
        """Return what stands for the values of a residual that are not like the unknowns: nobody reads it."""
        if self.entry not in ("least_squares", "minimize"):
            return ()
        with torch.no_grad():
            return _leaves(self._residual(sizes)(_tree(tensors[: self.unknowns]), *tensors[self.unknowns :]))

    def _residual(self, sizes: Sequence[int]) -> Callable[..., Any]:
        def residual(y: Any, *others: Tensor) -> Any:
            of_tensors, of_sizes = iter((*_leaves(y), *others)), iter(sizes)
            return _tree(self.function(*(next(of_tensors if place else of_sizes) for place in self.places)))

        return residual

    def pull_back(
        self, tensors: Sequence[Tensor], sizes: Sequence[int], found: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return the cotangents of the tensors beside the unknowns, of those that have such."""
        count = self.unknowns
        y, error = found[:count], found[count : 2 * count]
        others = [part.detach().requires_grad_(_has_derivative(part)) for part in tensors[count:]]
        structure = describe(BACKEND, _tree(y), self.options.get("batch_ndim", 0))
        known = _Known(structure.ravel(_tree(error)), *found[2 * count : 2 * count + _COUNTS - 1])
        with torch.enable_grad():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the solve has warned of its failures
                solution = self._solution([*y, *others], sizes, known)
            inputs = [part for part in others if part.requires_grad]
            return list(torch.autograd.grad(_leaves(solution.y), inputs, list(cotangents), materialize_grads=True))

    def _solution(self, tensors: Sequence[Tensor], sizes: Sequence[int], known: Solver | None = None) -> Solution:
        y0, others, options = _tree(tensors[: self.unknowns]), tensors[self.unknowns :], self.options
        if known is not None and self.entry != "implicit":
            kept = {name: value for name, value in options.items() if name not in ("rtol", "atol", "max_steps")}
            options = kept | {"solver": known}
        return ENTRIES[self.entry](self._residual(sizes), y0, *others, **options)


def _tree(leaves: Sequence[Tensor]) -> Any:
    return tuple(leaves) if len(leaves) > 1 else leaves[0]


def _leaves(tree: Any) -> Sequence[Tensor]:
    return tree if isinstance(tree, tuple) else (tree,)


def _has_derivative(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


class _Known(Solver):
    """Returns its start, with what a solve that found it told of it."""

    def __init__(self, error: Tensor, status: Tensor, steps: Tensor, method: Tensor, norm: Tensor) -> None:
        self.told = error, status, steps, method, norm

    def solve(self, residual: Residual, y0: Tensor) -> RawSolution:
        error, status, steps, method, norm = self.told
        return RawSolution(y0, status, steps, norm, None, method, error)


#: The nodes by the graphs of their residuals, and, for operators, by their names; one graph has one node.
_CALLS: WeakKeyDictionary[Any, _Call] = WeakKeyDictionary()
_NAMED: dict[str, _Call] = {}


class _Solve(BaseHOP):
    """``(residual, *unknowns, *others, **how) -> (*y, *error, status, steps, method, residual_norm, approximate)``."""

    def __init__(self) -> None:
        super().__init__("rootdiff_solve")

    def __call__(self, subgraph: Any, *operands: Any, **kwargs: Any) -> Any:
        if levels():  # of torch.func, which the entry point follows
            return self._call_Autograd(subgraph, *operands, **kwargs)
        return super().__call__(subgraph, *operands, **kwargs)  # type: ignore[no-untyped-call]

    def _call_Autograd(self, subgraph: Any, *operands: Any, **kwargs: Any) -> Any:
        if get_proxy_mode() is not None and detect_fake_mode(operands) is None:  # make_fx, with values
            with below_autograd():
                return super().__call__(subgraph, *operands, **kwargs)  # type: ignore[no-untyped-call]
        call = _CALLS.get(subgraph)
        if call is None:
            call = _CALLS[subgraph] = _Call.of(subgraph, [isinstance(part, Tensor) for part in operands], **kwargs)
        split = [[part for part in operands if isinstance(part, Tensor) is kind] for kind in (True, False)]
        if detect_fake_mode(operands) is None:
            return tuple(call(*split))
        _NAMED[call.name] = call
        tensors, sizes = split
        return tuple(solve(call.name, tensors, [0, *sizes]))  # AOTInductor takes an empty list for none

    def _call_Functionalize(self, ctx: Any, subgraph: Any, *operands: Any, **kwargs: Any) -> Any:
        further = self if torch.compiler.is_exporting() and not V.aot_compilation else self._call_Autograd
        with ctx.redispatch_to_next():
            return ctx.wrap_tensors(further(subgraph, *ctx.unwrap_tensors(operands), **kwargs))

    _call_CompositeExplicitAutograd = _call_Autograd  # noqa: N815


@torch.library.custom_op("rootdiff::solve", mutates_args=())
def solve(name: str, tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
    """Return what `SOLVE` returns, for the residual of this name."""
    with torch.no_grad():
        return [part.clone(memory_format=_PLAIN) for part in _Call.named(name)(tensors, sizes[1:])]


@torch.library.custom_op("rootdiff::pull_back", mutates_args=())
def pull_back(
    name: str, tensors: list[Tensor], sizes: list[int], found: list[Tensor], cotangents: list[Tensor]
) -> list[Tensor]:
    """Return the cotangents of the tensors beside the unknowns that have such."""
    call = uncompiled(_Call.named(name).pull_back)
    return [part.clone(memory_format=_PLAIN) for part in call(tensors, sizes[1:], found, cotangents)]


class RefusedError(TransformError, Unsupported):
    """What one graph cannot hold; PyTorch passes on its own errors only."""

    def __init__(self, message: str) -> None:
        TransformError.__init__(self, message)
        Unsupported.__init__(self, message)


class _Traced(BaseHOPVariable):
    """What Dynamo takes the node for. Its inputs may be views of each other, as w and w.mT: it writes into none."""

    supports_aliasing = True

    def call_function(self, *inputs: Any) -> Any:
        try:
            return super().call_function(*inputs)
        except RefusedError:
            raise
        except Unsupported as error:
            raise RefusedError(
                "residual: PyTorch cannot trace it into one graph. Write torch.where in place of a branch on values, "
                "or call torch.compile without fullgraph=True, which runs a root as it is. PyTorch says: "
                f"{error}"
            ) from error


SOLVE = _Solve()
trace_as(SOLVE.__name__, _Traced)


@solve.register_fake
def _(name: str, tensors: list[Tensor], sizes: list[int]) -> list[Tensor]:
    call = _Call.named(name)
    y, batch = tensors[: call.unknowns], tensors[0].shape[: call.options.get("batch_ndim", 0)]
    kinds = (torch.int32, torch.int32, torch.int32, y[0].real.dtype, torch.bool)
    like = [torch.empty_like(part, memory_format=_PLAIN) for part in (*y, *y)]
    beside = [torch.empty_like(part, memory_format=_PLAIN) for part in call.beside(tensors, sizes[1:])]
    return [*like, *(y[0].new_empty(batch, dtype=kind) for kind in kinds), *beside]


@pull_back.register_fake
def _(name: str, tensors: list[Tensor], *_: Any) -> list[Tensor]:
    others = tensors[_Call.named(name).unknowns :]
    return [torch.empty_like(part, memory_format=_PLAIN) for part in others if _has_derivative(part)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.name, tensors, ctx.sizes = inputs
    ctx.count = len(tensors)
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, cotangents: list[Tensor | None]) -> Any:
    saved = ctx.saved_tensors
    tensors, found = list(saved[: ctx.count]), list(saved[ctx.count :])
    unknowns = _Call.named(ctx.name).unknowns
    given = [torch.zeros_like(y) if g is None else g for y, g in zip(found, cotangents[:unknowns], strict=False)]
    parts = iter(pull_back(ctx.name, tensors, ctx.sizes, found, given))
    others = [next(parts) if _has_derivative(part) else None for part in tensors[unknowns:]]
    return None, [*[None] * unknowns, *others], None


def _once(*_: Any) -> NoReturn:
    raise TransformError(
        "root: in one graph it has first derivatives only. For second ones call torch.compile without fullgraph=True."
    )


solve.register_autograd(_backward, setup_context=_save)
pull_back.register_autograd(_once)
