"""The applications: published numbers and closed forms for roots and derivatives."""

import math

import numpy as np
import pytest
from scipy import special

import rootdiff
from rootdiff.testing.problems import APPLICATIONS, get_problem

DIFFERENCES = 1e-7  # relative error of NumPy's central differences, eps^(2/3), times slopes of some thousands


def solve(name, theta=None, y0=None):
    problem = get_problem(name)
    theta = problem.theta if theta is None else np.asarray(theta, float)
    y0 = problem.y0 if y0 is None else np.asarray(y0, float)
    return rootdiff.root(problem.residual, y0, theta)


@pytest.mark.parametrize("problem", APPLICATIONS, ids=lambda problem: problem.name)
def test_default_solver_reaches_a_root_from_a_users_start(problem):
    sol = rootdiff.root(problem.residual, problem.y0, problem.theta)
    assert np.max(np.abs(problem.residual(sol.y, problem.theta))) < 1e-9


def test_kepler_textbook_example():
    # Curtis (2014), Orbital Mechanics for Engineering Students, example 3.1: e = 0.37255, M = 3.6029, E = 3.4794
    sol = solve("kepler", (0.37255, 3.6029 - math.pi / 8), [3.6])
    assert sol.y == pytest.approx([3.4794], abs=1e-4)


def test_kepler_bessel_series():
    e, n = 0.5, 8
    anomaly = math.pi * (np.arange(1, n + 1) / (n + 1)) ** 3
    order = np.arange(1, 60)
    terms = 2 / order * special.jv(order, order * e) * np.sin(order * anomaly[:, None])
    assert solve("kepler", (e, 0.0)).y == pytest.approx(anomaly + terms.sum(axis=1), rel=1e-12)


@pytest.mark.parametrize("e", [0.1, 0.9, 0.999])
def test_kepler_derivatives(e):
    sol = solve("kepler", (e, 0.0))
    slope = 1 - e * np.cos(sol.y)
    expected = np.stack([np.sin(sol.y) / slope, 1 / slope], axis=1)
    assert sol.jacobian()[0] == pytest.approx(expected, rel=DIFFERENCES)


def test_implied_volatility_of_hulls_example():
    # Hull (2015): a call at 1.875 on a stock at 21, strike 20, rate 10 %, three months: 23.5 %
    assert solve("implied-volatility").y == pytest.approx([0.235], abs=5e-4)


@pytest.mark.parametrize("price", [1e-5, 1e-40, 1e-200])
def test_implied_volatility_deep_out_of_the_money(price):
    strike = 4.0
    sol = solve("implied-volatility-far", (price, 1.0, strike, 1.0))
    d1 = -math.log(strike) / sol.y[0] + sol.y[0] / 2
    long, short = special.log_ndtr([d1, d1 - sol.y[0]])
    # Black (1976) in logarithms; the two normal distributions differ by a few per cent, which costs two digits
    assert long + math.log1p(-math.exp(math.log(strike) + short - long)) == pytest.approx(math.log(price), rel=1e-11)
    vega = math.exp(-(d1**2) / 2) / math.sqrt(2 * math.pi)
    assert sol.jacobian()[0][0, 0] == pytest.approx(1 / vega, rel=1e-6)


@pytest.mark.parametrize("reynolds", [4e3, 1e5, 1e8])
def test_colebrook_lambert_w(reynolds):
    roughness = 1e-4
    # y = 2 W(exp(a) / b) / log(10) - a / b' in the form of Goudar & Sonnad (2008)
    a, b = 2 / math.log(10), roughness * reynolds / (3.7 * 2.51)
    d = math.log(10) * reynolds / (2 * 2.51)
    # a log argument beyond the range of exp would need the asymptotic form; b / a + log(d) stays below 700 for b < 600
    exponent = b / a + math.log(d)
    w = _lambert_of_exp(exponent)
    expected = a * (w - b / a)
    assert solve("colebrook", (roughness, reynolds)).y == pytest.approx([expected], rel=1e-10)


def _lambert_of_exp(exponent):
    """Return W(exp(exponent)), the root of w + log(w) = exponent."""
    if exponent < 700:
        return float(special.lambertw(math.exp(exponent)).real)
    w = exponent
    for _ in range(60):
        w = exponent - math.log(w)
    return w


def test_colebrook_moody_chart():
    # Moody (1944): f = 0.0185 at Re = 1e5 and relative roughness 1e-4
    assert solve("colebrook").y ** -2 == pytest.approx([0.0185], abs=5e-5)


