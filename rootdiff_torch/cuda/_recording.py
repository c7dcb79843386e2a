"""A step of a loop recorded as a CUDA graph: to replay it takes one launch, not one for each of its operations."""

from __future__ import annotations

import gc
import operator
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from rootdiff._errors import ArgumentError
from rootdiff_torch._private import copy_each

_T = TypeVar("_T", Tensor, tuple[Tensor, ...])


class _Thread(threading.local):
    """What recording needs to know in this thread.

    Attributes
    ----------
    wanted : bool. Whether the loops that run are to be recorded.
    streams : dict. A stream per device: the default stream cannot be recorded.
    graphs : dict. The newest graph per device: it keeps the memory that all graphs share.
    in_first_step : bool. Whether the first step of a loop is being recorded.
    recordable : dict. By kind of loop, whether its first step may be recorded without a step before it. The first step
        of a kind sets up what all its steps need (handles, workspaces), which a recording cannot do.
    """

    def __init__(self) -> None:
        self.wanted, self.in_first_step = False, False
        self.streams = dict[torch.device, Any]()
        self.graphs = dict[torch.device, Any]()
        self.recordable = dict[Hashable, bool]()


THREAD = _Thread()


def loop_kind(body: Callable[..., Any], state: Any) -> Hashable:
    """Return the kind of a loop, whose members need the same set up: its code, and the types of its state."""
    leaves, structure = optree.tree_flatten(state)
    devices = {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}
    return getattr(body, "__code__", body), structure, frozenset(devices)


def records_first_step() -> bool:
    """Return whether the first step of a loop is being recorded."""
    return THREAD.in_first_step


def check_not_made_in_first_step(asked_in_it: bool) -> None:
    """Raise if a value is about to be computed inside the recording of a first step, but was asked for before it.

    Such a value serves all steps, and each replay would compute it again. `asked_in_it` is what `records_first_step`
    returned when the value was asked for.
    """
    if THREAD.in_first_step and not asked_in_it:
        raise ArgumentError("cuda_graph: a first step that makes what others need cannot be recorded.")


def first_step(function: Callable[[Any], Any], state: Any, kind: Hashable) -> Recording:
    """Return the recording of a step that has not been taken before; raises `FirstStepError` where it must be."""
    THREAD.in_first_step = True
    try:
        return Recording(function, state)
    except ArgumentError as error:
        THREAD.recordable[kind] = False
        raise FirstStepError from error
    finally:
        THREAD.in_first_step = False


class FirstStepError(Exception):
    """The first step of a loop cannot be recorded: the work is done again, and takes that step unrecorded."""


def check_device(device: torch.device) -> None:
    """Raise unless what happens on this device can be recorded."""
    if device.type != "cuda":
        raise ArgumentError(
            f"cuda_graph: y0 is on {device}, and only steps on a CUDA device can be recorded. Leave it out, or move y0 "
            "and args with .to('cuda')."
        )


def recorded(wanted: bool, like: Tensor, work: Callable[[], _T]) -> _T:
    """Return ``work()``, a tensor or several; if `wanted`, its loops are recorded, on a stream of their own.

    The stream waits for what the current stream holds now, and the current stream waits for it.
    """
    before, THREAD.wanted = THREAD.wanted, wanted  # also for a solve inside a residual
    try:
        while True:
            try:
                return _on_own_stream(like.device, work) if wanted else work()
            except FirstStepError:  # once per kind of loop
                continue
    finally:
        THREAD.wanted = before


def _on_own_stream(device: torch.device, work: Callable[[], _T]) -> _T:
    current = torch.cuda.current_stream(device)
    if device not in THREAD.streams:
        THREAD.streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream = THREAD.streams[device]
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            results = work()
    finally:
        current.wait_stream(stream)
    for tensor in (results,) if isinstance(results, Tensor) else results:
        tensor.record_stream(current)
    return results


