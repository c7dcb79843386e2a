"""The three packages behind one face, for tests: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar

import numpy as np
import pytest

import rootdiff

#: Whether this is `make test-all`, which leaves nothing out.
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def cover(cases: Sequence[set[Any]]) -> list[int]:
    """Return the places of a few sets that have all the members of all of them."""
    left, chosen = set[Any]().union(*cases), []
    while left:
        chosen.append(max(range(len(cases)), key=lambda place: len(cases[place] & left)))
        left -= cases[chosen[-1]]
    return chosen


def covering(*axes: Sequence[Any], together: int = 2) -> list[Any]:
    """Return the product of some values; the cases that run by default have any `together` of them once."""
    product = list(itertools.product(*(range(len(axis)) for axis in axes)))
    chosen = cover([set(itertools.combinations(enumerate(case), together)) for case in product])
    marks = [[] if place in chosen else [pytest.mark.exhaustive] for place in range(len(product))]
    return [pytest.param(*map(getitem, axes, case), marks=mark) for case, mark in zip(product, marks, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """A solve and the derivatives that were asked for, as NumPy arrays; the whole solution of `Harness.solve`."""

    y: np.ndarray
    status: np.ndarray
    steps: np.ndarray
    derivative: Any = None
    solution: Any = None


class Harness:
    """A backend; `entry` is "root", "fixed_point", or "root_scalar", where `y0` may be a bracket."""

    name: str

    def array(self, value: Any) -> Any:
        raise NotImplementedError

    def start(self, y0: Any) -> Any:
        """Return a start, or the two ends of a bracket."""
        return tuple(map(self.array, y0)) if isinstance(y0, tuple) else self.array(y0)

    def solve(self, f: Callable[..., Any], y0: Any, *args: Any, entry: str = "root", **options: Any) -> Outcome:
        raise NotImplementedError

    def vjp(self, f: Callable[..., Any], y0: Any, *args: Any, w: Any, entry: str = "root", **options: Any) -> Outcome:
        raise NotImplementedError

    def jvp(self, f: Callable[..., Any], y0: Any, *args: Any, v: Any, entry: str = "root", **options: Any) -> Outcome:
        raise NotImplementedError


class NumpyHarness(Harness):
    name = "numpy"
    backend = "numpy"

    def array(self, value: Any) -> Any:
        return np.array(value)

    def _run(self, f: Any, y0: Any, args: Any, entry: str, options: Any) -> Any:
        return getattr(rootdiff, entry)(f, self.start(y0), *map(self.array, args), **options)

    def solve(self, f: Any, y0: Any, *args: Any, entry: str = "root", **options: Any) -> Outcome:
        sol = self._run(f, y0, args, entry, options)
        return Outcome(sol.y, sol.status, sol.steps, solution=sol)

    def vjp(self, f: Any, y0: Any, *args: Any, w: Any, entry: str = "root", **options: Any) -> Outcome:
        sol = self._run(f, y0, args, entry, options)
        return Outcome(sol.y, sol.status, sol.steps, sol.vjp(np.asarray(w)))

    def jvp(self, f: Any, y0: Any, *args: Any, v: Any, entry: str = "root", **options: Any) -> Outcome:
        sol = self._run(f, y0, args, entry, options)
        return Outcome(sol.y, sol.status, sol.steps, sol.jvp(*v))


class ReadOnlyHarness(NumpyHarness):
    name = "numpy-readonly"

    def array(self, value: Any) -> Any:
        array = np.array(value)
        array.flags.writeable = False
        return array


class TorchHarness(Harness):
    name = "torch"
    backend = "torch"

    def array(self, value: Any) -> Any:
        import torch

        return torch.tensor(np.asarray(value))

    def solve(self, f: Any, y0: Any, *args: Any, entry: str = "root", **options: Any) -> Outcome:
        import rootdiff_torch

        sol = getattr(rootdiff_torch, entry)(f, self.start(y0), *map(self.array, args), **options)
        return Outcome(sol.y.numpy(), sol.status.numpy(), sol.steps.numpy(), solution=sol)

    def vjp(self, f: Any, y0: Any, *args: Any, w: Any, entry: str = "root", **options: Any) -> Outcome:
        import torch

        import rootdiff_torch

        inputs = [self.array(arg).requires_grad_() for arg in args]
        sol = getattr(rootdiff_torch, entry)(f, self.start(y0), *inputs, **options)
        gradients = torch.autograd.grad(sol.y, inputs, self.array(w))
        derivative = tuple(gradient.numpy() for gradient in gradients)
        return Outcome(sol.y.detach().numpy(), sol.status.numpy(), sol.steps.numpy(), derivative)

    def jvp(self, f: Any, y0: Any, *args: Any, v: Any, entry: str = "root", **options: Any) -> Outcome:
        import torch.autograd.forward_ad as fwd

        import rootdiff_torch

        with fwd.dual_level():
            duals = [fwd.make_dual(self.array(a), self.array(t)) for a, t in zip(args, v, strict=True)]
            sol = getattr(rootdiff_torch, entry)(f, self.start(y0), *duals, **options)
            y, tangent = fwd.unpack_dual(sol.y)
        assert tangent is not None
        return Outcome(y.numpy(), sol.status.numpy(), sol.steps.numpy(), tangent.numpy())


class JaxHarness(Harness):
    """Where no solver is named, that is Newton's method: the default one's program takes twice as long to compile."""

    name = "jax"
    backend = "jax"
    jit = False
    _compiled: ClassVar[dict[Any, Any]] = {}

    def array(self, value: Any) -> Any:
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        return jnp.asarray(np.asarray(value))

    @classmethod
    def forget(cls) -> None:
        """Drop the compiled programs."""
        cls._compiled.clear()

    def _function(self, f: Any, entry: str, options: Any) -> Any:
        import jax

        import rootdiff_jax

        if entry in ("root", "fixed_point") and not THOROUGH:
            options = {"solver": "newton", **options}

        def solve(y0: Any, *args: Any) -> Any:
            sol = getattr(rootdiff_jax, entry)(f, y0, *args, **options)
            return sol.y, sol

        if not self.jit:
            return solve
        key = (f, entry, *sorted(options.items()))
        return self._compiled.setdefault(key, jax.jit(solve))

    def solve(self, f: Any, y0: Any, *args: Any, entry: str = "root", **options: Any) -> Outcome:
        y, sol = self._function(f, entry, options)(self.start(y0), *map(self.array, args))
        return Outcome(np.asarray(y), np.asarray(sol.status), np.asarray(sol.steps), solution=sol)

    def vjp(self, f: Any, y0: Any, *args: Any, w: Any, entry: str = "root", **options: Any) -> Outcome:
        import jax

        function, start = self._function(f, entry, options), self.start(y0)
        y, pullback, sol = jax.vjp(lambda *a: function(start, *a), *map(self.array, args), has_aux=True)
        derivative = tuple(np.asarray(gradient) for gradient in pullback(self.array(w)))
        return Outcome(np.asarray(y), np.asarray(sol.status), np.asarray(sol.steps), derivative)

    def jvp(self, f: Any, y0: Any, *args: Any, v: Any, entry: str = "root", **options: Any) -> Outcome:
        import jax

        function, start = self._function(f, entry, options), self.start(y0)
        inputs, tangents = tuple(map(self.array, args)), tuple(map(self.array, v))
        y, tangent, sol = jax.jvp(lambda *a: function(start, *a), inputs, tangents, has_aux=True)
        return Outcome(np.asarray(y), np.asarray(sol.status), np.asarray(sol.steps), np.asarray(tangent))


class JaxJitHarness(JaxHarness):
    name = "jax-jit"
    jit = True


HARNESSES: dict[str, type[Harness]] = {
    harness.name: harness for harness in (NumpyHarness, ReadOnlyHarness, TorchHarness, JaxHarness, JaxJitHarness)
}
