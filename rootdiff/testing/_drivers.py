"""The three packages behind one face: native leaves in, derivatives out."""

from __future__ import annotations

import importlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from rootdiff import _numpy_adapter as numpy_entries
from rootdiff._errors import UnknownNameError
from rootdiff._names import BACKENDS
from rootdiff._numpy import NumpyBackend

#: ``run(y0_leaves, parameter_leaves)`` returns a Solution, or the root alone.
Run = Callable[[Sequence[Any], Sequence[Any]], Any]


class Driver(ABC):
    """A framework: how to make its arrays, call its entry points and take its derivatives.

    Derivatives are those of the leaves of y with respect to the parameter leaves, one entry per leaf; None stands
    where the framework gives none.

    Attributes
    ----------
    second_order : bool. Whether a root can be differentiated twice.
    conjugate : bool
        Whether a cotangent w pairs with a tangent v as Re(w v), not Re(conj(w) v).
    """

    name: ClassVar[str]
    package: ClassVar[str]
    second_order: ClassVar[bool] = True
    conjugate: ClassVar[bool] = False
    backend: Any

    def entry(self, name: str) -> Callable[..., Any]:
        """Return the entry point of the package, "root" or "fixed_point"."""
        return getattr(importlib.import_module(self.package), name)  # type: ignore[no-any-return]

    def context(self, dtype: Any) -> AbstractContextManager[Any]:
        """Return a context in which arrays keep this dtype."""
        return nullcontext()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is faster to call often."""
        return function

    @abstractmethod
    def native(self, array: Any, like: Any = None) -> Any:
        """Return a NumPy array as a fresh array of this framework, with dtype and device of `like`."""

    def numpy(self, leaf: Any) -> Any:
        """Return a leaf as a NumPy array."""
        return np.array(leaf)

    @abstractmethod
    def is_parameter(self, leaf: Any) -> bool:
        """Return whether a leaf of args is differentiated."""

    def device(self, leaf: Any) -> str:
        """Return the device of a leaf in words."""
        return "cpu"

    @abstractmethod
    def vjp(self, run: Run) -> Callable[..., list[Any]]:
        """Return the function from y0, parameters and cotangents of y to cotangents of the parameters."""

    @abstractmethod
    def jvp(self, run: Run) -> Callable[..., list[Any]]:
        """Return the function from y0, parameters and their tangents to tangents of y."""

    def second(self, run: Run) -> Callable[..., list[Any]]:
        """Return the function (y0, parameters, w, v) to the derivative of ``(w^T dy/dargs) v`` in the parameters."""
        raise NotImplementedError

    def start_vjp(self, run: Run) -> Callable[..., list[Any]] | None:
        """Return the function from y0, parameters and cotangents of y to cotangents of y0; None without a tape."""
        return None

    def leaves(self, solution: Any) -> list[Any]:
        """Return the leaves of the root of what an entry point returned."""
        return self.backend.flatten(getattr(solution, "y", solution))[0]  # type: ignore[no-any-return]


class NumpyDriver(Driver):
    """NumPy, whose derivatives are methods of the solution."""

    name, package, second_order = "numpy", "rootdiff", False
    backend = NumpyBackend()

    def entry(self, name: str) -> Callable[..., Any]:
        function: Callable[..., Any] = getattr(numpy_entries, name)
        return function

    def native(self, array: Any, like: Any = None) -> Any:
        return np.array(array, dtype=None if like is None else np.asarray(like).dtype)

    def is_parameter(self, leaf: Any) -> bool:
        if isinstance(leaf, np.ndarray | np.generic):
            return bool(np.isdtype(leaf.dtype, "real floating"))
        return isinstance(leaf, float)

    def vjp(self, run: Run) -> Callable[..., list[Any]]:
        def pulled(y0: Any, parameters: Any, cotangents: Any) -> list[Any]:
            solution = _believed(run(y0, parameters))
            tree = self.backend.flatten(solution.y)[1]
            return self._aligned(run, solution.vjp(self.backend.unflatten(tree, cotangents)))

        return pulled

    def jvp(self, run: Run) -> Callable[..., list[Any]]:
        def pushed(y0: Any, parameters: Any, tangents: Any) -> list[Any]:
            solution = _believed(run(y0, parameters))
            return self.backend.flatten(solution.jvp(*run.rebuild(tangents, None)))[0]  # type: ignore[attr-defined]

        return pushed

    def _aligned(self, run: Any, gradients: tuple[Any, ...]) -> list[Any]:
        flat = run.args_tree.flatten_up_to(tuple(gradients))
        return [flat[place] for place in run.places]


def _believed(solution: Any) -> Any:
    """Return the solution without its own look at the user's rules: the checks tell more of what is wrong with them."""
    return solution._replace(sensitivities=replace(solution.sensitivities, believed=True))


