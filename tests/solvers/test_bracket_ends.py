"""Ends of a bracket: infinite, huge, NaN, roots themselves; poles and jumps, and tolerances of zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace

import rootdiff
import rootdiff_jax
import rootdiff_torch
from rootdiff import Status

METHODS = ("chandrupatla", "itp", "bisection", "bracketed_newton")
INF, TAN = np.inf, np.tan(1.0)
E, TWO = np.e, np.sqrt(2.0)
#: Steps that suffice for any root between any two numbers: a few dozen halve exponents, the others digits.
FEW = 130

#: Function, ends, and the root; the exact values are those of the functions' inverses.
ROOTS = (
    ("arctan", 0.0, INF, TAN),
    ("arctan", INF, 0.0, TAN),
    ("arctan", -INF, INF, TAN),
    ("arctan", -1e308, 1e308, TAN),
    ("arctan", -1e200, 1e308, TAN),
    ("arctan", 0.0, 1e308, TAN),
    ("log", 0.0, INF, E),
    ("log", -INF, INF, E),
    ("far", 0.0, INF, 1e30),
    ("square", TWO, 10.0, TWO),  # f(fl(sqrt(2))) > 0: the root is less than a rounding below the end
    ("square", 10.0, TWO, TWO),
    ("square", -10.0, -TWO, -TWO),
)
#: And the status, where there is no root or no bracket.
FAILURES = (
    ("exp", 0.0, INF, Status.INVALID_BRACKET),  # an underflow is no root
    ("exp", 0.0, 800.0, Status.INVALID_BRACKET),
    ("one", -INF, INF, Status.INVALID_BRACKET),
    ("arctan", INF, INF, Status.INVALID_BRACKET),
    ("arctan", np.nan, 3.0, Status.NONFINITE_START),
    ("arctan", -3.0, np.nan, Status.NONFINITE_START),
    ("log", 10.0, -1.0, Status.NONFINITE_START),  # the residual is NaN there
    ("pole", -1.0, 2.0, Status.STALLED),
    ("pole", -1.0, 1.0, Status.STALLED),
    ("jump", -1.0, 2.0, Status.STALLED),
)
CASES = (*ROOTS, *FAILURES)
LO, HI = (np.array([case[place] for case in CASES]) for place in (1, 2))


def residual(xp, y):
    functions = {
        "arctan": lambda y: xp.arctan(y) - 1,
        "log": lambda y: xp.log(y) - 1,
        "far": lambda y: y / 1e30 - 1,
        "square": lambda y: y * y - 2,
        "exp": lambda y: xp.exp(-y),
        "one": lambda y: 0 * y + 1,
        "pole": lambda y: 1 / y,
        "jump": lambda y: xp.where(y > 0, 0 * y + 1, 0 * y - 1),
    }
    return xp.stack([functions[name](y[i]) for i, (name, *_) in enumerate(CASES)])


def check(sol, dtype=np.float64):
    y, status, steps = (np.asarray(part) for part in (sol.y, sol.status, sol.steps))
    count = len(ROOTS)
    assert [Status(int(s)).name for s in status[:count]] == ["CONVERGED"] * count
    np.testing.assert_allclose(y[:count], [case[3] for case in ROOTS], rtol=4 * np.finfo(dtype).eps ** 0.75)
    assert [Status(int(s)).name for s in status[count:]] == [case[3].name for case in FAILURES]
    assert not np.isnan(y).any()  # the best point of a failure is a number where there is one
    assert steps.max() <= FEW


@pytest.mark.parametrize("method", METHODS)
def test_every_end_has_its_root_or_its_status(method):
    with np.errstate(all="ignore"):
        sol = rootdiff.root_scalar(lambda y: residual(np, y), (LO, HI), solver=method, on_failure="ignore")
    check(sol)


@pytest.mark.parametrize("method", METHODS)
def test_every_end_in_float32(method):
    def f(y, one):
        return np.stack([np.arctan(y[0]) - one, np.arctan(y[1]) - one, np.exp(-y[2]), y[3] - 1e30 * one, 1 / y[4]])

    one = np.float32(1)
    lo, hi = np.array([[0, INF], [-3e38, 3e38], [0, 200], [0, INF], [-1, 2]], np.float32).T
    with np.errstate(all="ignore"):
        sol = rootdiff.root_scalar(f, (lo, hi), one, solver=method, on_failure="ignore")
    assert sol.y.dtype == np.float32
    names = [Status(int(s)).name for s in sol.status]
    assert names == ["CONVERGED", "CONVERGED", "INVALID_BRACKET", "CONVERGED", "STALLED"]
    np.testing.assert_allclose(sol.y[[0, 1, 3]], [TAN, TAN, 1e30], rtol=3e-5)
    assert np.max(sol.steps) <= FEW


@pytest.mark.parametrize("method", METHODS)
def test_every_end_in_torch(method):
    ends = (torch.tensor(LO), torch.tensor(HI))
    check(rootdiff_torch.root_scalar(lambda y: residual(torch, y), ends, solver=method, on_failure="ignore"))


def test_every_end_under_jit():
    with jax.enable_x64(True):

        @jax.jit
        def solve(lo, hi):
            return rootdiff_jax.root_scalar(lambda y: residual(jnp, y), (lo, hi), on_failure="ignore")

        check(solve(LO, HI))


def test_an_infinite_end_has_a_derivative():
    sol = rootdiff.root_scalar(lambda y, a: np.arctan(y) - a, [0, INF], np.array([0.5, 1.0]))
    np.testing.assert_allclose(sol.vjp(np.ones(2))[0], 1 + np.tan([0.5, 1.0]) ** 2, rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_of_zero_gives_the_nearest_number(method):
    # of the two numbers around the root the one with the smaller residual, and no claim to be within tolerance
    solver = getattr(rootdiff, {"bracketed_newton": "BracketedNewton", "itp": "ITP"}.get(method, method.title()))
    sol = rootdiff.root_scalar(lambda y: np.exp(y) - 3, (0.0, 3.0), solver=solver(rtol=0.0, atol=0.0))
    around = np.nextafter(sol.y, [-INF, INF])
    assert np.all(np.abs(np.exp(around) - 3) >= np.abs(np.exp(sol.y) - 3))
    assert sol.status == Status.AT_PRECISION or sol.residual_norm == 0


def test_a_root_far_below_one_is_found_where_f_is_infinite_at_an_end():
    # an infinite residual at an end does not tell how far the residual has fallen
    with np.errstate(divide="ignore"):
        sol = rootdiff.root_scalar(lambda y: np.log(y) + 46, (0.0, 1.0), solver="bisection")
    np.testing.assert_allclose(sol.y, np.exp(-46.0), rtol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_that_of_the_root(method):
    sol = rootdiff.root_scalar(
        lambda y: y**2 - np.array([2.0, 3.0, 4.0]), (np.zeros(3), np.array([8.0, 8.0, 4.0])), solver=method
    )
    assert np.all(np.abs(sol.y - np.sqrt([2.0, 3.0, 4.0])) <= sol.error)
    assert np.all(sol.error <= 1e-11)


@pytest.mark.parametrize("solver", METHODS)
def test_a_zero_by_rounding_is_as_wide_as_is_said(solver: str) -> None:
    """The cosine is 1 - 1e-14 all over a plateau, 1e-9 wide, around its root."""
    sol = rootdiff.root_scalar(lambda y: np.cos(y) - (1 - 1e-14), (0.0, 1.0), solver=solver)
    assert sol.status == Status.AT_PRECISION
    assert abs(sol.y - np.sqrt(2e-14)) <= 10 * sol.error
    assert sol.error < 1e-7


@pytest.mark.parametrize("solver", METHODS)
def test_a_root_within_noise_is_as_near_as_is_said(solver: str) -> None:
    """Rounding makes an expanded cube change its sign anywhere up to 1e-5 from its root."""
    hi = np.linspace(7.0, 8.0, 50)
    sol = rootdiff.root_scalar(lambda y: y**3 - 3 * y**2 + 3 * y - 1, (np.full(50, -4.0), hi), solver=solver)
    assert np.all(np.abs(sol.y - 1) <= 20 * sol.error + 2e-7)
    assert np.all(sol.error <= 1e-3)


@pytest.mark.parametrize("solver", METHODS)
@pytest.mark.parametrize("kind", ["expanded", "far", "noisy", "coarse"])
def test_the_error_is_not_far_below_the_true_one(kind: str, solver: str) -> None:
    rng = np.random.default_rng(3)
    for c, size, below, above in rng.uniform([0.5, 0, 0.5, 0.5], [3, 1, 4, 4], (40, 4)):
        cubed = np.poly(np.full(3, c))
        f = {
            "expanded": lambda y, cubed=cubed: np.polyval(cubed, y),
            "far": lambda y, c=c, s=10 ** (3 + 6 * size): (y**3 + s) - (c**3 + s),
            "noisy": lambda y, c=c, s=10 ** (-10 + 8 * size): y**3 - c**3 + s * np.sin(1e15 * np.abs(y) ** 1.3),
            "coarse": lambda y, c=c, s=10 ** (1 + 5 * size): np.round(s * (y**3 - c**3)),
        }[kind]
        sol = rootdiff.root_scalar(f, (c - below, c + above), solver=solver, on_failure="ignore")
        if sol.status <= Status.AT_PRECISION:
            assert abs(sol.y - c) <= 20 * sol.error


def test_a_random_callback_is_seen_in_jax() -> None:
    rng = np.random.default_rng(0)

    def noisy(y):
        return np.asarray(y) ** 3 - 2 + 1e-2 * rng.standard_normal(np.shape(y)).astype(y.dtype)

    def residual(y):
        return jax.pure_callback(noisy, jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential")

    sol = rootdiff_jax.root_scalar(residual, (0.0, 3.0), on_failure="ignore")
    assert sol.status == Status.RANDOM


#: name: (residual, the interval in which it is zero)
BANDS = {
    "floor": (lambda xp, y: xp.floor(y), (0.0, 1.0)),
    "dead band": (lambda xp, y: xp.where(y > 1, y - 1, xp.where(y < -1, y + 1, 0 * y)), (-1.0, 1.0)),
    "rounded": (lambda xp, y: xp.round(100 * y) - 50, (0.495, 0.505)),
}


@pytest.mark.parametrize("ends", [(-1.0, 1.0), (0.0, 2.0), (-1.0, 2.0)])
@pytest.mark.parametrize("solver", METHODS)
def test_a_root_at_zero_has_an_error_too(backend, solver: str, ends: tuple[float, float]) -> None:
    for f in (lambda y: 2 * y, lambda y: y**3):
        bracket = tuple(np.array(end) for end in ends)
        out = backend.solve(f, bracket, entry="root_scalar", solver=solver, on_failure="ignore")
        assert abs(out.y) <= out.solution.error <= 1e-11


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize("solver", METHODS)
def test_of_an_interval_of_zeros_each_is_a_root_and_its_width_the_error(backend, solver: str, band: str) -> None:
    f, ends = BANDS[band]
    out = backend.solve(
        lambda y: f(array_namespace(y), y), (np.array(-3.1), np.array(4.3)), entry="root_scalar", solver=solver
    )
    assert int(out.status) == Status.AT_PRECISION
    assert ends[0] - 1e-12 <= out.y <= ends[1] + 1e-12
    assert out.solution.error >= max(out.y - ends[0], ends[1] - out.y) - 1e-12
    assert out.solution.error <= 8 * (ends[1] - ends[0])


@pytest.mark.parametrize("solver", METHODS)
def test_a_floor_that_is_not_zero_has_no_root(backend, solver: str) -> None:
    bracket = (np.array(-1.5), np.array(2.7))
    for size in (1.0, 1e-13):
        out = backend.solve(
            lambda y, size: size * (array_namespace(y).floor(y) + 0.5),
            bracket,
            np.array(size),
            entry="root_scalar",
            solver=solver,
            on_failure="ignore",
        )
        assert int(out.status) == Status.STALLED