def test_peng_robinson_volumes_of_butane():
    # Smith, Van Ness & Abbott (2005), example 3.9: 2486 and 112.6 cm^3/mol for saturated vapour and liquid at 350 K
    volume = 83.14 * 350.0 / 9.4573
    assert solve("peng-robinson").y * volume == pytest.approx([2486], abs=1)
    assert solve("peng-robinson", y0=[0.03]).y * volume == pytest.approx([112.6], abs=0.1)


def test_diode_single_stage_lambert_w():
    v, r, i, t = 5.0, 100.0, 1e-14, 0.02585
    expected = v + r * i - t * special.lambertw(r * i / t * math.exp((v + r * i) / t)).real
    sol = solve("diode-ladder", (v, r, i, t), [0.0])
    assert sol.y == pytest.approx([expected], rel=1e-10)
    drop = v - expected
    assert sol.jacobian()[0][0, 0] == pytest.approx(t / (t + drop + r * i), rel=DIFFERENCES)


def test_diode_ladder_conserves_current():
    sol = solve("diode-ladder")
    v, r, i, t = get_problem("diode-ladder").theta
    assert np.sum(i * np.expm1(sol.y / t)) == pytest.approx((v - sol.y[0]) / r, rel=1e-10)


def test_propane_combustion_published_root():
    # Meintjes & Morgan (1990), the one root with all amounts positive
    published = [0.003114102, 34.59792, 0.06504178, 0.8593780, 0.03695186]
    sol = solve("propane-combustion", y0=[0.003, 30.0, 0.07, 0.9, 0.04])
    assert sol.y == pytest.approx(published, rel=2e-6)


def test_chandrasekhar_near_one():
    (c,) = get_problem("chandrasekhar-near-one").theta
    sol = solve("chandrasekhar-near-one")
    gap = math.sqrt(1 - c)
    # the Jacobian is singular at c = 1: rounding is amplified by 1 / gap
    assert np.mean(sol.y) == pytest.approx(2 / c * (1 - gap), rel=1e-12 / gap)
    assert np.mean(sol.jacobian()[0]) == pytest.approx(-2 / c**2 * (1 - gap) + 1 / (c * gap), rel=1e-6)


def test_bratu_fold():
    sol = solve("bratu-fold")
    assert sol.y[-1] == pytest.approx(6.808124423, abs=5e-10)
    # u -> u / a turns lambda exp(a u) into a lambda exp(u)
    assert sol.jacobian()[0][-1, 0] == pytest.approx(-sol.y[-1], rel=1e-6)


def test_bratu_has_a_root_below_the_fold_and_none_above():
    below = solve("bratu-15", (6.75, 1.0))
    field = below.y.reshape(15, 15)
    assert field == pytest.approx(field.T, abs=1e-9)
    assert field.max() == field[7, 7]
    problem = get_problem("bratu-15")
    # one method: the chain would spend minutes on what has no root
    above = rootdiff.root(problem.residual, problem.y0, np.array([6.9, 1.0]), solver="newton", on_failure="ignore")
    assert not above.converged


def test_poisson_boltzmann_gouy_chapman():
    errors = []
    for n in (79, 159):
        x = 8.0 * np.arange(1, n + 1) / (n + 1)
        exact = 4 * np.arctanh(np.tanh(1.0) * np.exp(-x))
        errors.append(np.max(np.abs(solve("poisson-boltzmann", y0=np.zeros(n)).y - exact)))
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)  # second order


def test_burgers_layer():
    viscosity, c = 0.05, 1.0
    for _ in range(50):
        c = 1 / math.tanh(c / (2 * viscosity))
    errors = []
    for n in (79, 159):
        x = np.linspace(-1, 1, n + 2)[1:-1]
        exact = -c * np.tanh(c * x / (2 * viscosity))
        errors.append(np.max(np.abs(solve("burgers", y0=-x).y - exact)))
    assert errors[0] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # second order


def test_brusselator_mean():
    problem = get_problem("brusselator")
    _, b, _, feed = problem.theta
    n = problem.n // 2
    x = (np.arange(n) + 0.5) / n
    sol = solve("brusselator")
    assert np.mean(sol.y[:n]) == pytest.approx(b + feed * np.mean(x * (1 - x)), rel=1e-12)
    slopes = np.mean(sol.jacobian()[0][:n], axis=0)
    assert slopes == pytest.approx([0, 1, 0, np.mean(x * (1 - x))], abs=1e-8)
