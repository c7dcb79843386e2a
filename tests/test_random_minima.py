"""Random problems of each class: what is returned meets the conditions of a minimum, and has their derivatives.

All numbers of a problem are arguments, so that one compiled program serves all examples.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import rootdiff_torch
from rootdiff import Constraints, Status
from tests.harness import THOROUGH, Harness

seeds = st.integers(0, 2**31)
few = settings(max_examples=20 if THOROUGH else 2)
THREE = pytest.mark.parametrize("backend", ["numpy", "torch", "jax-jit"], indirect=True)
TWO = pytest.mark.parametrize("backend", ["numpy", "torch"], indirect=True)
#: Of differences of differences, in NumPy.
ROUGH = 5e-6


def positive(generator: Any, n: int) -> np.ndarray:
    """Return a symmetric matrix with eigenvalues between 0.3 and 3."""
    basis = np.linalg.qr(generator.normal(size=(n, n)))[0]
    return basis @ np.diag(generator.uniform(0.3, 3, n)) @ basis.T  # type: ignore[no-any-return]


def check(backend: Harness, f: Any, y0: Any, args: Any, slopes: Any, y: Any = None, **options: Any) -> np.ndarray:
    """Compare derivatives in reverse and forward mode with `slopes`, that of y in each of args, or a function of y."""
    w, tangents = np.array([0.7, -1.3, 0.4])[: len(y0)], [np.cos(arg + 1) for arg in args]
    found = backend.vjp(f, y0, *args, w=w, **options)
    assert found.status <= Status.AT_PRECISION
    slopes = slopes(found.y) if callable(slopes) else slopes
    if y is not None:
        np.testing.assert_allclose(found.y, y, rtol=1e-7, atol=1e-7)
    for got, slope in zip(found.derivative, slopes, strict=True):
        np.testing.assert_allclose(got, np.tensordot(w, slope, 1), rtol=ROUGH, atol=ROUGH)
    pushed = backend.jvp(f, y0, *args, v=tangents, **options).derivative
    exact = sum(np.tensordot(slope, v, v.ndim) for slope, v in zip(slopes, tangents, strict=True))
    np.testing.assert_allclose(pushed, exact, rtol=ROUGH, atol=ROUGH)
    return found.y


# --- without bounds


def soft(y: Any, a: Any, b: Any) -> Any:
    """log sum exp(a y + b) + |y|^2 / 2."""
    xp = array_namespace(y)
    return xp.log(xp.sum(xp.exp(a @ y + b))) + xp.sum(y**2) / 2


@TWO
def test_convex_objectives(backend: Harness) -> None:
    options = {"entry": "minimize"} | ({"derivatives": "complex-step"} if backend.name == "numpy" else {})

    @few
    @given(seeds)
    def run(seed: int) -> None:
        generator = np.random.default_rng(seed)
        a, b = generator.normal(size=(5, 3)), generator.normal(size=5)

        def slopes(y: np.ndarray) -> Any:
            """The gradient is a^T p + y, for p = softmax(a y + b), whose derivative is diag(p) - p p^T."""
            p = np.exp(a @ y + b) / np.sum(np.exp(a @ y + b))
            np.testing.assert_allclose(a.T @ p, -y, atol=1e-8)
            of_p = np.diag(p) - np.outer(p, p)
            inverse = np.linalg.inv(a.T @ of_p @ a + np.eye(3))
            of_a = np.einsum("i,jk->kij", p, np.eye(3)) + np.einsum("li,lk,j->kij", of_p, a, y)
            return -np.tensordot(inverse, of_a, 1), -inverse @ a.T @ of_p

        check(backend, soft, generator.normal(size=3), (a, b), slopes, **options)

    run()


@few
@given(seeds)
def test_second_derivatives_and_vmap(seed: int) -> None:
    """Of a minimum in PyTorch: the Hessian by differences of first derivatives, and a batch by its systems."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 3), (2, 5)))

    def loss(b: Any) -> Any:
        return torch.sin(rootdiff_torch.minimize(soft, torch.zeros(3).double(), a, b).y).sum()

    first = torch.func.jacrev(loss)
    hessians = torch.func.vmap(torch.func.jacfwd(first))(b)
    step = 1e-5 * torch.tensor([0.3, -1.0, 0.5, 0.2, 1.0], dtype=torch.float64)
    for place, hessian in enumerate(hessians):
        exact = (first(b[place] + step) - first(b[place] - step)) / 2
        np.testing.assert_allclose(hessian @ step, exact, rtol=1e-6, atol=1e-13)


