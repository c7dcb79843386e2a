"""Stiff equations of chemistry with their rates as parameters, and what diffrax says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace


@dataclass(frozen=True)
class Stiff:
    """An equation ``dy/dt = f(t, y, rates)``, where it starts and ends.

    `last` and `slope`, the values at the end and the derivatives of the first of them in the logarithms of the rates,
    are those of diffrax 0.7.2 by Kvaerno5 with rtol=1e-9 and atol=1e-13, and of `jax.jacfwd` through it.
    """

    f: Any
    rates: np.ndarray
    y0: np.ndarray
    end: float
    last: np.ndarray
    slope: np.ndarray


def _hires(t: Any, y: Any, rates: Any) -> Any:
    """Schaefer (1975), as in Hairer & Wanner (1996), IV.10; light on a plant."""
    a, b, c, d, e, bound, loosed = (rates[place] for place in range(7))
    made, split = bound * y[5] * y[7], loosed * y[6]
    return array_namespace(y).stack(
        [
            b * y[1] - a * y[0] + c * y[2] + 0.0007,
            a * y[0] - (b + c) * y[1],
            b * y[3] + e * y[4] - (a + c) * y[2],
            c * y[1] + a * y[2] - (b + d) * y[3],
            b * (y[5] + y[6]) - (a + e) * y[4],
            d * (y[3] + y[6]) + a * y[4] - b * y[5] - made,
            made - split,
            split - made,
        ]
    )


HIRES = Stiff(
    _hires,
    np.array([1.71, 0.43, 8.32, 0.69, 0.035, 280.0, 1.81]),
    np.array([1.0, 0, 0, 0, 0, 0, 0, 0.0057]),
    321.8122,
    np.array(
        [
            7.3713126e-04,
            1.4424857e-04,
            5.8887297e-05,
            1.1756513e-03,
            2.3863562e-03,
            6.2389683e-03,
            2.8499984e-03,
            2.8500016e-03,
        ]
    ),
    np.array(
        [-8.9807625e-04, 2.4781105e-03, 1.3921099e-05, 3.0758295e-03, 8.2951686e-05, -1.2999545e-04, -8.6385548e-03]
    ),
)

#: Reactions of polluted air, Verwer (1994), "Gauss-Seidel iteration for stiff ODEs from chemical kinetics": what each
#: of the 25 takes of 20 substances, what it makes, and its rate.
_REACTIONS = [
    ((1,), (2, 3), 0.35),
    ((2, 4), (1,), 26.6),
    ((5, 2), (1, 6), 1.23e4),
    ((7,), (5, 5, 8), 8.6e-4),
    ((7,), (8,), 8.2e-4),
    ((7, 6), (5, 8), 1.5e4),
    ((9,), (5, 8, 10), 1.3e-4),
    ((9, 6), (11,), 2.4e4),
    ((11, 2), (1, 10, 12), 1.65e4),
    ((11, 1), (13,), 9e3),
    ((13,), (1, 11), 0.022),
    ((10, 2), (1, 14), 1.2e4),
    ((14,), (5, 7), 1.88),
    ((1, 6), (15,), 1.63e4),
    ((3,), (4,), 4.8e6),
    ((4,), (16,), 3.5e-4),
    ((4,), (3,), 0.0175),
    ((16,), (6, 6), 1e8),
    ((16,), (3,), 4.44e11),
    ((17, 6), (5, 18), 1240.0),
    ((19,), (2,), 2.1),
    ((19,), (1, 3), 5.78),
    ((1, 4), (19,), 0.0474),
    ((19, 1), (20,), 1780.0),
    ((20,), (1, 19), 3.12),
]
_TAKEN, _CHANGED = [(*taken, 21)[:2] for taken, _, _ in _REACTIONS], np.zeros((21, 25))
for _place, (_taken, _made, _) in enumerate(_REACTIONS):
    np.add.at(_CHANGED, (np.array(_taken) - 1, _place), -1)
    np.add.at(_CHANGED, (np.array(_made) - 1, _place), 1)


def _pollution(t: Any, y: Any, rates: Any) -> Any:
    xp = array_namespace(y)
    whole = xp.concat([y, xp.ones_like(y[:1])])  # what a reaction of one substance takes besides
    first, second = (whole[xp.asarray([pair[place] - 1 for pair in _TAKEN])] for place in (0, 1))
    return xp.asarray(_CHANGED[:20]) @ (rates * first * second)


_AIR = {2: 0.2, 4: 0.04, 7: 0.1, 8: 0.3, 9: 0.01, 17: 0.007}

POLLUTION = Stiff(
    _pollution,
    np.array([rate for _, _, rate in _REACTIONS]),
    np.array([_AIR.get(substance, 0.0) for substance in range(1, 21)]),
    60.0,
    np.array(
        [
            5.6462555e-02,
            1.3424841e-01,
            4.1397343e-09,
            5.5231402e-03,
            2.0189773e-07,
            1.4645419e-07,
            7.7842491e-02,
            3.2450754e-01,
            7.4940134e-03,
            1.6222932e-08,
            1.1358638e-08,
            2.2305060e-03,
            2.0871629e-04,
            1.3969210e-05,
            8.9648849e-03,
            4.3528464e-18,
            6.8992197e-03,
            1.0078030e-04,
            1.7721465e-06,
            5.6829433e-05,
        ]
    ),
    np.array(
        [
            -3.9951987e-03,
            3.9177550e-03,
            1.6079408e-06,
            1.2514427e-02,
            -5.5841226e-04,
            9.0723108e-03,
            2.3309524e-04,
            4.1243601e-03,
            7.2236676e-04,
            -7.2231637e-04,
            3.9027768e-04,
            5.8269805e-08,
            2.9334908e-05,
            -1.3267859e-02,
            2.6436368e-09,
            1.4640753e-08,
            -1.2983984e-11,
            1.4637716e-08,
            -1.4637716e-08,
            7.2923673e-05,
            -1.3972597e-04,
            2.4120523e-04,
            -3.5644830e-04,
            -9.9713195e-05,
            9.9363889e-05,
        ]
    ),
)
