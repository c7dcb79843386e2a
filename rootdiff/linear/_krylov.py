"""What the iterative linear solvers share: cycles from the true residual, tolerances, preconditioners."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from rootdiff._backend import Array, Backend, keep, select, status_where
from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator, OfFixedPoint
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import is_finite, norm2
from rootdiff.linear._base import LinearInfo, LinearSolver, relative_size
from rootdiff.linear._contract import backward_stable

Product: TypeAlias = Callable[[Array], Array]

#: Products within which the iteration must be on its way to converge: then a Krylov space would save few of them.
_PRODUCTS = 24


class Start(NamedTuple):
    """Where a solver starts: x with its residual ``b - A x``, (*batch, n), and the norm of that, (*batch)."""

    x: Array
    residual: Array
    norm: Array


def contract(operator: LinearOperator, rhs: Array, start: Start, goal: Array, inverse: Product | None) -> Start:
    """Return where ``x + M (b - A x)`` leads, in the systems in which that is on its way to a residual norm of `goal`.

    M is the `inverse`, or -1 where there is none. For a fixed point z = cell(z) the Jacobian is A = G - I, and
    with M = -1 this sums the Neumann series of the cell: one product a step, and no other work, as long as the cell
    contracts. A system that will not be done within a few products stops where it is.

    References
    ----------
    Bai, Kolter & Koltun (2019), "Deep equilibrium models", section 3.1.3, the backward pass as a fixed point.
    """
    xp = operator.backend.xp

    def body(carry: tuple[Start, Array, Array]) -> tuple[Start, Array, Array]:
        old, active, count = carry
        x = old.x - old.residual if inverse is None else old.x + inverse(old.residual)
        residual = rhs - operator.matvec(x)
        norm = norm2(xp, residual)
        # where the norm would be after all the products, at the rate of this step
        rate = xp.minimum(norm / xp.where(old.norm > 0, old.norm, 1.0), xp.ones_like(norm))
        end = norm * rate ** xp.astype(_PRODUCTS - count, norm.dtype)
        new = keep(operator.backend, active & (norm < old.norm), Start(x, residual, norm), old)
        return new, active & (norm > goal) & (end <= goal), count + 1

    count = xp.ones_like(goal, dtype=xp.int32)
    carry = (start, start.norm > goal, count)
    return operator.backend.while_loop(lambda carry: xp.any(carry[1]), body, carry)[0]  # type: ignore[no-any-return]


#: From an operator and vectors, (*batch, n), to its approximate inverse times them.
Preconditioner: TypeAlias = Literal["auto"] | Callable[[LinearOperator, Array], Array] | None


class _State(NamedTuple):
    x: Array
    residual: Array
    norm: Array
    cycles: Array
    status: Array


@dataclass(frozen=True, kw_only=True)
class Krylov(LinearSolver):
    """A solver that needs products only, run in cycles that each start from the true residual.

    For a fixed point the plain iteration goes first, in the systems in which it is on its way to converge.

    Parameters
    ----------
    rtol : float, optional
        Tolerance on ``norm(A x - b) / norm(b)``; default 10 times the accuracy of the products, eps
        where derivatives are exact.
    max_restarts : int
        Cycles after which a system that has not converged has failed.
    preconditioner : "auto", None or callable
        Applied from the right, so that residuals are those of the system itself: "auto" takes the factorisation or the
        quasi-Newton inverse that the solver ended with; a function ``(operator, vector) -> vector`` applies the user's
        own, that of the transpose where ``operator.transposed``.
    """

    rtol: float | None = runtime(None)
    max_restarts: int = runtime(20, least=1)
    preconditioner: Preconditioner = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.preconditioner
        if not (given is None or callable(given) or (isinstance(given, str) and given == "auto")):
            raise ArgumentError(
                f"{type(self).__name__}: preconditioner is {given!r}; it must be 'auto', None or a function "
                "(operator, vector) -> vector."
            )

    @abstractmethod
    def correction(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        """Return the x of one cycle for ``A x = residual``, to a residual norm of `goal`, (*batch), if it can.

        `norm` is that of the residual: one, or zero, so that no inner product leaves the range of the dtype.
        """

    def cycle(self, operator: LinearOperator, residual: Array, norm: Array, goal: Array) -> Array:
        """Return what `correction` does for a residual of any norm, (*batch)."""
        safe = operator.backend.xp.where(norm > 0, norm, 1.0)
        unit = residual / safe[..., None]
        return safe[..., None] * self.correction(operator, unit, norm / safe, goal / safe)

    def solve(self, operator: LinearOperator, rhs: Array) -> tuple[Array, LinearInfo]:
        backend, xp = operator.backend, operator.backend.xp
        size = norm2(xp, rhs)
        goal = self.tolerance(operator) * size
        counts = xp.zeros_like(size, dtype=xp.int32)
        first = self._first(operator, rhs, size, goal)
        status = self._judge(xp, first.norm, goal, counts)
        open_ = (status == int(Status.RUNNING)) & (first.norm < size)

        def attained(start: Start) -> Array:
            """Return the status where a head start has come as far as rounding lets it: further cycles are vain."""
            stable = open_ & backward_stable(operator, start.x, rhs, start.norm, size)
            return xp.astype(xp.where(stable, int(Status.AT_PRECISION), status), xp.int32)

        start = _State(*first, counts, backend.when(xp.any(open_), attained, (first,), status))

        def body(state: _State) -> _State:
            active = state.status == int(Status.RUNNING)
            within = xp.where(active, goal, xp.full_like(goal, xp.inf))
            x = state.x + self.cycle(operator, state.residual, state.norm, within)
            residual = rhs - operator.matvec(x)
            norm = norm2(xp, residual)
            count = state.cycles + 1
            status = self._judge(xp, norm, goal, count)
            short = active & (status != int(Status.CONVERGED))
            status = xp.where(short & ~(norm < 0.9 * state.norm), int(Status.STALLED), status)
            # where rounding allows no more, further cycles are vain
            stable = short & backward_stable(operator, x, rhs, norm, size, short)
            status = xp.astype(xp.where(stable, int(Status.AT_PRECISION), status), xp.int32)
            better = norm < state.norm
            return _State(
                xp.where((active & better)[..., None], x, state.x),
                xp.where((active & better)[..., None], residual, state.residual),
                xp.where(active & better, norm, state.norm),
                count,
                xp.where(active, status, state.status),
            )

        def running(state: _State) -> Array:
            return xp.any(state.status == int(Status.RUNNING))

        def cycles(*start: Any) -> _State:
            return backend.while_loop(running, body, _State(*start))  # type: ignore[no-any-return]

        state = backend.when(running(start), cycles, start, start, often=True)
        return state.x, LinearInfo(state.status, relative_size(xp, state.norm, size))

    def _first(self, operator: LinearOperator, rhs: Array, size: Array, goal: Array) -> Start:
        """Return where to start: zero or a better guess, and for a fixed point where the plain iteration leads."""
        xp = operator.backend.xp
        first = Start(xp.zeros_like(rhs), rhs, size)
        if self.guess is not None:
            residual = rhs - operator.matvec(self.guess)
            norm = norm2(xp, residual)
            first = select(xp, norm < size, Start(self.guess, residual, norm), first)
        if not isinstance(operator.original, OfFixedPoint):
            return first
        known = self._precondition(operator, rhs) if self._preconditions else None
        return contract(operator, rhs, first, goal, known)

    @property
    def _preconditions(self) -> bool:
        """Whether there is a preconditioner."""
        return callable(self.preconditioner) or (self.preconditioner is not None and self.known is not None)

    def _judge(self, xp: Any, norm: Array, goal: Array, cycles: Array) -> Array:
        status = status_where(xp, cycles >= self.max_restarts, Status.MAX_STEPS, Status.RUNNING)
        status = xp.where(norm <= goal, int(Status.CONVERGED), status)
        return xp.astype(xp.where(xp.isfinite(norm), status, int(Status.NONFINITE)), xp.int32)

    def _precondition(self, operator: LinearOperator, like: Array) -> Product:
        """Return the preconditioner as a product; the identity in systems where there is none that is finite."""
        xp, own = operator.backend.xp, self.preconditioner
        if callable(own):
            return lambda vector: own(operator, vector)
        if own is None or self.known is None:
            return lambda vector: vector
        inverse = operator.inverted_by(self.known)
        usable = is_finite(xp, inverse(like))[..., None]
        return lambda vector: xp.where(usable, inverse(vector), vector)


class _Inner(NamedTuple):
    state: Any
    best: Array
    best_norm: Array
    active: Array
    count: Array


def run_cycle(
    backend: Backend,
    start: Any,
    step: Callable[[Any], Any],
    goal: Array,
    max_steps: Any,
    size: Callable[[Any], Array] | None = None,
    descends: bool = False,
) -> Array:
    """Apply `step` until the residual is within `goal` or not finite; return the best ``state.x``.

    `size` returns the norm of the residual of a state, (*batch), where it need not be computed. Where the method
    `descends` in some norm of the error, the best x is the last one.
    """
    xp = backend.xp
    size_of = size or (lambda state: norm2(xp, state.residual))

    def body(inner: _Inner) -> _Inner:
        state = step(inner.state)
        norm = size_of(state)
        better = inner.active & (norm < inner.best_norm)
        count = inner.count + 1
        new = _Inner(
            state,
            inner.best if descends else xp.where(better[..., None], state.x, inner.best),
            inner.best_norm if descends else xp.where(better, norm, inner.best_norm),
            inner.active & xp.isfinite(norm) & (norm > goal) & (count < max_steps),
            count,
        )
        # a single system takes steps only while it is active
        return select(xp, inner.active, new, inner) if norm.ndim else new

    norm = size_of(start)
    first = _Inner(start, start.x, norm, norm > goal, xp.zeros_like(norm, dtype=xp.int32))
    last = backend.while_loop(lambda inner: xp.any(inner.active), body, first)
    return last.state.x if descends else last.best


def ratio(xp: Any, above: Array, below: Array) -> Array:
    """Return ``above / below``, and zero where `below` is zero: a step along an exhausted direction."""
    regular = below != 0
    return xp.where(regular, above / xp.where(regular, below, xp.ones_like(below)), xp.zeros_like(above))
