"""Whether a point is a root, and how far off it is: a statement about y, not about f.

A Newton correction at the point turns the residual, and the rounding noise of the residual, into an error of each
unknown, in its own units. So a row in large units excuses no other row, and no unknown the error of another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rootdiff._backend import Array, status_where
from rootdiff._inverse import Inverse, SparseFactors
from rootdiff._residual import Residual
from rootdiff._sizes import has_few_unknowns, is_dense
from rootdiff._solution import RawSolution, Status
from rootdiff._space import every, is_finite, max_norm, per_system, some, waves, weights

#: Noise that was sampled may be half of what it can be, and three times its root mean square in one of many unknowns.
_MARGIN = 6.0
#: Pairs of points, to either side of y, at which the noise is sampled; after that nudges may grow, each four times
#: larger, up to ten times eps^(1/2): so far f may be all rounding next to a double root.
_SAMPLES, _GROWTH, _LARGEST = 3, 4.0, 10.0
#: The first nudges that grow do so from the size of y itself: in some of many rows those of roundings cancel by chance.
_NEAR = 3
#: The first change of y of which f is asked whether it feels it, in corrections of noise: in weights of a half or more,
#: twice what counts as felt.
_FELT = 4 * _MARGIN
#: Corrections of noise: so many that none of a few hundred unknowns is overlooked by all of them.
_CORRECTIONS = 8
#: An error of this part of an unknown leaves it no digit.
_ILL = 0.1
#: A correction at the end of another must be shorter by this factor, as next to a root of any multiplicity up to ten.
_SHORTER = 0.5
#: Next to a root of multiplicity m a full Newton step reduces f to ((m-1)/m)^m of its size: up to m = 10 less than
#: this. Where there is no root, it leaves 1/e of f = exp(-y), and more of f = 1/y.
CONTRACTION = 0.35
#: Or by far below the tolerance, where noise may be larger than what was sampled of it.
_BELOW = 0.05
#: Part of the residual at the start that noise may be, or y has run away to where any residual is noise: on a grid of
#: spacing h the residual at zero is h^2 times a load, its rounding that of y.
_TELLING = 1e-3
#: The default atol counts once the residual has fallen by this many times rtol: by rtol itself it may not, where its
#: rounding is 1e-12 of its value at the start, as that of a difference quotient on a fine grid.
_DEEP = 10.0


def start_scale(xp: Any, y0: Array, given: Array | None = None) -> Array:
    """Return the size of each unknown, (*batch, n): the `given` one, or what the start tells, which is at most one.

    A start at zero tells none: then it is that of the largest unknown, or one where all are zero.
    """
    if given is not None:
        return given
    size, largest = xp.abs(y0), max_norm(xp, y0)[..., None]
    size = xp.where(size > 0, size, xp.where(largest > 0, largest, xp.ones_like(largest)))
    return xp.minimum(size, xp.ones_like(size))


def allowed_error(xp: Any, solver: Any, y: Array, scale: Array, deep: Array, power: float = 0.75) -> Array:
    """Return the allowed error of `y`, (*batch, n): ``atol + rtol * abs(y)``.

    Where no atol is given it is this power of eps times `scale`, in the systems whose residual has fallen `deep`.
    """
    relative = solver.rtol * xp.abs(y)
    if solver.atol is not None:
        return relative + solver.atol
    return relative + float(xp.finfo(y.dtype).eps) ** power * xp.where(deep[..., None], scale, xp.zeros_like(scale))


def is_deep(solver: Any, norm: Array, first_norm: Array) -> Array:
    """Return whether a residual has fallen so far from its value at the start that the default atol counts."""
    return norm <= _DEEP * solver.rtol * first_norm


def underflow(xp: Any, y: Array) -> float:
    """Return the size of a residual below which it loses its digits to underflow."""
    limits = xp.finfo(y.dtype)
    return float(limits.smallest_normal) / float(limits.eps)


class _Found(NamedTuple):
    """What the judgement of a point ends with: status, (*batch), error of each unknown, (*batch, n), and factors."""

    status: Array
    error: Array
    factors: Inverse | None = None


def judged(solver: Any, residual: Residual, y0: Array, first: Array, raw: RawSolution, asked: Array) -> RawSolution:
    """Return the solution with the status and the error that a look at its point tells, in the systems `asked` for.

    `solver` has the settings `rtol` and `atol`; `first` is the residual at `y0`, (*batch, n). A system that has not
    succeeded keeps the status of its failure. The factors of the Jacobian at the point go on to the adjoint solve,
    where that may use them and a compiled program need not carry them.
    """
    xp = residual.xp
    error = xp.full_like(raw.y, xp.inf) if raw.error is None else raw.error
    first_norm = max_norm(xp, first)
    usable = asked & xp.isfinite(raw.residual_norm) & xp.isfinite(first_norm)

    def judge(start: Array, first: Array, y: Array, old: Array, status: Array) -> _Found:
        failed = xp.where(status <= int(Status.AT_PRECISION), int(Status.STALLED), status)
        dense = residual.differentiable and is_dense(tuple(y.shape))
        f, matrix = residual.with_jacobian(y) if dense else (residual(y), None)
        scale = start_scale(xp, start, residual.scale)
        point = _Point(residual, start, first, first_norm, scale, y, f, raw.residual_norm)
        within = allowed_error(xp, solver, y, scale, is_deep(solver, raw.residual_norm, first_norm))
        sparse = raw.factors if matrix is None and isinstance(raw.factors, SparseFactors) else None
        told = matrix is not None or sparse is not None
        found = _by_corrections(point, matrix, sparse, within, failed) if told else _by_rows(point, within, failed)
        found = found._replace(status=unless_random(residual, y, f, first_norm, found.status))
        return _Found(
            xp.astype(xp.where(usable, found.status, xp.where(asked, failed, status)), xp.int32),
            xp.where(usable[..., None], found.error, old),
            None if residual.backend.traced or has_few_unknowns(y.shape) else found.factors,
        )

    known = _Found(xp.astype(raw.status, xp.int32), error)
    found = residual.backend.when(xp.any(asked), judge, (y0, first, raw.y, error, known.status), known)
    factors = raw.factors if found.factors is None else found.factors
    return raw._replace(status=found.status, error=found.error, factors=factors)


class _Point(NamedTuple):
    """The start, its residual, the largest entry of that, the size of the unknowns; a point, its residual and its norm.

    Sizes and points are (*batch, n), norms (*batch).
    """

    residual: Residual
    y0: Array
    first: Array
    first_norm: Array
    scale: Array
    y: Array
    f: Array
    norm: Array


def _by_corrections(
    point: _Point, matrix: Array | None, sparse: SparseFactors | None, within: Array, failed: Array
) -> _Found:
    """Judge by Newton corrections: that of the residual, the one after it, and those of noise.

    `matrix` is the Jacobian, (*batch, n, n), or `sparse` has the factors of that before the last step. `within` is the
    allowed error, `failed` the status without success.
    """
    residual, y, y0, norm = point.residual, point.y, point.y0, point.norm
    xp, backend = residual.xp, residual.backend
    eps, tiny = float(xp.finfo(y.dtype).eps), float(xp.finfo(y.dtype).smallest_normal)
    factors = backend.lu_factor(matrix) if matrix is not None else sparse
    assert factors is not None
    correction = partial(factors.apply, backend)
    step = correction(point.f)
    finite = is_finite(xp, factors[0]) if matrix is None else every(xp, is_finite(xp, matrix))  # its values
    regular = finite & is_finite(xp, step)
    step = xp.where(regular[..., None], step, xp.zeros_like(step))
    near = _sampled(point, y, residual.moved(y, -step), matrix, None if matrix is None else correction)
    following = xp.abs(correction(near.f))
    of_noise = _corrections_of_noise(residual, correction, near.noise)
    told = regular | ((norm == 0) & (near.unfelt[..., 0] > 0))
    of_noise = xp.where(regular[..., None], of_noise, xp.zeros_like(of_noise))
    error, scale = xp.abs(step), point.scale
    explained = _MARGIN * (of_noise + eps * xp.abs(y))
    of_noise = xp.maximum(of_noise, near.unfelt)
    unit = xp.maximum(within + explained, xp.full_like(error, tiny))
    shorter = max_norm(xp, following / unit) <= _SHORTER * max_norm(xp, error / unit)
    explains = every(xp, following <= xp.maximum(explained, _BELOW * within))
    is_root = told & (shorter | explains | (norm < underflow(xp, y)))
    if residual.equations is not None and matrix is not None:
        # the smallest eigenvalue of a Hessian makes noise along it an error of every unknown, larger than a step that
        # a gradient far above noise asks for: then each row must be explained too
        moved = (xp.abs(matrix) @ (within + _MARGIN * eps * xp.abs(y))[..., None])[..., 0]
        is_root = is_root & every(xp, xp.abs(point.f) <= _MARGIN * near.noise + moved)
    # a start and an end at zero tell no size
    size = xp.maximum(xp.abs(y), xp.where(y0 == 0, scale, xp.abs(y0)))
    # what underflows is zero far from any root, and so is its derivative: all of f, or a row that was not zero before
    still = near.noise <= tiny
    empty = xp.zeros_like(still) if matrix is None else every(xp, matrix == 0)
    lost = still & empty & (point.first != 0)
    verdict = _Verdict(
        converged=is_root & every(xp, (error <= within) & (of_noise <= within)),
        attained=is_root & every(xp, error <= unit),
        known=every(xp, (xp.maximum(explained, near.unfelt) <= xp.maximum(_ILL * size, within))),
        flat=every(xp, still) | some(xp, lost),
        finite=finite,
    )
    status = verdict.status(xp, norm, failed)
    # a Newton step leaves as much of f as where it only tends to zero, or next to a minimum
    towards = max_norm(xp, following / unit) <= CONTRACTION * max_norm(xp, error / unit)
    astray = (status == int(Status.MAX_STEPS)) & ~(towards | explains)
    told = told & ~((norm == 0) & verdict.flat) & ~astray
    return _Found(status, xp.where(told[..., None], error + of_noise, xp.full_like(error, xp.inf)), factors)


class _Verdict(NamedTuple):
    """What a point is, all (*batch).

    Attributes
    ----------
    converged : its error is within tolerance, and so is that of noise.
    attained : its error is what tolerance and noise explain.
    known : noise leaves each unknown a digit.
    flat : f and its derivative vanish together, of all rows, or of one that did not vanish at the start.
    finite : the Jacobian is.
    """

    converged: Array
    attained: Array
    known: Array
    flat: Array
    finite: Array

    def status(self, xp: Any, norm: Array, failed: Array) -> Array:
        """Return the status, where that of a solve without success is `failed`; `norm` is the largest residual."""
        stuck = (failed == int(Status.STALLED)) | (failed == int(Status.SINGULAR))
        status = xp.where(stuck & ~self.finite, int(Status.NONFINITE), failed)
        determined = status_where(xp, self.known, Status.AT_PRECISION, Status.ILL_DETERMINED)
        status = xp.where(self.attained, determined, status)
        status = xp.where(self.converged, int(Status.CONVERGED), status)
        # a residual of zero is a root, unless nothing near it is anything else; how far from others, may be unknown
        of_zero = xp.where(self.attained, status, int(Status.AT_PRECISION))
        return xp.where(norm == 0, xp.where(self.flat, int(Status.ILL_DETERMINED), of_zero), status)


def _by_rows(point: _Point, within: Array, failed: Array) -> _Found:
    """Judge systems whose Jacobians are too large to be formed: each row must be explained by noise or by tolerance.

    And `y` must still tell something: where it has grown so large that a rounding of it changes the residual nearly as
    much as the whole way from `y0` did, any residual would be explained.
    """
    xp, y, norm = point.residual.xp, point.y, point.norm
    reach = within * waves(xp, y, xp.zeros_like(norm))
    near = _sampled(point, y + reach, y - reach)
    telling = max_norm(xp, near.noise) <= _TELLING * point.first_norm
    known = every(xp, xp.abs(point.f) <= xp.maximum(near.reach, _MARGIN * near.noise)) & telling
    return _Found(xp.where(known | (norm == 0), int(Status.AT_PRECISION), failed), xp.full_like(y, xp.inf))


def unless_random(residual: Residual, y: Array, f: Array, first_norm: Array, status: Array) -> Array:
    """Return the status, RANDOM where f has another value when it is evaluated again: by more than rounding.

    If it has in one system of a batch, then in those that failed too, where it may be the same by chance. A program
    that is compiled draws no numbers of its own: of these only one that calls out of it is looked at.
    """
    if residual.backend.traced and residual.differentiable:
        return status
    xp = residual.xp
    change = max_norm(xp, residual(y) - f)
    random = change > float(xp.finfo(y.dtype).eps) ** 0.75 * first_norm
    return xp.where(random | (xp.any(random) & (status > int(Status.RUNNING))), int(Status.RANDOM), status)


def _corrections_of_noise(residual: Residual, correction: Callable[[Array], Array], noise: Array) -> Array:
    """Return the root mean square of the corrections, (*batch, n), that noise of this size in each row brings about.

    One after the other, in a loop: they are the same few lines of a compiled program.
    """
    xp = residual.xp

    def sample(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        count, total = carry
        one = xp.abs(correction(noise * weights(xp, noise, count)))
        larger, smaller = xp.maximum(total, one), xp.minimum(total, one)  # squares would leave the range of the dtype
        ratio = smaller / xp.where(larger > 0, larger, xp.ones_like(larger))
        return count + 1, larger * xp.sqrt(1 + ratio * ratio)

    start = (per_system(xp, noise, 0, xp.int32), xp.zeros_like(noise))
    total = residual.backend.while_loop(lambda carry: xp.all(carry[0] < _CORRECTIONS), sample, start)[1]
    return total / _CORRECTIONS**0.5


class _Near(NamedTuple):
    """What f is near a point, all (*batch, n).

    Attributes
    ----------
    noise : size of the rounding noise of each row.
    reach : the smaller change of each row to two other points.
    f : the residual at the second of them.
    unfelt : how far each unknown can change, at once with the others, before f feels more than noise; zero where that
        is no further than the Jacobian tells.
    """

    noise: Array
    reach: Array
    f: Array
    unfelt: Array


def _sampled(
    point: _Point,
    one: Array,
    other: Array,
    matrix: Array | None = None,
    correction: Callable[[Array], Array] | None = None,
) -> _Near:
    """Return what f is at two other points, both (*batch, n), and the rounding noise of its rows.

    Noise is the change of f when each unknown changes by a rounding and, where the Jacobian `matrix` is at hand, what
    is not linear in the change by a tolerance, which rounds larger terms anew too. A row that does not change is
    rounded more coarsely than the unknowns: there the nudges grow until it does, and where its derivative says that it
    should, as far as an unknown keeps a digit. The smaller change of two sides counts, since at a jump f changes to one
    side only.

    All in one loop, so that a compiled program holds one copy of f.

    References
    ----------
    Moré & Wild (2011), "Estimating computational noise".
    """
    residual, y, f = point.residual, point.y, point.f
    xp = residual.xp
    eps = float(xp.finfo(y.dtype).eps)
    scale = xp.maximum(xp.abs(y), point.scale)
    few = _SAMPLES if matrix is None else 1  # of roundings alone
    most, furthest = (
        _SAMPLES + _NEAR + math.ceil(math.log(largest / (2 * eps), _GROWTH)) for largest in (_LARGEST * eps**0.5, _ILL)
    )
    asking = (xp.abs(f) > underflow(xp, y)) | (f == 0)  # what underflows has no noise
    sloping = asking & (xp.zeros_like(asking) if matrix is None else some(xp, matrix != 0))

    def told(step: Array) -> Array:
        return xp.zeros_like(f) if matrix is None else (matrix @ step[..., None])[..., 0]

    def hunting(count: Array, noise: Array) -> Array:
        silent = noise == 0
        goes_on = (xp.any(silent & asking) & xp.all(count < most)) | (
            xp.any(silent & sloping) & xp.all(count < furthest)
        )
        return xp.all(count < _SAMPLES) | goes_on

    def sample(carry: tuple[Array, _Near, Array, Array]) -> tuple[Array, _Near, Array, Array]:
        count, near, stride, going = carry
        elsewhere, walking = (count < 0)[..., None], ~hunting(count, near.noise)
        grown = xp.maximum(count - (_SAMPLES - 1), xp.zeros_like(count))
        close = grown <= _NEAR
        growth = _GROWTH ** xp.astype(xp.where(close, grown, grown - _NEAR), y.dtype)[..., None]
        size = xp.where(close[..., None], xp.abs(y), scale)
        wide, coarse = ((count >= few) & (count < _SAMPLES))[..., None], (grown > 0)[..., None]
        last = count == _SAMPLES - 1
        # the last one so wide that the terms of a row are rounded anew which cancel next to a double root
        broad = xp.where(last[..., None], eps**0.5 * xp.abs(y), eps**0.75 * xp.abs(y))
        nudge = xp.where(coarse, 2 * eps * growth * size, xp.where(wide, broad, 2 * eps * xp.abs(y)))
        nudge = nudge * weights(xp, y, count)
        nudge = xp.where(last[..., None], (y + nudge) - y, nudge)  # to one side as far as to the other
        nudge = xp.where(walking, stride, nudge)
        linear = xp.where(wide, told(nudge), 0.0)
        sides = tuple(
            xp.where(elsewhere, point, residual.moved(y, step)) for point, step in ((one, nudge), (other, -nudge))
        )
        change, at_other = _change(residual, f, sides, linear, last)
        # at each sample, for in some directions the changes of a row cancel
        known = (near.noise > 0) | ((count >= most)[..., None] & ~sloping)
        noise = xp.where((coarse & known) | elsewhere | walking, near.noise, xp.maximum(near.noise, change))
        # what its derivative tells a row, and rounding hides as far as an unknown keeps a digit
        hidden = sloping & (noise == 0) & (count == furthest - 1)[..., None]
        noise = xp.where(hidden, xp.minimum(*(xp.abs(told(side - y)) for side in sides)), noise)
        # from where f feels more than its noise by its Jacobian, on to where it does
        far = max_norm(xp, stride / scale)
        going = going & ~(walking & (some(xp, change > _MARGIN * noise) | ~((far > 0) & (far <= _ILL))))
        unfelt = xp.where((walking & going)[..., None], _GROWTH * xp.abs(stride), near.unfelt)
        first = stride if correction is None else _FELT * correction(noise * weights(xp, y, count))
        # a singular Jacobian tells no direction, and of one unknown there is one only
        solved = is_finite(xp, first)[..., None]
        first = xp.where(solved, first, eps * scale if y.shape[-1] == 1 else xp.zeros_like(first))
        stride = xp.where(walking, xp.where(going[..., None], _GROWTH * stride, stride), first)
        near = _Near(noise, xp.where(elsewhere, change, near.reach), xp.where(elsewhere, at_other, near.f), unfelt)
        return count + 1, near, stride, going

    def unfinished(carry: tuple[Array, _Near, Array, Array]) -> Array:
        count, near, _, going = carry
        return hunting(count, near.noise) | xp.any(going)

    zeros, count = xp.zeros_like(f), per_system(xp, f, 0, xp.int32) - 1
    going = count < 0 if correction is not None else count > 0
    start = (count, _Near(zeros, zeros, zeros, zeros), zeros, going)
    return residual.backend.while_loop(unfinished, sample, start)[1]  # type: ignore[no-any-return]


def _change(
    residual: Residual, f: Array, sides: tuple[Array, Array], linear: Array, even: Array
) -> tuple[Array, Array]:
    """Return the smaller change of each row of f to two points, 0 if neither is finite, and f at the second.

    Both (*batch, n). Of a change that is not zero it is what is left without the `linear` one; in systems that are
    `even`, (*batch), it is the mean of both, in which no error of the Jacobian is left.
    """
    xp = residual.xp

    def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, least, before = carry
        side = xp.astype(1 - 2 * count, f.dtype)[..., None]
        value = residual(xp.where((count == 0)[..., None], *sides))
        whole = value - f
        change = xp.where(whole == 0, 0.0, xp.abs(whole - side * linear))
        finite = xp.where(xp.isfinite(change), change, xp.full_like(change, xp.inf))
        mean = xp.abs(before - f + whole) / 2
        smaller = xp.minimum(least, finite)
        told = (even & (count == 1))[..., None] & (smaller > 0) & (mean < xp.inf)
        return count + 1, xp.where(told, mean, smaller), value

    start = (per_system(xp, f, 0, xp.int32), xp.full_like(f, xp.inf), f)
    _, least, value = residual.backend.while_loop(lambda carry: xp.all(carry[0] < 2), look, start)
    return xp.where(xp.isfinite(least), least, xp.zeros_like(least)), value
