"""The test problems: same values on every namespace, known roots are roots, closed forms hold."""

import math

import jax
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
from rootdiff.testing import judge, measure, summary
from rootdiff.testing.problems import LIBRARY, MINPACK, Problem, all_problems, get_problem
from tests.harness import HARNESSES
from tests.references import LARGEST, nearest, reference, stored

jax.config.update("jax_enable_x64", True)
PROBLEMS = [pytest.param(problem, id=problem.name) for problem in all_problems()]


def size(array):
    return float(np.max(np.abs(array)))


def test_the_set_is_that_of_the_publications():
    names = [problem.name for problem in all_problems()]
    assert len(set(names)) == len(names) == 50
    # 55 calls of HYBRD1 in MINPACK's driver; Rosenbrock and Powell singular have their extended form beside them
    assert sum(problem.tries for problem in MINPACK[:22]) == 55
    assert len(LIBRARY) == 23
    starts = [problem for problem in (*MINPACK, *LIBRARY) for _ in problem.starts()]
    assert len(starts) == 80
    assert sum(problem.has_root for problem in starts) == 79
    assert [problem.name for problem in all_problems() if not problem.has_root] == ["chebyquad-8"]


def test_starts_of_a_zero_start_are_multiples_of_ones():
    assert get_problem("watson-6").starts(3)[:, 0].tolist() == [0.0, 10.0, 100.0]
    assert get_problem("wood-4").starts(2).tolist() == [[-3, -1, -3, -1], [-30, -10, -30, -10]]


def test_unknown_name_lists_the_names():
    with pytest.raises(rootdiff.UnknownNameError, match=r"'rosenbrock'.*rosenbrock-2, powell-singular-4"):
        get_problem("rosenbrock")


@pytest.mark.parametrize("problem", PROBLEMS)
def test_namespaces_and_batches_agree(problem):
    starts = problem.starts(2) + 0.01 * np.arange(1, problem.n + 1)
    alone = np.stack([problem.residual(start, problem.theta) for start in starts])
    assert alone.shape == starts.shape
    # sums in another order: rounding of the largest term, which may cancel
    tolerance = 1e-12 * (1 + size(alone))
    batch = problem.residual(starts, np.stack([problem.theta] * 2))
    assert size(batch - alone) <= tolerance
    tensor = problem.residual(torch.asarray(starts), torch.asarray(np.array(problem.theta)))
    assert tensor.dtype == torch.float64
    assert size(tensor.numpy() - alone) <= tolerance
    array = jax.jit(problem.residual)(starts, problem.theta)
    assert size(np.asarray(array) - alone) <= tolerance


@pytest.mark.parametrize("problem", PROBLEMS)
def test_float32_stays_float32(problem):
    y, theta = problem.y0.astype(np.float32), problem.theta.astype(np.float32)
    assert problem.residual(y, theta).dtype == np.float32
    assert problem.residual(torch.asarray(y), torch.asarray(theta)).dtype == torch.float32


@pytest.mark.parametrize("problem", [p for p in PROBLEMS if p.values[0].root is not None])
def test_known_roots_are_roots(problem):
    # published to seven digits; J y is below 1 for all but the badly scaled function, where it is 1
    digits = 1e-6 if problem.name == "powell-badly-scaled-2" else 1e-13
    assert size(problem.residual(problem.root, problem.theta)) <= digits


def test_values_computed_by_hand():
    # Moré, Garbow & Hillstrom (1981) at their standard starts, worked out on paper
    assert get_problem("rosenbrock-2").residual(*_start("rosenbrock-2")).tolist() == pytest.approx([2.2, -4.4])
    expected = [-7, -math.sqrt(5), 1, math.sqrt(10) * 4]
    assert get_problem("powell-singular-4").residual(*_start("powell-singular-4")).tolist() == pytest.approx(expected)
    assert get_problem("helical-valley-3").residual(*_start("helical-valley-3")).tolist() == pytest.approx([-50, 0, 0])
    expected = [-6004, -2080, -5404, -1880]
    assert get_problem("wood-4").residual(*_start("wood-4")).tolist() == pytest.approx(expected)
    banded = get_problem("broyden-banded-10")
    # every y (1 + y) is 0 at -1, and 2 y + 5 y^3 + 1 is -6
    assert banded.residual(banded.y0, banded.theta).tolist() == pytest.approx([-6.0] * 10)


