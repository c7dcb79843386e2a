"""The array namespace of PyTorch as solvers see it: that of `array_api_compat`, with fewer passes over memory.

Arrays may be aliases of each other: nothing in a solver changes one in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch
import torch
from torch import Tensor

from rootdiff import _space
from rootdiff_torch._private import is_wrapped
from rootdiff_torch.cuda import is_on_cpu

HALF = (torch.float16, torch.bfloat16)
#: The numbers that `where` has selected, as tensors.
_constants: dict[tuple[float, torch.dtype, torch.device], Tensor] = {}
#: From so many entries on, reading one number of a mask or a sum costs less than a pass over all entries.
_MANY = 4096


class _Linalg(_space.Namespace):
    """The linear algebra, of which LAPACK has nothing in half precision."""

    module = array_api_compat.torch.linalg  # type: ignore[attr-defined]

    @staticmethod
    def eigh(x: Tensor, /) -> tuple[Tensor, ...]:
        """Return the eigenvalues and vectors of symmetric matrices, those of half precision computed in single."""
        return tuple(part.to(x.dtype) for part in torch.linalg.eigh(x.float() if x.dtype in HALF else x))

    @staticmethod
    def svd(x: Tensor, /, *, full_matrices: bool = True) -> tuple[Tensor, ...]:
        """Return the singular value decompositions, those of half precision computed in single."""
        wide = x.float() if x.dtype in HALF else x
        return tuple(part.to(x.dtype) for part in torch.linalg.svd(wide, full_matrices=full_matrices))


class Namespace(_space.Namespace):
    """The functions that differ from those of `array_api_compat.torch`; the others are found there."""

    module = array_api_compat.torch
    linalg = _Linalg()

    @staticmethod
    def clip(x: Tensor, /, min: Any = None, max: Any = None) -> Tensor:
        """Return `x` with its entries kept between two numbers or arrays."""
        return array_api_compat.torch.clip(x, _rounded(min, x.dtype), _rounded(max, x.dtype))

    @staticmethod
    def full_like(x: Tensor, /, fill_value: Any, *, dtype: torch.dtype | None = None) -> Tensor:
        """Return an array like `x` that holds one number."""
        return torch.full_like(x, _rounded(fill_value, dtype or x.dtype), dtype=dtype)

    @staticmethod
    def where(condition: Tensor, x1: Any, x2: Any, /) -> Tensor:
        """Return `x1` where `condition` holds and else `x2`; that array itself, if it is the only one selected."""
        if not is_on_cpu(condition):
            return torch.where(condition, _filled(x1, x2, condition), _filled(x2, x1, condition))
        least, most = _extremes(condition, x1 if isinstance(x1, Tensor) else x2)
        if least or not most:
            chosen, other = (x1, x2) if least else (x2, x1)
            if _stands_for(chosen, condition, other):
                return chosen  # type: ignore[no-any-return]
            if isinstance(chosen, int | float) and _stands_for(other, condition, chosen):
                return torch.full_like(other, chosen)
            if type(chosen) is type(other) is int:
                return torch.full_like(condition, chosen, dtype=torch.int64)
        return torch.where(condition, x1, x2)

    @staticmethod
    def isfinite(x: Tensor, /) -> Tensor:
        """Return where `x` is neither infinite nor NaN."""
        # a finite sum has finite terms; an infinite sum may come from overflow, and tells nothing
        if x.numel() >= _MANY and x.is_floating_point() and _is_readable(x) and torch.isfinite(x.sum()):
            return torch.ones_like(x, dtype=torch.bool)
        return x * 0 == 0  # half the passes of torch.isfinite

    @staticmethod
    def concat(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
        """Return the arrays joined along an axis."""
        full = [array for array in arrays if array.shape[axis] > 0] or arrays[:1]
        return full[0] if len(full) == 1 else torch.concat(tuple(full), dim=axis)

    @staticmethod
    def max(x: Tensor, /, *, axis: int | None = None) -> Tensor:
        """Return the largest entries along an axis, or of all."""
        return x.amax() if axis is None else x.squeeze(axis) if x.shape[axis] == 1 else x.amax(axis)

    @staticmethod
    def min(x: Tensor, /, *, axis: int | None = None) -> Tensor:
        """Return the smallest entries along an axis, or of all."""
        return x.amin() if axis is None else x.squeeze(axis) if x.shape[axis] == 1 else x.amin(axis)

    @staticmethod
    def stack(arrays: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
        """Return the arrays joined along a new axis."""
        return arrays[0].unsqueeze(axis) if len(arrays) == 1 else torch.stack(tuple(arrays), dim=axis)

    @staticmethod
    def astype(x: Tensor, dtype: torch.dtype, /) -> Tensor:
        """Return `x` in another dtype; `x` itself, if it has that already."""
        return x.to(dtype)

    @staticmethod
    def vecdot(x1: Tensor, x2: Tensor, /) -> Tensor:
        """Return the inner products over the last axis, of real arrays."""
        if x1.ndim > 1 and x2.ndim == x1.ndim and x2.shape[-2] == 1:
            # the products of many vectors with one: as a matrix product, in a tenth of the time
            return x1 @ x2[0] if x1.ndim == 2 else (x2 @ x1.mT)[..., 0, :]
        return array_api_compat.torch.vecdot(x1, x2)

    @staticmethod
    def max_norm(x: Tensor, least_memory: Callable[[Tensor], Tensor], /) -> Tensor:
        """Return the largest absolute entries over the last axis; on a CPU by `least_memory`."""
        if x.shape[-1] == 1:
            return x[..., 0].abs()
        return least_memory(x) if is_on_cpu(x) else _vector_norm(x, torch.inf)

    @staticmethod
    def inner_product(x1: Tensor, x2: Tensor, /) -> Tensor:
        """Return the inner products over the last axis, on a CPU summed in an order that no batch changes."""
        return (x1 * x2).sum(-1) if is_on_cpu(x1) else torch.linalg.vecdot(x1, x2)

    @staticmethod
    def norm2(x: Tensor, careful: Callable[[Tensor], Tensor], /) -> Tensor:
        """Return the Euclidean norms over the last axis; by `careful` where squares may have left their range."""
        if x.shape[-1] == 1:
            return x[..., 0].abs()
        if not is_on_cpu(x):  # fewer kernels than the scaled norm below
            if x.dtype is not torch.float64 and x.device.type != "mps":  # their squares fit in float64, which MPS lacks
                norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float64).to(x.dtype)
                return norm  # type: ignore[no-any-return]
            limits = torch.finfo(x.dtype)
            scale = _vector_norm(x, torch.inf).clamp(limits.tiny, limits.max)
            return _vector_norm(x / scale[..., None], 2) * scale
        if not _is_readable(x):
            return careful(x)
        norm = (x * x).sum(-1).sqrt()  # vector_norm rounds differently for another batch size, and so would the steps
        limits = torch.finfo(x.dtype)
        low = limits.tiny**0.5 / limits.eps  # above it a square that underflows is less than eps^2 of the sum
        least, most = (norm.item(),) * 2 if x.ndim == 1 else norm.aminmax()
        if least > low and most < torch.inf:
            return norm
        return torch.where((norm > low) & (norm < torch.inf), norm, careful(x))


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """Return a number as float16 rounds it: infinity, where PyTorch would raise."""
    large = dtype is torch.float16 and isinstance(value, float) and abs(value) > torch.finfo(dtype).max
    return torch.inf if large and value > 0 else -torch.inf if large else value


def _filled(value: Any, other: Any, condition: Tensor) -> Any:
    """Return a number as a tensor to select from beside `other`; one that was made before, not to make it each time."""
    if isinstance(value, Tensor | bool) or isinstance(other, bool):
        return value
    dtype = other.dtype if isinstance(other, Tensor) else torch.int64
    if dtype is torch.bool or (isinstance(value, float) and not dtype.is_floating_point):
        return value  # the selection is of another dtype
    return _constant(value, dtype, condition.device)


def _constant(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    value = _rounded(value, dtype)
    key = value, dtype, device
    if key in _constants:
        return _constants[key]
    with torch.inference_mode(False):
        constant = torch.full((), value, dtype=dtype, device=device)
    # a constant made while recording exists only after a replay
    if device.type != "cuda" or not torch.cuda.is_current_stream_capturing():
        _constants[key] = constant
    return constant


def _vector_norm(x: Tensor, order: float) -> Tensor:
    return torch.linalg.vector_norm(x, order, dim=-1)  # type: ignore[no-any-return]


def _is_readable(x: Tensor) -> bool:
    """Return whether values can be looked at without waiting for a device, or losing sight of a transform."""
    return is_on_cpu(x) and type(x) is Tensor and not is_wrapped(x)


def _extremes(condition: Tensor, value: Any) -> tuple[Any, Any]:
    """Return whether all, and whether any, of a mask holds, for a selection like `value`; False, True: not known."""
    if condition.numel() == 1 and _is_readable(condition):
        known = bool(condition)
        return known, known
    numbers = value.numel() if isinstance(value, Tensor) else condition.numel()
    if numbers >= _MANY and _is_readable(condition):
        return condition.view(torch.uint8).aminmax()
    return False, True


def _stands_for(chosen: Any, *others: Any) -> bool:
    """Return whether `chosen` has the shape and dtype of a selection among it and the `others`."""
    if not isinstance(chosen, Tensor):
        return False
    for other in others:
        if not isinstance(other, Tensor):
            if not chosen.is_floating_point() and type(other) is not (bool if chosen.dtype is torch.bool else int):
                return False
        elif other.dtype not in (chosen.dtype, torch.bool) or not _reaches(other.shape, chosen.shape):
            return False
    return True


def _reaches(shape: torch.Size, wide: torch.Size) -> bool:
    """Return whether arrays of the first shape broadcast to the second."""
    if shape == wide:
        return True
    ends = zip(reversed(shape), reversed(wide), strict=False)
    return len(shape) <= len(wide) and all(size in (1, full) for size, full in ends)
