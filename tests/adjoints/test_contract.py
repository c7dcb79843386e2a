"""What counts as solved, what is singular, and where the NaN of a failed system goes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import Status, _implicit
from tests.harness import HARNESSES, Harness

DIRECT, ITERATIVE = ("auto", "lu", "lstsq"), ("gmres", "bicgstab", "lsmr")


@pytest.mark.parametrize("name", [*DIRECT, *ITERATIVE])
@pytest.mark.parametrize(
    "matrix", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.1], [10.0, 1.0 + 1e-16]], [[0.0, 0.0], [0.0, 0.0]]]
)
def test_inconsistent_singular_system_fails(arrays: Any, name: str, matrix: Any) -> None:
    _, info = arrays.solve(matrix, [1.0, -1.0], name)
    assert int(info.status) > Status.AT_PRECISION


@pytest.mark.parametrize("name", ["auto", "lu"])
def test_consistent_singular_system_is_a_status_for_lu(arrays: Any, name: str) -> None:
    third = 1 / 3  # rounding leaves a pivot of 1e-17 or 0
    matrix = [[third, 2 * third, 0.1], [0.7 * third, 1.4 * third, 0.3], [1.7 * third, 3.4 * third, 0.4]]
    _, info = arrays.solve(matrix, np.asarray(matrix) @ [1.0, 1.0, 1.0], name)
    assert int(info.status) == Status.SINGULAR


@pytest.mark.parametrize("name", ["auto", "lu"])
@pytest.mark.parametrize("n", [20, 80, 300])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_repeated_equation_is_found_out(arrays: Any, name: str, n: int, transposed: bool) -> None:
    for seed in arrays.seeds(6):  # a probe of signs is consistent with every second repetition
        rng = np.random.default_rng(seed)
        matrix = np.eye(n) + 0.3 * rng.standard_normal((n, n)) / np.sqrt(n)
        row, copy = rng.choice(n, 2, replace=False)
        matrix[copy] = (1.0, 3.0, 0.7)[seed % 3] * matrix[row]
        rhs = (matrix.T if transposed else matrix) @ rng.standard_normal(n)
        _, info = arrays.solve(matrix, rhs, name, transposed)
        assert int(info.status) == Status.SINGULAR


def test_a_matrix_known_to_be_singular_stays_so(arrays: Any) -> None:
    class Knowing(rootdiff.LinearSolver):
        def solve(self, operator: Any, rhs: Any) -> Any:
            x, info = rootdiff.LU().solve(operator, rhs)
            return x, rootdiff.LinearInfo(0 * info.status + int(Status.SINGULAR))

    _, info = arrays.solve(2 * np.eye(3), np.ones(3), Knowing())
    assert int(info.status) == Status.SINGULAR


def test_lstsq_gives_the_minimum_norm_and_says_so(arrays: Any) -> None:
    x, info = arrays.solve([[1.0, 1.0], [2.0, 2.0]], [2.0, 4.0], "lstsq")
    np.testing.assert_allclose(x, [1.0, 1.0], rtol=1e-14)
    assert int(info.status) <= Status.AT_PRECISION
    assert int(info.rank) == 1


@pytest.mark.parametrize("name", ["auto", "lu"])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_units_do_not_look_like_singularity(arrays: Any, name: str, scale: float) -> None:
    matrix = np.array([[2.0, 1.0], [1.0, 3.0]])
    x, info = arrays.solve(np.array([[scale], [1.0]]) * matrix, [3.0 * scale, 4.0], name)
    assert int(info.status) <= Status.AT_PRECISION
    np.testing.assert_allclose(x, [1.0, 1.0], rtol=1e-14)


@pytest.mark.parametrize("name", [*DIRECT, *ITERATIVE])
def test_one_bad_system_in_a_batch_leaves_the_others_alone(arrays: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    matrices = rng.standard_normal((4, 3, 3)) + 3 * np.eye(3)
    matrices[1], matrices[3, 0, 0] = 1.0, np.nan
    rhs = rng.standard_normal((4, 3))
    x, info = arrays.solve(matrices, rhs, name)
    status = arrays.numpy(info.status)
    np.testing.assert_array_equal(status > Status.AT_PRECISION, [False, True, False, True])
    np.testing.assert_allclose(x[[0, 2]], np.linalg.solve(matrices[[0, 2]], rhs[[0, 2], :, None])[..., 0], rtol=1e-12)
    if name in DIRECT:
        np.testing.assert_array_equal(status[[1, 3]], [Status.SINGULAR, Status.NONFINITE])


@pytest.mark.parametrize("name", [*DIRECT, *ITERATIVE, "one_step", "neumann", "phantom"])
@pytest.mark.parametrize("transposed", [False, True])
def test_zero_right_hand_side(arrays: Any, name: str, transposed: bool) -> None:
    x, info = arrays.solve([[2.0, 1.0], [0.0, 3.0]], np.zeros(2), name, transposed, "raise")
    np.testing.assert_array_equal(x, 0.0)
    assert int(info.status) <= Status.AT_PRECISION


def test_a_solver_that_lies_is_found_out(arrays: Any) -> None:
    wrong = rootdiff.LinearFunction(lambda operator, rhs: 0.999 * rhs)
    _, info = arrays.solve(np.eye(3), np.ones(3), wrong)
    assert int(info.status) == Status.STALLED
    assert float(info.relative_residual) == pytest.approx(1e-3)
    right = rootdiff.LinearFunction(lambda operator, rhs: rhs)
    assert int(arrays.solve(np.eye(3), np.ones(3), right)[1].status) == Status.CONVERGED


def _sqrt(y: Any, a: Any, c: Any) -> Any:
    return y**2 - a * c  # no root where a c < 0


A, C, ONES = np.array([[1.0], [4.0], [-1.0]]), np.array([1.0]), np.ones((3, 1))


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
@pytest.mark.parametrize("policy", ["nan", "warn"])
def test_numpy_keeps_nan_to_the_failed_systems_own_parameter(bad: float, policy: Any) -> None:
    a = np.array([[1.0], [4.0], [bad]])
    context = pytest.warns(rootdiff.ConvergenceWarning) if policy == "warn" else np.errstate()
    with context:
        sol = rootdiff.root(_sqrt, ONES, a, C, batch_ndim=1, on_failure=policy)
    own, shared = sol.vjp(ONES)
    # dy/da = c / 2y and dy/dc = a / 2y; 1e-9: differences
    np.testing.assert_allclose(own, [[0.5], [0.25], [np.nan]], rtol=1e-9)
    np.testing.assert_allclose(shared, [0.5 + 1.0], rtol=1e-9)
    np.testing.assert_array_equal(sol.converged, [True, True, False])


def test_numpy_parameter_of_failed_systems_only_is_nan() -> None:
    sol = rootdiff.root(_sqrt, ONES[:1], np.array([[-1.0]]), C, batch_ndim=1, on_failure="nan")
    assert all(np.isnan(part).all() for part in sol.vjp(ONES[:1]))


def test_numpy_failed_system_that_was_masked_out_takes_no_part() -> None:
    sol = rootdiff.root(_sqrt, ONES, A, C, batch_ndim=1, on_failure="nan")
    own, shared = sol.vjp(np.where(sol.converged[:, None], ONES, 0.0))
    np.testing.assert_allclose(own, [[0.5], [0.25], [0.0]], rtol=1e-9)
    np.testing.assert_allclose(shared, [1.5], rtol=1e-9)


def test_numpy_failed_adjoint_is_reported_and_kept_to_its_system() -> None:
    # y0 + y1 = a, (1 + e) (y0 + y1) + e y0 = (1 + 2e) c: singular where e = 0
    def f(y: Any, a: Any, c: Any) -> Any:
        e = np.array([0.5, 0.0])[:, None]
        total = y[..., :1] + y[..., 1:]
        return np.concat([total - a, (1 + e) * total + e * y[..., :1] - (1 + e) * c * total], axis=-1)

    y0, a, c = np.array([[0.0, 1.0], [0.5, 0.5]]), np.ones((2, 1)), np.ones(1)
    solve = {"batch_ndim": 1, "solver": "anderson"}
    with pytest.raises(rootdiff.AdjointError, match=r"SINGULAR.*systems 1") as caught:
        rootdiff.root(f, y0, a, c, **solve).vjp(np.ones((2, 2)))
    np.testing.assert_array_equal(caught.value.solution.status > Status.AT_PRECISION, [False, True])
    sol = rootdiff.root(f, y0, a, c, on_failure="nan", **solve)
    own, shared = sol.vjp(np.ones((2, 2)))
    np.testing.assert_allclose(own, [[1.0], [np.nan]], rtol=1e-8)
    assert np.isnan(shared).all()
    with pytest.warns(rootdiff.ConvergenceWarning, match="SINGULAR"):
        rootdiff.root(f, y0, a, c, on_failure="warn", **solve).vjp(np.ones((2, 2)))


def test_forward_failure_under_warn_is_reported_once(recwarn: pytest.WarningsRecorder) -> None:
    sol = rootdiff.root(_sqrt, ONES, A, C, batch_ndim=1, on_failure="warn")
    sol.vjp(ONES)
    assert len(recwarn) == 1


#: c sqrt(y) = a: the third system has no root, the fourth starts where nothing is finite, nor the derivative in c.
START, TARGETS = np.array([[1.0], [1.0], [1.0], [-1.0]]), np.array([[1.0], [2.0], [-1.0], [1.0]])


def _two_fail(y: Any, a: Any, c: Any) -> Any:
    return c * array_namespace(y).sqrt(y) - a


def test_gradient_of_a_shared_parameter_is_the_sum_over_the_good(backend: Harness) -> None:
    options = {"batch_ndim": 1, "on_failure": "nan", "solver": "newton"}
    options |= {"batched_args": (0, None)} if backend.backend == "jax" else {}
    w = np.ones((4, 1))
    own, shared = backend.vjp(_two_fail, START, TARGETS, C, w=w, **options).derivative
    np.testing.assert_allclose(own, [[2.0], [4.0], [np.nan], [np.nan]], rtol=1e-9)
    if backend.backend == "jax":  # nothing can branch on values: not silent, and a mask helps
        assert np.isnan(shared).all()
        w[2:] = 0.0
        own, shared = backend.vjp(_two_fail, START, TARGETS, C, w=w, **options).derivative
        np.testing.assert_allclose(own, [[2.0], [4.0], [0.0], [0.0]], rtol=1e-9)
    np.testing.assert_allclose(shared, [-2.0 - 8.0], rtol=1e-9)


def _partly_singular(y: Any, a: Any, c: Any) -> Any:
    # y0 + y1 = a; e y0 = e c / 2: the Jacobian of a system whose e is zero is singular
    xp = array_namespace(y)
    e = xp.asarray(np.array([[1.0], [0.0], [2.0]]))
    return xp.concat([y[..., :1] + y[..., 1:] - a, e * (y[..., :1] - c / 2)], axis=-1)


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize("name", ["numpy", "torch", "jax", "jax-jit"])
def test_singular_system_of_a_batch_in_both_modes(name: str, mode: str) -> None:
    harness = HARNESSES[name]()
    y0, a, c = np.full((3, 2), 0.5), np.ones((3, 1)), np.ones(1)
    options = {"batch_ndim": 1, "on_failure": "nan", "solver": "anderson"}
    if mode == "jvp":
        tangent = harness.jvp(_partly_singular, y0, a, c, v=(a, c), **options).derivative
        np.testing.assert_array_equal(np.isnan(tangent).any(axis=-1), [False, True, False])
        np.testing.assert_allclose(tangent[[0, 2]], [[0.5, 0.5], [0.5, 0.5]], rtol=1e-8)
        return
    own, shared = harness.vjp(_partly_singular, y0, a, c, w=np.array([[1.0, 2.0]] * 3), **options).derivative
    np.testing.assert_allclose(own, [[2.0], [np.nan], [2.0]], rtol=1e-8)
    if name in ("numpy", "torch"):
        np.testing.assert_allclose(shared, [-1.0], rtol=1e-8)  # (1/2 - 2/2) from each of two systems
    else:
        assert np.isnan(shared).all()


def _singular_with_shared(y: Any, a: Any, c: Any) -> Any:
    # y0 + y1 = c; e y0 = e a / 2: one system's Jacobian is singular, and its root hangs on the shared c
    xp = array_namespace(y)
    e = xp.asarray(np.array([[1.0], [0.0], [2.0]]))
    return xp.concat([y[..., :1] + y[..., 1:] - c, e * (y[..., :1] - a / 2)], axis=-1)


def _multiple_in_one(y: Any, a: Any, c: Any) -> Any:
    # (y - c)^p = 0 with p = 1, 3, 1, where the derivative in c is zero too at the triple root
    xp = array_namespace(y)
    return xp.where(xp.asarray(np.array([[False], [True], [False]])), (y - c) ** 3, y - c) + 0 * a


@pytest.mark.parametrize("name", ["numpy", "torch", "jax-jit"])
@pytest.mark.parametrize("f", [_singular_with_shared, _multiple_in_one])
def test_a_root_without_derivative_is_not_missing_from_a_shared_gradient(name: str, f: Any) -> None:
    """It has converged, so that a sum over the others would be too small, and nobody could tell."""
    harness, n = HARNESSES[name](), 2 if f is _singular_with_shared else 1
    y0, a, c = np.full((3, n), 1 / n), np.ones((3, 1)), np.ones(1)
    options = {"batch_ndim": 1, "on_failure": "nan", "solver": "newton" if n == 1 else "anderson"}
    out = harness.vjp(f, y0, a, c, w=np.ones((3, n)), **options)
    assert (out.status <= Status.AT_PRECISION).all()
    assert np.isnan(out.derivative[1]).all()
    w = np.ones((3, n))
    w[1] = 0.0  # masked out
    own, shared = harness.vjp(f, y0, a, c, w=w, **options).derivative
    np.testing.assert_allclose(shared, [2.0], rtol=1e-8)
    np.testing.assert_allclose(own, np.zeros((3, 1)), atol=1e-8)
    tangent = harness.jvp(f, y0, a, c, v=(0 * a, c), **options).derivative
    np.testing.assert_array_equal(np.isnan(tangent).all(axis=-1), [False, True, False])
    np.testing.assert_allclose(tangent[[0, 2]].sum(axis=-1), [1.0, 1.0], rtol=1e-8)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_failed_adjoint_raises_where_values_are_known(name: str) -> None:
    harness = HARNESSES[name]()
    y0, a, c = np.full((3, 2), 0.5), np.ones((3, 1)), np.ones(1)
    with pytest.raises(rootdiff.AdjointError, match="SINGULAR"):
        harness.vjp(_partly_singular, y0, a, c, w=np.ones((3, 2)), batch_ndim=1, solver="anderson")


@pytest.mark.parametrize("framework", ["torch", "jax"])
def test_per_sample_gradients_under_vmap(framework: str) -> None:
    if framework == "torch":
        import torch as xp
        from torch.func import grad, vmap

        import rootdiff_torch as rd
    else:
        import jax
        import jax.numpy as xp
        from jax import grad, vmap

        import rootdiff_jax as rd

        jax.config.update("jax_enable_x64", True)

    def residual(y: Any, a: Any) -> Any:  # y0^2 = a, a1 y1 = 1: no root where a0 < 0, singular where a1 = 0
        return xp.stack([y[0] ** 2 - a[0], a[1] * (y[1] - a[0])])

    def loss(a: Any, y0: Any) -> Any:
        return rd.root(residual, y0, a, on_failure="nan", solver="anderson", adjoint="lu").y.sum()

    a = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, 0.0], [4.0, 2.0]])
    y0 = np.array([[1.1, 0.9], [1.1, 0.9], [1.1, 1.0], [2.1, 3.9]])
    found = np.asarray(vmap(grad(loss))(xp.asarray(a), xp.asarray(y0)))
    np.testing.assert_array_equal(np.isnan(found).any(axis=1), [False, True, True, False])
    # d(sqrt(a) + a)/da; the second parameter scales an equation and has no effect
    np.testing.assert_allclose(found[[0, 3]], [[1.5, 0.0], [1.25, 0.0]], rtol=1e-8, atol=1e-8)


def test_cg_takes_no_other_matrix_for_a_symmetric_one(arrays: Any) -> None:
    """Its products may be those of the transpose, which is the same only where the matrix is symmetric."""
    rng = np.random.default_rng(0)
    skew = rng.standard_normal((30, 30))
    matrix = np.eye(30) + 0.05 * (skew - skew.T)
    x = rng.standard_normal(30)
    for transposed, across in ((False, matrix), (True, matrix.T)):
        found, info = arrays.solve(matrix, across @ x, "cg", transposed, "nan")
        assert int(info.status) > Status.AT_PRECISION
        assert np.all(np.isnan(found))
    symmetric = matrix @ matrix.T
    for transposed in (False, True):
        found, info = arrays.solve(symmetric, symmetric @ x, "cg", transposed, "raise")
        np.testing.assert_allclose(found, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["cg", "gmres"])
def test_a_symmetric_system_gets_as_many_steps_as_it_has_unknowns(numpy_arrays: Any, name: str) -> None:
    n = 2000  # second differences: a condition of 1.6e6

    def product(v: Any) -> Any:
        padded = np.pad(v, 1)
        return 2 * v - padded[:-2] - padded[2:]

    operator = rootdiff.LinearOperator(
        numpy_arrays.backend, product, product, lambda: None, np.finfo(float).eps, (n, n)
    )
    x, info = _implicit.solve(operator, rootdiff.get_adjoint(name), np.ones(n), "raise")
    place = np.arange(1.0, n + 1)
    np.testing.assert_allclose(x, place * (n + 1 - place) / 2, rtol=1e-8)
    assert int(info.status) <= Status.AT_PRECISION
