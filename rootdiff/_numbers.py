"""Numbers and lists of numbers where arrays are meant: a start, an end of a bracket, what a residual returns."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array, Backend
from rootdiff._errors import ArgumentError


def as_unknown(backend: Backend, y0: Any, args: Any) -> Any:
    """Return a start in which numbers, and lists or tuples of numbers, have become floating arrays.

    Everything else stays what it is: a list of arrays is a pytree of them.
    """
    if is_number(y0) or is_list_of_numbers(y0):
        return as_array(backend, y0, args)
    if type(y0) is dict:
        return {key: as_unknown(backend, value, args) for key, value in y0.items()}
    return y0


def as_array(backend: Backend, numbers: Any, args: Any) -> Array:
    """Return a number, or lists of numbers, as a floating array of dtype and device of the first one in `args`.

    Without one it gets the dtype that the framework gives to Python's floats.
    """
    xp = backend.xp
    try:
        array = xp.asarray(_floats(numbers))
    except (ValueError, TypeError) as error:
        raise ArgumentError(
            f"y0: it is {numbers!r}, which is no array: its lists have different lengths. Give lists of one length, "
            "or a pytree of arrays."
        ) from error
    for leaf in backend.flatten(args)[0]:
        if backend.is_array(leaf) and is_of(xp, leaf.dtype, "real floating"):
            if xp.isdtype(array.dtype, "real floating"):
                array = xp.asarray(_floats(numbers), dtype=leaf.dtype)  # not by way of a shorter one
            # JAX moves it to the device of what it meets; made of `leaf`, it would vary over a mesh as that does
            return array if backend.traced else xp.asarray(array, device=leaf.device)
    return array


def is_of(xp: Any, dtype: Any, kinds: str | tuple[str, ...]) -> bool:
    """Whether a dtype is of the standard's `kinds`; one with fields, of records, is of none."""
    return not getattr(dtype, "fields", None) and bool(xp.isdtype(dtype, kinds))


def is_number(value: Any) -> bool:
    """Whether a value is one of Python's numbers."""
    return isinstance(value, int | float | complex) and not isinstance(value, bool)


def is_list_of_numbers(value: Any) -> bool:
    """Whether a value is a list or tuple, nested perhaps, with numbers only, and at least one."""
    if type(value) not in (list, tuple) or not value:
        return False
    return all(is_number(entry) or is_list_of_numbers(entry) for entry in value)


def as_value(backend: Backend, value: Any, single: bool) -> Any:
    """Return what a residual returned, numbers or lists of numbers and arrays, as one array; anything else as it is.

    In NumPy a number stands for the value of a `single` unknown. In PyTorch and JAX it is returned as it is: it has
    left the tape, and would have no derivative.
    """
    if is_number(value):
        return backend.xp.asarray(_floats(value)) if single and backend.name == "numpy" else value
    stacked = _stacked(backend, value)
    return value if stacked is None else stacked


def _stacked(backend: Backend, entries: Any) -> Any:
    """Return lists or tuples as one array; None where they are nothing like one, or numbers alone that left a tape."""
    if backend.is_array(entries) or is_number(entries):
        return entries
    if type(entries) not in (list, tuple):
        return None
    xp = backend.xp
    parts = [_stacked(backend, entry) for entry in entries]
    arrays = [part for part in parts if backend.is_array(part)]
    if not arrays:
        return xp.asarray(_floats(parts)) if backend.name == "numpy" and all(map(is_number, parts)) and parts else None
    like = next((array for array in arrays if not xp.isdtype(array.dtype, ("integral", "bool"))), arrays[0])
    parts = [xp.full_like(like, part) if is_number(part) and like.ndim == 0 else part for part in parts]
    alike = all(backend.is_array(part) and part.shape == like.shape for part in parts)
    return xp.stack(parts) if alike else None


def _floats(numbers: Any) -> Any:
    if type(numbers) in (list, tuple):
        return [_floats(entry) for entry in numbers]
    return numbers if isinstance(numbers, complex) else float(numbers)
