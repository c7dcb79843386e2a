"""Optimistix' solvers, imported when one is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import jax.numpy as jnp

from rootdiff._backend import Array
from rootdiff._errors import ArgumentError
from rootdiff._registry import register_solver
from rootdiff._residual import Residual
from rootdiff._settings import runtime
from rootdiff._solution import RawSolution, Status
from rootdiff._solver import Solver
from rootdiff._space import max_norm
from rootdiff._verdict import judged
from rootdiff.solvers._wrapped import check_reach, ended, imported

Method = Literal["Newton", "Chord", "Dogleg", "LevenbergMarquardt", "BFGS"]
_METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True, kw_only=True)
class Optimistix(Solver):
    """A solver of Optimistix (extra ``optimistix``); BFGS minimises the sum of squares.

    In `least_squares` it takes the equations, in `minimize` BFGS the objective.

    Whether a point is a root is judged by rootdiff: its residual must be one that a change of `y` within tolerance
    explains. Derivatives are rootdiff's too, so they are those of the residual itself, also after a minimiser.

    Parameters
    ----------
    method : {"Newton", "Chord", "Dogleg", "LevenbergMarquardt", "BFGS"}
    rtol, atol : float, optional
        Tolerances on `y`, with the meaning and defaults of `IterativeSolver`; Optimistix is given the same.
    max_steps : int
        Steps after which Optimistix gives up.

    Notes
    -----
    A batch (``batch_ndim > 0``) is solved as one large system. For many systems use ``jax.vmap`` or a native solver.

    References
    ----------
    Rader, Lyons & Kidger (2024), "Optimistix: modular optimisation in JAX and Equinox".

    Examples
    --------
    >>> import jax.numpy as jnp, rootdiff_jax as rd
    >>> solver = rd.Optimistix(method="Dogleg")
    >>> rd.root(lambda y, a: y**3 - a, jnp.array([1.0]), jnp.array([8.0]), solver=solver).y.round(5).tolist()
    [2.0]
    """

    method: Method = "Newton"
    rtol: float | None = runtime(None)
    atol: float | None = runtime(None)
    max_steps: int = 256

    def solve(self, residual: Residual, y0: Array) -> RawSolution:
        if residual.backend.reverse_only:  # type: ignore[attr-defined]
            raise ArgumentError(
                f"solver: {self.method} of Optimistix needs forward-mode derivatives, but the residual holds a "
                "custom_vjp. Use a native solver such as 'newton', or give the function a custom_jvp."
            )
        check_reach(f"{self.method} of Optimistix", residual)
        solver = self.resolved(y0.dtype, jnp)
        y, steps = solver._run(residual, y0)
        if solver._minimises(residual):
            return ended(solver, residual, y0, y, steps)
        first = residual(y0)
        norm, first_norm = max_norm(jnp, residual(y)), max_norm(jnp, first)
        status = jnp.where(steps >= self.max_steps, int(Status.MAX_STEPS), int(Status.STALLED))
        status = jnp.where(jnp.isfinite(norm), status, int(Status.NONFINITE))
        status = jnp.where(jnp.isfinite(first_norm), status, int(Status.NONFINITE_START))
        status = jnp.where(norm == 0, int(Status.CONVERGED), status)
        steps = jnp.broadcast_to(jnp.astype(steps, jnp.int32), status.shape)
        started = jnp.isfinite(norm) & jnp.isfinite(first_norm)
        return judged(solver, residual, y0, first, RawSolution(y, status, steps, norm), started)

    def _minimises(self, residual: Residual) -> bool:
        """Whether what is minimised is known, and this method is one for it; else it finds a root of the gradient."""
        of_squares = residual.squares is not None and self.method in ("LevenbergMarquardt", "Dogleg", "BFGS")
        return of_squares or (residual.objective is not None and self.method == "BFGS")

    def _run(self, residual: Residual, y0: Array) -> tuple[Array, Array]:
        optimistix = imported("optimistix", "Optimistix")
        function: Any = residual
        search = optimistix.root_find
        if self._minimises(residual):
            equations: Any = residual.equations
            of_squares = residual.squares is not None
            search = optimistix.least_squares if of_squares else optimistix.minimise
            function = equations if of_squares else (lambda y: jnp.sum(equations(y)))
        method = getattr(optimistix, self.method)(rtol=self.rtol, atol=self.rtol if self.atol is None else self.atol)
        solution = search(lambda y, _: function(y), method, y0, max_steps=self.max_steps, throw=False)
        return solution.value, solution.stats["num_steps"]


for _method in _METHODS:
    register_solver(f"optimistix:{_method}", partial(Optimistix, method=_method), backends=["jax"])  # type: ignore[arg-type]