class Graph:
    """The operations of ``work()``, recorded on the current stream; `output` is what it returned.

    They are not carried out until `replay`. Raises ArgumentError where they cannot be recorded.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        last = THREAD.graphs.get(device)
        self._graph = torch.cuda.CUDAGraph()
        collects = gc.isenabled()
        gc.disable()  # no other graph may be destroyed while this one is recorded
        try:
            self._graph.capture_begin(pool=last and last.pool(), capture_error_mode="thread_local")
            try:
                self.output = work()
            finally:
                self._graph.capture_end()
        except RuntimeError as error:
            THREAD.graphs.pop(device, None)  # PyTorch takes its memory for that of an open recording
            # the error is in no variable of this frame: such a cycle would keep the graphs of the callers alive
            raise ArgumentError(
                "cuda_graph: a step cannot be recorded. The residual, or a linear solve in it, waits for the device: a "
                ".item(), a branch on a tensor's value, a copy to the CPU. Leave that out, or cuda_graph. PyTorch "
                f"says: {str(_original(error)).splitlines()[0]}"
            ) from _original(error)
        finally:
            if collects:
                gc.enable()
        THREAD.graphs[device] = self._graph

    def replay(self) -> None:
        """Carry the operations out, on the tensors that they were recorded with."""
        self._graph.replay()


def _original(error: RuntimeError) -> RuntimeError:
    """Return the error inside the recording, which made ending it fail with this one; or this one."""
    return error.__context__ if isinstance(error.__context__, RuntimeError) else error


class Recording:
    """A step, recorded for states of these shapes and dtypes: from one to a NamedTuple whose `result` is the next.

    Its `state` is the tensors that it reads: a copy of those of the last call.
    """

    def __init__(self, function: Callable[[Any], Any], state: Any) -> None:
        leaves, structure = optree.tree_flatten(state)
        self._inputs = _copies(leaves)
        self.state = optree.tree_unflatten(structure, self._inputs)
        self._step = Graph(lambda: self._recorded(function))
        self._results = optree.tree_leaves(self._step.output.result)
        self._advance = Graph(lambda: _copy(self._inputs, self._results))

    def __call__(self, state: Any) -> Any:
        """Return the step from this state, in tensors that the next call overwrites."""
        leaves = optree.tree_leaves(state)
        if all(map(operator.is_, leaves, self._results)):
            self._advance.replay()
        else:
            _copy(self._inputs, leaves)
        self._step.replay()
        return self._step.output

    def _recorded(self, function: Callable[[Any], Any]) -> Any:
        step = function(self.state)
        # the next call overwrites the inputs: a result that is one of them, in another place, must be a copy
        inputs = {id(leaf): place for place, leaf in enumerate(self._inputs)}
        storages = {leaf.untyped_storage().data_ptr() for leaf in self._inputs if isinstance(leaf, Tensor)}

        def apart(place: int, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or inputs.get(id(leaf)) == place:
                return leaf
            return leaf.clone() if leaf.untyped_storage().data_ptr() in storages else leaf

        leaves, structure = optree.tree_flatten(step.result)
        return step._replace(result=optree.tree_unflatten(structure, list(map(apart, range(len(leaves)), leaves))))


def are_alike(one: Any, other: Any) -> bool:
    """Return whether a recording of a step from one state can replay the step from the other."""
    leaves, structure = optree.tree_flatten(one)
    others, other_structure = optree.tree_flatten(other)
    return structure == other_structure and all(
        (a.shape, a.dtype) == (b.shape, b.dtype) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b
        for a, b in zip(leaves, others, strict=True)
    )


def copied(state: Any) -> Any:
    """Return a copy of a state, which no replay overwrites."""
    leaves, structure = optree.tree_flatten(state)
    return optree.tree_unflatten(structure, _copies(leaves))


def _copies(leaves: Sequence[Any]) -> list[Any]:
    copies = [
        torch.empty(leaf.shape, dtype=leaf.dtype, device=leaf.device) if isinstance(leaf, Tensor) else leaf
        for leaf in leaves
    ]
    _copy(copies, leaves)
    return copies


def _copy(targets: Sequence[Any], sources: Sequence[Any]) -> None:
    """Copy the tensors, those of a dtype in one launch."""
    pairs = [
        (new, old) for new, old in zip(targets, sources, strict=True) if isinstance(new, Tensor) and new is not old
    ]
    for dtype in {new.dtype for new, _ in pairs}:
        chosen = [(new, old) for new, old in pairs if new.dtype is dtype]
        copy_each([new for new, _ in chosen], [old for _, old in chosen])
