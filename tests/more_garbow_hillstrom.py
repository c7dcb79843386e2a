"""The 35 sums of squares of Moré, Garbow & Hillstrom (1981), "Testing unconstrained optimization software".

Numbers, formulas, standard starts and minima are those of the paper; the square ones are `rootdiff.testing.problems`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rootdiff.testing.problems import get_problem
from rootdiff.testing.problems._problem import count, join, like, namespace, split, total


def _numbers(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=float)


BARD = _numbers(".14 .18 .22 .25 .29 .32 .35 .39 .37 .58 .73 .96 1.34 2.10 4.39")
GAUSSIAN = _numbers(".0009 .0044 .0175 .0540 .1295 .2420 .3521 .3989 .3521 .2420 .1295 .0540 .0175 .0044 .0009")
MEYER = _numbers("34780 28610 23650 19630 16370 13720 11540 9744 8261 7030 6005 5147 4427 3820 3307 2872")
KOWALIK = _numbers(".1957 .1947 .1735 .1600 .0844 .0627 .0456 .0342 .0323 .0235 .0246")
KOWALIK_U = _numbers("4 2 1 .5 .25 .167 .125 .1 .0833 .0714 .0625")
OSBORNE_1 = _numbers(
    ".844 .908 .932 .936 .925 .908 .881 .850 .818 .784 .751 .718 .685 .658 .628 .603 .580 .558 .538 .522 .506 .490 "
    ".478 .467 .457 .448 .438 .431 .424 .420 .414 .411 .406"
)
OSBORNE_2 = _numbers(
    "1.366 1.191 1.112 1.013 .991 .885 .831 .847 .786 .725 .746 .679 .608 .655 .616 .606 .602 .626 .651 .724 .649 .649 "
    ".694 .644 .624 .661 .612 .558 .533 .495 .500 .423 .395 .375 .372 .391 .396 .405 .428 .429 .523 .562 .607 .653 "
    ".672 .708 .633 .668 .645 .632 .591 .559 .597 .625 .739 .710 .729 .720 .636 .581 .428 .292 .162 .098 .054"
)


@dataclass(frozen=True)
class Squares:
    """Equations whose squares are summed, for any array namespace, a start, and the sums at the minima known.

    At the minimum that the start leads to, the Hessian is `regular`, or the unknowns are not determined.
    """

    residual: Callable[[Any], Any]
    start: Any
    sums: tuple[float, ...] = (0.0,)
    regular: bool = True


def _square(name: str, *sums: float, regular: bool = True) -> Squares:
    problem = get_problem(name)
    return Squares(lambda y: problem.residual(y, like(y, np.array(problem.theta))), problem.y0, sums or (0.0,), regular)


def _freudenstein_roth(y: Any) -> Any:
    a, b = split(y)
    return join([a - 13 + ((5 - b) * b - 2) * b, a - 29 + ((b + 1) * b - 14) * b])


def _brown_badly_scaled(y: Any) -> Any:
    a, b = split(y)
    return join([a - 1e6, b - 2e-6, a * b - 2])


def _beale(y: Any) -> Any:
    a, b = split(y)
    return like(y, [1.5, 2.25, 2.625]) - a * (1 - b ** count(y, 3))


def _jennrich_sampson(y: Any) -> Any:
    (a, b), i, xp = split(y), count(y, 10), namespace(y)
    return 2 + 2 * i - (xp.exp(i * a) + xp.exp(i * b))


def _bard(y: Any) -> Any:
    (a, b, c), u = split(y), np.arange(1, 16)
    return like(y, BARD) - (a + like(y, u) / (like(y, 16 - u) * b + like(y, np.minimum(u, 16 - u)) * c))


def _gaussian(y: Any) -> Any:
    a, b, c = split(y)
    return a * namespace(y).exp(-b * ((8 - count(y, 15)) / 2 - c) ** 2 / 2) - like(y, GAUSSIAN)


def _meyer(y: Any) -> Any:
    a, b, c = split(y)
    return a * namespace(y).exp(b / (45 + 5 * count(y, 16) + c)) - like(y, MEYER)


def _gulf(y: Any) -> Any:
    (a, b, c), xp, t = split(y), namespace(y), np.arange(1, 100) / 100
    return xp.exp(-(xp.abs(like(y, 25 + (-50 * np.log(t)) ** (2 / 3)) - b) ** c) / a) - like(y, t)


def _box(y: Any) -> Any:
    (a, b, c), xp, t = split(y), namespace(y), np.arange(1, 11) / 10
    return xp.exp(-like(y, t) * a) - xp.exp(-like(y, t) * b) - c * like(y, np.exp(-t) - np.exp(-10 * t))


def _wood(y: Any) -> Any:
    a, b, c, d = split(y)
    return join([10 * (b - a**2), 1 - a, 90**0.5 * (d - c**2), 1 - c, 10**0.5 * (b + d - 2), (b - d) / 10**0.5])


def _kowalik_osborne(y: Any) -> Any:
    (a, b, c, d), u = split(y), like(y, KOWALIK_U)
    return like(y, KOWALIK) - a * (u**2 + u * b) / (u**2 + u * c + d)


def _brown_dennis(y: Any) -> Any:
    (a, b, c, d), t = split(y), np.arange(1, 21) / 5
    e, sine, cosine, t = (like(y, part) for part in (np.exp(t), np.sin(t), np.cos(t), t))
    return (a + t * b - e) ** 2 + (c + d * sine - cosine) ** 2


def _osborne_1(y: Any) -> Any:
    (a, b, c, d, e), t, xp = split(y), 10 * (count(y, 33) - 1), namespace(y)
    return like(y, OSBORNE_1) - (a + b * xp.exp(-t * d) + c * xp.exp(-t * e))


def _biggs(y: Any) -> Any:
    (a, b, c, d, e, f), t, xp = split(y), np.arange(1, 14) / 10, namespace(y)
    data, t = like(y, np.exp(-t) - 5 * np.exp(-10 * t) + 3 * np.exp(-4 * t)), like(y, t)
    return c * xp.exp(-t * a) - d * xp.exp(-t * b) + f * xp.exp(-t * e) - data


def _osborne_2(y: Any) -> Any:
    p, t, xp = split(y), (count(y, 65) - 1) / 10, namespace(y)
    peaks = sum(p[k] * xp.exp(-((t - p[k + 7]) ** 2) * p[k + 4]) for k in (1, 2, 3))
    return like(y, OSBORNE_2) - (p[0] * xp.exp(-t * p[4]) + peaks)


def _watson(y: Any) -> Any:
    (a, b, *_), n, t = split(y), y.shape[-1], np.arange(1, 30)[:, None] / 29
    slopes = np.arange(n) * t ** np.maximum(np.arange(n) - 1, 0)
    value = y @ like(y, (t ** np.arange(n)).T)
    return join([y @ like(y, slopes.T) - value**2 - 1, a, b - a**2 - 1])


def _penalty_1(y: Any) -> Any:
    return join([1e-5**0.5 * (y - 1), total(y**2) - 0.25])


def _penalty_2(y: Any) -> Any:
    xp, n = namespace(y), y.shape[-1]
    e, i = xp.exp(y / 10), np.arange(2, n + 1)
    known = like(y, np.exp(i / 10) + np.exp((i - 1) / 10))
    last = total(like(y, np.arange(n, 0, -1)) * y**2) - 1
    parts = [e[..., 1:] + e[..., :-1] - known, e[..., 1:] - float(np.exp(-0.1))]
    return join([y[..., :1] - 0.2, *(1e-5**0.5 * part for part in parts), last])


def _variably_dimensioned(y: Any) -> Any:
    whole = total(count(y, y.shape[-1]) * (y - 1))
    return join([y - 1, whole, whole**2])


def _linear_full_rank(y: Any) -> Any:
    mean = 2 / 20 * total(y)
    return join([y - mean - 1, 0 * like(y, np.ones(20 - y.shape[-1])) - mean - 1])


def _linear_rank_1(y: Any) -> Any:
    return count(y, 20) * total(count(y, y.shape[-1]) * y) - 1


def _linear_rank_1_with_zeros(y: Any) -> Any:
    weights, rows = np.arange(1, y.shape[-1] + 1.0), np.arange(20.0)
    weights[[0, -1]] = rows[-1] = 0
    return like(y, rows) * total(like(y, weights) * y) - 1


SQUARES: dict[str, Squares] = {
    "1 Rosenbrock": _square("rosenbrock-2"),
    "2 Freudenstein and Roth": Squares(_freudenstein_roth, [0.5, -2], (0.0, 48.9842)),
    "3 Powell badly scaled": _square("powell-badly-scaled-2"),
    "4 Brown badly scaled": Squares(_brown_badly_scaled, [1, 1]),
    "5 Beale": Squares(_beale, [1, 1]),
    "6 Jennrich and Sampson": Squares(_jennrich_sampson, [0.3, 0.4], (124.362,)),
    "7 helical valley": _square("helical-valley-3"),
    "8 Bard": Squares(_bard, [1, 1, 1], (8.21487e-3, 17.4286)),
    "9 Gaussian": Squares(_gaussian, [0.4, 1, 0], (1.12793e-8,)),
    "10 Meyer": Squares(_meyer, [0.02, 4000, 250], (87.9458,)),
    "11 Gulf": Squares(_gulf, [5, 2.5, 0.15]),
    "12 Box": Squares(_box, [0, 10, 20]),
    "13 Powell singular": _square("powell-singular-4", regular=False),
    "14 Wood": Squares(_wood, [-3, -1, -3, -1]),
    "15 Kowalik and Osborne": Squares(_kowalik_osborne, [0.25, 0.39, 0.415, 0.39], (3.07505e-4, 1.02734e-3)),
    "16 Brown and Dennis": Squares(_brown_dennis, [25, 5, -5, -1], (85822.2,)),
    "17 Osborne 1": Squares(_osborne_1, [0.5, 1.5, -1, 0.01, 0.02], (5.46489e-5,)),
    "18 Biggs": Squares(_biggs, [1, 2, 1, 1, 1, 1], (0.0, 5.65565e-3)),
    "19 Osborne 2": Squares(_osborne_2, [1.3, 0.65, 0.65, 0.7, 0.6, 3, 5, 7, 2, 4.5, 5.5], (4.01377e-2,)),
    "20 Watson 6": Squares(_watson, np.zeros(6), (2.28767e-3,)),
    "20 Watson 9": Squares(_watson, np.zeros(9), (1.39976e-6,)),
    "20 Watson 12": Squares(_watson, np.zeros(12), (4.72238e-10,)),
    "21 extended Rosenbrock": _square("rosenbrock-20"),
    "22 extended Powell singular": _square("powell-singular-20", regular=False),
    "23 penalty I 4": Squares(_penalty_1, np.arange(1, 5), (2.24997e-5,)),
    "23 penalty I 10": Squares(_penalty_1, np.arange(1, 11), (7.08765e-5,)),
    "24 penalty II 4": Squares(_penalty_2, np.full(4, 0.5), (9.37629e-6,)),
    "24 penalty II 10": Squares(_penalty_2, np.full(10, 0.5), (2.93660e-4,)),
    "25 variably dimensioned": Squares(_variably_dimensioned, 1 - np.arange(1, 11) / 10),
    "26 trigonometric": _square("trigonometric-10", 0.0, 2.79506e-5),
    "27 Brown almost-linear": _square("brown-almost-linear-10", 0.0, 1.0),
    "28 discrete boundary value": _square("discrete-boundary-value-10"),
    "29 discrete integral equation": _square("discrete-integral-10"),
    "30 Broyden tridiagonal": _square("broyden-tridiagonal-10"),
    "31 Broyden banded": _square("broyden-banded-10"),
    "32 linear full rank": Squares(_linear_full_rank, np.ones(10), (10.0,)),
    "33 linear rank 1": Squares(_linear_rank_1, np.ones(10), (20 * 19 / 82,), regular=False),
    "34 linear rank 1 with zeros": Squares(_linear_rank_1_with_zeros, np.ones(10), (454 / 74,), regular=False),
    "35 Chebyquad 8": _square("chebyquad-8", 3.51687e-3),
    "35 Chebyquad 9": _square("chebyquad-9"),
}