@TWO
def test_a_start_at_a_saddle(backend: Harness) -> None:
    """z = q (y - c) has four minima, where both entries are 1 or -1; the start is a maximum, or a saddle."""

    def wells(y: Any, q: Any, c: Any) -> Any:
        return array_namespace(y).sum(((q @ (y - c)) ** 2 - 1) ** 2)

    @few
    @given(seeds, st.booleans())
    def run(seed: int, maximum: bool) -> None:
        generator = np.random.default_rng(seed)
        q, c = np.linalg.qr(generator.normal(size=(2, 2)))[0], generator.normal(size=2)
        start = c + (0 if maximum else q[0])
        found = backend.vjp(wells, start, q, c, w=np.array([1.0, 2.0]), entry="minimize")
        np.testing.assert_allclose(np.abs(q @ (found.y - c)), 1, rtol=1e-7)
        np.testing.assert_allclose(found.derivative[1], [1.0, 2.0], rtol=ROUGH)

    run()


# --- bounds


def of_matrix(inverse: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the derivative of a minimum of `quadratic` in h."""
    half = np.einsum("ki,j->kij", inverse, y) / 2
    return -half - np.swapaxes(half, 1, 2)  # type: ignore[no-any-return]


def quadratic(y: Any, h: Any, c: Any) -> Any:
    """The gradient is (h + h^T) y / 2 - c."""
    return array_namespace(y).sum(y * (h @ y)) / 2 - array_namespace(y).sum(c * y)


def box(h: Any, c: Any, lo: Any, hi: Any) -> Any:
    return lo, hi


@pytest.mark.parametrize(
    "backend", ["numpy", "torch", pytest.param("jax-jit", marks=pytest.mark.exhaustive)], indirect=True
)
def test_bounds(backend: Harness) -> None:
    """Any of the 27 ways to hold three unknowns at a bound, or none: active ones pass the derivative of the bound."""

    @few
    @given(seeds, st.sampled_from(list(itertools.product((-1, 0, 1), repeat=3))))
    def run(seed: int, held: tuple[int, ...]) -> None:
        generator, sides = np.random.default_rng(seed), np.array(held)
        h, y, push = positive(generator, 3), generator.normal(size=3), generator.uniform(0.1, 1, 3)
        lo, hi = y - np.where(sides < 0, 0, push), y + np.where(sides > 0, 0, push)
        c = h @ y + sides * generator.uniform(0.1, 1, 3)
        free = np.diag((sides == 0).astype(float))
        inverse = np.linalg.pinv(free @ h @ free)
        of_bound = (np.eye(3) - inverse @ h) @ (np.eye(3) - free)
        slopes = of_matrix(inverse, y), inverse, of_bound * (sides < 0), of_bound * (sides > 0)
        check(backend, pulled, (lo + hi) / 2, (h, c, lo, hi), slopes, y, entry="minimize", bounds=box)

    run()


def pulled(y: Any, h: Any, c: Any, lo: Any, hi: Any) -> Any:
    return quadratic(y, h, c)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
def test_bounds_that_are_only_just_reached(backend: Harness) -> None:
    @few
    @given(seeds, st.integers(0, 2))
    def run(seed: int, which: int) -> None:
        generator = np.random.default_rng(seed)
        h, y = positive(generator, 3), generator.normal(size=3)
        lo = y - np.where(np.arange(3) == which, 0, 1)
        options = {"entry": "minimize", "bounds": box, "on_failure": "ignore"}
        found = backend.solve(pulled, y + 0.5, h, h @ y, lo, y + 1, **options)
        assert found.status == Status.DEGENERATE
        np.testing.assert_allclose(found.y, y, atol=1e-7)

    run()


# --- constraints

ROWS = Constraints(
    equality=lambda y, h, c, rows, ends: rows[:1] @ y - ends[:1],
    inequality=lambda y, h, c, rows, ends: rows[1:] @ y - ends[1:],
)


@TWO
def test_quadratic_programs(backend: Harness) -> None:
    """One equation, and an inequality that holds with equality or not."""

    @few
    @given(seeds, st.booleans())
    def run(seed: int, active: bool) -> None:
        generator, number = np.random.default_rng(seed), 2 if active else 1
        h, y, rows = positive(generator, 3), generator.normal(size=3), np.linalg.qr(generator.normal(size=(3, 2)))[0].T
        u = np.array([generator.normal(), generator.uniform(0.1, 1)])[:number]
        ends = rows @ y + np.array([0, 0 if active else generator.uniform(0.1, 1)])
        c, held = h @ y + rows[:number].T @ u, rows[:number]
        inverse = np.linalg.inv(np.block([[h, held.T], [held, np.zeros((number, number))]]))[:3]
        of_ends, of_rows = np.zeros((3, 2)), np.zeros((3, 2, 3))
        of_ends[:, :number] = inverse[:, 3:]
        # the conditions h y - c + rows^T u and rows y - ends
        of_rows[:, :number] = -np.einsum("kj,i->kij", inverse[:, :3], u) - np.einsum("ki,j->kij", inverse[:, 3:], y)
        slopes = of_matrix(inverse[:, :3], y), inverse[:, :3], of_rows, of_ends
        check(backend, program, np.zeros(3), (h, c, rows, ends), slopes, y, entry="minimize", constraints=ROWS)

    run()


def program(y: Any, h: Any, c: Any, rows: Any, ends: Any) -> Any:
    return quadratic(y, h, c)


# --- least squares


def waves(y: Any, a: Any, b: Any, d: Any) -> Any:
    return a @ y + 0.3 * array_namespace(y).sin(b @ y) - d


@pytest.mark.parametrize("m", [6, 3, 30])
@THREE
def test_least_squares_of_nonzero_residuals(backend: Harness, m: int) -> None:
    @few
    @given(seeds)
    def run(seed: int) -> None:
        generator = np.random.default_rng(seed)
        a, b = np.concat([3 * np.eye(3), generator.normal(size=(m - 3, 3))]), generator.uniform(-1, 1, (m, 3))
        d = generator.normal(size=m) + a @ generator.normal(size=3)

        def of_data(y: np.ndarray) -> Any:
            jacobian, r = a + 0.3 * np.cos(b @ y)[:, None] * b, waves(y, a, b, d)
            np.testing.assert_allclose(jacobian.T @ r, 0, atol=1e-7)
            hessian = jacobian.T @ jacobian - np.einsum("i,ij,ik->jk", 0.3 * np.sin(b @ y) * r, b, b)
            assert np.all(np.linalg.eigvalsh(hessian) > 0)
            return np.linalg.solve(hessian, jacobian.T)

        w, v = np.array([0.7, -1.3, 0.4]), np.cos(d)
        found = backend.vjp(waves, np.zeros(3), a, b, d, w=w, entry="least_squares")
        exact = of_data(found.y)
        np.testing.assert_allclose(found.derivative[2], w @ exact, rtol=ROUGH, atol=ROUGH)
        if backend.name != "jax-jit":
            pushed = backend.jvp(waves, np.zeros(3), a, b, d, v=(0 * a, 0 * b, v), entry="least_squares")
            np.testing.assert_allclose(pushed.derivative, exact @ v, rtol=ROUGH, atol=ROUGH)

    run()


# --- conditions


@TWO
def test_lasso_on_its_support(backend: Harness) -> None:
    """A proximal operator in place of a projection: x^T x y - c + a sign(y) is zero on the support."""

    def shrunk(y: Any, h: Any, c: Any, a: Any) -> Any:
        xp = array_namespace(y)
        return xp.sign(y) * xp.clip(xp.abs(y) - a, 0, None)

    package = {"numpy": "rootdiff", "torch": "rootdiff_torch"}[backend.name]
    condition = __import__(package).conditions.projected_gradient(lambda y, h, c, a: quadratic(y, h, c), shrunk)

    @few
    @given(seeds, st.sampled_from(list(itertools.product((-1, 0, 1), repeat=3))[:13]))
    def run(seed: int, signs: tuple[int, ...]) -> None:
        generator, sign = np.random.default_rng(seed), np.array(signs)
        h, y, a = positive(generator, 3), sign * generator.uniform(0.2, 1, 3), generator.uniform(0.1, 0.5)
        c = h @ y + a * np.where(sign, sign, generator.uniform(-0.9, 0.9, 3))
        support = np.diag(np.abs(sign).astype(float))
        inverse = np.linalg.pinv(support @ h @ support)
        found = backend.vjp(condition, y, h, c, np.array(a), w=np.array([0.7, -1.3, 0.4]), entry="implicit", rtol=1e-6)
        for got, slope in zip(found.derivative[1:], (inverse, -inverse @ sign), strict=True):
            np.testing.assert_allclose(got, np.array([0.7, -1.3, 0.4]) @ slope, rtol=ROUGH, atol=ROUGH)

    run()


@few
@given(seeds, st.integers(1, 3))
def test_projections_on_a_simplex(seed: int, number: int) -> None:
    """By `kkt` at the projection: it moves with the point less its mean over the support of so many unknowns."""
    import torch

    generator = np.random.default_rng(seed)
    y, shift = np.zeros(4), generator.normal()
    y[:number] = generator.dirichlet(np.full(number, 5.0))
    below = np.where(y > 0, 0, generator.uniform(0.1, 1, 4))
    order = generator.permutation(4)
    y, below = y[order], below[order]
    condition = rootdiff_torch.conditions.kkt(
        lambda y, point: ((y - point) ** 2).sum() / 2, lambda y, point: y.sum()[None] - 1, lambda y, point: -y
    )
    unknown = tuple(map(torch.tensor, (y, np.array([shift]), below)))

    def solve(point: Any) -> Any:
        return rootdiff_torch.implicit(condition, unknown, point).y

    support = (y > 0).astype(float)
    of_y, of_shift, of_below = torch.func.jacrev(solve)(torch.tensor(y + shift - below))
    np.testing.assert_allclose(of_y, np.diag(support) - np.outer(support, support) / number, atol=1e-9)
    np.testing.assert_allclose(of_shift[0], support / number, atol=1e-9)
    np.testing.assert_allclose(of_below, np.diag(support - 1) + np.outer(1 - support, support) / number, atol=1e-9)


@few
@given(seeds)
def test_vertices_of_linear_programs(seed: int) -> None:
    """Three rows hold with equality, a fourth does not: the vertex moves by their inverse."""
    import torch

    generator = np.random.default_rng(seed)
    rows = np.concat([positive(generator, 3) @ np.diag([1.0, -1.0, 1.0]), generator.normal(size=(1, 3))])
    y, u = generator.normal(size=3), np.append(generator.uniform(0.1, 1, 3), 0)
    ends, cost = torch.tensor(rows @ y + [0, 0, 0, 0.5]), torch.tensor(-rows.T @ u)
    whole = torch.tensor(rows)
    condition = rootdiff_torch.conditions.kkt(lambda y, b: cost @ y, inequality=lambda y, b: whole @ y - b)

    def vertex(b: Any) -> Any:
        return rootdiff_torch.implicit(condition, (torch.tensor(y), torch.tensor(u)), b).y[0]

    exact = np.concat([np.linalg.inv(rows[:3]), np.zeros((3, 1))], axis=1)
    np.testing.assert_allclose(torch.func.jacrev(vertex)(ends), exact, rtol=1e-8, atol=1e-8)
