"""Between the user's pytrees and the flat vectors, (*batch, n), that solvers see."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rootdiff._backend import Array, Backend
from rootdiff._errors import ArgumentError, ArgumentTypeError, RootdiffError, UnderdeterminedError, with_article
from rootdiff._numbers import as_unknown, as_value, is_number, is_of


@dataclass(frozen=True)
class Structure:
    """The pytree, shapes and dtypes of an unknown whose leaves share `batch` leading axes.

    A complex leaf stands in the flat vector as its real parts followed by its imaginary parts, so that solvers
    see real vectors only and a residual need not be holomorphic. So many `multipliers` follow in the flat vector, which
    the user does not see.
    """

    backend: Backend
    tree: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]
    complex_leaves: tuple[bool, ...]
    batch: tuple[int, ...]
    complex_step: bool = False
    multipliers: int = 0

    @cached_property
    def is_vector(self) -> bool:
        """Whether the unknown is one array of real vectors, (*batch, n), and so its own flat vector."""
        marker = object()
        is_real = [len(shape) for shape in self.shapes] == [1] and not self.complex_leaves[0]
        return is_real and not self.multipliers and self.backend.unflatten(self.tree, [marker]) is marker

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Entries that each leaf takes in the flat vector."""
        return tuple(
            math.prod(shape) * (2 if is_complex else 1)
            for shape, is_complex in zip(self.shapes, self.complex_leaves, strict=True)
        )

    @property
    def size(self) -> int:
        """Number of real unknowns of one system, n."""
        return sum(self.sizes) + self.multipliers

    @property
    def is_empty(self) -> bool:
        """Whether there are no systems."""
        return 0 in self.batch

    def ravel(self, tree: Any) -> Array:
        """Return the flat vector, (*batch, n), of a pytree of this structure."""
        if self.is_vector and self.backend.is_array(tree):
            return tree
        xp = self.backend.xp
        parts = []
        leaves, _ = self.backend.flatten(tree)
        for leaf, shape, is_complex in zip(leaves, self.shapes, self.complex_leaves, strict=True):
            array = leaf if self.backend.is_array(leaf) else xp.asarray(leaf)
            lead = tuple(array.shape[: array.ndim - len(shape)])
            halves = (xp.real(array), xp.imag(array)) if is_complex else (array,)
            parts += [xp.reshape(half, (*lead, math.prod(shape))) for half in halves]
        parts += [xp.zeros_like(parts[0][..., :1])] * self.multipliers
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    def unravel(self, vector: Array) -> Any:
        """Return the pytree whose flat vector, (*batch, n), this is."""
        if self.is_vector:
            return vector
        xp = self.backend.xp
        lead = tuple(vector.shape[:-1])
        leaves, start = [], 0
        for shape, size, dtype, is_complex in zip(
            self.shapes, self.sizes, self.dtypes, self.complex_leaves, strict=True
        ):
            part = vector if size == vector.shape[-1] else vector[..., start : start + size]
            start += size
            if is_complex:
                real, imaginary = (xp.astype(half, dtype) for half in (part[..., : size // 2], part[..., size // 2 :]))
                part = real + 1j * imaginary
            leaves.append(part if tuple(part.shape) == lead + shape else xp.reshape(part, lead + shape))
        return self.backend.unflatten(self.tree, leaves)

    def spread(self, role: str, sizes: Any, y: Array) -> Array:
        """Return a vector like `y` of real numbers for the unknowns: one number, or a pytree like y0 of real arrays.

        The arrays are broadcast; both parts of a complex unknown get its number.
        """
        backend, xp = self.backend, self.backend.xp
        if is_number(sizes) and not isinstance(sizes, complex):
            return xp.full_like(y, float(sizes))
        if backend.is_array(sizes) and sizes.ndim == 0:
            return xp.broadcast_to(xp.astype(sizes, y.dtype), tuple(y.shape))
        try:
            leaves, tree = backend.flatten(as_unknown(backend, sizes, y))
            leaves = [leaf if backend.is_array(leaf) else xp.asarray(leaf) for leaf in leaves]
        except RootdiffError:
            raise
        except (TypeError, ValueError) as error:
            raise ArgumentTypeError(f"{role}: got {sizes!r}; it must hold real numbers.") from error
        if tree != self.tree:
            raise ArgumentError(f"{role}: got {sizes!r}; it must be a number, or a pytree of the structure of y0.")
        parts = []
        for array, shape, is_complex in zip(leaves, self.shapes, self.complex_leaves, strict=True):
            wanted = self.batch + shape
            if not xp.isdtype(array.dtype, ("real floating", "integral")):
                raise ArgumentTypeError(f"{role}: it has dtype {array.dtype}; it must hold real numbers.")
            try:
                array = xp.broadcast_to(xp.astype(array, y.dtype), wanted)
            except (ValueError, RuntimeError) as error:
                raise ArgumentError(
                    f"{role}: shape {tuple(array.shape)} does not broadcast to {wanted}, that of y0."
                ) from error
            parts += [xp.reshape(array, (*self.batch, math.prod(shape)))] * (2 if is_complex else 1)
        parts += [xp.ones_like(parts[0][..., :1])] * self.multipliers
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-1)

    def check(self, output: Any, role: str) -> Any:
        """Return `output`, which the user's `role` returned; raise unless it has this structure, shapes and dtypes.

        A residual may have another structure, of as many numbers: what is returned has this one. For one system with
        one array as its unknown a list of values will do, or a number for one unknown. In NumPy a result of more digits
        than y0 has is rounded to those.
        """
        is_array = self.is_vector and self.backend.is_array(output)
        if is_array and output.dtype == self.dtypes[0] and tuple(output.shape) == self.batch + self.shapes[0]:
            return output
        if output is None:
            raise ArgumentError(f"{role}: it returned None. Let it end in `return`, with values like y0.")
        output = self._as_array(output)
        leaves, tree = self.backend.flatten(output)
        if tree != self.tree and role in ("residual", "jvp"):
            output = self._rearranged(output, leaves, tree)
            leaves, tree = self.backend.flatten(output)
        if tree != self.tree:
            ours = _words(self.backend, self.tree, self.shapes, self.dtypes, self.batch)
            raise ArgumentError(
                f"{role}: it returned {_describe_tree(self.backend, output)}, but y0 is {ours}. It must return the "
                "structure of y0, or as many numbers in another one; a list of numbers is stacked into one array with "
                "the framework's `stack`, and what else it returns needs has_aux=True."
            )
        for leaf, shape in zip(leaves, self.shapes, strict=True):
            if not self.backend.is_array(leaf):
                raise ArgumentTypeError(
                    f"{role}: it returned {with_article(type(leaf).__name__)}, but must return "
                    f"{self.backend.name} arrays like y0."
                )
            if tuple(leaf.shape) != self.batch + shape:
                counts = (0, 0) if role == "f" else (math.prod(leaf.shape), math.prod(self.batch + shape))
                raise ArgumentError(
                    f"{role}: it returned shape {tuple(leaf.shape)}, but y0 has shape {self.batch + shape}. It must "
                    f"return one value per unknown; {_advice(*counts)}."
                )
        found = [self._in_dtype(role, leaf, dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)]
        return output if all(map(operator.is_, found, leaves)) else self.backend.unflatten(tree, found)

    def with_aux(self, role: str, output: Any) -> tuple[Any, Any]:
        """Return the values and what else the user's `role` returned; raise unless that is a pair."""
        if not isinstance(output, tuple) or len(output) != 2:
            raise ArgumentError(
                f"{role}: it returned {_describe_tree(self.backend, output)}, but has_aux=True asks for a tuple "
                "(values, aux) of its values and what else is to be returned at the root."
            )
        return output

    def _rearranged(self, output: Any, leaves: list[Any], tree: Any) -> Any:
        """Return a pytree of another structure as one of this structure, if it holds as many numbers of each system.

        A list in a batch may be one of systems: it is not.
        """
        backend, xp, lead = self.backend, self.backend.xp, len(self.batch)
        kinds = ("real floating", "complex floating")
        floating = all(backend.is_array(leaf) and is_of(xp, leaf.dtype, kinds) for leaf in leaves)
        if not floating or (lead and isinstance(output, list)):
            return output
        other = self._of_output(leaves, tree)
        fits = other.size == self.size and all(tuple(leaf.shape[:lead]) == self.batch for leaf in leaves)
        return self.unravel(other.ravel(output)) if fits else output

    def _of_output(self, leaves: list[Any], tree: Any) -> Structure:
        """Return the structure of a pytree of arrays with the same batch axes."""
        lead, kind = len(self.batch), "complex floating"
        return replace(
            self,
            tree=tree,
            shapes=tuple(tuple(leaf.shape[lead:]) for leaf in leaves),
            dtypes=tuple(leaf.dtype for leaf in leaves),
            complex_leaves=tuple(
                self.backend.xp.isdtype(leaf.dtype, kind) and not self.complex_step for leaf in leaves
            ),
        )

    def equations(self, output: Any, dtype: Any, fewer: bool = False) -> Array:
        """Return what a residual returned as a vector of this dtype, (*batch, m), m >= n unless `fewer` may be."""
        backend, xp = self.backend, self.backend.xp
        if not self.batch:
            output = as_value(backend, output, False)
        leaves, tree = backend.flatten(output)
        leaves = leaves or [output]
        for leaf in leaves:
            if not backend.is_array(leaf) or not xp.isdtype(leaf.dtype, ("real floating", "complex floating")):
                raise ArgumentTypeError(
                    f"residual: it returned {_describe_tree(backend, output)}, but least_squares needs floating "
                    f"{backend.name} arrays, or a pytree of them."
                )
            if tuple(leaf.shape[: len(self.batch)]) != self.batch:
                raise ArgumentError(
                    f"residual: it returned shape {tuple(leaf.shape)}, which does not begin with the batch axes of y0, "
                    f"{self.batch}. Return the equations of each system along the axes after them."
                )
        other = self._of_output(leaves, tree)
        if other.size < self.size and not fewer:
            raise UnderdeterminedError(f"residual: it returned {other.size} equations for {self.size} unknowns.")
        return self._in_dtype("residual", other.ravel(output), dtype)

    def objective(self, output: Any, dtype: Any) -> Array:
        """Return what an objective returned, a number for each system, as a vector of this dtype, (*batch, 1)."""
        backend, xp = self.backend, self.backend.xp
        value = output if self.batch else as_value(backend, output, True)
        kinds = ("real floating", "complex floating") if self.complex_step else "real floating"
        if not backend.is_array(value) or tuple(value.shape) != self.batch or not xp.isdtype(value.dtype, kinds):
            raise ArgumentError(
                f"residual: it returned {_describe_tree(backend, output)}, but minimize needs one real floating number "
                f"per system, a {backend.name} array of shape {self.batch}. Return the sum, or what else is to be "
                "small; for the least sum of squares of equations use least_squares."
            )
        return self._in_dtype("residual", xp.reshape(value, (*self.batch, 1)), dtype)

    def constraint(self, name: str, output: Any, dtype: Any) -> Array:
        """Return what a constraint returned as a vector of this dtype, (*batch, number)."""
        backend, xp, lead = self.backend, self.backend.xp, len(self.batch)
        value = output if self.batch else as_value(backend, output, True)
        kinds = ("real floating", "complex floating") if self.complex_step else "real floating"
        fits = backend.is_array(value) and value.ndim - lead in (0, 1) and tuple(value.shape[:lead]) == self.batch
        fits = fits and 0 not in value.shape
        if not fits or not xp.isdtype(value.dtype, kinds):
            raise ArgumentError(
                f"{name}: it returned {_describe_tree(backend, output)}, but must return a real floating "
                f"{backend.name} array: the batch axes of y0, {self.batch}, followed by one of numbers, at least one. "
                "Make it of entries of y, without float() or .item()."
            )
        return self._in_dtype(name, value if value.ndim > lead else value[..., None], dtype)

    def _in_dtype(self, role: str, value: Array, dtype: Any) -> Array:
        """Return an array that the user's `role` returned in a dtype, that of y0, to which it may be rounded."""
        if value.dtype == dtype or self.complex_step:
            return value
        if not self._is_wider(value.dtype, dtype):
            raise ArgumentTypeError(
                f"{role}: it returned dtype {value.dtype}, but y0 has dtype {dtype}. Give y0 and args one dtype, and "
                "keep it inside the function."
            )
        return self.backend.xp.astype(value, dtype)

    def _as_array(self, output: Any) -> Any:
        """Return a list of values or a number as an array, where the unknown of one system is one array."""
        backend, marker = self.backend, object()
        if self.batch or len(self.shapes) != 1 or (backend.is_array(output) and output.ndim > 0):
            return output
        if backend.unflatten(self.tree, [marker]) is not marker:  # a pytree with one leaf
            return output
        single = math.prod(self.shapes[0]) == 1
        found = as_value(backend, output, single)
        if single and backend.is_array(found) and found.ndim == 0:
            return backend.xp.reshape(found, self.shapes[0])
        return found if backend.is_array(found) and found.ndim == len(self.shapes[0]) else output

    def _is_wider(self, dtype: Any, own: Any) -> bool:
        """Whether NumPy's rounding of a result to `own`, the dtype of y0, loses digits only; tapes keep their dtype."""
        xp = self.backend.xp
        same = any(is_of(xp, dtype, kind) and is_of(xp, own, kind) for kind in ("real floating", "complex floating"))
        return self.backend.name == "numpy" and same and xp.finfo(dtype).eps < xp.finfo(own).eps


def flat_cotangent(role: str, structure: Structure, cotangent: Any, like: Array) -> Array:
    """Return the flat vector of a cotangent of the unknown, with the dtype of `like`, that of the unknown.

    Raises
    ------
    ArgumentError
        If it is not like the unknown, or complex where that is real.
    """
    backend, xp = structure.backend, structure.backend.xp
    cotangent = as_unknown(backend, cotangent, ())
    leaves, tree = backend.flatten(cotangent)
    shapes = [structure.batch + shape for shape in structure.shapes]
    found = [tuple(np.shape(leaf)) for leaf in leaves]
    if tree != structure.tree or found != shapes:
        raise ArgumentError(f"{role}: the cotangent has leaves of shape {found}; it must be like y, with {shapes}.")
    leaves = [leaf if backend.is_array(leaf) else xp.asarray(leaf) for leaf in leaves]
    for leaf, is_complex in zip(leaves, structure.complex_leaves, strict=True):
        if xp.isdtype(leaf.dtype, "complex floating") and not is_complex:
            raise ArgumentError(f"{role}: the cotangent is complex, but y is real. Give its real part.")
    return xp.astype(structure.ravel(backend.unflatten(tree, leaves)), like.dtype)


def _describe_tree(backend: Backend, tree: Any) -> str:
    leaves, structure = backend.flatten(tree)
    shapes = tuple(tuple(getattr(leaf, "shape", ())) for leaf in leaves)
    return _words(backend, structure, shapes, tuple(getattr(leaf, "dtype", type(leaf).__name__) for leaf in leaves), ())


class _Leaf(str):
    """The words for a leaf, which a container shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def _words(
    backend: Backend,
    tree: Any,
    shapes: tuple[tuple[int, ...], ...],
    dtypes: tuple[Any, ...],
    batch: tuple[int, ...],
) -> str:
    """Return a pytree as its user would write it, with dtypes and shapes for leaves."""
    leaves = [_Leaf(f"{dtype}{list(batch + shape)}") for shape, dtype in zip(shapes, dtypes, strict=True)]
    if str(tree) in ("PyTreeSpec(*)", "PyTreeDef(*)"):
        return f"one array, {leaves[0]}"
    try:
        return repr(backend.unflatten(tree, leaves))
    except Exception:  # a container of the user's that takes arrays only
        return f"{tree} of {', '.join(leaves)}"


def _advice(equations: int, unknowns: int) -> str:
    if equations < unknowns:
        return (
            "with fewer equations than unknowns the root is not determined: add equations, fix unknowns as args, or "
            "take the root nearest to y0 with least_squares"
        )
    if equations > unknowns:
        return "for more equations than unknowns minimise their sum of squares with least_squares"
    return "arrange them as y0 is"