class TorchDriver(Driver):
    """PyTorch; everything on copies that no graph knows."""

    name, package = "torch", "rootdiff_torch"

    def __init__(self) -> None:
        self.torch: Any = importlib.import_module("torch")
        self.backend = importlib.import_module("rootdiff_torch._backend").TorchBackend()

    def native(self, array: Any, like: Any = None) -> Any:
        tensor = self.torch.tensor(np.asarray(array))
        return tensor if like is None else tensor.to(dtype=like.dtype, device=like.device)

    def numpy(self, leaf: Any) -> Any:
        if not isinstance(leaf, self.torch.Tensor):
            return np.array(leaf)
        detached = leaf.detach().cpu().resolve_conj()
        wide = detached.float() if detached.dtype is self.torch.bfloat16 else detached
        return wide.numpy().copy()

    def is_parameter(self, leaf: Any) -> bool:
        return isinstance(leaf, self.torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())

    def device(self, leaf: Any) -> str:
        return str(leaf.device)

    def vjp(self, run: Run) -> Callable[..., list[Any]]:
        def pulled(y0: Any, parameters: Any, cotangents: Any) -> list[Any]:
            inputs = [leaf.detach().clone().requires_grad_() for leaf in parameters]
            return self._grad(self.leaves(run(y0, inputs)), inputs, cotangents)

        return pulled

    def jvp(self, run: Run) -> Callable[..., list[Any]]:
        forward: Any = importlib.import_module("torch.autograd.forward_ad")
        with warnings.catch_warnings(), forward.dual_level():
            warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's own, on the first dual tensor
            forward.make_dual(self.torch.zeros(1), self.torch.zeros(1))

        def pushed(y0: Any, parameters: Any, tangents: Any) -> list[Any]:
            with forward.dual_level():
                duals = [forward.make_dual(leaf, t) for leaf, t in zip(parameters, tangents, strict=True)]
                outputs = self.leaves(run(y0, duals))
                return [forward.unpack_dual(leaf).tangent for leaf in outputs]

        return pushed

    def second(self, run: Run) -> Callable[..., list[Any]]:
        def twice(y0: Any, parameters: Any, cotangents: Any, tangents: Any) -> list[Any]:
            inputs = [leaf.detach().clone().requires_grad_() for leaf in parameters]
            first = self._grad(self.leaves(run(y0, inputs)), inputs, cotangents, create_graph=True)
            pairs = [(g, t) for g, t in zip(first, tangents, strict=True) if g is not None]
            return self._grad([g for g, _ in pairs], inputs, [t for _, t in pairs])

        return twice

    def start_vjp(self, run: Run) -> Callable[..., list[Any]] | None:
        def pulled(y0: Any, parameters: Any, cotangents: Any) -> list[Any]:
            inputs = [leaf.detach().clone().requires_grad_() for leaf in y0]
            return self._grad(self.leaves(run(inputs, parameters)), inputs, cotangents)

        return pulled

    def _grad(self, outputs: Any, inputs: Any, cotangents: Any, create_graph: bool = False) -> list[Any]:
        pairs = [(y, w) for y, w in zip(outputs, cotangents, strict=True) if y.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        ys, ws = zip(*pairs, strict=True)
        return list(self.torch.autograd.grad(ys, inputs, ws, create_graph=create_graph, allow_unused=True))


class JaxDriver(Driver):
    """JAX, every solve and derivative under jit."""

    name, package, conjugate = "jax", "rootdiff_jax", True

    def __init__(self) -> None:
        self.jax: Any = importlib.import_module("jax")
        self.backend = importlib.import_module("rootdiff_jax._backend").JaxBackend()

    def context(self, dtype: Any) -> AbstractContextManager[Any]:
        wide = np.dtype(str(dtype)) in (np.dtype("float64"), np.dtype("complex128"))
        return self.jax.enable_x64(True) if wide else nullcontext()

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return self.jax.jit(function)  # type: ignore[no-any-return]

    def native(self, array: Any, like: Any = None) -> Any:
        dtype = None if like is None or isinstance(like, float | complex) else like.dtype
        return self.jax.numpy.array(np.asarray(array), dtype=dtype)

    def is_parameter(self, leaf: Any) -> bool:
        if isinstance(leaf, self.jax.Array):
            return bool(self.jax.numpy.issubdtype(leaf.dtype, self.jax.numpy.inexact))
        return isinstance(leaf, float)

    def device(self, leaf: Any) -> str:
        return str(getattr(leaf, "device", "cpu"))

    def vjp(self, run: Run) -> Callable[..., list[Any]]:
        def pulled(y0: Any, parameters: Any, cotangents: Any) -> list[Any]:
            _, pullback = self.jax.vjp(lambda p: self.leaves(run(y0, p)), list(parameters))
            return pullback(list(cotangents))[0]  # type: ignore[no-any-return]

        return self.compiled(pulled)

    def jvp(self, run: Run) -> Callable[..., list[Any]]:
        def pushed(y0: Any, parameters: Any, tangents: Any) -> list[Any]:
            _, pushed = self.jax.jvp(lambda p: self.leaves(run(y0, p)), (list(parameters),), (list(tangents),))
            return list(pushed)

        return self.compiled(pushed)

    def second(self, run: Run) -> Callable[..., list[Any]]:
        def twice(y0: Any, parameters: Any, cotangents: Any, tangents: Any) -> list[Any]:
            def first(p: Any) -> Any:
                _, pullback = self.jax.vjp(lambda q: self.leaves(run(y0, q)), p)
                return pullback(list(cotangents))[0]

            _, pullback = self.jax.vjp(first, list(parameters))
            return pullback(list(tangents))[0]  # type: ignore[no-any-return]

        return self.compiled(twice)

    def start_vjp(self, run: Run) -> Callable[..., list[Any]] | None:
        def pulled(y0: Any, parameters: Any, cotangents: Any) -> list[Any]:
            _, pullback = self.jax.vjp(lambda y: self.leaves(run(y, parameters)), list(y0))
            return pullback(list(cotangents))[0]  # type: ignore[no-any-return]

        return self.compiled(pulled)


_DRIVERS: dict[str, type[Driver]] = {"numpy": NumpyDriver, "torch": TorchDriver, "jax": JaxDriver}


def get_driver(backend: str) -> Driver:
    """Return the driver of a backend; its framework is imported now."""
    if backend not in _DRIVERS:
        raise UnknownNameError(f"backends: {backend!r} is not among {', '.join(BACKENDS)}.")
    return _DRIVERS[backend]()


def backend_of(leaves: Sequence[Any]) -> str:
    """Return the backend whose arrays these leaves are, told without importing it."""
    for leaf in leaves:
        framework = type(leaf).__module__.partition(".")[0]
        if framework in ("torch", "jax", "jaxlib"):
            return "torch" if framework == "torch" else "jax"
    return "numpy"
