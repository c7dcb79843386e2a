"""Success is a statement about y: each unknown is as near a root as is said, or no success is claimed."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff
from rootdiff import Status
from tests.solvers.cases import on_backends

K = {name: math.log(float(name)) for name in ("1e-12", "1e-16", "1e-22", "1e-28")}


def _stack(*rows: Any) -> Any:
    return xp(rows[0]).stack(list(rows))


def _dissociation(log_k: float, order: float = 1.0) -> Any:
    """Shares of an acid and its two ions, as logarithms: the ions hold a part sqrt(K) of the whole."""

    def f(y: Any) -> Any:
        exp = xp(y).exp
        return _stack(exp(y[0]) + exp(y[1]) - 1, exp(y[0]) + exp(y[2]) - 1, y[1] + y[2] - order * y[0] - log_k)

    return f


def _ions(log_k: float, order: float = 1.0) -> list[float]:
    constant, share = math.exp(log_k), 0.0
    for _ in range(100):  # share^2 = constant (1 - share)^order
        share = math.sqrt(constant * (1 - share) ** order)
    return [math.log1p(-share), math.log(share), math.log(share)]


def _equilibrium(y: Any) -> Any:
    return _stack(y[0] * y[1] - 1e-5 * y[2], y[0] + y[2] - 1e-3, y[1] + y[2] - 2e-3)


def _square(y: Any) -> Any:
    return _stack(y[0] ** 2 + y[1] ** 2 - 2 * y[0] * y[1], y[0] - 1)


_COMPLEX = (3.01e-3 - math.sqrt(3.01e-3**2 - 8e-6)) / 2

#: name: (residual, start, root or None where there is none, dtype)
CASES: dict[str, tuple[Any, list[float], list[float] | None, type]] = {
    "an unknown runs away from its row": (lambda y: _stack(1 / y[0] - y[1], y[1]), [3.0, 0.1], None, np.float64),
    "a row falls to zero at infinity": (
        lambda y: _stack(xp(y).exp(-y[0]) - y[1] * y[1], y[1]),
        [3.0, 0.1],
        None,
        np.float64,
    ),
    "a row of Lorentz": (lambda y: _stack(1 / (1 + y[0] ** 2) - y[1], y[1]), [1.0, 1.0], None, np.float64),
    "a row that hardly depends on anything": (
        lambda y: _stack(1e-18 * (y[0] ** 2 + 1), y[1] ** 3 - 6.9 * y[1] - 0.6),
        [1.0, 1.0],
        None,
        np.float64,
    ),
    "no root in small units": (lambda y: (1e13 * y) ** 2 + 1, [1e-6], None, np.float64),
    "underflow": (lambda y: xp(y).exp(-y), [700.0], None, np.float64),
    "underflow at the start": (lambda y: xp(y).exp(-y), [800.0], None, np.float64),
    "underflow in float32": (lambda y: (y - 3) * xp(y).exp(-(y**2) / 2), [6.0], None, np.float32),
    "couplings of 1e-12": (
        lambda y: _stack(y[0] + 1e-12 * y[1] - 2, y[0] + 2e-12 * y[2] - 2, y[1] + y[2] / 2 - 5),
        [1.9, 0.0, 0.0],
        [2.0, 4.0, 2.0],
        np.float64,
    ),
    **{f"dissociation, {k}": (_dissociation(K[k]), list(np.log([0.9, 0.1, 0.05])), _ions(K[k]), np.float64) for k in K},
    "dissociation, second order": (
        _dissociation(-60.0, 2.0),
        list(np.log([0.9, 0.1, 0.05])),
        _ions(-60.0, 2.0),
        np.float64,
    ),
    **{
        f"two roots {2 * c**0.5:.0e} apart": (lambda y, c=c: y**2 - 2 * y + 1 - c, [2.0], [1 + c**0.5], np.float64)
        for c in (1e-12, 1e-13, 1e-14)
    },
    "a plateau around a root": (lambda y: xp(y).cos(y) - (1 - 1e-14), [1.0], [math.sqrt(2e-14)], np.float64),
    "two roots of exp": (lambda y: xp(y).exp(y - 1) - y - 1e-12, [2.0], [1 + 2e-12**0.5], np.float64),
    "a double root of exp": (lambda y: xp(y).exp(y - 1) - y, [2.0], [1.0], np.float64),
    "a double root at zero": (lambda y: y**2, [1.0], [0.0], np.float64),
    "a square multiplied out": (_square, [3.0, 1.5], [1.0, 1.0], np.float64),
    "a square multiplied out, from elsewhere": (_square, [5.0, 1.0], [1.0, 1.0], np.float64),
    "an unknown of 1e-12 from one": (lambda y: (1e12 * y) ** 3 + 1e12 * y - 10, [1.0], [2e-12], np.float64),
    "an unknown of 1e-13 beside a tenth": (
        lambda y: _stack(y[0] * y[1] - 1e-14, y[0] - 0.1 - y[1]),
        [0.1, 0.1],
        [0.1 + 1e-13, 1e-13],
        np.float64,
    ),
    "concentrations in float32": (
        _equilibrium,
        [1e-3, 1e-3, 1e-4],
        [1e-3 - _COMPLEX, 2e-3 - _COMPLEX, _COMPLEX],
        np.float32,
    ),
    "condition 1e9 from zeros": (
        lambda y: _stack(y[0] + y[1] - 2, y[0] + (1 + 1e-9) * y[1] - 2 - 1e-9),
        [0.0, 0.0],
        [1.0, 1.0],
        np.float64,
    ),
    "condition 1e9 from ones": (
        lambda y: _stack(y[0] + y[1] - 2.3, y[0] + (1 + 1e-9) * y[1] - 2.3 - 1e-9),
        [1.0, 1.0],
        [1.3, 1.0],
        np.float64,
    ),
    "a row of large terms": (
        lambda y: _stack((y[0] + 1e10) - (2 + 1e10), y[1] - y[0]),
        [3.1, 1.0],
        [2.0, 2.0],
        np.float64,
    ),
    "a slow row of a fixed point": (
        lambda y: _stack(y[0] - 1e-12 * (y[0] - 3) - y[0], y[1] - 0.5 * (y[1] - 3) - y[1]),
        [5.0, 5.0],
        [3.0, 3.0],
        np.float64,
    ),
    "no derivative at the start, a norm": (
        lambda y: y + y * xp(y).sqrt(y * y) - 0.1,
        [0.0],
        [(math.sqrt(1.4) - 1) / 2],
        np.float64,
    ),
    "no derivative at the start, a root": (lambda y: y + xp(y).sqrt(y) - 6, [0.0], [4.0], np.float64),
    "no derivative at the start, two roots": (
        lambda y: _stack(y[0] + xp(y).sqrt(y[0]) - 6, y[1] + xp(y).sqrt(y[1]) - y[0] + 2),
        [0.0, 0.0],
        [4.0, 1.0],
        np.float64,
    ),
}
#: Where a solver may fail, as long as it says so. With differences for derivatives fewer digits are left, and there is
#: one at each start; Newton's method alone goes nowhere without.
FAR = {"dissociation, 1e-28", "dissociation, second order"}
TWO_KINKS = "no derivative at the start, two roots"
KINKS = {"no derivative at the start, a norm", "no derivative at the start, a root", TWO_KINKS}
MAY_FAIL = {
    ("numpy", "auto"): FAR,
    ("numpy", "newton"): {*FAR, "couplings of 1e-12", TWO_KINKS},
    ("torch", "newton"): KINKS,
    ("jax-jit", "newton"): KINKS,
}
#: How far a success may be off, beside its own estimate of the error: by the atol of a start of size one, and by 1e-9;
#: where the rounding of a constant moves the root of the numbers at hand, by that
SLACK = {np.float64: (1e-9, 1e-15), np.float32: (1e-3, 1e-9)}
ROUNDED = {"couplings of 1e-12": 4e-4, "a plateau around a root": 1e-9}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("backend", "solver"), on_backends(["auto", "newton"], []))
def test_a_success_is_as_near_as_it_says(backend: Any, solver: str, case: str) -> None:
    f, start, root, dtype = CASES[case]
    out = backend.solve(f, np.array(start, dtype), solver=solver, on_failure="ignore")
    status = Status(int(out.status))
    if root is None:
        assert not status.success
        return
    assert status.success or case in MAY_FAIL.get((backend.name, solver), set())
    if status.success:
        relative, absolute = SLACK[dtype]
        known = 10 * np.asarray(out.solution.error) + relative * np.abs(root) + absolute + ROUNDED.get(case, 0.0)
        assert np.all(np.abs(out.y - root) <= known)


@pytest.mark.parametrize("solver", ["fixed_point", "anderson", "df_sane"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_unknown_that_moves_slowly_has_not_arrived(backend: Any, solver: str, dtype: type) -> None:
    rates = np.array([1e-5, 0.5, 0.7], dtype)
    root = np.array([3.0, 3.0, 3.0], dtype)

    def f(y: Any, rates: Any, root: Any) -> Any:
        return -rates * (y - root)

    out = backend.solve(f, np.full(3, 5.0, dtype), rates, root, solver=solver, on_failure="ignore")
    arrives = solver != "fixed_point"  # which would take a million steps
    assert Status(int(out.status)).success == np.allclose(out.y, root, rtol=1e-4) == arrives


@pytest.mark.parametrize("solver", ["trust_region", "levenberg_marquardt", "broyden", "df_sane", "scipy:hybr"])
def test_a_row_that_is_zero_by_rounding_tells_the_error_it_hides(solver: str) -> None:
    rates = np.array([1e-5, 0.5, 0.7], np.float32)
    sol = rootdiff.root(
        lambda z: z - rates * (z - 3) - z, np.full(3, 5, np.float32), solver=solver, on_failure="ignore"
    )
    assert sol.converged
    assert np.all(np.abs(sol.y - 3) <= sol.error + 1e-5)


@pytest.mark.parametrize(
    ("backend", "solver"), on_backends(["auto", "fixed_point", "anderson"], ["fixed_point", "anderson"])
)
def test_a_row_that_rounding_makes_zero_everywhere_vouches_for_nothing(backend: Any, solver: str) -> None:
    rates = np.array([1e-13, 0.5, 0.7], np.float32)
    options = {"entry": "fixed_point", "solver": solver, "on_failure": "ignore"}
    out = backend.solve(lambda z, r: z - r * (z - 3), np.full(3, 5, np.float32), rates, **options)
    if Status(int(out.status)).success:
        assert int(out.status) == Status.AT_PRECISION
        assert np.asarray(out.solution.error)[0] == np.inf


def test_a_claim_is_judged_where_it_was_made(backend: Any) -> None:
    """A heat balance: its second row, in large units, is zero at the start and rounding at the root."""

    def f(y: Any) -> Any:
        return _stack(5e-3 * (y[0] - 350) + 1e-8 * (y[1] - 101325), 1e5 * (y[0] - 300) - 50 * (y[1] - 1e5))

    out = backend.solve(f, np.array([300.0, 1e5], np.float32), on_failure="ignore")
    assert Status(int(out.status)).success
    assert np.all(np.abs(out.y - [349.8034363, 199606.8725]) <= np.asarray(out.solution.error))


@pytest.mark.parametrize("solver", ["scipy:hybr", "scipy:lm", "scipy:broyden1", "scipy:anderson"])
def test_an_underflow_is_no_root_for_wrapped_solvers_either(solver: str) -> None:
    for start in (700.0, 745.0):
        sol = rootdiff.root(lambda y: np.exp(-y), np.array([start]), solver=solver, on_failure="ignore")
        assert not sol.converged


@pytest.mark.parametrize(
    ("f", "bounds", "root"),
    [
        (lambda y: [math.sqrt(y[0]), y[1] - 1], ([0.0, -9.0], None), [0.0, 1.0]),
        (lambda y: [math.sqrt(1 - y[0]), y[1] - 1], (None, [1.0, 9.0]), [1.0, 1.0]),
    ],
)
def test_the_verdict_asks_for_no_value_outside_the_bounds(f: Any, bounds: Any, root: list[float]) -> None:
    sides = tuple(None if side is None else np.array(side) for side in bounds)
    sol = rootdiff.root(lambda y: np.array(f(y)), np.array([0.3, 2.0]), bounds=sides)
    np.testing.assert_allclose(sol.y, root, atol=1e-6)


def test_slow_is_not_stalled(backend: Any) -> None:
    solver = rootdiff.FixedPoint(atol=1e-3, max_steps=20000)
    out = backend.solve(
        lambda z, a: a * z + 0.001, np.array([0.0]), np.array([0.999]), entry="fixed_point", solver=solver
    )
    assert Status(int(out.status)).success
    assert abs(out.y[0] - 1) <= 1e-3


def test_a_given_atol_is_not_stretched(backend: Any) -> None:
    # the root of sin is stable under z - sin(z) / 2 at zero
    solver = rootdiff.FixedPoint(atol=1e-2)
    out = backend.solve(lambda y, a: -a * xp(y).sin(y), np.array([1.0]), np.array([0.5]), solver=solver)
    assert abs(out.y[0]) <= 1e-2


@pytest.mark.parametrize("solver", ["newton_krylov", "auto"])
def test_rounding_on_a_fine_grid_is_no_failure(solver: str) -> None:
    import torch
    from torch.nn.functional import pad

    import rootdiff_torch

    n = 1500  # a Jacobian that is not formed, and a residual of h^2 at the start

    def f(y: Any) -> Any:
        z = pad(y, (1, 1))
        return 2 * y - z[:-2] - z[2:] + (y**3 - 1) / (n + 1) ** 2

    sol = rootdiff_torch.root(f, torch.zeros(n, dtype=torch.float64), solver=solver)
    assert int(sol.method) == rootdiff.Method.NEWTON_KRYLOV


def test_a_random_residual_is_named() -> None:
    rng = np.random.default_rng(0)
    sol = rootdiff.root(
        lambda y: y**3 - 8 + 0.1 * rng.standard_normal(y.shape),
        np.array([1.0]),
        jac=lambda y: 3 * y[:, None] ** 2,
        on_failure="ignore",
    )
    assert sol.status == Status.RANDOM


def test_a_random_residual_is_named_for_each_system_that_fails() -> None:
    first, rng = np.array([[1.0], [0.0]]), np.random.default_rng(0)  # no noise in the second, which has no root
    sol = rootdiff.root(
        lambda y: y**2 + 1 + first * rng.standard_normal(y.shape), np.ones((2, 1)), batch_ndim=1, on_failure="ignore"
    )
    assert list(sol.status) == [Status.RANDOM, Status.RANDOM]


@pytest.mark.parametrize("solver", ["bisection", "chandrupatla", "itp", "bracketed_newton"])
def test_a_random_residual_is_named_in_a_bracket(solver: str) -> None:
    rng = np.random.default_rng(0)

    def f(y: Any) -> Any:
        return y**3 - 8 + 0.1 * rng.standard_normal(np.shape(y))

    assert rootdiff.root_scalar(f, (0.0, 5.0), solver=solver, on_failure="ignore").status == Status.RANDOM


def test_a_random_residual_is_named_in_torch() -> None:
    import torch

    import rootdiff_torch

    torch.manual_seed(0)
    y0 = torch.ones(1, dtype=torch.float64)
    for solver in ("auto", "anderson", "newton_krylov"):
        sol = rootdiff_torch.root(lambda y: 2 - y + 0.1 * torch.randn_like(y), y0, solver=solver, on_failure="ignore")
        assert sol.status == Status.RANDOM


def _alike(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix, of which two rows are the same but for 1e-14 to 1e-9, and a right-hand side."""
    tiny = 10 ** rng.uniform(-14, -9, 2)
    if kind == "sparse":
        return np.array([[1, tiny[0], 0], [1, 0, tiny[1]], [0, 1, 0.5]]), np.array([2.0, 2.0, 5.0])
    matrix = np.round(rng.standard_normal((3, 3)), 1)
    matrix[1] = matrix[0] + tiny[0] * np.round(rng.standard_normal(3), 1)
    return matrix, np.round(matrix @ np.array([2.0, -1.0, 3.0]), 1)


