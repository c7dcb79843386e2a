"""Newton corrections, for solvers that take no Jacobian and so cannot tell a stall from a multiple root."""

from __future__ import annotations

from typing import Any

from rootdiff._backend import Array
from rootdiff._iterate import State
from rootdiff._residual import Residual
from rootdiff._sizes import is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._space import every, max_norm, norm2
from rootdiff._verdict import CONTRACTION, allowed_error, is_deep, start_scale

#: Each shrinks the error to (m-1)/m of its size: enough for ten digits next to a root of multiplicity 5.
_CORRECTIONS = 100


def corrected(
    solver: Any, residual: Residual, first_norm: Array, raw: RawSolution, stopped: Array, dense: bool = False
) -> RawSolution:
    """Return the solution after full Newton corrections of the `stopped` systems, (*batch), that are next to a root.

    The secants of a solver do not tell the error next to a multiple root, a Newton correction does. Corrections are
    made from where f has fallen to the square root of `rtol` of its value at the start, until one is within tolerance,
    as long as each reduces f as it does next to a root, or, of a gradient, the correction after it. Above the sizes at
    which a Jacobian is formed by default, unless `dense` tells that the solver forms it, that of a gradient, and where
    there is none, nothing is done.

    Parameters
    ----------
    solver : with the settings `rtol` and `atol`, filled in.
    first_norm : array, (*batch). Largest absolute residual at the start.

    References
    ----------
    Decker, Keller & Kelley (1983), "Convergence rates for Newton's method at singular points". Deuflhard (2011),
    "Newton Methods for Nonlinear Problems", chapter 2.
    """
    if not (residual.differentiable and (dense or is_dense(tuple(raw.y.shape)))):
        return raw
    xp, backend = residual.xp, residual.backend

    def correct(carry: tuple[Array, RawSolution]) -> tuple[Array, RawSolution]:
        going, raw = carry
        f, matrix = residual.with_jacobian(raw.y)
        factors = backend.lu_factor(matrix)
        direction = -backend.lu_solve(factors, f)
        y = residual.moved(raw.y, xp.where(xp.isfinite(direction), direction, 0.0))
        f_new = residual(y)
        norm = max_norm(xp, f_new)
        contracts = norm2(xp, f_new) <= CONTRACTION * norm2(xp, f)
        scale = start_scale(xp, y, residual.scale)
        allowed = allowed_error(xp, solver, y, scale, is_deep(solver, norm, first_norm))
        if dense:  # rows of a gradient have units of their own: rounding of one may hide what the others gain
            rest, limits = xp.abs(backend.lu_solve(factors, f_new)), xp.finfo(f.dtype)
            unit = xp.where(allowed > 0, allowed, xp.full_like(allowed, float(limits.smallest_normal)))
            gained = max_norm(xp, rest / unit) <= CONTRACTION * max_norm(xp, direction / unit)
            contracts = contracts | gained | every(xp, rest <= 4 * float(limits.eps) * xp.abs(y))
        contracts = going & contracts
        within = contracts & ((norm == 0) | every(xp, xp.abs(direction) <= allowed))
        steps = xp.astype(raw.steps + xp.astype(contracts, xp.int32), xp.int32)
        return contracts & ~within & (steps < last), raw._replace(
            y=xp.where(contracts[..., None], y, raw.y),
            status=xp.astype(xp.where(within, int(Status.CONVERGED), raw.status), xp.int32),
            steps=steps,
            residual_norm=xp.where(contracts, norm, raw.residual_norm),
            error=xp.where(within[..., None], xp.abs(direction), raw.error),
        )

    last = raw.steps + _CORRECTIONS
    near = stopped & (raw.residual_norm <= solver.rtol**0.5 * first_norm)
    raw = raw._replace(status=xp.astype(raw.status, xp.int32))
    return backend.while_loop(lambda carry: xp.any(carry[0]), correct, (near, raw))[1]  # type: ignore[no-any-return]


def corrected_minimum(solver: Any, residual: Residual, raw: RawSolution) -> RawSolution:
    """Return the solution after Newton corrections of the gradient, where what is minimised falls no further."""
    xp = residual.xp
    raw = raw._replace(residual_norm=max_norm(xp, residual(raw.y)))
    done = (raw.status == int(Status.STALLED)) | (raw.status == int(Status.CONVERGED))
    return corrected(solver, residual, xp.full_like(raw.residual_norm, xp.inf), raw, done, dense=True)


def with_error_of(xp: Any, whole: Array, taken: Array, old: State, new: State) -> State:
    """Return the state after a `whole` step that was `taken`, which is longer than the error it leaves if f halves."""
    halved = norm2(xp, new.iterate.f) <= 0.5 * norm2(xp, old.iterate.f)
    error = xp.where((taken & halved)[..., None], xp.abs(whole), new.iterate.error)
    return new._replace(iterate=new.iterate._replace(error=error))
