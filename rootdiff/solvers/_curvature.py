"""Curvature at a minimum: whether a Hessian has a negative eigenvalue, or none that is told apart from zero."""

from __future__ import annotations

from typing import Any, NamedTuple

from rootdiff._backend import Array
from rootdiff._residual import Residual
from rootdiff._solution import RawSolution, Status
from rootdiff._space import every, is_finite, max_norm, norm2, numbers, per_system, projections, weights
from rootdiff._verdict import start_scale

#: Ruiz (2001): what rows differ by is its square root after each.
_SCALINGS = 4
#: A measured slope may be off by so many times its estimated error.
MARGIN = 6.0
#: Errors beside y at which curvature is looked at: where the gradient has a root of multiplicity m, a Newton step, the
#: error, is the m-th part of the way to it.
_BESIDE = 10.0
#: Products with a Hessian that is too large to be formed.
_PRODUCTS = 30


class Spectrum(NamedTuple):
    """The scale of the unknowns, (*batch, n), with the eigenvalues and eigenvectors of symmetric matrices in it."""

    scale: Array
    values: Array
    vectors: Array

    def falls(self, xp: Any, least: float, down: Array) -> Array:
        """Return where more eigenvalues than `down` are negative beyond errors of this size, (*batch)."""
        return xp.count_nonzero(self.values < -least, axis=-1) > down

    def least(self, xp: Any) -> Array:
        """Return the least absolute eigenvalue, (*batch)."""
        return xp.min(xp.abs(self.values), axis=-1)


def curvature(
    residual: Residual, y: Array, hessian: Array, off: Array | None, held: Array, multiplier: Array
) -> tuple[Array, Array, Spectrum]:
    """Return whether a negative eigenvalue of the Hessian is beyond errors, and whether it is singular, both (*batch).

    That of a Lagrangian has a negative one for each `multiplier`, (n), that is not held, if that of the objective has
    none along the constraints: Nocedal & Wright (2006), "Numerical Optimization", theorem 16.3.

    It is scaled to a diagonal of ones, and has a negative eigenvalue where that is so to half the digits. It is
    singular where it is so to half the digits, and J to all of them: that is known to more. So is an exact Hessian of
    an objective. Where slopes are measured, and the gradient is `off` by them, zeros are seen as such. Unknowns that
    are `held` by bounds, (*batch, n), take no part.
    """
    xp, precision, squares = residual.xp, residual.backend.precision(y.dtype), residual.squares
    hessian, down, unit = _of_free(xp, hessian, held, multiplier)
    half, blind = y.shape[-1] * precision**0.5, down >= 0
    if squares is not None:
        _, slopes = squares.with_jacobian(y)
        errors = squares.operator(y).errors
        if errors is not None:
            slopes = xp.where(xp.abs(slopes) <= MARGIN * errors(), xp.zeros_like(slopes), slopes)
        if residual.box is not None:
            slopes = xp.concat([xp.where(held[..., None, :], xp.zeros_like(slopes), slopes), unit], axis=-2)
        norms = norm2(xp, xp.matrix_transpose(slopes))
        scaled = finite(xp, slopes / xp.where(norms > 0, norms, xp.ones_like(norms))[..., None, :])
        values = xp.linalg.svd(scaled, full_matrices=False)[1]
        blind = values[..., -1] <= 10 * slopes.shape[-2] * precision
        if off is not None:
            step = float(xp.finfo(y.dtype).eps) ** (1 / 3) * residual.backend.lengths(y)
            felt = ~blind[..., None] | (xp.abs(xp.linalg.diagonal(hessian)) > MARGIN * off / step)
            hessian = xp.where(felt[..., None, :] & felt[..., None], hessian, xp.zeros_like(hessian))
    spectrum = _spectrum(xp, hessian, equilibrating(xp, hessian))
    flat = spectrum.least(xp) <= (half if squares is not None else y.shape[-1] * _finest(residual, y))
    return spectrum.falls(xp, half / 2, down), flat & blind, spectrum


