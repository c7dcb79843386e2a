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
from rootdiff._inverse import Factors, Inverse, SparseFactors
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
        scale = start_scale(xp, start, residual.scale)
        point = _Point(residual, start, first, first_norm, scale, y, raw.residual_norm)
        within = allowed_error(xp, solver, y, scale, is_deep(solver, raw.residual_norm, first_norm))
        sparse = raw.factors if not dense and isinstance(raw.factors, SparseFactors) else None
        near = _sampled(point, within, dense, sparse)
        found = (_by_rows if near.inverse is None else _by_corrections)(point, near, within, failed)
        found = found._replace(status=unless_random(residual, y, near.f, first_norm, found.status))
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
    """The start, its residual, the largest entry of that, the size of the unknowns; a point, and its largest residual.

    Sizes and points are (*batch, n), norms (*batch).
    """

    residual: Residual
    y0: Array
    first: Array
    first_norm: Array
    scale: Array
    y: Array
    norm: Array


def _by_corrections(point: _Point, near: _Near, within: Array, failed: Array) -> _Found:
    """Judge by Newton corrections: that of the residual, the one after it, and those of noise.

    `within` is the allowed error, `failed` the status without success.
    """
    residual, y, y0, norm, matrix = point.residual, point.y, point.y0, point.norm, near.matrix
    xp = residual.xp
    eps, tiny = float(xp.finfo(y.dtype).eps), float(xp.finfo(y.dtype).smallest_normal)
    correction = partial(near.inverse.apply, residual.backend)
    step, regular, finite = near.correction(residual)
    following = xp.abs(correction(near.end))
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
        is_root = is_root & every(xp, xp.abs(near.f) <= _MARGIN * near.noise + moved)
    # a start and an end at zero tell no size
    size = xp.maximum(xp.abs(y), xp.where(y0 == 0, scale, xp.abs(y0)))
    # what underflows is zero far from any root, and so is its derivative: all of f, or a row that was not zero before
    still = near.noise <= tiny
    empty = xp.zeros_like(still) if matrix is None else every(xp, matrix == 0)
    lost = still & empty & (point.first != 0)
    flat = every(xp, still) | some(xp, lost)
    status = _status(
        xp,
        norm,
        failed,
        converged=is_root & every(xp, (error <= within) & (of_noise <= within)),
        attained=is_root & every(xp, error <= unit),
        known=every(xp, (xp.maximum(explained, near.unfelt) <= xp.maximum(_ILL * size, within))),
        flat=flat,
        finite=finite,
    )
    # a Newton step leaves as much of f as where it only tends to zero, or next to a minimum
    towards = max_norm(xp, following / unit) <= CONTRACTION * max_norm(xp, error / unit)
    astray = (status == int(Status.MAX_STEPS)) & ~(towards | explains)
    told = told & ~((norm == 0) & flat) & ~astray
    return _Found(status, xp.where(told[..., None], error + of_noise, xp.full_like(error, xp.inf)), near.inverse)


def _status(
    xp: Any, norm: Array, failed: Array, *, converged: Array, attained: Array, known: Array, flat: Array, finite: Array
) -> Array:
    """Return the status of a point whose largest residual is `norm`; without success it is `failed`; all (*batch).

    It has `converged` where its error is within tolerance, and so is that of noise; it is `attained` where tolerance
    and noise explain its error, and `known` where noise leaves each unknown a digit. It is `flat` where f and its
    derivative vanish together, of all rows, or of one that did not vanish at the start. The Jacobian may be `finite`.
    """
    stuck = (failed == int(Status.STALLED)) | (failed == int(Status.SINGULAR))
    status = xp.where(stuck & ~finite, int(Status.NONFINITE), failed)
    status = xp.where(attained, status_where(xp, known, Status.AT_PRECISION, Status.ILL_DETERMINED), status)
    status = xp.where(converged, int(Status.CONVERGED), status)
    # a residual of zero is a root, unless nothing near it is anything else; how far from others, may be unknown
    of_zero = xp.where(attained, status, int(Status.AT_PRECISION))
    return xp.where(norm == 0, xp.where(flat, int(Status.ILL_DETERMINED), of_zero), status)


