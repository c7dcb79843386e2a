"""Constraints of `minimize`: the minimum and its multipliers have the derivatives of closed forms."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, Constraints, ConvergenceError, Status
from tests.harness import Harness

TWO = pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
HESSIAN = np.array([[2.0, 0.5, 0.0], [0.5, 1.5, -0.3], [0.0, -0.3, 1.0]])
EQUAL, RIGHT = np.array([[1.0, 1.0, 1.0]]), np.array([[1.0, 0.5], [0.0, 1.0], [-0.4, 0.2]])
#: Rows c of ``c y <= ends``.
BELOW = np.array([[1.0, -1.0, 0.5], [0.0, 1.0, 2.0]])
LOAD, TOTAL, ENDS = np.array([1.0, 3.0]), np.array([0.7]), np.array([-0.4, 9.0])
W = np.array([0.7, -1.3, 0.4])
#: Of differences of differences, in NumPy.
ROUGH = 2e-6


def _times(matrix: np.ndarray, y: Any) -> Any:
    return array_namespace(y).asarray(matrix) @ y


def energy(y: Any, load: Any, total: Any, ends: Any) -> Any:
    xp = array_namespace(y)
    return xp.sum(_times(HESSIAN, y) * y) / 2 - xp.sum(_times(RIGHT, load) * y)


QUADRATIC = Constraints(
    equality=lambda y, load, total, ends: _times(EQUAL, y) - total,
    inequality=lambda y, load, total, ends: _times(BELOW, y) - ends,
)


def closed(
    load: np.ndarray, total: np.ndarray, ends: np.ndarray, held: list[int]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Return the minimum where the inequalities in `held` are equations, its derivatives, and all multipliers."""
    rows = np.concat([EQUAL, BELOW[held]])
    n, m = 3, len(rows)
    inverse = np.linalg.inv(np.block([[HESSIAN, rows.T], [rows, np.zeros((m, m))]]))
    of_load, of_total, of_ends = inverse[:, :n] @ RIGHT, inverse[:, n : n + 1], np.zeros((n + m, len(ends)))
    of_ends[:, held] = inverse[:, n + 1 :]
    found = of_load @ load + of_total @ total + of_ends @ ends
    return found[:n], [of_load[:n], of_total[:n], of_ends[:n]], found[n:]


# --- the derivative


@pytest.mark.parametrize(
    ("backend", "held"), [("numpy", [0]), ("torch", [0]), ("torch", []), ("torch", [0, 1])], indirect=["backend"]
)
def test_a_quadratic_program_by_hand(backend: Harness, held: list[int]) -> None:
    free = closed(LOAD, TOTAL, ENDS, [])[0]
    ends = BELOW @ free + np.where([k in held for k in range(2)], -0.3, 2.0)
    args, options = (LOAD, TOTAL, ends), {"entry": "minimize", "constraints": QUADRATIC}
    y, slopes, multipliers = closed(*args, held)
    found = backend.vjp(energy, np.ones(3), *args, w=W, **options)
    tangents = (W[:2], W[2:], W[1:])
    pushed = backend.jvp(energy, np.ones(3), *args, v=tangents, **options)
    np.testing.assert_allclose(found.y, y, rtol=1e-8)
    for got, slope in zip(found.derivative, slopes, strict=True):
        np.testing.assert_allclose(got, W @ slope, rtol=ROUGH, atol=ROUGH)
    exact = sum(slope @ tangent for slope, tangent in zip(slopes, tangents, strict=True))
    np.testing.assert_allclose(pushed.derivative, exact, rtol=ROUGH, atol=ROUGH)
    of_solution = backend.solve(energy, np.ones(3), *args, **options).solution.multipliers
    np.testing.assert_allclose(of_solution["equality"], multipliers[:1], rtol=1e-7)
    np.testing.assert_allclose(of_solution["inequality"][held], multipliers[1:], rtol=1e-7)
    assert not np.any(np.delete(np.asarray(of_solution["inequality"]), held) > 1e-12)


