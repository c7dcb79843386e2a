"""Solvers of this library as root finders of Optimistix, and so of diffrax (extra ``optimistix``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

try:
    import equinox as eqx
    import optimistix as optx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "rootdiff_jax.optimistix: Optimistix is not installed. Install rootdiff with it: pip install "
        "'rootdiff[optimistix]'.",
        name="optimistix",
    ) from error

import jax.numpy as jnp

from rootdiff import Solver, Status
from rootdiff_jax._adapter import root

__all__ = ["RootFinder"]


class RootFinder(optx.AbstractRootFinder[Any, Any, Any, Any]):
    """A root finder for ``optimistix.root_find``, and for the implicit solvers of diffrax, that runs a solver of ours.

    What Optimistix counts as one step is a whole solve. Whether its point is a root is judged as in `root`; where it is
    none, the result tells: ``nonlinear_divergence``, ``singular``, ``nonfinite`` or ``nonlinear_max_steps_reached``.
    Derivatives are those of Optimistix' `adjoint`.

    Parameters
    ----------
    solver : str or Solver
        As for `root`.
    rtol, atol : float, optional
        As for `root`.
    max_steps : int, optional
        Steps of the solver, as for `root`; those of `optimistix.root_find` count solves.

    Examples
    --------
    >>> import jax.numpy as jnp, optimistix
    >>> from rootdiff_jax.optimistix import RootFinder
    >>> found = optimistix.root_find(lambda y, a: y**3 - a, RootFinder("newton"), jnp.array(1.0), 8.0)
    >>> round(float(found.value), 4)
    2.0
    """

    solver: str | Solver = eqx.field(default="auto", static=True)
    rtol: float | None = None  # type: ignore[assignment]
    atol: float | None = None  # type: ignore[assignment]
    max_steps: int | None = eqx.field(default=None, static=True)
    norm: Callable[[Any], Any] = optx.max_norm

    def init(self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any) -> Any:
        """Return the state before the solve: a status."""
        return jnp.asarray(int(Status.RUNNING), jnp.int32)

    def step(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> tuple[Any, Any, Any]:
        """Return the root, its status, and what else `fn` returns there."""
        sol = root(
            lambda y: fn(y, args)[0],
            y,
            solver=self.solver,
            rtol=self.rtol,
            atol=self.atol,
            max_steps=self.max_steps,
            on_failure="ignore",
        )
        return sol.y, sol.status, fn(sol.y, args)[1]

    def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> tuple[Any, Any]:
        """Return whether there has been a solve, and how it ended."""
        results, result = optx.RESULTS, optx.RESULTS.successful
        result = results.where(state > int(Status.RUNNING), results.nonlinear_divergence, result)
        for status, told in (
            (Status.MAX_STEPS, results.nonlinear_max_steps_reached),
            (Status.SINGULAR, results.singular),
            (Status.NONFINITE, results.nonfinite),
            (Status.NONFINITE_START, results.nonfinite),
        ):
            result = results.where(state == int(status), told, result)
        return state != int(Status.RUNNING), result

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        """Return `y` and `aux` as they are, and the `Status`."""
        return y, aux, {"status": state}