def _by_rows(point: _Point, near: _Near, within: Array, failed: Array) -> _Found:
    """Judge systems whose Jacobians are too large to be formed: each row must be explained by noise or by tolerance.

    And `y` must still tell something: where it has grown so large that a rounding of it changes the residual nearly as
    much as the whole way from `y0` did, any residual would be explained.
    """
    xp, norm = point.residual.xp, point.norm
    telling = max_norm(xp, near.noise) <= _TELLING * point.first_norm
    known = every(xp, xp.abs(near.f) <= xp.maximum(near.reach, _MARGIN * near.noise)) & telling
    return _Found(xp.where(known | (norm == 0), int(Status.AT_PRECISION), failed), xp.full_like(near.f, xp.inf))


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
    """What f is at a point and near it, all (*batch, n) but for the last two.

    Attributes
    ----------
    f : the residual at the point.
    noise : size of the rounding noise of each row.
    reach : the smaller change of each row to two other points.
    end : the residual at the second of them, which is that after the correction, if there is one.
    unfelt : how far each unknown can change, at once with the others, before f feels more than noise; zero where that
        is no further than the Jacobian tells.
    matrix, inverse : the Jacobian, (*batch, n, n), and an inverse, where they are known.
    """

    f: Array
    noise: Array
    reach: Array
    end: Array
    unfelt: Array
    matrix: Array | None
    inverse: Any

    def told(self, xp: Any, step: Array) -> Array:
        """Return the change of f by a step, (*batch, n), that the Jacobian tells."""
        return xp.zeros_like(step) if self.matrix is None else (self.matrix @ step[..., None])[..., 0]

    def correction(self, residual: Residual) -> tuple[Array, Array, Array]:
        """Return the Newton correction, zero where it is not regular; whether it is; whether the Jacobian is finite."""
        xp, step = residual.xp, self.inverse.apply(residual.backend, self.f)
        values, matrix = self.inverse[0], self.matrix
        finite = is_finite(xp, values) if matrix is None else every(xp, is_finite(xp, matrix))
        regular = finite & is_finite(xp, step)
        return xp.where(regular[..., None], step, xp.zeros_like(step)), regular, finite


def _sampled(point: _Point, within: Array, dense: bool, sparse: SparseFactors | None) -> _Near:
    """Return what f is at a point and at two others, and the rounding noise of its rows.

    The Jacobian is formed if it is `dense`; else its inverse may be known, of the iterate before, as `sparse` factors.
    `within` is the allowed error.

    Noise is the change of f when each unknown changes by a rounding and, where the Jacobian is at hand, what is not
    linear in the change by a tolerance, which rounds larger terms anew too. A row that does not change is rounded more
    coarsely than the unknowns: there the nudges grow until it does, and where its derivative says that it should, as
    far as an unknown keeps a digit. The smaller change of two sides counts, since at a jump f changes to one side only.

    All in one loop, so that a compiled program holds one copy of f; else f and its Jacobian are known before it, since
    a body that is recorded must not branch.

    References
    ----------
    Moré & Wild (2011), "Estimating computational noise".
    """
    residual, y = point.residual, point.y
    xp, backend = residual.xp, residual.backend
    eps, known = float(xp.finfo(y.dtype).eps), dense or sparse is not None
    scale = xp.maximum(xp.abs(y), point.scale)
    few = 1 if dense else _SAMPLES  # of roundings alone
    most, furthest = (
        _SAMPLES + _NEAR + math.ceil(math.log(largest / (2 * eps), _GROWTH)) for largest in (_LARGEST * eps**0.5, _ILL)
    )

    def sloping(near: _Near) -> tuple[Array, Array]:
        """Return which rows have noise, as what underflows has not, and which of them change with an unknown."""
        asking = (xp.abs(near.f) > underflow(xp, y)) | (near.f == 0)
        return asking, asking & (xp.zeros_like(asking) if near.matrix is None else some(xp, near.matrix != 0))

    def hunting(count: Array, near: _Near) -> Array:
        silent, (asking, sloped) = near.noise == 0, sloping(near)
        goes_on = (xp.any(silent & asking) & xp.all(count < most)) | (
            xp.any(silent & sloped) & xp.all(count < furthest)
        )
        return xp.all(count < _SAMPLES) | goes_on

    def sample(carry: tuple[Array, _Near, Array, Array]) -> tuple[Array, _Near, Array, Array]:
        count, near, stride, going = carry
        elsewhere, walking = (count == -1)[..., None], ~hunting(count, near)
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
        linear = xp.where(wide, near.told(xp, nudge), 0.0)
        # a correction leads from the point itself, else both are to a side of it
        away = (zeros, -near.correction(residual)[0]) if known else (reach, -reach)
        steps = (xp.where(elsewhere, step, side) for step, side in zip(away, (nudge, -nudge), strict=True))
        sides = tuple(residual.moved(y, step) for step in steps)
        here = count == -2 if backend.traced else None
        if here is not None:
            sides = tuple(xp.where(here[..., None], y, side) for side in sides)
        change, at_other, matrix = _change(residual, near, sides, linear, last, here)
        if here is not None:
            near = near._replace(f=xp.where(here[..., None], at_other, near.f), matrix=matrix)
            if dense:
                inverse = backend.when(xp.all(here), backend.lu_factor, (matrix,), near.inverse)
                near = near._replace(inverse=inverse)
        _, sloped = sloping(near)
        # at each sample, for in some directions the changes of a row cancel
        heard = (near.noise > 0) | ((count >= most)[..., None] & ~sloped)
        kept = (coarse & heard) | (count < 0)[..., None] | walking
        noise = xp.where(kept, near.noise, xp.maximum(near.noise, change))
        # what its derivative tells a row, and rounding hides as far as an unknown keeps a digit
        hidden = sloped & (noise == 0) & (count == furthest - 1)[..., None]
        noise = xp.where(hidden, xp.minimum(*(xp.abs(near.told(xp, side - y)) for side in sides)), noise)
        # from where f feels more than its noise by its Jacobian, on to where it does
        far = max_norm(xp, stride / scale)
        going = going & ~(walking & (some(xp, change > _MARGIN * noise) | ~((far > 0) & (far <= _ILL))))
        unfelt = xp.where((walking & going)[..., None], _GROWTH * xp.abs(stride), near.unfelt)
        first = _FELT * near.inverse.apply(backend, noise * weights(xp, y, count)) if known else stride
        # a singular Jacobian tells no direction, and of one unknown there is one only
        solved = is_finite(xp, first)[..., None]
        first = xp.where(solved, first, eps * scale if y.shape[-1] == 1 else xp.zeros_like(first))
        stride = xp.where(walking, xp.where(going[..., None], _GROWTH * stride, stride), first)
        changed, end = xp.where(elsewhere, change, near.reach), xp.where(elsewhere, at_other, near.end)
        return count + 1, near._replace(noise=noise, reach=changed, end=end, unfelt=unfelt), stride, going

    def unfinished(carry: tuple[Array, _Near, Array, Array]) -> Array:
        count, near, _, going = carry
        return hunting(count, near) | xp.any(going)

    zeros, count = xp.zeros_like(y), per_system(xp, y, 0, xp.int32)
    reach, blank = within * waves(xp, y, count), Factors.zeros(xp, y) if dense else None
    if backend.traced:
        count, near = count - 2, _Near(*(zeros,) * 5, None if blank is None else blank.lu, blank or sparse)
    else:
        f, matrix = residual.with_jacobian(y) if dense else (residual(y), None)
        count, inverse = count - 1, backend.lu_factor(matrix) if dense else sparse
        near = _Near(f, *(zeros,) * 4, matrix, inverse)
    going = count < 0 if known else count > 0
    return backend.while_loop(unfinished, sample, (count, near, zeros, going))[1]  # type: ignore[no-any-return]


