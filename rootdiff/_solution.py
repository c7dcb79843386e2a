"""What a solve returns, and why it stopped."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Self

from rootdiff._backend import Array
from rootdiff._errors import ArgumentTypeError
from rootdiff._inverse import Inverse

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Y = TypeVar("Y", default=Any)
else:
    from typing import TypeVar

    Y = TypeVar("Y")


class Status(IntEnum):
    """Why a solve stopped, per system; `CONVERGED` and `AT_PRECISION` are successes.

    Attributes
    ----------
    cause, remedy : str. What happened, and what to try next, in words; a success has no remedy.

    Examples
    --------
    >>> from rootdiff import Status
    >>> Status.MAX_STEPS.cause
    'the step limit was reached'
    """

    cause: str
    remedy: str

    def __new__(cls, value: int, cause: str = "", remedy: str = "") -> Self:
        status = int.__new__(cls, value)
        status._value_, status.cause, status.remedy = value, cause, remedy
        return status

    CONVERGED = (0, "the estimated error of y is within tolerance")
    AT_PRECISION = (
        1,
        "the residual is down to its own rounding noise; the error that this leaves in y, beyond tolerance, is `error`",
    )
    RUNNING = (2, "the solve has not stopped")
    MAX_STEPS = (3, "the step limit was reached", "raise max_steps, start closer to the root, or try another solver")
    STALLED = (
        4,
        "no step reduces the residual any further, and it is not zero (a minimum of |f|, a kink or a wrong derivative)",
        "start elsewhere, try another solver, and check that the residual has a root and is smooth",
    )
    SINGULAR = (
        5,
        "the Jacobian is singular to working precision",
        "start elsewhere; check for a redundant equation, an unknown the residual does not depend on, or a residual "
        "that tends to zero without a root, as 1/cosh(y) does",
    )
    NONFINITE = (
        6,
        "the Jacobian, or the residual after every trial step, is NaN or infinite",
        "start elsewhere or closer to the root, or rewrite the residual so that it and its derivative are finite there",
    )
    NONFINITE_START = (
        7,
        "the residual at y0, or at an end of the bracket, has NaN or infinite entries",
        "choose a start (and args) at which the residual is finite",
    )
    INVALID_BRACKET = (
        8,
        "the residual does not change its sign between the ends of the bracket, as far as they could be searched for",
        "give a bracket (lo, hi) at whose ends the residual has opposite signs, or one starting point to search from",
    )
    ILL_DETERMINED = (
        9,
        "the rounding noise of the residual, or its underflow, may leave unknowns without a digit",
        "use float64, write the residual without cancellation, or scale it so that it does not underflow",
    )
    RANDOM = (
        10,
        "the residual is random: it had another value when it was evaluated again at the same y",
        "draw the random numbers before the solve and pass them through args (for dropout: one mask per solve)",
    )
    WRONG_SPARSITY = (
        11,
        "the Jacobian has entries outside of jac_sparsity",
        "give a pattern that has them: where entries come and go with y, that of several points, "
        "detect_sparsity(residual, y0, *args) | detect_sparsity(residual, y1, *args)",
    )
    SADDLE = (
        12,
        "the gradient is zero at y, but there is a direction along which the objective falls: a saddle or a maximum",
        "start elsewhere, beside any symmetry that the start has",
    )
    STOPPED = (
        13,
        "the callback returned True",
        "on_failure='keep' returns the best iterate; to go on, return nothing from the callback",
    )
    MAX_EVALUATIONS = (
        14,
        "the limit on the calls of the residual was reached",
        "check that the residual has a root, start closer to it, or raise max_evaluations",
    )
    DEGENERATE = (
        15,
        "y is a minimum where a bound is only just reached: an unknown lies on it and the gradient along it is zero, "
        "both to within tolerance, so that y has one-sided derivatives only",
        "on_failure='keep' returns this y, whose derivatives are NaN; to have derivatives, move the bound, or leave it "
        "away, or fix the unknown there",
    )
    UNBOUNDED = (
        16,
        "the objective falls no slower the farther y goes: at y it has no minimum in sight",
        "add bounds, or check the sign of the objective; if there is a minimum so far out, tell its size by y_scale",
    )
    INFEASIBLE = (
        17,
        "nothing lies within the bounds: lo is above hi, or one of them is NaN",
        "see to what the bounds are computed from",
    )

    @property
    def success(self) -> bool:
        """Whether the returned point is a root to the accuracy asked for, or to that of its dtype."""
        return self <= Status.AT_PRECISION


class Method(IntEnum):
    """The solver that a system's result is from, as ``Solution.method`` holds it; `OTHER` is one of the user's.

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]))
    >>> rootdiff.Method(int(sol.method)).name
    'NEWTON'
    """

    OTHER = 0
    NEWTON = 1
    CHORD = 2
    BROYDEN = 3
    TRUST_REGION = 4
    LEVENBERG_MARQUARDT = 5
    PSEUDO_TRANSIENT = 6
    NEWTON_KRYLOV = 7
    FIXED_POINT = 8
    ANDERSON = 9
    DF_SANE = 10
    BISECTION = 11
    ITP = 12
    CHANDRUPATLA = 13
    BRACKETED_NEWTON = 14
    SCIPY = 15
    OPTIMISTIX = 16
    GAUSS_NEWTON = 17


class RawSolution(NamedTuple):
    """What a solver hands back, on flat vectors.

    Attributes
    ----------
    y : array, (*batch, n). The root, or the best iterate of a system that failed.
    status : integer array, (*batch). `Status` values.
    steps : integer array, (*batch). Steps taken.
    residual_norm : array, (*batch). Largest absolute residual at `y`.
    factors : Inverse or None
        What the solver knows of the inverse Jacobian near `y`, for the adjoint solve to start from: LU factors, or
        those with a low-rank update.
    method : integer array, (*batch), or None
        `Method` values; None stands for the solver itself.
    error : array, (*batch, n), or None
        Estimate of the error of `y`, in its units; infinite where nothing is known of it.
    """

    y: Array
    status: Array
    steps: Array
    residual_norm: Array
    factors: Inverse | None = None
    method: Array | None = None
    error: Array | None = None


class Solution(NamedTuple, Generic[Y]):
    """A root and how it was found; a pytree, so that it passes through ``jit``, ``vmap`` and ``torch.func``.

    Attributes
    ----------
    y : pytree like `y0`
        The root; of a failed system the best iterate, or NaN under "warn" and "nan". The only field
        that is differentiable, with `aux` and `multipliers`.
    status : integer array, (*batch). `Status` values.
    steps : integer array, (*batch). Steps taken.
    residual_norm : array, (*batch). Largest absolute residual at `y`, in the units of the residual.
    method : integer array, (*batch). `Method` values: which solver of a `Chain`, such as "auto", `y` came from.
    history : History or None
        What each step did, where ``history=True`` asked for it; else None (in PyTorch ()).
    sensitivities : Sensitivities or None
        The derivatives of `y`, for NumPy, which has no tape; None in JAX, () in PyTorch.
    error : pytree like `y`, or None
        Estimate of the error of each unknown, in its units; infinite where the solver has none. Of a system that is
        `CONVERGED` it is within tolerance, of one `AT_PRECISION` it is what rounding leaves; infinite, not known, only
        where no Jacobian can be formed (of more than 1024 unknowns, of a residual that calls out of a JAX program), or
        where it is singular at a residual of zero: then `y` is one root of many, as far as is known.
    approximate : boolean array, (*batch)
        Whether derivatives of `y` are approximate by the choice of adjoint: `OneStep`, `Neumann`, `Phantom`, `Reuse`.
    aux : pytree or None
        What else the residual returns at `y`, where ``has_aux=True`` asked for it, with its whole derivative, through
        `y` too (in NumPy the value alone); else None (in PyTorch ()).
    evaluations : int or None
        Calls of the residual in the whole solve, of all systems of a batch at once: with those for differences, for the
        verdict on `y` and for `aux`, without those of derivatives of `y` that are taken later. In NumPy; else None (in
        PyTorch ()), since Python does not see what a compiled or a recorded program evaluates.
    multipliers : dict of arrays, (*batch, number), or None
        Of `minimize` under constraints, as "equality" and "inequality": u and v >= 0, by which the gradient of the
        objective plus u times `equality` plus v times `inequality` is zero. Differentiable, in NumPy values alone.
        Without constraints None (in PyTorch ()).

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> sol = rootdiff.root(lambda y, a: y**2 - a, np.array([1.0]), np.array([2.0]))
    >>> bool(sol.converged), sol.y
    (True, array([1.41421356]))
    """

    y: Y
    status: Array
    steps: Array
    residual_norm: Array
    method: Array | None = None
    history: Any = None
    sensitivities: Any = None
    approximate: Any = None
    error: Any = None
    aux: Any = None
    evaluations: Any = None
    multipliers: Any = None

    @property
    def converged(self) -> Array:
        """Boolean array, (*batch): whether each system's `status` is a success."""
        return self.status <= int(Status.AT_PRECISION)

    def vjp(self, cotangent: Any, argnums: int | tuple[int, ...] | None = None, several: bool = False) -> Any:
        """Return the cotangents of the arguments, one entry per argument (NumPy only).

        Parameters
        ----------
        cotangent : pytree like `y`
            The derivative of a scalar with respect to `y`.
        argnums : int or tuple of ints, optional
            The arguments to differentiate in, by their numbers in `args`; the others are constants, and cost nothing.
        several : bool
            Whether each leaf of `cotangent`, and then of the result, has one axis more, its first, along which there
            are several cotangents: they share one factorisation and one set of differences.

        Returns
        -------
        tuple
            One pytree per argument, or that of the one argument where `argnums` is an int; None stands where a leaf is
            not floating.

        Raises
        ------
        ArgumentError
            If `argnums` or `cotangent` do not fit the solve.
        AdjointError
            If the linear solve fails and ``on_failure="raise"``.
        """
        return self._sensitivities().vjp(cotangent, **_named(argnums, several))

    def jvp(self, *tangents: Any, argnums: int | tuple[int, ...] | None = None, several: bool = False) -> Any:
        """Return the derivative of `y`, a pytree like it, along one tangent per argument (NumPy only).

        Parameters
        ----------
        *tangents : pytrees
            One per argument, like it; None stands for zero, and costs nothing.
        argnums : int or tuple of ints, optional
            The arguments that the tangents are of, if not of all.
        several : bool
            Whether each leaf of the tangents, and then of the result, has one axis more, as for `vjp`.

        Raises
        ------
        ArgumentError
            If `argnums` or `tangents` do not fit the solve.
        AdjointError
            If the linear solve fails and ``on_failure="raise"``.
        """
        return self._sensitivities().jvp(*tangents, **_named(argnums, several))

    def jacobian(self, argnums: int | tuple[int, ...] | None = None) -> Any:
        """Return dy/dargs, one entry per argument (NumPy only).

        Parameters
        ----------
        argnums : int or tuple of ints, optional
            As for `vjp`.

        Returns
        -------
        tuple
            One pytree per argument, or that of the one argument where `argnums` is an int; its leaves have shape
            ``y.shape + leaf.shape`` (a pytree like `y` of them, where `y` is not a single array). None stands where a
            leaf is not floating.

        Raises
        ------
        ArgumentError
            If `argnums` does not fit the solve.
        AdjointError
            If the linear solve fails and ``on_failure="raise"``.
        """
        return self._sensitivities().jacobian(**_named(argnums))

    def _sensitivities(self) -> Any:
        if not self.sensitivities:  # None, or () in PyTorch, to whose vmap None is an output
            raise ArgumentTypeError(
                "Solution: vjp, jvp and jacobian belong to NumPy, which has no tape. In PyTorch and JAX the root "
                "sol.y is differentiable: use torch.autograd or torch.func, jax.grad or jax.jvp."
            )
        return self.sensitivities


# PyTorch 2.6 takes a class for a named tuple, and so for a pytree, only if `tuple` is its one base.
Solution.__bases__ = (tuple,)


def _named(argnums: int | tuple[int, ...] | None, several: bool = False) -> dict[str, Any]:
    """Return the keywords that are not as by default, to pass on: derivatives of other adapters need not know them."""
    return ({} if argnums is None else {"argnums": argnums}) | ({"several": True} if several else {})