def _start(name):
    problem = get_problem(name)
    return problem.y0, problem.theta


def solve(name, theta, y0):
    problem = get_problem(name)
    sol = rootdiff.root(problem.residual, np.asarray(y0, float), np.asarray(theta, float))
    return sol.y, sol.jacobian()[0]


def test_every_regular_problem_has_a_reference():
    wanted = {
        problem.name for problem in all_problems() if problem.has_root and problem.regular and problem.n <= LARGEST
    }
    assert set(stored()) == wanted


@pytest.mark.parametrize("name", ["wood-4", "helical-valley-3", "watson-6", "freudenstein-roth"])
def test_the_stored_references_are_reproduced(name):
    for y, derivative in stored()[name]:
        again = reference(get_problem(name), y)
        assert again[0].tolist() == y.tolist()
        assert again[1].tolist() == derivative.tolist()


def test_the_references_agree_with_a_closed_form():
    theta = get_problem("dennis-schnabel").theta
    (y, derivative), *_ = stored()["dennis-schnabel"]
    total, gap = theta[0], math.sqrt(2 * theta[1] - theta[0] ** 2)
    assert derivative[0] == pytest.approx([(1 + total / gap) / 2, -1 / (2 * gap)], rel=1e-15)
    assert y == pytest.approx([(total - gap) / 2, (total + gap) / 2], abs=1e-15)


def test_a_root_outside_the_table_is_computed():
    # the nodes of Chebyshev's quadrature in another order: the rows of the derivative change places
    problem = get_problem("chebyquad-5")
    (y, derivative), *_ = stored()["chebyquad-5"]
    order = np.argsort(y)[::-1]
    again = nearest(problem, y[order])
    assert again[0] == pytest.approx(y[order], rel=1e-15)
    assert again[1] == pytest.approx(derivative[order], rel=1e-14)


def perturbed(y):
    return y * (1 + 1e-5 * np.sin(np.arange(y.size) + 1)) + 1e-7


def pullback(backend, problem, w):
    """Return the function from a start to the root and w^T dy/dtheta, compiled once where the backend compiles."""
    if backend == "jax":

        def weighted(theta, y0):
            sol = rootdiff_jax.root(problem.residual, y0, theta, solver="newton", adjoint="lu")
            return w @ sol.y, sol.y

        compiled = jax.jit(jax.grad(weighted, has_aux=True))
        return lambda y0: compiled(problem.theta, y0)[::-1]
    analytic = problem.name != "helical-valley-3"  # atan2 takes no complex numbers
    options = {"derivatives": "complex-step"} if backend == "numpy" and analytic else {}

    def solve(y0):
        outcome = HARNESSES[backend]().vjp(problem.residual, y0, problem.theta, w=w, solver="newton", **options)
        return outcome.y, outcome.derivative[0]

    return solve


def gradient_cases():
    """Yield each backend with each problem.

    A compilation takes a second: JAX takes every third of MINPACK, since its residuals are compared above, and the rule
    is the same for all of them. The others wait for test-all.
    """
    for problem in map(get_problem, stored()):
        for backend in ("numpy", "torch", "jax"):
            slow = backend == "jax" and problem not in MINPACK[::3]
            marks = [pytest.mark.exhaustive] if slow else []
            yield pytest.param(backend, problem, id=f"{backend}-{problem.name}", marks=marks)


@pytest.mark.parametrize(("backend", "problem"), list(gradient_cases()))
def test_gradient_at_each_regular_root(backend, problem):
    # 1e-7 is what issue and users ask for. Watson's of nine unknowns comes close: its root is known to 6e-13 only,
    # since |f| is rounding noise there, and its condition number is 1e8
    w = 1.0 + np.arange(problem.n) / 7
    solve = pullback(backend, problem, w)
    for y, derivative in stored()[problem.name]:
        root, gradient = solve(perturbed(y))
        assert np.asarray(root) == pytest.approx(y, rel=1e-9, abs=1e-11)
        scale = np.max(np.abs(w)) * size(derivative)
        assert size(np.asarray(gradient) - w @ derivative) <= 1e-7 * scale


