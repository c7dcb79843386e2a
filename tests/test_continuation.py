"""Paths through parameter space: past folds, to ends that a direct solve does not reach, with derivatives."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError, ConvergenceError


def cubic(y, a):
    """Has folds at y = 1 and y = -1, where a = -2 and a = 2."""
    return y**3 - 3 * y - a


def test_arclength_passes_two_folds():
    # from the lower branch at a = -3 along the S to a = 3, where only the upper branch is left
    sol = rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([3.0]))
    np.testing.assert_allclose(sol.y, 2.103803402735536, rtol=1e-11)  # the real root of y^3 - 3 y - 3
    np.testing.assert_allclose(sol.jacobian()[0][0], 1 / (3 * sol.y**2 - 3), rtol=1e-8)


def test_the_natural_parameter_stays_on_its_branch_and_ends_at_a_fold():
    sol = rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([1.9]), method="natural")
    assert sol.y[0] < -1
    np.testing.assert_allclose(cubic(sol.y, 1.9), 0.0, atol=1e-10)
    with pytest.raises(ConvergenceError, match="STALLED"):
        rootdiff.continuation(cubic, np.array([-2.1]), np.array([-3.0]), np.array([3.0]), method="natural")


def test_bratu_close_to_its_fold():
    # u'' + c exp(u) = 0 with u = 0 at both ends has its fold at c = 3.5138 (differences with 20 points: 3.507)
    n = 20
    h = 1 / (n + 1)

    def bratu(u, c):
        padded = np.concatenate([[0.0], u, [0.0]])
        return (padded[2:] - 2 * u + padded[:-2]) + h**2 * c[0] * np.exp(u)

    for method in ("natural", "arclength"):
        sol = rootdiff.continuation(bratu, np.zeros(n), np.array([0.0]), np.array([3.4]), method=method)
        assert np.max(np.abs(bratu(sol.y, [3.4]))) < 1e-10
        assert np.max(sol.y) < 1.187  # the lower branch: it ends at max u = 1.1868
        step = 1e-5
        ends = [rootdiff.root(bratu, sol.y, np.array([3.4 + s])).y for s in (step, -step)]
        # central differences: step^2 times the third derivative, large near the fold
        np.testing.assert_allclose(sol.jacobian()[0][:, 0], (ends[0] - ends[1]) / (2 * step), rtol=1e-4)
    with pytest.raises(ConvergenceError):  # beyond the fold there is no solution
        rootdiff.continuation(bratu, np.zeros(n), np.array([0.0]), np.array([4.0]), method="natural")


@pytest.mark.parametrize("method", ["arclength", "natural"])
@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-8])
def test_a_path_stays_on_its_branch_where_another_is_near(method, size):
    # an imperfect pitchfork: from y = size at l = -1 the branch leads to the largest root of y^3 - y - size
    sol = rootdiff.continuation(
        lambda y, l: y**3 - l * y - size, np.array([0.0]), np.array([-1.0]), np.array([1.0]), method=method
    )
    np.testing.assert_allclose(sol.y, np.max(np.roots([1.0, 0.0, -1.0, -size]).real), rtol=1e-11)


def test_a_bifurcation_is_crossed():
    sol = rootdiff.continuation(lambda y, l: y**3 - l * y, np.array([0.0]), np.array([-1.0]), np.array([1.0]))
    assert sol.y == 0.0


@pytest.mark.parametrize(
    ("f", "y0", "ends", "root"),
    [
        (lambda y, a: y**2 - a, [0.0], (0.0, 4.0), [2.0]),  # both sides lead there
        (cubic, [-1.0], (2.0, 3.0), [2.103803402735536]),  # one side leads there
        (lambda y, a: -cubic(-y, -a), [1.0], (-2.0, -3.0), [-2.103803402735536]),  # the other one
        (lambda y, a: np.stack([y[0] ** 2 - a + y[1], 2 * y[1] + y[0] ** 2]), [0.0, 0.0], (0.0, 4.0), [8**0.5, -4.0]),
    ],
)
def test_a_path_starts_at_a_fold(f, y0, ends, root):
    sol = rootdiff.continuation(f, y0, *ends)
    np.testing.assert_allclose(sol.y, root, rtol=1e-11)
    with pytest.raises(ConvergenceError, match="STALLED"):  # the natural parameter cannot
        rootdiff.continuation(f, y0, *ends, method="natural")


@pytest.mark.parametrize("method", ["arclength", "natural"])
@pytest.mark.parametrize(
    ("f", "y0", "ends", "size"),
    [
        (lambda y, a: y**2 + a - 1, 1.0, (0.0, 2.0), 1.1),  # a fold half way, and no root after it: |f| = 1 there
        (lambda y, a: 1 / y - a, 1.0, (1.0, -1.0), 1.1),  # to infinity half way
        (lambda y, a: np.exp(y) + 1 + a, 1.0, (0.0, 2.0), 10.0),  # no root to begin with
    ],
)
def test_a_path_that_does_not_get_there_says_so(method, f, y0, ends, size):
    with pytest.raises(ConvergenceError, match=r"(?s)STALLED: the path ends or runs away.*history=True") as caught:
        rootdiff.continuation(f, y0, *ends, method=method)
    sol = caught.value.solution
    assert sol.residual_norm <= size  # the point nearest to the end
    assert sol.steps < 200


def test_a_start_at_which_the_residual_is_nan_is_named():
    with np.errstate(invalid="ignore"), pytest.raises(ConvergenceError, match="NONFINITE_START"):
        rootdiff.continuation(lambda y, a: np.log(y) - a, -1.0, 0.0, 1.0)


def test_the_path_itself_is_returned():
    sol = rootdiff.continuation(cubic, np.array([-2.1]), -3.0, 3.0, history=True, max_step=0.1)
    fraction, y = sol.history
    assert y.shape == (*fraction.shape, 1)
    np.testing.assert_allclose(cubic(y[:, 0], 6 * fraction - 3), 0.0, atol=1e-6)
    assert fraction[0] == 0
    assert fraction[-1] == 1
    np.testing.assert_array_equal(y[-1], sol.y)
    folds = np.flatnonzero(np.diff(np.sign(np.diff(fraction))))
    np.testing.assert_allclose(fraction[folds + 1], [5 / 6, 1 / 6], atol=0.02)  # a = 2 and a = -2
    steps = np.hypot(np.diff(y[:, 0]) / 2.1, np.diff(fraction))
    assert np.max(steps[:-1]) <= 0.11  # the corrector moves at right angles to the step


def test_steps_are_checked():
    for name, value in (("first_step", 2.0), ("max_step", 0.0), ("max_step", -1.0)):
        with pytest.raises(ArgumentError, match=f"{name} is"):
            rootdiff.continuation(cubic, [1.0], 1.0, 2.0, **{name: value})


def test_structures_must_match():
    with pytest.raises(ArgumentError, match="structures"):
        rootdiff.continuation(cubic, np.array([1.0]), (np.array([1.0]), 2.0), np.array([1.0]))
    with pytest.raises(ArgumentError, match="like arrays"):
        rootdiff.continuation(cubic, np.array([1.0]), np.array([1.0, 2.0]), np.array([1.0]))
    with pytest.raises(ArgumentError, match="method"):
        rootdiff.continuation(cubic, np.array([1.0]), np.array([1.0]), np.array([2.0]), method="moore")


#: y^3 - y = a turns back twice between a = -1 and a = 1; the only root at the end is the plastic number.
PLASTIC = np.cbrt((9 + np.sqrt(69)) / 18) + np.cbrt((9 - np.sqrt(69)) / 18)
SLOPE = 1 / (3 * PLASTIC**2 - 1)
#: The solver at the end stops at an error of eps^(3/4) = 2e-12.
TOL = 1e-10


def plastic(y, a, power):
    return y**power - y - a


def test_torch_follows_the_root_past_folds():
    torch = pytest.importorskip("torch")
    import rootdiff_torch as rd

    start, one = torch.tensor([-PLASTIC]), torch.ones(1, dtype=torch.float64)

    def solve(a):
        return rd.continuation(plastic, start, (-a, 3), (a, 3)).y

    a = one.clone().requires_grad_()
    y = solve(a)
    y.sum().backward()
    np.testing.assert_allclose(y.detach(), PLASTIC, rtol=TOL)
    np.testing.assert_allclose(a.grad, SLOPE, rtol=TOL)
    y, tangent = torch.func.jvp(solve, (one,), (one,))
    np.testing.assert_allclose([y, tangent], [[PLASTIC], [SLOPE]], rtol=TOL)
    with pytest.raises(rd.ConvergenceError):  # the natural parameter ends at the first fold
        rd.continuation(plastic, start, (-one, 3), (one, 3), method="natural")
    with pytest.raises(ArgumentError, match="floating"):
        rd.continuation(plastic, start, (-1.0, 3), (1.0, 3))
    fold = torch.tensor(3.0**-0.5, dtype=torch.float64)  # y^3 - y turns there
    sol = rd.continuation(plastic, -fold, (2 * fold**3, 3), (one[0], 3), history=True)
    np.testing.assert_allclose(sol.y, PLASTIC, rtol=TOL)
    np.testing.assert_allclose(
        plastic(sol.history.y, 2 * fold**3 + sol.history.fraction * (1 - 2 * fold**3), 3), 0.0, atol=1e-6
    )


def test_jax_follows_the_root_past_folds():
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    import rootdiff_jax as rd

    with jax.enable_x64(True):
        start = jnp.array([-PLASTIC])

        def solve(a):
            return rd.continuation(plastic, start, (-a, 3), (a, 3), solver="newton")

        def value(a):
            sol = solve(a)
            return sol.y[0], sol.converged

        grad = jax.jit(jax.vmap(jax.value_and_grad(value, has_aux=True)))
        (y, converged), slope = grad(jnp.array([1.0, 1.0]))
        assert converged.all()
        np.testing.assert_allclose([y, slope], [[PLASTIC] * 2, [SLOPE] * 2], rtol=TOL)
        sol = rd.continuation(plastic, start, (-1.0, 3), (1.0, 3), history=True, solver="newton")
        np.testing.assert_allclose(sol.y, PLASTIC, rtol=TOL)
        np.testing.assert_allclose(plastic(sol.history.y[:, 0], 2 * sol.history.fraction - 1, 3), 0.0, atol=1e-6)
        with pytest.raises(ArgumentError, match="history"):
            jax.jit(lambda a: rd.continuation(plastic, start, (-a, 3), (a, 3), history=True).y)(1.0)


def test_a_path_that_is_too_long_asks_for_more_steps() -> None:
    with pytest.raises(ConvergenceError, match=r"the limit on the steps along the path was reached"):
        rootdiff.continuation(lambda y, l: y**3 - l * y - 1e-3, np.array(0.0), -1.0, 1.0, max_steps=3)