def test_unknowns_that_end_a_rounding_beside_their_bounds_are_on_them() -> None:
    """The total is 1, y lies between -0.2 and 0.7: the second unknown alone is free, and tells the multiplier."""
    import torch

    import rootdiff_torch

    total = Constraints(equality=lambda y, a: y.sum() - 1)
    for second in (1.9, 2.0, 2.00001, 2.1):
        a = torch.tensor([1.0, second, 3.0], dtype=torch.float64)
        options = {"constraints": total, "bounds": (-0.2, 0.7)}
        sol = rootdiff_torch.minimize(lambda y, a: ((y - a) ** 2).sum(), torch.zeros_like(a), a, **options)
        np.testing.assert_allclose(sol.y, [-0.2, 0.5, 0.7], rtol=1e-14)
        np.testing.assert_allclose(sol.multipliers["equality"], 2 * second - 1, rtol=1e-12)


def test_transforms_of_jax() -> None:
    """On the circle |y|^2 <= r the lowest point along a is sqrt(r) a / |a|, its multiplier |a| / (2 sqrt(r))."""
    import jax
    import jax.numpy as jnp

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    circle = Constraints(inequality=lambda y, a, r: jnp.sum(y**2) - r)

    def solve(a: Any, r: Any) -> Any:
        sol = rootdiff_jax.minimize(lambda y, a, r: -jnp.sum(a * y), jnp.ones(2), a, r, constraints=circle)
        return sol.y[0], sol.multipliers["inequality"][0]

    a, r = jnp.array([[3.0, 4.0], [-1.0, 0.5]]), jnp.array([4.0, 0.25])
    (y, _), of_r = jax.jit(jax.vmap(lambda a, r: (solve(a, r), jax.jacrev(solve, 1)(a, r))))(a, r)
    size = jnp.linalg.norm(a, axis=-1)
    np.testing.assert_allclose(y, jnp.sqrt(r) * a[:, 0] / size, rtol=1e-10)
    np.testing.assert_allclose(of_r[0], a[:, 0] / size / jnp.sqrt(r) / 2, rtol=1e-10)
    np.testing.assert_allclose(of_r[1], -size / r**1.5 / 4, rtol=1e-10)


def test_transforms_of_torch() -> None:
    """The same circle: second derivatives, of the multiplier too, and a batch by vmap."""
    import torch

    import rootdiff_torch

    circle = Constraints(inequality=lambda y, a, r: torch.sum(y**2) - r)

    def solve(r: Any) -> Any:
        a, start = torch.tensor([3.0, 4.0]).double(), torch.ones(2).double()
        sol = rootdiff_torch.minimize(lambda y, a, r: -torch.sum(a * y), start, a, r, constraints=circle)
        return torch.stack([sol.y[0], sol.multipliers["inequality"][0]])

    r = torch.tensor([4.0, 0.25], dtype=torch.float64)
    first, second = torch.func.jacrev(solve), torch.func.jacfwd(torch.func.jacrev(solve))
    np.testing.assert_allclose(torch.func.vmap(first)(r), torch.stack([0.3 * r**-0.5, -1.25 * r**-1.5], -1), rtol=1e-9)
    np.testing.assert_allclose(second(r[0]), [-0.15 * 4**-1.5, 1.875 * 4**-2.5], rtol=1e-8)


@TWO
def test_a_batch_is_that_of_its_systems(backend: Harness) -> None:
    """The projections of points onto a half-plane: one is in it, the others are not."""

    def distance(y: Any, point: Any) -> Any:
        return array_namespace(y).sum((y - point) ** 2, axis=-1)

    plane = Constraints(inequality=lambda y, point: y[..., :1] + 2 * y[..., 1:] - 1)
    points, normal = np.array([[1.0, 2.0], [-1.0, 0.3], [3.0, 0.0]]), np.array([1.0, 2.0])
    excess = np.maximum(points @ normal - 1, 0)
    found = backend.vjp(
        distance, np.zeros((3, 2)), points, w=np.ones((3, 2)), entry="minimize", constraints=plane, batch_ndim=1
    )
    np.testing.assert_allclose(found.y, points - excess[:, None] * normal / 5, rtol=1e-8, atol=1e-10)
    outside = excess[:, None] > 0
    np.testing.assert_allclose(found.derivative[0], 1 - outside * 3 * normal / 5, rtol=ROUGH, atol=ROUGH)


