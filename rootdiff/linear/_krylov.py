"""What the iterative linear solvers share: cycles from the true residual, tolerances, preconditioners."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

from rootdiff._backend import Array, Backend, keep, select, status_where
from rootdiff._errors import ArgumentError
from rootdiff._operator import LinearOperator, OfFixedPoint
from rootdiff._settings import runtime
from rootdiff._solution import Status
from rootdiff._space import is_finite, norm2
from rootdiff.linear._base import LinearInfo, LinearSolver, Point, relative_size
from rootdiff.linear._contract import backward_stable

Product: TypeAlias = Callable[[Array], Array]

#: Products within which the iteration must be on its way to converge: then a Krylov space would save few of them.
_PRODUCTS = 24


def contract(operator: LinearOperator, rhs: Array, start: Point, goal: Array, inverse: Product | None) -> Point:
    """Return where ``x + M (b - A x)`` leads, in the systems in which that is on its way to a residual norm of `goal`.

    M is the `inverse`, or -1 where there is none. For a fixed point z = cell(z) the Jacobian is A = G - I, and
    with M = -1 this sums the Neumann series of the cell: one product a step, and no other work, as long as the cell
    contracts. A system that will not be done within a few products stops where it is.

    References
    ----------
    Bai, Kolter & Koltun (2019), "Deep equilibrium models", section 3.1.3, the backward pass as a fixed point.
    """
    xp = operator.backend.xp

    def body(carry: tuple[Point, Array, Array]) -> tuple[Point, Array, Array]:
        old, active, count = carry
        new = Point.of(operator, rhs, old.x - old.residual if inverse is None else old.x + inverse(old.residual))
        # where the norm would be after all the products, at the rate of this step
        rate = xp.minimum(new.norm / xp.where(old.norm > 0, old.norm, 1.0), xp.ones_like(new.norm))
        end = new.norm * rate ** xp.astype(_PRODUCTS - count, new.norm.dtype)
        active, falls = active & (new.norm > goal) & (end <= goal), active & (new.norm < old.norm)
        return keep(operator.backend, falls, new, old), active, count + 1

    count = xp.ones_like(goal, dtype=xp.int32)
    carry = (start, start.norm > goal, count)
    return operator.backend.while_loop(lambda carry: xp.any(carry[1]), body, carry)[0]  # type: ignore[no-any-return]


#: From an operator and vectors, (*batch, n), to its approximate inverse times them.
Preconditioner: TypeAlias = Literal["auto"] | Callable[[LinearOperator, Array], Array] | None


class _State(NamedTuple):
    at: Point
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

        def vain(at: Point, status: Array, asked: Array) -> Array:
            """Return the status, which tells where rounding allows no more, so that further cycles are vain."""
            stable = asked & backward_stable(operator, at.x, rhs, at.norm, size, asked)
            return xp.astype(xp.where(stable, int(Status.AT_PRECISION), status), xp.int32)

        def body(state: _State) -> _State:
            old, active = state.at, state.status == int(Status.RUNNING)
            within = xp.where(active, goal, xp.full_like(goal, xp.inf))
            new = Point.of(operator, rhs, old.x + self.cycle(operator, old.residual, old.norm, within))
            count = state.cycles + 1
            status = self._judge(xp, new.norm, goal, count)
            short = active & (status != int(Status.CONVERGED))
            status = xp.where(short & ~(new.norm < 0.9 * old.norm), int(Status.STALLED), status)
            status = xp.where(active, vain(new, status, short), state.status)
            return _State(select(xp, active & (new.norm < old.norm), new, old), count, status)

        def running(state: _State) -> Array:
            return xp.any(state.status == int(Status.RUNNING))

        status = backend.when(xp.any(open_), vain, (first, status, open_), status)
        start = _State(first, counts, status)
        cycles = partial(backend.while_loop, running, body)
        state = backend.when(running(start), cycles, (start,), start, often=True)
        return state.at.x, LinearInfo(state.status, relative_size(xp, state.at.norm, size))

    def _first(self, operator: LinearOperator, rhs: Array, size: Array, goal: Array) -> Point:
        """Return where to start: zero or a better guess, and for a fixed point where the plain iteration leads."""
        xp = operator.backend.xp
        first = Point(xp.zeros_like(rhs), rhs, size)
        if self.guess is not None:
            guess = Point.of(operator, rhs, self.guess)
            first = select(xp, guess.norm < size, guess, first)
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