def _change(
    residual: Residual, near: _Near, sides: tuple[Array, ...], linear: Array, even: Array, here: Array | None
) -> tuple[Array, Array, Array | None]:
    """Return the smaller change of each row of f to two points, 0 if neither is finite, and f at the second.

    Both (*batch, n). Of a change that is not zero it is what is left without the `linear` one; in systems that are
    `even`, (*batch), it is the mean of both, in which no error of the Jacobian is left. Where the second is the point
    itself, `here`, (*batch), the first is left out, and the Jacobian, if there is one, is formed and returned.
    """
    xp, f = residual.xp, near.f

    def look(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        count, least, before, matrix = carry
        side = xp.astype(1 - 2 * count, f.dtype)[..., None]
        point = xp.where((count == 0)[..., None], *sides)
        if matrix is None:
            value = residual(point)
        else:
            value, matrix = residual.with_jacobian_where(xp.all(here), point, matrix)
        whole = value - f
        change = xp.where(whole == 0, 0.0, xp.abs(whole - side * linear))
        finite = xp.where(xp.isfinite(change), change, xp.full_like(change, xp.inf))
        mean = xp.abs(before - f + whole) / 2
        smaller = xp.minimum(least, finite)
        told = (even & (count == 1))[..., None] & (smaller > 0) & (mean < xp.inf)
        return count + 1, xp.where(told, mean, smaller), value, matrix

    first = per_system(xp, f, 0, xp.int32) if here is None else xp.astype(here, xp.int32)
    start = (first, xp.full_like(f, xp.inf), f, None if here is None else near.matrix)
    _, least, value, matrix = residual.backend.while_loop(lambda carry: xp.all(carry[0] < 2), look, start)
    return xp.where(xp.isfinite(least), least, xp.zeros_like(least)), value, matrix