@TWO
def test_bounds_hold_beside_constraints(backend: Harness) -> None:
    """The simplex by bounds: the projection moves with the point less its mean over the support."""

    def distance(y: Any, point: Any) -> Any:
        return array_namespace(y).sum((y - point) ** 2) / 2

    total = Constraints(equality=lambda y, point: array_namespace(y).sum(y) - 1)
    found = backend.vjp(
        distance,
        np.full(3, 1 / 3),
        np.array([0.9, 0.6, -0.7]),
        w=W,
        entry="minimize",
        constraints=total,
        bounds=(0, None),
    )
    np.testing.assert_allclose(found.y, [0.65, 0.35, 0], atol=1e-9)
    np.testing.assert_allclose(found.derivative[0], [1.0, -1.0, 0], rtol=ROUGH, atol=ROUGH)


def test_pytrees_of_unknowns_and_what_else_the_objective_returns() -> None:
    import torch

    import rootdiff_torch

    def objective(y: Any, a: Any) -> Any:
        value = (y["x"] ** 2).sum() + (y["z"] - a) ** 2
        return value, {"value": value}

    start = {"x": torch.ones(2, 1).double(), "z": torch.tensor(0.0).double()}
    a = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    even = Constraints(equality=lambda y, a: [y["x"].sum() - 1, y["x"][0, 0] - y["z"]])
    sol = rootdiff_torch.minimize(objective, start, a, constraints=even, has_aux=True)
    np.testing.assert_allclose(sol.y["x"].detach(), [[4 / 3], [-1 / 3]], rtol=1e-12)  # 3 z = 1 + a
    np.testing.assert_allclose(torch.autograd.grad(sol.y["z"], a, retain_graph=True)[0], 1 / 3, rtol=1e-10)
    np.testing.assert_allclose(torch.autograd.grad(sol.aux["value"], a)[0], 2 * (3 - 4 / 3), rtol=1e-10)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4), st.integers(0, 1), st.integers(1, 2))
