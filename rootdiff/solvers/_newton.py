"""Newton's method with a backtracking line search."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rootdiff._backend import Array, status_where
from rootdiff._inverse import Factors, Inverse
from rootdiff._iterate import Iterate, Search, State
from rootdiff._loop import IterativeSolver
from rootdiff._residual import Residual
from rootdiff._settings import limited
from rootdiff._solution import RawSolution, Status
from rootdiff._space import norm2
from rootdiff.linear._base import LinearSolver
from rootdiff.linear._contract import answered, is_tested
from rootdiff.linear._lu import LU
from rootdiff.solvers._damped import CONTRACTION
from rootdiff.solvers._line_search import NOISY, Trial, backtrack, made_once, nudged

#: Armijo's constant; the usual value, small so that any real decrease will do.
_ARMIJO = 1e-4
#: A simplified correction this much shorter than the last one estimates the error: a multiple root contracts less.
_FAST = 0.1
#: A residual up to this many times the change that roundings of y bring about may be nothing but rounding.
_NOISY = 10.0
#: Whether it is, we ask only after a step that did not halve f, or that reduced it to below eps^(1/2) of what it was.
#: If it is, corrections that are longer than a quarter of the last ones are rounding too.
_FALLING, _SHORTER = 0.5, 0.25

Solve: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class Newton(IterativeSolver):
    """Newton's method, globalised by Armijo backtracking on the sum of squares.

    A full step is also accepted if the simplified correction after it is at most a tenth as long, even if the sum of
    squares grows: rows may have very different units.

    Parameters
    ----------
    rtol, atol, max_steps
        As for `IterativeSolver`; the error estimate is the simplified Newton correction (with the last factors, at the
        new iterate) where it contracts fast, else the last correction, once that is taken in full.
    linear : LinearSolver
        Solves for the Newton direction: `LU`, or `GMRES` for a matrix-free solve (see `NewtonKrylov` for one
        with adapted tolerances). A `LinAlgError` or `ArithmeticError` that a solver of yours raises ends the iteration
        with the status SINGULAR.
    memory : int
        Last norms of f of which the largest must be undercut: 1 demands a decrease in every step, more
        (non-monotone line search) lets the iterates follow a curved valley with longer steps.

    References
    ----------
    Dennis & Schnabel (1996), "Numerical Methods for Unconstrained Optimization and Nonlinear Equations",
    algorithms A6.3.1 and 6.5. Deuflhard (2011), "Newton Methods for Nonlinear Problems", section 2.1, for the
    (simplified) correction as error estimate, section 3.3, for the natural test of a step. Grippo, Lampariello & Lucidi
    (1986), "A nonmonotone line search technique for Newton's method".

    Examples
    --------
    >>> import numpy as np, rootdiff
    >>> solver = rootdiff.Newton(max_steps=20)
    >>> sol = rootdiff.root(lambda y, a: y**3 - a, np.array([1.0]), np.array([8.0]), solver=solver)
    >>> sol.y
    array([2.])
    """

    max_steps: int = 100
    linear: LinearSolver = field(default_factory=LU)
    memory: int = limited(1, least=1)

    short_steps = 1

    @property
    def descends(self) -> bool:
        return self.memory == 1

    # The memory is the last norms of f, newest first, (*batch, memory): one array, since a compiler copies several one
    # by one. The inverse is the factors of the last Jacobian; of one unknown, where it comes with f, of that at y.

    def init(self, residual: Residual, y: Array) -> State:
        xp, scalar = residual.xp, self._is_scalar(y)
        f, *matrix = residual.with_jacobian(y) if scalar else (residual(y),)
        inverse: Inverse | None = self.linear.blank(residual, y)
        if scalar:
            inverse = Factors(matrix[0], xp.zeros_like(y, dtype=xp.int32))  # pivots that nobody reads
        # for one unknown the norm is its absolute value
        norms = None if scalar and self.memory == 1 else xp.stack([norm2(xp, f)] * self.memory, axis=-1)
        return State(Iterate.start(xp, y, f), norms, inverse)

    def step(self, residual: Residual, state: State) -> State:
        xp = residual.xp
        (y, f, *_), norms, old, search = state
        slope = old.lu[..., 0] if self._is_scalar(y) else None  # type: ignore[union-attr]
        direction, again, inverse, failure = self._direction(residual, state, slope)
        length = norm2(xp, direction)
        solvable = length < xp.inf
        direction = xp.where(solvable[..., None], direction, 0.0)
        size = norm2(xp, f) if norms is None else norms[..., 0]
        bound, unclear, noisy = None, None, None
        if norms is not None and self.memory > 1:
            bound, unclear, noisy = _bound(residual, y, f, norms, search)

        def matters(trial: Trial) -> Array:
            worse = ~(trial.size <= (1 - 2 * _ARMIJO) ** 0.5 * size)
            return unclear & (worse | _is_over(xp, trial.following, length, trial, size))

        asked = None if unclear is None else matters
        trial = armijo(residual, y, f, direction, size, search, slope is not None, bound, asked, again, length)
        # for one unknown the slope at the trial point is at hand, where that of the start may tell nothing
        following = trial.f / trial.slope if trial.slope is not None else trial.following
        unfinished = trial.accepted
        if noisy is not None:
            noisy = noisy if trial.noisy is None else trial.noisy
            unfinished = unfinished & ~(noisy & _is_over(xp, following, length, trial, size))
        unfinished = unfinished | ~trial.ended
        status = status_where(xp, unfinished, Status.RUNNING, Status.STALLED)
        status = xp.where(solvable, status, failure)
        keep = trial.accepted[..., None]
        if slope is not None:
            newer = residual.of_active(trial.accepted)[..., None]  # else, as y does in a finished system, it stays
            inverse = old._replace(lu=xp.where(newer, trial.slope, slope)[..., None])  # type: ignore[union-attr]
        error = _error(xp, following, direction, length, trial, size, slope)
        return State(
            Iterate(xp.where(keep, trial.y, y), xp.where(keep, trial.f, f), error, status),
            None if norms is None else _shifted(xp, trial, size, norms),
            None if old is None else inverse,
            trial.search,
        )

    def finish(self, residual: Residual, first_norm: Array, raw: RawSolution) -> RawSolution:
        backend, y = residual.backend, raw.y
        if isinstance(self.linear, LU) and backend.eliminates(y.shape):  # traced, it is made only where it is used
            return raw._replace(factors=backend.lu_factor(residual.jacobian(y)))
        return raw

    def _is_scalar(self, y: Array) -> bool:
        """Return whether there is one unknown, whose slope comes with the residual."""
        return y.shape[-1] == 1 and isinstance(self.linear, LU)

    def _direction(
        self, residual: Residual, state: State, slope: Array | None
    ) -> tuple[Array, Solve | None, Inverse | None, Array | int]:
        """Return the Newton direction, what solves with the same matrix again, if anything does, and its factors.

        And the status where there is no direction.
        """
        singular, wrong = int(Status.SINGULAR), int(Status.WRONG_SPARSITY)
        y, f, *_ = state.iterate
        if slope is not None:
            return -f / slope, lambda vector: vector / slope, None, singular
        operator = replace(residual, known=(y, f)).operator(y)
        if isinstance(state.inverse, Factors) and isinstance(self.linear, LU):
            old: Inverse = state.inverse
            linear = self.linear
            factors = made_once(residual, state.search, lambda _: linear.factor(operator), (y,), old)
            again = operator.inverted_by(factors)
            return again(-f), again, factors, singular
        if is_tested(self.linear):  # an error is then one of the residual, for its author to see
            direction, info = self.linear.solve(operator, -f)
        else:
            direction, info = answered(operator, self.linear, -f, "linear")
        failure = singular if residual.pattern is None else residual.xp.where(info.status == wrong, wrong, singular)
        if info.factors is None:
            return direction, None, None, failure
        return direction, operator.inverted_by(info.factors), info.factors, failure


def _error(
    xp: Any, following: Array | None, direction: Array, length: Array, trial: Trial, size: Array, slope: Array | None
) -> Array:
    """Return an estimate of the error at the trial point; infinite where the step, of this length, does not tell it.

    `following` is the simplified correction there, (*batch, n), if there is one. `slope`, of systems of one unknown, is
    that before the step.
    """
    error = xp.where(trusted(trial, size)[..., None], xp.abs(direction), xp.inf)
    if following is None:
        return error
    fast = trial.accepted & (norm2(xp, following) <= _FAST * length)
    # an f that rounding makes zero tells nothing, next to a multiple root not even that it is near
    if slope is None or trial.slope is None:
        fast = fast & (trial.size > 0)
    else:
        fast = fast & ((trial.size > 0) | (xp.abs(trial.slope - slope) <= _FAST * xp.abs(slope))[..., 0])
    # Deuflhard (2011), eq. 2.27: the simplified corrections form a geometric series, of a ratio of at most _FAST here
    rest = xp.abs(following) * (1 / (1 - _FAST))
    if rest.shape[-1] > 1:  # of one unknown it is the smaller one where it counts
        rest = xp.minimum(error, rest)
    return xp.where(fast[..., None], rest, error)


def _shifted(xp: Any, trial: Trial, size: Array, norms: Array) -> Array:
    """Return the norms with that after a step, from one of this size, before the others, and without the oldest."""
    newest = xp.where(trial.accepted, trial.size, size)
    new = xp.concat([newest[..., None], norms[..., :-1]], axis=-1)
    return new if trial.search is None else xp.where(trial.ended[..., None], new, norms)


def _is_over(xp: Any, following: Array | None, length: Array, trial: Trial, size: Array) -> Array:
    """Return whether the correction after one of this length is not shorter, (*batch); if it is not at hand, f."""
    if following is None:
        return ~(trial.size <= _SHORTER * size)
    return ~(norm2(xp, following) <= _SHORTER * length)


def _bound(
    residual: Residual, y: Array, f: Array, norms: Array, search: Search | None
) -> tuple[Array, Array | None, Array]:
    """Return the norm that the next one must undercut, (*batch): the largest of those remembered.

    But where roundings of y change f by as much as it is, the last one: there f would go up and down for ever. Where
    that is unclear, which the `search` is to ask, and where that is, is returned too.
    """
    backend, xp, size, last = residual.backend, residual.xp, norms[..., 0], norms[..., 1]
    bound = xp.max(norms, axis=-1)
    falling = (size < _FALLING * last) & (size > xp.finfo(y.dtype).eps ** 0.5 * last)
    nowhere = xp.zeros_like(falling)
    if backend.surely_all(falling):
        return bound, None, nowhere
    unclear = residual.of_active(~falling & (size < bound))
    if search is not None:
        noisy = search.noise == NOISY
    else:
        noisy = backend.when(xp.any(unclear), lambda y, f: unclear & _is_noisy(residual, y, f, size), (y, f), nowhere)
    return xp.where(noisy, size, bound), unclear, noisy


def _is_noisy(residual: Residual, y: Array, f: Array, size: Array) -> Array:
    """Return whether f, so large, may be nothing but rounding, (*batch)."""
    return ~(size > _NOISY * norm2(residual.xp, residual(nudged(residual.xp, y)) - f))


def armijo(
    residual: Residual,
    y: Array,
    f: Array,
    direction: Array,
    size: Array,
    search: Search | None,
    slope: bool = False,
    bound: Array | None = None,
    unclear: Callable[[Trial], Array] | None = None,
    again: Solve | None = None,
    length: Array | None = None,
) -> Trial:
    """Backtrack along a direction on which |f|^2 / 2 has the slope -|f|^2, until it falls below `bound`^2 / 2.

    `size` is |f| at `y`, `bound` that or one of an earlier iterate, (*batch); the others as for `backtrack`. A whole
    step is taken too where the correction `again` after it is short beside it, of this `length`. Where f may be
    nothing but rounding, only the whole step is tried; of one unknown, where to ask costs a trial, others too.
    """
    xp = residual.xp
    slack = 1.0 if bound is None else (bound / xp.where(size > 0, size, 1.0)) ** 2

    def accept(trial: Array, length: Array | float) -> Array:
        return trial <= (slack - 2 * _ARMIJO * length) ** 0.5 * size  # slack is at least one, length at most

    def shorten(trial: Array, length: Array) -> Array:
        # minimum of the parabola through the value and slope at 0 and the value at the trial (A6.3.1)
        return length**2 / ((trial / size) ** 2 - 1 + 2 * length)

    def noisy(change: Array) -> Array:
        return ~(size > _NOISY * change)

    def natural(following: Array) -> Array:
        assert length is not None
        return norm2(xp, following) <= _FAST * length

    if slope:
        return backtrack(residual, y, direction, search, accept, shorten, slope)
    judge = None if again is None else natural
    return backtrack(residual, y, direction, search, accept, shorten, False, f, noisy, unclear, again, judge)


def trusted(trial: Trial, size: Array) -> Array:
    """Return whether the correction just taken estimates the error: taken in full, and f fell as it does near a root.

    Next to a root of any multiplicity m a Newton step reduces f to less than 1/e of its size, ((m-1)/m)^m, next to a
    pole of any order to more, (m/(m+1))^m: this ratio tells them apart.
    """
    return trial.accepted & (trial.length == 1) & (trial.size <= CONTRACTION * size)
