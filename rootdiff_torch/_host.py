"""Few unknowns on a CPU: what a solve does between two evaluations of the residual, NumPy does.

An operation of NumPy costs Python a fraction of one of PyTorch. Its arrays share their memory with tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from rootdiff import _implicit
from rootdiff._backend import Array, Pick
from rootdiff._inverse import Factors
from rootdiff._numpy import NumpyBackend
from rootdiff._operator import Dense, LinearOperator, OfFixedPoint
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns
from rootdiff._solution import RawSolution
from rootdiff._solver import Solver, run
from rootdiff.linear import LinearInfo, LinearSolver
from rootdiff_torch.cuda import is_on_cpu

#: Numbers of all systems up to which PyTorch's quicker loops do not make up for what a call of it costs.
_NUMBERS = 512


def is_small(y: Tensor, solver: Solver | LinearSolver) -> bool:
    """Return whether NumPy may do the work of a solver of ours for unknowns like `y`, (*batch, n), and is quicker."""
    plain = type(y) is Tensor and is_on_cpu(y) and y.dtype in (torch.float32, torch.float64)
    return plain and 0 < y.numel() <= _NUMBERS and has_few_unknowns(y.shape) and _is_ours(solver)


def _is_ours(setting: Any) -> bool:
    """Return whether a setting, or a solver and its settings, hold neither functions nor tensors of the user."""
    if isinstance(setting, tuple):
        return all(map(_is_ours, setting))
    if is_dataclass(setting) and type(setting).__module__.startswith("rootdiff."):
        return all(_is_ours(getattr(setting, entry.name)) for entry in fields(setting))
    return setting is None or isinstance(setting, bool | int | float | str)


def find(solver: Solver, residual: Residual, start: Tensor, first: Tensor | None) -> RawSolution:
    """Return what `run` does, tensors; `first` is the residual at the start, where it is known."""
    y0, backend = _lowered(start), _HostBackend()
    known = None if first is None else (y0, _lowered(first))
    scale = None if residual.scale is None else _lowered(residual.scale)
    with np.errstate(all="ignore"):
        raw = run(solver, replace(_on_host(residual, backend), known=known, scale=scale), y0)
    factors: Any = optree.tree_map(_from_one, raw.factors, is_leaf=lambda part: isinstance(part, Factors))  # type: ignore[arg-type]
    raw = raw._replace(factors=factors)
    return optree.tree_map(lambda array: torch.from_numpy(np.array(array)), raw)  # type: ignore[arg-type, return-value]


def solve(
    operator: Callable[[Tensor], LinearOperator],
    y: Tensor,
    error: Tensor,
    transpose: bool,
    adjoint: LinearSolver,
    rhs: Tensor,
    on_failure: str,
    failed: Tensor | None,
) -> tuple[Tensor, LinearInfo]:
    """Return what `_implicit.solve` does by the entries of the operator at `y`, and of that its error away."""
    backend = _HostBackend()

    def at(point: Array) -> LinearOperator:
        matrix = operator(y if point is root else _lifted(point)).dense()
        found = Dense.of(backend, _lowered(matrix), backend.precision(root.dtype))
        return found.T if transpose else found

    shape = rhs.shape
    if rhs.ndim > y.ndim:  # right-hand sides are numbered by one axis
        rhs = rhs.reshape(-1, *y.shape)
        failed = None if failed is None else failed.reshape(rhs.shape[:-1])
    root, masked = _lowered(y), None if failed is None else _lowered(failed)
    beside = _implicit.Beside(root, _lowered(error), at)
    with np.errstate(all="ignore"):
        x, info = _implicit.solve(at(root), adjoint, _lowered(rhs), on_failure, masked, beside)
    return _lifted(np.array(x)).reshape(shape), info


class _HostBackend(NumpyBackend):
    """NumPy, with the derivatives of a `_OnHost`, which are exact."""

    measures = False
    prefers_transpose = True

    @property
    def refined(self) -> None:
        return None

    def precision(self, dtype: Any) -> float:
        return float(np.finfo(dtype).eps)

    # PyTorch has loops over the systems of a batch, and counts rows from one

    def lu_factor(self, matrix: Array) -> Factors:
        if matrix.ndim == 2 or matrix.shape[-1] == 1:
            return super().lu_factor(matrix)
        factors, pivots, _ = torch.linalg.lu_factor_ex(_lifted(matrix))
        return Factors(_lowered(factors), _lowered(pivots) - 1)

    def lu_solve(self, factors: Factors, rhs: Array, transpose: bool = False) -> Array:
        matrix, pivots = factors
        if matrix.ndim == 2 or rhs.shape[-1] == 1:
            return super().lu_solve(factors, rhs, transpose)
        several = rhs.ndim == matrix.ndim  # right-hand sides of the same matrices are columns
        columns = np.moveaxis(rhs, 0, -1) if several else rhs[..., None]
        x = _lowered(torch.linalg.lu_solve(*map(_lifted, (matrix, pivots + 1, columns)), adjoint=transpose))
        return np.moveaxis(x, -1, 0) if several else x[..., 0]


@dataclass(frozen=True)
class _OnHost(Residual):
    """A residual of tensors, `there`, as one of NumPy's arrays."""

    there: Residual = field(kw_only=True)

    @property
    def differentiable(self) -> bool:
        return self.there.differentiable

    def with_jacobian(self, y: Array) -> tuple[Array, Array]:
        f, matrix = self.there.with_jacobian(_lifted(y))
        return _lowered(f), _lowered(matrix)

    def jacobian(self, y: Array) -> Array:
        return _lowered(self.there.jacobian(_lifted(y)))

    def jvp(self, y: Array, tangent: Array) -> Array:
        return _lowered(self.there.jvp(_lifted(y), _lifted(tangent)))

    def vjp(self, y: Array, cotangent: Array) -> Array:
        return _lowered(self.there.vjp(_lifted(y), _lifted(cotangent)))

    def products(self, y: Array, vectors: Array, transpose: bool = False) -> tuple[Array, Array | None]:
        return _lowered(self.there.products(_lifted(y), _lifted(vectors), transpose)[0]), None

    def operator(self, y: Array) -> LinearOperator:
        there = self.there.operator(_lifted(y))

        def product(function: Callable[[Tensor], Tensor], vector: Array) -> Array:
            return _lowered(function(_lifted(vector)))

        kind = OfFixedPoint if self.fixed_point else LinearOperator
        products = partial(product, there.matvec), partial(product, there.rmatvec)
        return kind(self.backend, *products, lambda: _lowered(there.dense()), there.precision, there.shape)


def _on_host(residual: Residual, backend: NumpyBackend) -> _OnHost:
    """Return a residual of tensors as one of arrays; that of some systems of the batch too."""
    take = residual.take

    def function(y: Array, *parameters: Tensor) -> Array:
        return _lowered(residual.function(_lifted(y), *parameters))

    def taken(pick: Pick, count: int) -> Residual:
        assert take is not None
        return _on_host(take(lambda tensor: _lifted(pick(_lowered(tensor))), count), backend)

    return _OnHost(
        function,
        residual.parameters,
        backend,
        take=take and taken,
        fixed_point=residual.fixed_point,
        there=residual,
    )


def _from_one(part: Any) -> Any:
    """Return LU factors whose pivots are counted from one, as PyTorch does; anything else as it is."""
    return part._replace(pivots=part.pivots + 1) if isinstance(part, Factors) else part


def _lowered(tensor: Tensor) -> Array:
    return (tensor.detach() if tensor.requires_grad else tensor).resolve_neg().numpy()


def _lifted(array: Array) -> Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