def test_random_quadratic_programs(seed: int, n: int, equal: int, below: int) -> None:
    """Against all sets of inequalities: the minimum is the one whose set meets the rest, with multipliers >= 0."""
    import torch

    import rootdiff_torch

    generator = np.random.default_rng(seed)
    factor, load = generator.normal(size=(n, n)) + 2 * np.eye(n), generator.normal(size=n)
    rows, ends = generator.normal(size=(equal + below, n)), generator.normal(size=equal + below)
    hessian, best = factor.T @ factor, None
    for bits in range(2**below):
        held = [*range(equal), *(equal + k for k in range(below) if bits >> k & 1)]
        matrix = np.block([[hessian, rows[held].T], [rows[held], np.zeros((len(held), len(held)))]])
        if len(held) > n or np.linalg.cond(matrix) > 1e6:
            continue
        inverse = np.linalg.inv(matrix)
        y, multipliers = np.split(inverse @ [*load, *ends[held]], [n])
        rest = np.delete(rows @ y - ends, held)
        if np.all(rest < 1e-9) and np.all(multipliers[equal:] > -1e-9):
            best = y, inverse[:n, :n], np.concat([-rest, multipliers[equal:]])
    if best is None or np.any(best[2] < 1e-3):
        return
    h, c = torch.tensor(hessian), torch.tensor(rows)
    functions = {
        "equality": (lambda y, load, ends: c[:equal] @ y - ends[:equal]) if equal else None,
        "inequality": lambda y, load, ends: c[equal:] @ y - ends[equal:],
    }

    def solve(load: Any) -> Any:
        start, others = torch.zeros(n).double(), torch.tensor(ends)
        return rootdiff_torch.minimize(
            lambda y, load, ends: y @ h @ y / 2 - load @ y, start, load, others, constraints=Constraints(**functions)
        ).y

    np.testing.assert_allclose(solve(torch.tensor(load)), best[0], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(torch.func.jacrev(solve)(torch.tensor(load)), best[1], rtol=1e-6, atol=1e-7)


# --- failures


def status_of(objective: Any, y0: Any, *args: Any, **options: Any) -> Any:
    with pytest.raises(ConvergenceError) as error:
        rootdiff.minimize(objective, np.array(y0), *args, **options)
    return Status(int(error.value.solution.status)), str(error.value)


@TWO
@pytest.mark.parametrize("aside", [0.0, 1e-13, -1e-13])
def test_a_constraint_that_is_only_just_reached_has_no_derivative(backend: Harness, aside: float) -> None:
    free = np.linalg.solve(HESSIAN, RIGHT @ LOAD)
    options = {"entry": "minimize", "constraints": Constraints(inequality=QUADRATIC.inequality)}
    args = LOAD, TOTAL, np.array([BELOW[0] @ free + aside, 99.0])
    with pytest.raises(ConvergenceError, match=r"DEGENERATE: y is a minimum where a constraint"):
        backend.solve(energy, np.ones(3), *args, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = backend.vjp(energy, np.ones(3), *args, w=W, on_failure="keep", **options)
    np.testing.assert_allclose(kept.y, free, rtol=1e-7)
    assert np.isnan(kept.derivative[0]).all()


def test_constraints_that_contradict_each_other() -> None:
    nowhere = Constraints(equality=lambda y: y[0] - 1, inequality=lambda y: y[0] + y[1] ** 2 - 0.5)
    status, words = status_of(lambda y: np.sum(y**2), [0.3, 0.2], constraints=nowhere)
    assert status is Status.INFEASIBLE
    assert "y does not meet the constraints" in words


def test_constraints_that_depend_on_each_other() -> None:
    twice = Constraints(inequality=lambda y: np.stack([1 - y[0] - y[1], 2 - 2 * y[0] - 2 * y[1]]))
    status, words = status_of(lambda y: np.sum(y**2), [0.3, 0.2], constraints=twice)
    assert status is Status.SINGULAR
    assert "depend on each other" in words


def test_a_saddle_within_the_constraints() -> None:
    """On the circle, y[1]^2 is largest where y[0] is zero."""
    circle = Constraints(equality=lambda y: y[0] ** 2 + y[1] ** 2 - 1)
    status, words = status_of(lambda y: -(y[0] ** 2) + y[1] ** 2, [0.0, 1.0], constraints=circle)
    assert status is Status.SADDLE
    assert "a direction within the constraints" in words
    sol = rootdiff.minimize(lambda y: -(y[0] ** 2) + y[1] ** 2, np.array([0.3, 1.0]), constraints=circle)
    np.testing.assert_allclose(np.abs(sol.y), [1, 0], atol=1e-7)  # its own Hessian has a negative eigenvalue


# --- inputs


def test_errors_name_what_came() -> None:
    def solve(constraints: Any, **options: Any) -> Any:
        return rootdiff.minimize(lambda y: np.sum(y**2), np.ones(2), constraints=constraints, **options)

    with pytest.raises(ArgumentTypeError, match=r"^constraints: got \{'type'.*inequality=lambda y, \*args: -f"):
        solve({"type": "ineq", "fun": lambda y: y[0]})
    with pytest.raises(ArgumentError, match=r"^constraints: there are none in it"):
        solve(Constraints())
    with pytest.raises(ArgumentTypeError, match=r"^inequality: got 3; it must be a function, or None"):
        Constraints(inequality=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"^equality: it returned .*float64\[1, 2\], but must return"):
        solve(Constraints(lambda y: y[None] - 1))
    with pytest.raises(ArgumentError, match=r"^equality: it returned .* at least one"):
        solve(Constraints(lambda y: y[:0]))
    with pytest.raises(ArgumentError, match=r"^constraints: one returned a tuple.*of the objective only"):
        rootdiff.minimize(
            lambda y: (np.sum(y**2), 1), np.ones(2), has_aux=True, constraints=Constraints(lambda y: (y[0] - 1, 3))
        )
    import torch

    import rootdiff_torch

    for numbers in (lambda y: float(y[0] - 1), lambda y: [float(y[0] - 1), 1.0]):
        with pytest.raises(ArgumentError, match=r"^equality: it returned .*without float\(\) or \.item"):
            rootdiff_torch.minimize(lambda y: (y**2).sum(), torch.ones(2), constraints=Constraints(numbers))
    with pytest.raises(ArgumentError, match=r"^solver: BFGS of SciPy takes no constraints. Take 'scipy"):
        solve(Constraints(lambda y: y[0] - 1), solver="scipy:minimize:BFGS")
    with pytest.raises(ArgumentError, match=r"^solver: NewtonTrustRegion minimises an objective without constraints"):
        solve(Constraints(lambda y: y[0] - 1), solver=rootdiff.NewtonTrustRegion())
    with pytest.raises(ArgumentError, match=r"^jac: under constraints"):
        solve(Constraints(lambda y: y[0] - 1), jac=lambda y: 2 * y)
    by_trust = solve(Constraints(lambda y: y[0] + y[1] - 1), solver="scipy:minimize:trust-constr")
    np.testing.assert_allclose(by_trust.y, [0.5, 0.5], rtol=1e-9)
