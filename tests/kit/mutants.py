"""Solvers, adjoints and entry points that are wrong on purpose, one mistake each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

import rootdiff
from rootdiff import GMRES, LU, LinearInfo, Newton, Status

_CALLS = count()


def _good(operator: Any, rhs: Any) -> tuple[Any, LinearInfo]:
    return LU().solve(operator, rhs)


def _claimed(operator: Any, x: Any) -> LinearInfo:
    """Return the report of a solve that went well."""
    xp = operator.backend.xp
    norm = xp.zeros_like(x[..., 0])
    return LinearInfo(xp.zeros_like(norm, dtype=xp.int32), norm)


@dataclass(frozen=True)
class Wrong(rootdiff.LinearSolver):
    """An adjoint solver made of a mistake: ``mistake(operator, rhs)`` returns x, a success by its own account."""

    mistake: Callable[[Any, Any], Any]
    lies: bool = True

    def solve(self, operator: Any, rhs: Any) -> tuple[Any, LinearInfo]:
        x = self.mistake(operator, rhs, *((self.known,) if self.mistake is stale_factors else ()))
        info = _claimed(operator, x)
        return x, info if self.lies else info._replace(relative_residual=None)


def minus_dropped(operator: Any, rhs: Any) -> Any:
    return -_good(operator, rhs)[0]


def inverse_dropped(operator: Any, rhs: Any) -> Any:
    return rhs


def transposed(operator: Any, rhs: Any) -> Any:
    return _good(operator.T, rhs)[0]


def diagonal_only(operator: Any, rhs: Any) -> Any:
    return rhs / operator.backend.xp.linalg.diagonal(operator.dense())


def leaf_blocks_only(operator: Any, rhs: Any) -> Any:
    """Two unknowns in the first leaf, the others in the second."""
    matrix = np.array(operator.dense())
    matrix[..., :2, 2:] = 0
    matrix[..., 2:, :2] = 0
    return np.linalg.solve(matrix, rhs[..., None])[..., 0]


def stale_factors(operator: Any, rhs: Any, known: Any) -> Any:
    return _good(operator, rhs)[0] if known is None else operator.inverted_by(known)(rhs)


def float32_inside(operator: Any, rhs: Any) -> Any:
    backend = operator.backend
    return backend.lu_solve(backend.lu_factor(np.float32(operator.dense())), np.float32(rhs)).astype(rhs.dtype)


def loose(operator: Any, rhs: Any) -> Any:
    """An iteration that stops a relative 1e-4 away."""
    x = _good(operator, rhs)[0]
    return x * (1 + 1e-4 * np.cos(np.arange(x.shape[-1])))


def batch_averaged(operator: Any, rhs: Any) -> Any:
    x = _good(operator, rhs)[0]
    return x / x.shape[0] if x.ndim > 1 else x


def batch_spoilt(operator: Any, rhs: Any) -> Any:
    """One system of the batch that fails makes all fail."""
    x = _good(operator, rhs)[0]
    return x if np.all(np.isfinite(x)) else np.full_like(x, np.nan)


def another_each_time(operator: Any, rhs: Any) -> Any:
    return _good(operator, rhs)[0] * (1 + 1e-12 * next(_CALLS))


def halved(operator: Any, rhs: Any) -> Any:
    return 0.5 * _good(operator, rhs)[0]


def wrong_sign_in_one_unknown(operator: Any, rhs: Any) -> Any:
    x = np.array(_good(operator, rhs)[0])
    x[..., 0] *= -1
    return x


def systems_permuted(operator: Any, rhs: Any) -> Any:
    x = _good(operator, rhs)[0]
    return np.roll(x, 1, axis=0) if x.ndim > 1 else x


def first_matrix_for_all(operator: Any, rhs: Any) -> Any:
    matrix = operator.dense()
    return np.linalg.solve(matrix if matrix.ndim == 2 else matrix[:1], rhs[..., None])[..., 0]


def lower_triangle_only(operator: Any, rhs: Any) -> Any:
    return np.linalg.solve(np.tril(operator.dense()), rhs[..., None])[..., 0]


def krylov_cut_short(operator: Any, rhs: Any) -> Any:
    return GMRES(restart=2, max_restarts=1).solve(operator, rhs)[0]


def small_directions_cut_off(operator: Any, rhs: Any) -> Any:
    return (np.linalg.pinv(operator.dense(), rcond=1e-2) @ rhs[..., None])[..., 0]


def normal_equations(operator: Any, rhs: Any) -> Any:
    """Right, but for the digits of the squared condition."""
    matrix = operator.dense()
    across = np.swapaxes(matrix, -1, -2)
    return np.linalg.solve(across @ matrix, across @ rhs[..., None])[..., 0]


def rhs_changed_in_place(operator: Any, rhs: Any) -> Any:
    x = _good(operator, rhs)[0]
    rhs *= 2
    return x


@dataclass(frozen=True, kw_only=True)
class WrongNewton(rootdiff.Solver):
    """Newton's method with a mistake: ``mistake(raw, residual, y0)`` changes what it returns."""

    mistake: Callable[[Any, Any, Any], Any]
    rtol: float | None = None
    max_steps: int = 50

    def solve(self, residual: Any, y0: Any) -> Any:
        raw = Newton(rtol=self.rtol, max_steps=self.max_steps).solve(residual, y0)
        return self.mistake(raw, residual, y0)


