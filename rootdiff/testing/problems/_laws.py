"""Algebraic equations of the sciences, with numbers published for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rootdiff._backend import Array
from rootdiff.testing.problems._library import chandrasekhar
from rootdiff.testing.problems._problem import Problem, before, count, join, like, namespace, split, total


def kepler(y: Array, theta: Array) -> Array:
    """Return E - e sin(E) - M - b for mean anomalies M = pi (k / (n+1))^3, dense near the pericentre."""
    xp = namespace(y)
    e, b = split(theta)
    n = y.shape[-1]
    return y - e * xp.sin(y) - math.pi * count(y, n) ** 3 / (n + 1) ** 3 - b


def implied_volatility(y: Array, theta: Array) -> Array:
    """Return log(time value of a call with volatility y) - log(that of a price), by Gauss-Legendre quadrature.

    The time value is forward * the integral of phi(k/s + s/2) over total volatilities s up to y sqrt(T), k = log(F/K),
    which, unlike the difference of two normal distributions, keeps its digits deep out of the money.
    """
    xp = namespace(y)
    price, forward, strike, expiry = split(theta)
    nodes, weights = np.polynomial.legendre.leggauss(96)
    x = like(y, (nodes + 1) / 2)
    k = xp.log(forward / strike)
    s = y * xp.sqrt(expiry) * x
    # the largest exponent is taken out of the sum, so that a price of 1e-300 does not underflow
    top = y * xp.sqrt(expiry)
    exponent = (k / s + s / 2) ** 2 / 2 - (k / top + top / 2) ** 2 / 2
    integral = total(like(y, weights / 2) * xp.exp(-exponent)) * top / math.sqrt(2 * math.pi)
    intrinsic = xp.where(forward > strike, forward - strike, 0 * forward)
    return xp.log(forward * integral) - (k / top + top / 2) ** 2 / 2 - xp.log(price - intrinsic)


def colebrook(y: Array, theta: Array) -> Array:
    """Return y + 2 log10(roughness / 3.7 + 2.51 y / Re), with y one over the square root of the friction factor."""
    xp = namespace(y)
    roughness, reynolds = split(theta)
    return y + 2 / math.log(10) * xp.log(roughness / 3.7 + 2.51 * y / reynolds)


def peng_robinson(y: Array, theta: Array) -> Array:
    """Return Peng & Robinson's cubic in the compressibility factor, at T, P, of a fluid with Tc, Pc, omega (K, bar)."""
    xp = namespace(y)
    t, p, critical_t, critical_p, omega = split(theta)
    kappa = 0.37464 + (1.54226 - 0.26992 * omega) * omega
    alpha = (1 + kappa * (1 - xp.sqrt(t / critical_t))) ** 2
    a = 0.45724 * alpha * (p / critical_p) * (critical_t / t) ** 2
    b = 0.07780 * (p / critical_p) * (critical_t / t)
    return ((y - (1 - b)) * y + (a - 2 * b - 3 * b * b)) * y - (a * b - b * b - b**3)


def diode_ladder(y: Array, theta: Array) -> Array:
    """Return the currents into the nodes of a ladder: resistors in series from a source, diodes to ground.

    In units of V / R, the current of the shorted source; V, R, the diodes' Is and thermal voltage in V, ohm, A, V.
    """
    xp = namespace(y)
    voltage, resistance, saturation, thermal = split(theta)
    right = xp.concat([y[..., 1:], y[..., -1:]], axis=-1)  # no current leaves the last node but through its diode
    diode = saturation * (xp.exp(y / thermal) - 1)
    return (before(y, voltage) - 2 * y + right - resistance * diode) / voltage


def propane_combustion(y: Array, theta: Array) -> Array:
    """Return the reduced equilibrium of propane and air, with pressure p, air ratio R and constants K5 to K10."""
    xp = namespace(y)
    p, ratio, k5, k6, k7, k8, k9, k10 = split(theta)
    root = xp.sqrt(p)
    r5, r6, r7, r8, r9, r10 = k5, k6 / root, k7 / root, k8 / p, k9 / root, k10 / p
    y1, y2, y3, y4, y5 = split(y)
    shared = y2 * y3 * y3 + r7 * y2 * y3
    nitrogen = r9 * y2 * y4
    return join(
        [
            y1 * y2 + y1 - 3 * y5,
            2 * y1 * y2 + y1 + 2 * r10 * y2 * y2 + shared + nitrogen + r8 * y2 - ratio * y5,
            2 * y2 * y3 * y3 + r7 * y2 * y3 + 2 * r5 * y3 * y3 + r6 * y3 - 8 * y5,
            nitrogen + 2 * y4 * y4 - 4 * ratio * y5,
            y1 * y2 + y1 + r10 * y2 * y2 + shared + nitrogen + r8 * y2 + r5 * y3 * y3 + r6 * y3 + y4 * y4 - 1,
        ]
    )


_HULL = "Hull (2015), Options, Futures, and Other Derivatives, implied volatilities: 23.5 %"


def law_problems() -> list[Problem]:
    """Return the algebraic applications, from the starts that a user would take."""

    def entry(name: str, residual: Any, y0: Any, theta: Any, source: str, **facts: Any) -> Problem:
        return Problem(name, residual, y0, theta, source, tries=1, **facts)

    anomalies = math.pi * (np.arange(1, 9) / 9) ** 3
    rate = math.exp(0.1 * 0.25)
    combustion = (40.0, 10.0, 0.193, 2.597e-3, 3.448e-3, 1.799e-5, 2.155e-4, 3.846e-5)
    equilibrium = (
        0.003114102265984955,
        34.59792453029019,
        0.06504177869743792,
        0.8593780505779406,
        0.03695185914804602,
    )
    butane = (350.0, 9.4573, 425.1, 37.96, 0.2)
    return [
        entry("kepler", kepler, anomalies, (0.999, 0.0), "Kepler (1609); e up to 0.999"),
        entry("implied-volatility", implied_volatility, (1.0,), (1.875 * rate, 21 * rate, 20.0, 0.25), _HULL),
        entry("implied-volatility-far", implied_volatility, (1.0,), (1e-40, 1.0, 4.0, 1.0), "Jäckel (2015)"),
        entry("colebrook", colebrook, (1.0,), (1e-4, 1e5), "Colebrook (1939)"),
        entry("peng-robinson", peng_robinson, (1.0,), butane, "Peng & Robinson (1976); n-butane of Smith & Van Ness"),
        entry("diode-ladder", diode_ladder, np.zeros(20), (10.0, 100.0, 1e-14, 0.02585), "Shockley (1949)"),
        entry(
            "propane-combustion",
            propane_combustion,
            np.ones(5),
            combustion,
            "Meintjes & Morgan (1990)",
            root=equilibrium,
        ),
        entry("chandrasekhar-near-one", chandrasekhar, np.ones(50), (1 - 1e-6,), "Chandrasekhar (1950); c near 1"),
    ]
