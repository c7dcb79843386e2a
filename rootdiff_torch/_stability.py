"""How strongly a cell contracts, and a penalty that keeps it contracting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rootdiff import _spectrum
from rootdiff._arguments import describe
from rootdiff._bound import bound
from rootdiff._residual import flat_residual
from rootdiff_torch._adapter import TORCH
from rootdiff_torch._backend import BACKEND
from rootdiff_torch._capture import Statistics
from rootdiff_torch._derivatives import pullback

spectral_radius = bound(_spectrum.spectral_radius, TORCH)


def jacobian_penalty(
    cell: Callable[..., Any],
    z: Any,
    *args: Any,
    batch_ndim: int = 0,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return an unbiased estimate of ``norm(J)**2 / n``, the mean over the batch, with J the Jacobian of `cell` at `z`.

    Added to a loss with a small weight it keeps a deep equilibrium model stable (Frobenius norm, n unknowns a system).

    Parameters
    ----------
    cell, z, *args, batch_ndim
        As for `spectral_radius`.
    samples : int
        Random signs per system, one product each.
    generator : torch.Generator, optional
        Where the signs come from, on the device of `z`; default: torch's own.

    Returns
    -------
    tensor, ()
        Dimensionless; differentiable in `z`, `args` and what the cell closes over.

    References
    ----------
    Bai, Koltun & Kolter (2021), "Stabilizing equilibrium models by Jacobian regularization", eq. 5. Hutchinson (1990).

    Examples
    --------
    >>> import torch, rootdiff_torch
    >>> rootdiff_torch.nn.jacobian_penalty(lambda z: 0.5 * z, torch.ones(4))
    tensor(0.2500)
    """
    flat, y = _flat(cell, z, args, batch_ndim)
    squares = []
    for _ in range(samples):
        bits = torch.randint(0, 2, y.shape, generator=generator, device=y.device)
        squares.append((pullback(flat, (y,), [0], (2 * bits - 1).to(y.dtype))[0] ** 2).mean())
    return torch.stack(squares).mean()


def _flat(cell: Callable[..., Any], z: Any, args: tuple[Any, ...], batch_ndim: int) -> tuple[Any, Tensor]:
    structure = describe(BACKEND, z, batch_ndim)
    return Statistics(batched=False).kept(flat_residual(cell, structure, lambda: args)), structure.ravel(z)