def falls_beside(
    residual: Residual, y: Array, spectrum: Spectrum, errors: Array, held: Array, multiplier: Array
) -> Array:
    """Return where the Hessian has a negative eigenvalue some `errors` beside y, (*batch, n), as next to an inflection.

    Two points are looked at, to both sides of y. The error along an eigenvector is the smaller the larger its
    eigenvalue is. Both Hessians have one scale: the positive eigenvalue of one side and the negative one of the other
    are as large as each other.
    """
    xp, (scale, values, vectors) = residual.xp, spectrum
    part = xp.where(xp.isfinite(errors), errors * scale, xp.zeros_like(y))
    most = xp.astype(part == max_norm(xp, part)[..., None], y.dtype)
    # an eigenvector has two signs: with one of them none takes back what another does to the most uncertain unknown
    back = xp.astype(xp.sum(vectors * most[..., None], axis=-2) < 0, y.dtype)
    vectors = vectors * (1 - 2 * back)[..., None, :]
    reach = xp.sum(part[..., None] * xp.abs(vectors), axis=-2)
    part = reach * spectrum.least(xp)[..., None] / xp.where(values == 0, xp.ones_like(values), xp.abs(values))
    step = _BESIDE * xp.where(held, xp.zeros_like(y), (vectors @ part[..., None])[..., 0] / scale)

    def look(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, _, last = carry
        point = y + step * xp.astype(1 - 2 * count, y.dtype)[..., None]
        point = point if residual.box is None else residual.box.projected(point)
        return count + 1, last, residual.free.jacobian(point)

    none = xp.zeros_like(vectors)
    _, *sides = residual.backend.while_loop(
        lambda carry: xp.all(carry[0] < 2), look, (per_system(xp, y, 0, xp.int32), none, none)
    )
    both, down, _ = _of_free(xp, xp.stack(sides), held, multiplier)
    found = _spectrum(xp, both, equilibrating(xp, xp.sum(xp.abs(both), axis=0)))
    return xp.any(found.falls(xp, y.shape[-1] * _finest(residual, y), down), axis=0)


def _of_free(xp: Any, hessian: Array, held: Array, multiplier: Array) -> tuple[Array, Array, Array]:
    """Return the Hessian of the unknowns that are not `held`, how many negative eigenvalues a minimum has, and rows.

    These are those of an identity matrix in the unknowns that are held, which stand in the Hessian too.
    """
    place = numbers(xp, hessian[..., 0, :])
    one = xp.astype(place[:, None] == place, hessian.dtype)
    unit = xp.where(held[..., None], one, xp.zeros_like(hessian))
    matrix = xp.where(multiplier[:, None], -hessian, hessian)
    matrix = xp.where(held[..., None] | held[..., None, :], unit, matrix)
    return matrix, xp.count_nonzero(multiplier & ~held, axis=-1), unit


def _finest(residual: Residual, y: Array) -> float:
    """Return the part of its scale, for each unknown, that an eigenvalue of a Hessian may be off by."""
    precision = residual.backend.precision(y.dtype)
    return 10 * precision if precision <= float(residual.xp.finfo(y.dtype).eps) else precision**0.5


def judged_by_products(residual: Residual, raw: RawSolution) -> RawSolution:
    """Return the solution, SADDLE where a Hessian too large to be formed shows that by a few products.

    The eigenvalues of its projection to a Krylov space lie between its own. Unknowns that bounds hold take no part.

    References
    ----------
    Lanczos (1950), "An iteration method for the solution of the eigenvalue problem".
    """
    xp, backend, y = residual.xp, residual.backend, raw.y
    precision = backend.precision(y.dtype)
    success = raw.status <= int(Status.AT_PRECISION)

    def look(y: Array) -> Array:
        free = residual.free
        product, metric = backend.linearize(free._of_y, y)[0], start_scale(xp, y, residual.scale)
        if residual.box is not None:
            metric = xp.where(residual.box.holds(y, free(y)), xp.zeros_like(y), metric)

        def unit(vector: Array, least: Array) -> Array:
            size = norm2(xp, vector)
            return xp.where((size > least)[..., None], vector, 0.0) / xp.where(size > 0, size, 1.0)[..., None]

        def step(carry: tuple[Array, ...]) -> tuple[Array, ...]:
            count, basis, matrix, vector = carry
            place = xp.max(count)
            image, basis = metric * product(metric * vector), backend.put(basis, place, vector)
            matrix, least = backend.put(matrix, place, projections(xp, basis, image)), precision**0.5 * norm2(xp, image)
            for _ in range(2):  # twice is enough
                image = image - (projections(xp, basis, image)[..., None, :] @ basis)[..., 0, :]
            return count + 1, basis, matrix, unit(image, least)

        none = per_system(xp, y, 0, xp.int32)
        first = unit(metric * weights(xp, y, none + 1), per_system(xp, y, 0))
        basis = xp.stack([xp.zeros_like(y)] * _PRODUCTS, axis=-2)
        square = xp.stack([projections(xp, basis, y)] * _PRODUCTS, axis=-2)  # zeros
        start = none, basis, square, first
        _, basis, matrix, _ = backend.while_loop(lambda carry: xp.all(carry[0] < _PRODUCTS), step, start)
        matrix = finite(xp, xp.tril(matrix) + xp.matrix_transpose(xp.tril(matrix, k=-1)))
        largest = xp.max(max_norm(xp, matrix), axis=-1)
        return xp.linalg.eigh(matrix)[0][..., 0] < -(precision**0.5) / 2 * largest

    falls = success & backend.when(xp.any(success), look, (y,), success)
    return raw._replace(status=xp.astype(xp.where(falls, int(Status.SADDLE), raw.status), xp.int32))


def _spectrum(xp: Any, hessian: Array, scale: Array) -> Spectrum:
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    matrix = hessian / scale[..., None, :] / scale[..., None]
    return Spectrum(scale, *xp.linalg.eigh(finite(xp, (matrix + xp.matrix_transpose(matrix)) / 2)))


def equilibrating(xp: Any, hessian: Array) -> Array:
    """Return the scale of each variable, (*batch, n), with which the rows of a Hessian are alike; 0 for a zero row.

    The roots of its diagonal are no scales where that is small beside the rest, as at a saddle it may be.
    """
    rows = xp.max(xp.abs(hessian), axis=-1)
    scale = xp.ones_like(rows)
    for _ in range(_SCALINGS):
        size = xp.max(xp.abs(hessian) / scale[..., None, :] / scale[..., None], axis=-1)
        scale = scale * xp.sqrt(xp.where(rows > 0, size, xp.ones_like(size)))
    return xp.where(rows > 0, scale, xp.zeros_like(scale))


def finite(xp: Any, matrix: Array) -> Array:
    """Return matrices with zeros for those that are not finite."""
    return xp.where(every(xp, is_finite(xp, matrix))[..., None, None], matrix, xp.zeros_like(matrix))