def _linear(y: Any, a: Any, b: Any) -> Any:
    return a @ y - b


@pytest.mark.parametrize("kind", ["sparse", "full"])
@pytest.mark.parametrize(
    "solver",
    ["newton", "chord", "broyden", "trust_region", "levenberg_marquardt", "newton_krylov", "anderson", "df_sane"],
)
def test_rows_that_round_alike_hide_no_error(backend: Any, solver: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        a, b = _alike(kind, rng)
        out = backend.solve(_linear, np.array([2.0, 1.0, 1.0]), a, b, solver=solver, on_failure="ignore")
        if Status(int(out.status)).success:
            with mpmath.workdps(60):
                root = np.array([float(x) for x in mpmath.lu_solve(mpmath.matrix(a.tolist()), mpmath.matrix(b))])
            assert np.all(np.abs(out.y - root) <= 10 * np.asarray(out.solution.error) + 1e-11 * (1 + np.abs(root)))


@pytest.mark.elsewhere_in_jax("tests/solvers/test_verdict.py::test_rows_that_round_alike_hide_no_error")
@pytest.mark.parametrize("solver", ["anderson", "df_sane", "fixed_point"])
def test_rows_of_many_unknowns_that_round_alike_hide_no_error(backend: Any, solver: str) -> None:
    n, rng = 70, np.random.default_rng(0)  # more than have their Jacobian formed as a matter of course
    wrong = 0
    for place in range(5):
        # in multiples of powers of two, so that the root is an integer
        a = np.round((np.eye(n) + 0.4 * rng.standard_normal((n, n)) / n**0.5) * 2**8) / 2**8
        tiny = 2.0 ** (-44 + 3 * place)
        if place % 2:
            a[1] = a[0] + tiny * rng.integers(-2, 3, n)
        else:
            a[:2] = 0.0
            a[:2, 0], a[0, 3], a[1, 4] = 1.0, tiny, tiny
        root = np.round(2 * rng.standard_normal(n))
        start = root + np.round(rng.standard_normal(n), 1)
        options = {"solver": solver, "on_failure": "ignore"}
        out = backend.solve(_less_than_a_right_hand_side, start, a, a @ root, **options)
        error = np.asarray(out.solution.error)
        wrong += Status(int(out.status)).success and bool(np.any(np.abs(out.y - root) > 10 * error + 1e-10))
    assert wrong == 0


def _less_than_a_right_hand_side(y: Any, a: Any, b: Any) -> Any:
    return b - a @ y


#: Roots of multiplicity two to four, some of them written so that rounding hides them: (residual, root).
FLAT: dict[str, tuple[Any, list[float]]] = {
    "cube": (lambda y: (y - 1) ** 3, [1.0]),
    "cube, expanded": (lambda y: y**3 - 3 * y**2 + 3 * y - 1, [1.0]),
    "fourth power, expanded": (lambda y: (((y - 4) * y + 6) * y - 4) * y + 1, [1.0]),
    "sine": (lambda y: y - xp(y).sin(y), [0.0]),
    "one of two unknowns": (lambda y: _stack(y[0] ** 3 - 3 * y[0] ** 2 + 3 * y[0] - 1, y[1] - y[0] - 1), [1.0, 2.0]),
}
_FLAT_SOLVERS = ["auto", "newton", "broyden", "anderson", "df_sane", "pseudo_transient"]


@pytest.mark.parametrize("case", FLAT)
@pytest.mark.parametrize(
    ("backend", "solver"), on_backends([*_FLAT_SOLVERS, "scipy:hybr", "scipy:broyden1", "scipy:df-sane"], ["newton"])
)
def test_the_error_at_a_flat_root_is_that_of_the_root(backend: Any, solver: str, case: str) -> None:
    f, root = FLAT[case]
    for start in (2.0, 0.3, 2.6, -1.0):
        out = backend.solve(f, np.array(root) + start, solver=solver, on_failure="ignore")
        if Status(int(out.status)).success:
            # a correction is a part of the error, as small as one over the multiplicity; and noise is a sample
            assert np.all(np.abs(out.y - root) <= 20 * np.asarray(out.solution.error))


SINGULAR: dict[str, Any] = {
    "duplicated": lambda y: _stack(y[0] + y[1] - 2, 2 * y[0] + 2 * y[1] - 4),
    "curved": lambda y: _stack(y[0] ** 2 + y[1] - 2, 2 * y[0] ** 2 + 2 * y[1] - 4),
    "a row of zeros": lambda y: _stack(y[0] - 1, 0 * y[1]),
}


@pytest.mark.parametrize("case", SINGULAR)
@pytest.mark.parametrize("start", [[1.0, 1.0], [1.0, 3.0]])
@pytest.mark.parametrize(
    ("backend", "solver"), on_backends(["auto", "newton", "anderson", "levenberg_marquardt"], ["newton"])
)
def test_one_of_many_roots_has_no_known_error(backend: Any, solver: str, start: list[float], case: str) -> None:
    out = backend.solve(SINGULAR[case], np.array(start), solver=solver, on_failure="ignore")
    error = np.asarray(out.solution.error)
    if int(out.status) == Status.CONVERGED:
        assert np.all(error <= 1e-11)
    if start == [1.0, 1.0]:  # a root, which a user may want; how far the next one is, nobody knows
        assert int(out.status) == Status.AT_PRECISION
        assert np.all(error == np.inf)


@pytest.mark.parametrize("solver", ["newton", "auto", "chord", "broyden", "df_sane", "newton_krylov"])
def test_a_residual_of_zero_tells_the_error_that_its_rounding_hides(backend: Any, solver: str) -> None:
    slopes = np.array([0.9995, 0.999, 0.9999, 0.99, 0.99995])
    shifts = np.array([0.0015, 0.0033, 0.00017, 0.021, 0.00012])
    low = 0
    for a, b in zip(slopes, shifts, strict=True):
        out = backend.solve(lambda y, a, b: y - (a * y + b), np.zeros(1), a, b, solver=solver)
        with mpmath.workdps(60):
            off = float(abs(mpmath.mpf(out.y[0]) - mpmath.mpf(b) / (1 - mpmath.mpf(a))))
        low += off > 10 * float(np.asarray(out.solution.error)[0])
        assert float(np.asarray(out.solution.error)[0]) > 0
    assert low == 0


def test_many_unknowns_are_known_to_their_own_rounding_at_best() -> None:
    target = np.linspace(1.0, 2.0, 1100)  # more than have their Jacobian formed
    sol = rootdiff.root(lambda y: y - target, np.zeros(1100), solver="anderson")
    assert np.all(sol.error >= np.finfo(float).eps * sol.y)


def test_equations_that_contradict_have_no_root_among_many(backend: Any) -> None:
    f = lambda y: _stack(y[0] + y[1] - 2, 2 * (y[0] + y[1]) - 5)
    out = backend.solve(f, np.array([0.3, 0.9]), solver="anderson", on_failure="ignore")
    assert int(out.status) not in (Status.CONVERGED, Status.AT_PRECISION, Status.ILL_DETERMINED)


@pytest.mark.parametrize("solver", ["newton", "broyden", "anderson", "auto"])
def test_a_jump_of_rounding_is_an_error_of_its_size(backend: Any, solver: str) -> None:
    out = backend.solve(lambda y: (y + 1e8) - 1e8 - 1.3, np.zeros(1), solver=solver, on_failure="ignore")
    assert Status(int(out.status)).success  # a quantum of f is 1.5e-8
    assert abs(out.y[0] - 1.3) <= np.asarray(out.solution.error)[0] <= 1e-7


def test_a_failure_says_that_there_are_many_roots() -> None:
    import torch

    import rootdiff_torch

    start = torch.tensor([3.0, 4.0], dtype=torch.float64)
    with pytest.raises(rootdiff.ConvergenceError, match=r"one root of many.*\n.*on_failure='keep'"):
        rootdiff_torch.root(lambda y: xp(y).where(y > 1, y - 1, 0 * y), start, solver="trust_region")


class _Nearly(rootdiff.Solver):
    """Newton's root, moved by a part of itself."""

    rtol, atol = 1e-15, 0.0

    def __init__(self, part: float) -> None:
        self.part = part

    def solve(self, residual: Any, y0: Any) -> Any:
        raw = rootdiff.Newton().solve(residual, y0)
        return raw._replace(y=raw.y * (1 + self.part))


@pytest.mark.parametrize(("part", "success"), [(0.0, True), (3e-14, False), (1e-12, False)])
def test_rounding_excuses_roundings_only(part: float, success: bool) -> None:
    # the rounding of f is 2e-16, that of y too; the margin for both leaves less than 1e-14
    f = lambda y, a: y**3 + y - a
    sol = rootdiff.root(f, np.array([1.0]), np.array([5.0]), solver=_Nearly(part), on_failure="ignore")
    assert sol.converged == success


class _Liar(rootdiff.Solver):
    def solve(self, residual: Any, y0: Any) -> Any:
        zero = residual.xp.zeros_like(y0[..., 0], dtype=residual.xp.int32)
        return rootdiff.RawSolution(y0 + 9, zero, zero, y0[..., 0])


def test_what_a_solver_of_others_claims_is_looked_at(backend: Any) -> None:
    def f(y: Any, a: Any) -> Any:
        return y**2 - a

    liar = _Liar()
    out = backend.solve(f, np.array([1.0]), np.array([2.0]), solver=liar, on_failure="ignore")
    assert not Status(int(out.status)).success
    out = backend.solve(f, np.array([1.0]), np.array([100.0]), solver=liar)  # where it is right
    assert Status(int(out.status)).success
    out = backend.solve(f, np.array([1.0]), np.array([2.0]), solver=rootdiff.Chain([liar, rootdiff.Newton()]))
    np.testing.assert_allclose(out.y, 2**0.5)


@pytest.mark.parametrize("name", ["torch", "jax-jit"])
def test_linear_systems_are_solved_to_what_their_condition_leaves(name: str) -> None:
    from tests.harness import HARNESSES

    def f(y: Any, a: Any, b: Any) -> Any:
        return a @ y - b

    rng, backend = np.random.default_rng(0), HARNESSES[name]()
    for digits in np.linspace(8, 13, 10):
        left, right = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
        a = left * np.logspace(0, -digits, 6) @ right
        root = rng.standard_normal(6)
        for start in (np.zeros(6), np.ones(6)):
            out = backend.solve(f, start, a, a @ root, on_failure="ignore")
            assert Status(int(out.status)).success
            assert np.max(np.abs(out.y - root)) <= 20 * 10**digits * 1e-16


@pytest.mark.parametrize("solver", ["newton", "auto"])
def test_a_long_step_onto_a_plateau_finds_no_root(backend: Any, solver: str) -> None:
    """There f is small beside that at the start, and so is its slope, which is at hand for one unknown."""
    out = backend.solve(
        lambda y: (y - 0.71) * xp(y).exp(-2 * y * y), np.array([0.984]), solver=solver, on_failure="ignore"
    )
    assert Status(int(out.status)).success == (solver == "auto")
    if solver == "auto":
        np.testing.assert_allclose(out.y, [0.71], rtol=1e-10)


def test_a_success_after_newton_corrections_tells_its_error(backend: Any) -> None:
    rate = np.array([1e-13, 0.5, 0.7])
    options = {"entry": "fixed_point", "solver": "anderson", "on_failure": "ignore"}
    out = backend.solve(lambda z, r: z - r * (z - 3), np.full(3, 5.0), rate, **options)
    assert Status(int(out.status)).success
    error = np.asarray(out.solution.error)
    assert np.all(np.isfinite(error))
    assert np.all(np.abs(out.y - 3) <= 10 * error + 1e-14)