def test_measure_counts_and_judges():
    attempts = measure("newton", [get_problem("rosenbrock-2"), get_problem("chebyquad-8")], tries=1)
    solved, rootless = attempts
    assert solved.solved
    assert solved.claimed
    assert solved.status == "CONVERGED"
    # one tells whether it is sparse; f is zero by rounding: another tells how far off y may be
    assert solved.jacobian_calls == solved.steps + 2
    assert solved.residual_calls > solved.steps
    assert not rootless.solved
    assert not rootless.claimed
    assert summary(attempts) == {"attempts": 2, "solved": 1, "false_success": 0, "missed": 0}


def test_judge_tells_false_and_missed_successes():
    problem = get_problem("rosenbrock-2")
    assert judge(problem, 0, np.array([1.0, 1.1]), True, "said so").false_success
    assert judge(problem, 0, np.array([1.0, 1.0]), False, "said not").missed
    assert judge(problem, 0, np.array([np.nan, 1.0]), True, "said so").residual_norm == math.inf
    # f = y1^2 - ... at y = 1e8 cannot be smaller than its rounding: the nearest number counts as a root
    far = get_problem("dennis-schnabel")
    big = Problem("big", far.residual, far.y0, (1e8, 1e16 + 2), "none")
    y = np.array([0.0, 1e8])
    assert not judge(big, 0, y, True, "said so").solved
    assert not judge(big, 0, y, True, "said so").false_success


def test_rosenbrock_derivatives_are_powers_of_two():
    # y_k = a^(2^(k-1)), so dy_k/da = 2^(k-1) at a = 1; central differences of NumPy: eps^(2/3) times the slopes
    y, dy = solve("generalized-rosenbrock", (1.0, 10.0), 1 + 0.001 * np.arange(10))
    assert y == pytest.approx(np.ones(10), rel=1e-12)
    assert dy[:, 0] == pytest.approx(2.0 ** np.arange(10), rel=1e-7)
    assert dy[:, 1] == pytest.approx(np.zeros(10), abs=1e-6)


@pytest.mark.parametrize("c", [0.5, 0.9, 0.99])
def test_chandrasekhar_mean(c):
    y, dy = solve("chandrasekhar-10", (c,), np.ones(10))
    root = math.sqrt(1 - c)
    assert np.mean(y) == pytest.approx(2 / c * (1 - root), rel=1e-11)
    assert np.mean(dy) == pytest.approx(-2 / c**2 * (1 - root) + 1 / (c * root), rel=1e-7)


def test_helical_valley_closed_form():
    a, b, r, s = 9.0, 11.0, 1.5, 0.7
    angle = 2 * math.pi * s / b
    expected = np.array([r * math.cos(angle), r * math.sin(angle), s])
    turn = np.array([-r * math.sin(angle), r * math.cos(angle), 0.0]) * 2 * math.pi / b
    columns = [np.zeros(3), -turn * s / b, np.append(expected[:2] / r, 0.0), turn + np.array([0.0, 0.0, 1.0])]
    y, dy = solve("helical-valley-3", (a, b, r, s), (1.0, 0.5, 0.5))
    assert y == pytest.approx(expected, rel=1e-12)
    assert dy == pytest.approx(np.stack(columns, axis=1), abs=1e-7)


def test_dennis_schnabel_closed_form():
    total, squares = 3.1, 8.7
    gap = math.sqrt(2 * squares - total**2)
    y, dy = solve("dennis-schnabel", (total, squares), (1.0, 5.0))
    assert y == pytest.approx([(total - gap) / 2, (total + gap) / 2], rel=1e-12)
    expected = [[(1 + total / gap) / 2, -1 / (2 * gap)], [(1 - total / gap) / 2, 1 / (2 * gap)]]
    assert dy == pytest.approx(np.array(expected), rel=1e-8)


def test_matrix_square_root_closed_form():
    # [[x, z], [0, x]] squared is [[x^2, 2 x z], [0, x^2]]: z = b / (2 x) with x = sqrt(a)
    y, dy = solve("matrix-square-root-2", (0.04, 1.0, 0.0), (0.3, 2.0, 0.0, 0.3))
    assert y == pytest.approx([0.2, 2.5, 0.0, 0.2], abs=1e-12)
    assert dy[:, 0] == pytest.approx([2.5, -31.25, 0.0, 2.5], abs=1e-5)
    assert dy[:, 1] == pytest.approx([0.0, 2.5, 0.0, 0.0], abs=1e-6)