def _as_success(raw: Any) -> Any:
    return raw._replace(status=np.zeros_like(raw.status))


def one_step_early(raw: Any, residual: Any, y0: Any) -> Any:
    steps = max(int(np.max(raw.steps)) - 2, 0)
    early = Newton(max_steps=steps).solve(residual, y0)
    return _as_success(early) if np.all(raw.status <= Status.AT_PRECISION) else raw


def tolerance_ignored(raw: Any, residual: Any, y0: Any) -> Any:
    return Newton(rtol=1e-4, atol=1e-4).solve(residual, y0)


def max_steps_ignored(raw: Any, residual: Any, y0: Any) -> Any:
    return _as_success(raw) if np.all(raw.status == Status.MAX_STEPS) else raw


def one_status_for_all(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(status=np.broadcast_to(np.max(raw.status), raw.status.shape).astype(np.int32))


def best_status_for_all(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(status=np.broadcast_to(np.min(raw.status), raw.status.shape).astype(np.int32))


def nan_as_success(raw: Any, residual: Any, y0: Any) -> Any:
    """A comparison with NaN that comes out the wrong way: not (norm > tolerance)."""
    return raw._replace(status=np.where(raw.residual_norm > 1e-6, raw.status, 0).astype(np.int32))


def float32_solve(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(y=raw.y.astype(np.float32).astype(raw.y.dtype))


def float64_result(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(y=raw.y.astype(np.float64))


def start_returned(raw: Any, residual: Any, y0: Any) -> Any:
    return _as_success(raw)._replace(y=y0)


def norm_of_the_start(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(residual_norm=np.max(np.abs(residual(y0)), axis=-1))


def steps_not_counted(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(steps=np.zeros_like(raw.steps))


def systems_mixed(raw: Any, residual: Any, y0: Any) -> Any:
    """A step length shared by the batch: the others leave a trace in each root."""
    if raw.y.ndim < 2:
        return raw
    return raw._replace(y=raw.y + 1e-7 * np.mean(np.nan_to_num(raw.y), axis=0, keepdims=True))


def another_root_each_time(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(y=raw.y * (1 + 1e-12 * next(_CALLS)))


def residual_minimised(raw: Any, residual: Any, y0: Any) -> Any:
    """Success is claimed wherever the search stalled: at minima of |f|."""
    stalled = (raw.status == Status.STALLED) | (raw.status == Status.MAX_STEPS)
    return raw._replace(status=np.where(stalled, 0, raw.status).astype(np.int32))


def small_residual_is_a_root(raw: Any, residual: Any, y0: Any) -> Any:
    """A fixed number that |f| is compared with, whatever its units."""
    return raw._replace(status=np.where(raw.residual_norm < 1e-3, 0, raw.status).astype(np.int32))


def first_root_for_all(raw: Any, residual: Any, y0: Any) -> Any:
    return raw if raw.y.ndim < 2 else raw._replace(y=np.repeat(raw.y[:1], len(raw.y), axis=0))


def one_status(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(status=np.max(raw.status))


def norm_zero(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(residual_norm=np.zeros_like(raw.residual_norm))


def never_a_success(raw: Any, residual: Any, y0: Any) -> Any:
    return raw._replace(status=np.full_like(raw.status, int(Status.MAX_STEPS)))


def jacobian_of_the_start(raw: Any, residual: Any, y0: Any) -> Any:
    """A stale Jacobian for a few steps, then a success is claimed."""
    y, matrix = y0, residual.jacobian(y0)
    for _ in range(6):
        y = y - np.linalg.solve(matrix, residual(y)[..., None])[..., 0]
    return _as_success(raw)._replace(y=y)


def with_start_changed(raw: Any, residual: Any, y0: Any) -> Any:
    if y0.flags.writeable:
        y0 += 1.0
    return raw


def torch_root(mistake: str) -> Callable[..., Any]:
    """Return an entry point for PyTorch that is differentiable, with one mistake in its rule."""
    import torch

    import rootdiff_torch

    def root(f: Any, y0: Any, theta: Any, *more: Any, **_: Any) -> Any:
        with torch.no_grad():
            y = rootdiff_torch.root(f, y0.detach(), theta.detach(), *(arg.detach() for arg in more)).y
            at = y0 if mistake == "early" else y
            jacobian = torch.func.jacrev(lambda y: f(y, theta.detach(), *(arg.detach() for arg in more)))(at).detach()
        if mistake == "forgotten arg":
            more = tuple(arg.detach() for arg in more)
        if mistake == "y0 added":
            return y - torch.linalg.solve(jacobian, f(y, theta, *more)) + (y0 - y0.detach())
        if mistake == "one step":
            return y - f(y, theta, *more) + f(y, theta, *more).detach()
        if mistake == "counted twice":
            return y - 2 * torch.linalg.solve(jacobian, f(y, theta, *more))
        if mistake == "early":
            return y - torch.linalg.solve(jacobian, f(y0, theta, *more) - f(y0, theta, *more).detach())
        if mistake == "stale":
            start = torch.func.jacrev(lambda y: f(y, theta.detach()))(y0).detach()
            return y - torch.linalg.solve(start, f(y, theta, *more))
        assert mistake == "constant Jacobian"  # the re-attaching trick: right once, wrong twice
        return y - torch.linalg.solve(jacobian, f(y, theta, *more))

    return root
