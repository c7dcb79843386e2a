"""A solve does no more work than it needs: residuals evaluated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import rootdiff


@pytest.mark.parametrize("solver", ["newton", "trust_region", "levenberg_marquardt"])
def test_finished_systems_do_not_prolong_searches(solver: str) -> None:
    """At a root f is rounding, which no step reduces: only systems that run may have a step shortened."""

    def evaluations(y0: Any, a: Any) -> int:
        calls = 0

        def exponential(y: Any, a: Any) -> Any:
            nonlocal calls
            calls += 1
            return np.exp(y) - a

        sol = rootdiff.root(exponential, y0, a, jac=lambda y, a: np.exp(y), batch_ndim=1, solver=solver)
        np.testing.assert_allclose(sol.y, np.log(a), rtol=1e-11)
        return calls

    easy = np.ones(1000), np.random.default_rng(0).uniform(2.0, 3.0, 1000)
    slow = np.array([14.0]), np.array([2.0])  # a step of Newton's method is -1 until it is near
    both = (np.concat([a, b]) for a, b in zip(easy, slow, strict=True))
    assert evaluations(*both) <= evaluations(*easy) + evaluations(*slow)


def test_newton_evaluates_a_residual_of_one_unknown_once_a_step() -> None:
    """Its derivative comes with it; in PyTorch that is one graph."""
    torch = pytest.importorskip("torch")
    import rootdiff_torch

    calls = 0

    def cubic(y: Any, a: Any) -> Any:
        nonlocal calls
        calls += 1
        return y**3 + y - a

    y0, a = torch.ones(1000, 1, dtype=torch.float64), torch.linspace(1, 9, 1000, dtype=torch.float64)[:, None]
    sol = rootdiff_torch.root(cubic, y0, a, batch_ndim=1, solver="newton")
    torch.testing.assert_close(cubic(sol.y, a), torch.zeros_like(a), rtol=0, atol=1e-10)
    # at the start and at the root, to see what it closes over, and whether it resolves the root
    assert calls - 1 <= int(sol.steps.max()) + 5


@pytest.mark.parametrize("solver", ["fixed_point", "anderson"])
def test_a_contraction_is_vouched_for_without_a_jacobian(solver: str) -> None:
    calls, rng = 0, np.random.default_rng(0)
    matrix = rng.standard_normal((64, 64))
    matrix /= 2 * np.linalg.norm(matrix, 2)

    def cell(z: Any) -> Any:
        nonlocal calls
        calls += 1
        return np.tanh(matrix @ z + 1)

    sol = rootdiff.fixed_point(cell, np.zeros(64), solver=solver)
    np.testing.assert_allclose(cell(sol.y), sol.y, rtol=0, atol=1e-10)
    assert calls < 64  # differences would take as many at least


def test_a_krylov_solve_ends_where_rounding_allows_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tolerance, ten roundings of b, may be out of reach: that is known after one cycle, not after twenty."""
    cycles = 0
    correction = rootdiff.CG.correction

    def counted(*arguments: Any) -> Any:
        nonlocal cycles
        cycles += 1
        return correction(*arguments)

    monkeypatch.setattr(rootdiff.CG, "correction", counted)
    n = 200
    axes = np.linalg.qr(np.random.default_rng(0).standard_normal((n, n)))[0]
    matrix = (axes * np.logspace(0, 4, n)) @ axes.T
    matrix = (matrix + matrix.T) / 2
    w = np.random.default_rng(1).standard_normal(n)
    sol = rootdiff.root(lambda y, b: matrix @ y - b, np.zeros(n), np.ones(n), jac=lambda y, b: matrix, adjoint="cg")
    np.testing.assert_allclose(sol.vjp(w)[0], np.linalg.solve(matrix, w), rtol=0, atol=1e-9 * np.max(np.abs(w)))
    assert cycles == 1


@pytest.mark.parametrize("solver", ["newton", "newton_krylov", "auto"])
@pytest.mark.parametrize("condition", [1e8, 1e10])
def test_no_line_search_goes_on_where_the_residual_is_rounding(solver: str, condition: float) -> None:
    """The corrections of an ill-conditioned system stay above the tolerance, but no part of them is of use."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((20, 20)))[0] for _ in range(2))
    matrix = (left * np.logspace(0, -np.log10(condition), 20)) @ right.T
    b = matrix @ rng.standard_normal(20)
    calls = 0

    def linear(y: Any, b: Any) -> Any:
        nonlocal calls
        calls += 1
        return matrix @ y - b

    sol = rootdiff.root(linear, np.zeros(20), b, jac=lambda y, b: matrix, solver=solver)
    judged = 14  # the evaluations that ask whether roundings explain what is left
    assert sol.steps <= 9
    assert calls <= judged + 1 + 2 * sol.steps  # at the start, and no more than two a step


def test_the_default_factors_the_jacobian_at_a_root_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a Krylov solve has ended at a root is told by the factors there, which serve the derivative too."""
    torch = pytest.importorskip("torch")
    import rootdiff_torch

    sizes: list[int] = []
    factor = torch.linalg.lu_factor_ex

    def counted(matrix: Any) -> Any:
        sizes.append(matrix.shape[-1])
        return factor(matrix)

    monkeypatch.setattr(torch.linalg, "lu_factor_ex", counted)
    n, rng = 100, np.random.default_rng(0)
    matrix = torch.as_tensor(rng.standard_normal((n, n)) / n**0.5)
    b, w = (torch.as_tensor(rng.standard_normal(n)) for _ in range(2))
    y = rootdiff_torch.root(lambda y, b: y - torch.tanh(matrix @ y) / 2 - b, torch.zeros_like(b), b.requires_grad_()).y
    (found,) = torch.autograd.grad(y, b, w)
    slope = (1 - torch.tanh(matrix @ y.detach()) ** 2) / 2
    expected = torch.linalg.solve((torch.eye(n, dtype=torch.float64) - slope[:, None] * matrix).T, w)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert sizes.count(n) == 1
