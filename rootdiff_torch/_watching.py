"""Whether what a derivative is taken of is still what was solved, and what has changed if not.

What can be put back is, see `rootdiff._environment`. A tensor is not: as PyTorch does for its own operations, one that
has changed is refused. And f at the root is compared with what it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from rootdiff._environment import LOOKED_AT, ChangedError, Environment
from rootdiff._errors import ArgumentError
from rootdiff._reached import reached
from rootdiff._residual import Residual
from rootdiff._space import every, max_norm, signs
from rootdiff_torch._capture import base_of
from rootdiff_torch._derivatives import is_differentiable
from rootdiff_torch._private import add_to_each, differences_of_each, is_wrapped, norms_of_each
from rootdiff_torch._transforms import levels

#: Values of tensors of at most so many entries are compared: a change of ``.data`` is no new version.
_SMALL = 10_000
_UNKNOWN = (
    "Something that it reads has changed since and could not be kept (an object without attributes, entries of a large "
    "array, a global name of another file). Take the derivative before you change it, or solve with a copy of it."
)
_RANDOM = (
    "It is random: two evaluations at the same point differ. Draw what is random before the solve, and pass it through "
    "args."
)


class TorchEnvironment(Environment):
    """The state of modules too: parameters, buffers, parts and attributes of each of their parts."""

    #: The attributes of every module; `training` is the exception.
    ignored = frozenset(vars(nn.Module())) - {"training"}

    @staticmethod
    def parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, nn.Module):
            yield from ((f"{name}.{key}", part) for key, part in (*value.named_buffers(), *value.named_parameters()))
            for key, part in value.named_modules(prefix=name):
                own = (pair for pair in vars(part).items() if pair[0] not in TorchEnvironment.ignored)
                yield from ((f"{key}.{attribute}", held) for attribute, held in own)
                yield type(part).__name__, type(part)
        elif not isinstance(value, Tensor):
            yield from Environment.parts(name, value)

    @staticmethod
    def stores(value: Any) -> Iterator[Any]:
        if isinstance(value, nn.Module):
            for part in value.modules():
                yield from (part._parameters, part._buffers, part._modules, *Environment.stores(part))
        elif not isinstance(value, Tensor):
            yield from Environment.stores(value)


@dataclass(frozen=True)
class Watched:
    """The tensors that a residual reads, as they were at the solve.

    Attributes
    ----------
    versions : tuples (name, tensor, version)
        Of inputs, which autograd saves, and of large constants. Held weakly: a tensor with a graph would keep it alive.
    values : tuples (name, tensor, copy). Of small ones.
    """

    versions: tuple[tuple[str, ReferenceType[Tensor], int], ...] = ()
    values: tuple[tuple[str, Tensor, Tensor], ...] = ()

    @staticmethod
    def of(
        roots: Iterable[tuple[str, Any]], inputs: Sequence[tuple[Tensor, Tensor]], constants: Sequence[Tensor]
    ) -> Watched:
        """Return what is watched of constants and of inputs of a rule: the user's tensors, and aliases of these."""
        names = {id(value): name for name, value in reached(LOOKED_AT, roots, TorchEnvironment.parts)}
        used = [*inputs, *zip(constants, constants, strict=True)]
        plain = [pair for pair in used if not any(is_wrapped(tensor) or tensor.is_inference() for tensor in pair)]

        def name(tensor: Tensor) -> str:
            found = names.get(id(tensor), names.get(id(base_of(tensor))))
            return found or f"a tensor of shape {tuple(tensor.shape)}"

        small = [] if levels() else [pair for pair in plain if _is_small(pair[1], plain[0][1].device)]
        held = [user if user is alias else alias.data for user, alias in small]
        with torch.no_grad():
            copies = add_to_each(held, 0) if held else ()
        compared = {id(user) for user, alias in small if user is alias}
        return Watched(
            tuple((name(user), ref(user), user._version) for user, _ in plain if id(user) not in compared),
            tuple((name(user), kept, copy) for (user, _), kept, copy in zip(small, held, copies, strict=True)),
        )

    def check(self) -> None:
        """Raise if a tensor has changed in place."""
        changed = [name for name, tensor, version in self.versions if getattr(tensor(), "_version", version) != version]
        if self.values and not changed and not levels():
            names, tensors, copies = zip(*self.values, strict=True)
            with torch.no_grad():  # of entries that are infinite or NaN the difference is NaN, and nothing is said
                norms = torch.stack(norms_of_each(differences_of_each(tensors, copies)))
            changed = [name for name, moved in zip(names, (norms > 0).tolist(), strict=True) if moved]
        if changed:
            raise ChangedError(changed)


def _is_small(tensor: Tensor, device: torch.device) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and tensor.device == device
    return plain and is_differentiable(tensor) and 0 < tensor.numel() <= _SMALL


def check_still_root(residual: Residual, y: Tensor, value: Tensor, allowed: Tensor) -> None:
    """Raise if `value`, that of f at `y` now, is larger than `allowed`, and than a change of y by rounding explains."""
    with torch.no_grad():
        xp = residual.xp
        if bool((max_norm(xp, value) <= allowed).all()):
            return
        eps = torch.finfo(y.dtype).eps
        nudge = eps**0.5 * y.abs() + eps**0.75
        nudged = [residual(y + signs(xp, y, phase) * nudge) for phase in (0, 3)]
        explained = torch.stack([(near - value).abs() for near in nudged]).amax(0)
        bound = 8 * torch.maximum(explained, allowed[..., None])
        if bool((every(xp, value.abs() <= bound) | allowed.isinf()).all()):
            return
        same = bool(every(xp, residual(y) == value).all())
    raise ArgumentError(
        "residual: at the root it is not what it was when the root was found, so that there is no derivative. "
        + (_UNKNOWN if same else _RANDOM)
    )
