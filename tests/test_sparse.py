"""Sparse Jacobians: few products, right roots and derivatives, and no pattern believed without a look."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.sparse.linalg import spsolve

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, Pattern, Status, _host_factors
from rootdiff._host_factors import solve as host_solve
from tests.harness import HARNESSES, Harness

N = 70
A = np.array([0.4, 1.3, -0.7])
LOAD = np.linspace(-1, 1, N)
PACKAGES = ("numpy", "torch", "jax")


def namespace(y: Any) -> Any:
    name = type(y).__module__.partition(".")[0]
    if name == "torch":
        import torch

        return torch
    if name.startswith("jax"):
        import jax.numpy as jnp

        return jnp
    return np


def rolled(y: Any, shift: int) -> Any:
    return namespace(y).concat([y[..., -shift:], y[..., :-shift]], axis=-1)


def ring(y: Any, a: Any) -> Any:
    """A nonsymmetric ring: three entries in each row, two of them at the corners."""
    xp = namespace(y)
    load = xp.asarray(LOAD[: y.shape[-1]], dtype=y.dtype)
    return (3 + a[0]) * y + y**3 - a[1] * rolled(y, 1) - 0.5 * xp.sin(rolled(y, -1)) - a[2] * load - 0.2


def jacobian(y: Any, a: Any) -> Any:
    n = len(y)
    shift = np.roll(np.eye(n), 1, axis=0)
    return np.diag(3 + a[0] + 3 * y**2) - a[1] * shift - 0.5 * shift.T * np.cos(np.roll(y, -1))[:, None]


def exact(y: Any, a: Any) -> Any:
    """dy/da by the closed form of the derivatives, (n, 3)."""
    of_args = np.stack([y, -np.roll(y, 1), -LOAD], axis=-1)
    return -np.linalg.solve(jacobian(y, a), of_args)


def shifted(n: int, shift: int) -> Any:
    """The matrix that rolls a vector."""
    return sp.csr_array((np.ones(n), (np.arange(n), np.arange(-shift, n - shift) % n)))


def shape_of_ring(n: int = N) -> Any:
    return sp.csr_array(jacobian(np.ones(n), A) != 0)


@pytest.fixture(params=PACKAGES)
def package(request: pytest.FixtureRequest) -> Harness:
    return HARNESSES[request.param]()


@pytest.mark.parametrize(
    ("package", "solver"),
    [(name, solver) for name in PACKAGES for solver in ("auto", "newton") if (name, solver) != ("jax", "auto")],
    indirect=["package"],  # JAX compiles a chain for long; test_single_precision_takes_a_pattern runs it
)
def test_the_root_and_its_derivatives_are_those_of_the_closed_form(package: Harness, solver: str) -> None:
    w = np.cos(np.arange(N))
    options = {"jac_sparsity": shape_of_ring(), "solver": solver, "adjoint": "sparse_lu"}
    found = package.vjp(ring, np.ones(N), A, w=w, **options)
    assert found.status == Status.CONVERGED
    np.testing.assert_allclose(ring(found.y, A), 0, atol=1e-13)
    np.testing.assert_allclose(found.derivative[0], w @ exact(found.y, A), rtol=1e-8)
    v = np.array([0.3, -1.0, 0.5])
    along = package.jvp(ring, np.ones(N), A, v=(v,), **options)
    np.testing.assert_allclose(along.derivative, exact(found.y, A) @ v, rtol=1e-8, atol=1e-10)


def test_second_derivatives_are_those_of_the_closed_form() -> None:
    import jax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    pattern, w = Pattern.of(shape_of_ring(), N), np.cos(np.arange(N))
    options = {"jac_sparsity": pattern, "solver": "newton", "adjoint": "sparse_lu"}

    def gradient(a: Any) -> Any:
        return w @ exact(rootdiff.root(ring, np.ones(N), a, solver="newton", jac=jacobian).y, a)

    steps = 1e-5 * np.eye(3)
    wanted = np.stack([(gradient(A + step) - gradient(A - step)) / 2e-5 for step in steps])  # to 1e-9

    def by_torch(a: Any) -> Any:
        return (torch.tensor(w) * rootdiff_torch.root(ring, torch.ones(N).double(), a, **options).y).sum()

    np.testing.assert_allclose(torch.func.hessian(by_torch)(torch.tensor(A)), wanted, rtol=1e-6, atol=1e-8)
    a = torch.tensor(A, requires_grad=True)
    first = torch.autograd.grad(by_torch(a), a, create_graph=True)[0]
    second = torch.stack([torch.autograd.grad(part, a, retain_graph=True)[0] for part in first])
    np.testing.assert_allclose(second, wanted, rtol=1e-6, atol=1e-8)
    with jax.enable_x64(True):

        def by_jax(a: Any) -> Any:
            return w @ rootdiff_jax.root(ring, jax.numpy.ones(N), a, **options).y

        np.testing.assert_allclose(jax.jit(jax.hessian(by_jax))(A), wanted, rtol=1e-6, atol=1e-8)


def test_the_systems_of_a_batch_share_a_pattern(package: Harness) -> None:
    starts = np.stack([np.ones(N), np.zeros(N), np.full(N, -1.0)])
    scales = np.array([1.0, 2.0, -1.0])

    def batch(y: Any, scales: Any) -> Any:
        return ring(y, A) + scales[:, None] * y

    w = np.outer([1.0, -2.0, 0.5], np.cos(np.arange(N)))
    options = {"jac_sparsity": shape_of_ring(), "batch_ndim": 1, "solver": "newton"}
    found = package.vjp(batch, starts, scales, w=w, **options)
    assert np.all(found.status <= Status.AT_PRECISION)
    for y, scale, cotangent, derivative in zip(found.y, scales, w, found.derivative[0], strict=True):
        matrix = jacobian(y, A) + scale * np.eye(N)
        np.testing.assert_allclose(derivative, -cotangent @ np.linalg.solve(matrix, y), rtol=1e-8)


def test_vmap_and_jit_of_a_solve_with_a_pattern() -> None:
    import jax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    pattern, many = Pattern.of(shape_of_ring(), N), np.stack([A, 1.2 * A])
    options = {"jac_sparsity": pattern, "solver": "newton"}
    wanted = [np.sum(exact(rootdiff.root(ring, np.ones(N), a, jac=jacobian).y, a), axis=0) for a in many]

    def by_torch(a: Any) -> Any:
        return rootdiff_torch.root(ring, torch.ones(N).double(), a, **options).y.sum()

    np.testing.assert_allclose(torch.func.vmap(torch.func.grad(by_torch))(torch.tensor(many)), wanted, rtol=1e-9)
    with jax.enable_x64(True):

        def by_jax(a: Any) -> Any:
            return rootdiff_jax.root(ring, jax.numpy.ones(N), a, **options).y.sum()

        np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(by_jax)))(many), wanted, rtol=1e-9)


@pytest.mark.elsewhere_in_jax(
    "tests/test_sparse.py::test_a_pattern_that_lacks_an_entry_is_never_believed_in_a_derivative"
)
def test_a_pattern_that_lacks_an_entry_is_never_believed_in_a_step(package: Harness) -> None:
    for solver in ("newton", "auto") if package.name != "jax" else ("newton",):
        with pytest.raises(rootdiff.RootdiffError, match="jac_sparsity") as error:
            package.solve(ring, np.ones(N), A, jac_sparsity=("banded", (1, 1)), solver=solver)
        if package.name == "jax":
            assert error.value.solution.status == Status.WRONG_SPARSITY
        else:
            assert "in 2 of 70 rows" in str(error.value)


@pytest.mark.parametrize("solver", ["chord", "trust_region", "levenberg_marquardt", "pseudo_transient", "broyden"])
def test_solvers_that_form_the_jacobian_take_few_products(solver: str) -> None:
    calls = [0]

    def counted(y: Any, a: Any) -> Any:
        calls[0] += 1
        return ring(y, a)

    whole = rootdiff.root(counted, np.ones(N), A, solver=solver)
    of_whole, calls[0] = calls[0], 0
    few = rootdiff.root(counted, np.ones(N), A, solver=solver, jac_sparsity=shape_of_ring())
    assert of_whole - calls[0] > N  # whole Jacobians, which cost a call for each unknown
    np.testing.assert_allclose(few.y, whole.y, rtol=1e-11)
    with pytest.raises(ArgumentError, match="jac_sparsity"):
        rootdiff.root(ring, np.ones(N), A, solver=solver, jac_sparsity=("banded", (1, 1)))


def test_a_pattern_that_lacks_an_entry_is_never_believed_in_a_derivative(package: Harness) -> None:
    options = {"jac_sparsity": ("banded", (1, 1)), "solver": "df_sane", "adjoint": "sparse_lu"}
    if package.name == "jax":  # a traced program cannot raise
        found = package.vjp(ring, np.ones(N), A, w=np.ones(N), **options)
        assert np.all(np.isnan(found.derivative[0]))
        return
    with pytest.raises(ArgumentError, match="jac_sparsity: the Jacobian has entries outside"):
        package.vjp(ring, np.ones(N), A, w=np.ones(N), **options)


def upwind(y: Any, a: Any) -> Any:
    """Whose coupling goes to the side that the sign of y tells."""
    xp = namespace(y)
    return y + 0.3 * y * xp.where(y > 0, y - rolled(y, 1), rolled(y, -1) - y) - a[2] - 0.2


def test_entries_that_come_with_y_are_found_missing_and_two_patterns_joined_have_them(package: Harness) -> None:
    before = rootdiff.detect_sparsity(upwind, 1 + np.arange(N) / N, A)
    with pytest.raises(rootdiff.RootdiffError, match="jac_sparsity"):
        package.solve(upwind, -0.4 - 0.1 * np.sin(np.arange(N)), A, jac_sparsity=before, solver="newton")
    both = before | rootdiff.detect_sparsity(upwind, -1 - np.arange(N) / N, A)
    found = package.solve(upwind, -0.4 - 0.1 * np.sin(np.arange(N)), A, jac_sparsity=both, solver="newton")
    np.testing.assert_allclose(upwind(found.y, A), 0, atol=1e-12)


def test_a_pattern_that_is_detected_follows_entries_that_come_with_y(package: Harness) -> None:
    options = {"jac_sparsity": "detect", "solver": "newton"}
    found = package.solve(upwind, 1 + np.arange(N) / N, A, **options)
    np.testing.assert_allclose(upwind(found.y, A), 0, atol=1e-12)
    if package.name == "jax":  # a transformed call has no values to detect a pattern from
        return
    found = package.vjp(upwind, 1 + np.arange(N) / N, A, w=np.ones(N), **options)
    np.testing.assert_allclose(found.derivative[0], [0, 0, N], rtol=1e-8, atol=1e-8)


def test_auto_takes_a_pattern_where_it_is_sparse_and_can_be_known() -> None:
    import jax

    import rootdiff_jax

    sol = rootdiff.root(ring, np.ones(N), A, jac_sparsity="auto", solver="newton")
    assert type(sol.sensitivities.factors).__name__ == "SparseFactors"
    for f, n in ((ring, 20), (lambda y, a: ring(y, a) + y.sum(), N)):  # few unknowns, and a dense Jacobian
        sol = rootdiff.root(f, np.ones(n), A, jac_sparsity="auto", solver="newton")
        assert type(sol.sensitivities.factors).__name__ != "SparseFactors"
    with jax.enable_x64(True):  # no values
        found = jax.jit(lambda a: rootdiff_jax.root(ring, jax.numpy.ones(N), a, jac_sparsity="auto", solver="newton").y)
        np.testing.assert_allclose(found(A), rootdiff.root(ring, np.ones(N), A).y, rtol=1e-10)


def test_an_empty_row_is_a_singular_jacobian(package: Harness) -> None:
    def without(y: Any, a: Any) -> Any:
        xp = namespace(y)
        mask = xp.asarray(np.arange(N) != 3)
        return xp.where(mask, ring(y, a), a[0] + 0 * y[:1])

    pattern = shape_of_ring().toarray()
    pattern[3] = False
    found = package.solve(
        without, np.ones(N), A, jac_sparsity=sp.csr_array(pattern), solver="newton", on_failure="ignore"
    )
    assert found.status == Status.SINGULAR


@pytest.mark.elsewhere_in_jax("tests/test_sparse.py::test_the_root_and_its_derivatives_are_those_of_the_closed_form")
def test_a_dense_row_costs_one_product_with_the_transpose(package: Harness) -> None:
    def bordered(y: Any, a: Any) -> Any:
        xp = namespace(y)
        last = xp.asarray(np.arange(N) == N - 1)
        return xp.where(last, 0.01 * (y**2).sum() + y - a[0], ring(y, a))

    pattern = rootdiff.detect_sparsity(bordered, np.ones(N), A)
    assert set(pattern.indices[pattern.indptr[-2] :]) == set(range(N))
    assert repr(pattern).endswith("6 products)") or repr(pattern).endswith("5 products)")
    found = package.vjp(bordered, np.ones(N), A, w=np.ones(N), jac_sparsity=pattern, solver="newton")
    matrix, of_args = jacobian(found.y, A), np.stack([found.y, -np.roll(found.y, 1), -LOAD], axis=-1)
    matrix[-1], of_args[-1] = 0.02 * found.y, [-1, 0, 0]
    matrix[-1, -1] += 1
    np.testing.assert_allclose(found.derivative[0], -np.linalg.solve(matrix, of_args).sum(axis=0), rtol=1e-8)


def test_the_same_entries_are_the_same_pattern_whatever_tells_them() -> None:
    import torch
    from jax.experimental.sparse import BCOO, BCSR

    dense = np.eye(5) + np.eye(5, k=1) + np.eye(5, k=-2) + np.eye(5, k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PyTorch calls its CSR tensors a beta
        by_torch = torch.tensor(dense).to_sparse_csr()
    told = [
        ("banded", (2, 1)),
        sp.coo_array(dense),
        sp.csc_matrix(dense),
        torch.tensor(dense).to_sparse_coo(),
        by_torch,
        BCOO.fromdense(dense, nse=30),
        BCSR.fromdense(dense),
    ]
    patterns = [Pattern.of(given, 5) for given in told]
    assert all(pattern is patterns[0] for pattern in patterns)
    assert pickle.loads(pickle.dumps(patterns[0])) is patterns[0]


def test_a_pattern_that_cannot_be_used_is_refused_by_name() -> None:
    for given, error, words in (
        ("banded", ArgumentTypeError, "jac_sparsity: got str"),
        (("banded", 1), ArgumentError, "jac_sparsity"),
        (sp.eye_array(N + 1), ArgumentError, r"shape is \(71, 71\), but must be \(70, 70\)"),
        (Pattern.of(sp.eye_array(4), 4), ArgumentError, "is of 4 unknowns, but one system has 70"),
        (np.ones((N, N)), ArgumentTypeError, "jac_sparsity: got ndarray"),
    ):
        with pytest.raises(error, match=words):
            rootdiff.root(ring, np.ones(N), A, jac_sparsity=given)
    with pytest.raises(ArgumentError, match="sparse_lu: nothing tells where"):
        rootdiff.root(band, np.ones(2000), 1.0, solver=rootdiff.Newton(linear=rootdiff.SparseLU()))


def test_detection_under_a_trace_is_refused_by_name() -> None:
    import jax

    import rootdiff_jax

    with jax.enable_x64(True), pytest.raises(ArgumentError, match=r"'detect' needs values.*detect_sparsity"):
        jax.jit(lambda a: rootdiff_jax.root(ring, jax.numpy.ones(N), a, jac_sparsity="detect").y)(A)


def random_entries(n: int) -> Any:
    random = np.random.default_rng(1)
    matrix = sp.random_array(
        (n, n), density=5 / n, random_state=random, data_sampler=lambda size: random.uniform(1, 2, size)
    )
    return sp.csr_array(matrix + 20 * sp.eye_array(n))


def test_detection_finds_each_entry_and_hardly_more(package: Harness) -> None:
    n = 400
    matrix = random_entries(n).toarray()
    calls = [0]

    def f(y: Any, a: Any) -> Any:
        calls[0] += 1
        return namespace(y).asarray(matrix) @ (y**2) - a

    rd: Any = {"numpy": "rootdiff", "torch": "rootdiff_torch", "jax": "rootdiff_jax"}[package.name]
    detect = __import__(rd).detect_sparsity
    pattern = detect(f, package.array(np.zeros(n)), package.array(np.ones(n)))
    found, wanted = set(zip(pattern.rows, pattern.indices, strict=True)), set(zip(*matrix.nonzero(), strict=True))
    assert wanted <= found
    assert len(found - wanted) <= 4
    assert calls[0] < 1000


@pytest.mark.elsewhere_in_jax("tests/test_sparse.py::test_the_root_and_its_derivatives_are_those_of_the_closed_form")
def test_a_fixed_point_takes_the_pattern_of_its_cell(package: Harness) -> None:
    def cell(z: Any, a: Any) -> Any:
        return 3 * namespace(z).cos(rolled(z, 1)) + a[0]

    pattern = sp.csr_array(np.roll(np.eye(N), 1, axis=0))
    found = package.vjp(cell, np.ones(N), A, w=np.ones(N), entry="fixed_point", jac_sparsity=pattern, solver="newton")
    slope = -3 * np.sin(np.roll(found.y, 1))[:, None] * np.roll(np.eye(N), 1, axis=0) - np.eye(N)
    np.testing.assert_allclose(found.derivative[0][0], -np.linalg.solve(slope, np.ones(N)).sum(), rtol=1e-7)


def band(y: Any, a: Any) -> Any:
    left, right = np.concatenate([[0.0], y[:-1]]), np.concatenate([y[1:], [0.0]])
    return (2 + a) * y - left - 0.5 * right + 0.1 * y**3 - 1


def of_band(y: Any, a: Any) -> Any:
    n = len(y)
    return sp.diags_array([np.full(n - 1, -1.0), 2 + a + 0.3 * y**2, np.full(n - 1, -0.5)], offsets=[-1, 0, 1])


@pytest.mark.parametrize("rule", ["jac_sparsity", "jac"])
def test_large_systems_take_few_calls_and_memory_in_the_number_of_entries(rule: str) -> None:
    n, calls = 20_000, [0]

    def counted(y: Any, a: Any) -> Any:
        calls[0] += 1
        return band(y, a)

    given = {"jac_sparsity": ("banded", (1, 1))} if rule == "jac_sparsity" else {"jac": of_band}
    tracemalloc.start()
    sol = rootdiff.root(counted, np.zeros(n), 1.0, **given)
    gradient = sol.vjp(np.ones(n))[0]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sol.status == Status.CONVERGED
    u = np.asarray(spsolve(of_band(sol.y, 1.0).T.tocsc(), np.ones(n)))
    np.testing.assert_allclose(gradient, -u @ sol.y, rtol=1e-8)
    assert calls[0] < 120  # four steps of three colours, each by a central difference that measures its error
    assert peak < 400 * 8 * n


def test_a_sparse_jac_that_forgets_a_coupling_is_an_error_that_names_it() -> None:
    def forgetful(y: Any, a: Any) -> Any:
        return sp.tril(of_band(y, a))

    sol = rootdiff.root(band, np.zeros(2000), 1.0, jac=forgetful)
    with pytest.raises(ArgumentError, match="jac: it is not the derivative of the residual"):
        sol.vjp(np.ones(2000))
    with pytest.raises(ArgumentError, match=r"jac: it returned shape \(3, 3\), but must return \(5, 5\)"):
        rootdiff.root(band, np.zeros(5), 1.0, jac=lambda y, a: sp.eye_array(3))


def test_a_holomorphic_residual_may_have_a_sparse_jac() -> None:
    def f(y: Any, a: Any) -> Any:
        return y**2 - a * np.roll(y, 1) - 1j

    def jac(y: Any, a: Any) -> Any:
        return sp.csr_array(np.diag(2 * y) - a * np.roll(np.eye(4), 1, axis=0))

    sol = rootdiff.root(f, np.full(4, 1 + 1j), 0.3, jac=jac, solver="newton")
    np.testing.assert_allclose(f(sol.y, 0.3), 0, atol=1e-11)


def test_factors_survive_where_the_diagonal_is_no_pivot() -> None:
    n = 60
    random = np.random.default_rng(0)
    for shift in (0.0, 1e-9):  # none, and one that leaves no digit without a change of rows
        matrix = sp.csr_array(
            np.roll(np.eye(n), 1, axis=0) + shift * np.eye(n) + np.diag(random.uniform(1, 2, n - 3), 3)
        )
        pattern = Pattern.of(matrix, n)
        values = np.stack([sp.csr_array(k * matrix).data for k in (1, 3)])
        rhs = random.standard_normal((2, n))
        for transpose in (False, True):
            x = host_solve(pattern, "superlu", transpose, values, rhs)
            dense = matrix.toarray().T if transpose else matrix.toarray()
            np.testing.assert_allclose(x, np.linalg.solve(dense, rhs.T).T / [[1], [3]], rtol=1e-10)


@pytest.mark.elsewhere_in_jax("tests/test_sparse.py::test_the_root_and_its_derivatives_are_those_of_the_closed_form")
@pytest.mark.parametrize("package", ["torch", "jax"], indirect=True)  # differences of float32 tell three digits
def test_single_precision_takes_a_pattern(package: Harness) -> None:
    found = package.vjp(
        ring, np.ones(N, np.float32), A.astype(np.float32), w=np.ones(N, np.float32), jac_sparsity=shape_of_ring()
    )
    np.testing.assert_allclose(found.derivative[0], exact(found.y.astype(float), A).sum(axis=0), rtol=1e-4)


def test_a_pickled_solution_keeps_its_pattern() -> None:
    sol = rootdiff.root(ring, np.ones(N), A, jac_sparsity=shape_of_ring())
    again = pickle.loads(pickle.dumps(sol))
    np.testing.assert_allclose(again.vjp(np.ones(N))[0], sol.vjp(np.ones(N))[0], rtol=1e-12)


def test_a_pattern_is_that_of_the_leaves_one_after_the_other(package: Harness) -> None:
    def f(y: Any, a: Any) -> Any:
        return {"u": y["u"] ** 3 + y["v"] - a[0], "v": 2 * y["v"] - rolled(y["u"], 1)}

    start = {name: package.array(np.ones(40)) for name in ("u", "v")}
    rd: Any = __import__({"numpy": "rootdiff", "torch": "rootdiff_torch", "jax": "rootdiff_jax"}[package.name])
    pattern = rd.detect_sparsity(f, start, package.array(A))
    assert len(pattern.indices) == 160
    sol = rd.root(f, start, package.array(A), jac_sparsity=pattern, solver="newton")
    np.testing.assert_allclose(np.asarray(sol.y["u"]) ** 3 + np.asarray(sol.y["v"]), A[0], rtol=1e-12)


def test_a_jvp_rule_is_asked_once_for_each_colour_and_once_to_check() -> None:
    calls = [0]

    def jvp(primals: Any, tangents: Any) -> Any:
        calls[0] += 1
        return of_band(*primals) @ tangents[0] + (0 if tangents[1] is None else tangents[1] * primals[0])

    sol = rootdiff.root(band, np.zeros(200), 1.0, jvp=jvp, jac_sparsity=("banded", (1, 1)), solver="newton")
    assert calls[0] <= 4 * sol.steps + 8  # of the verdict and of the check of the rule
    with pytest.raises(ArgumentError, match="jac_sparsity"):
        rootdiff.root(band, np.zeros(200), 1.0, jvp=jvp, jac_sparsity=("banded", (0, 1)), solver="newton")


def test_entries_far_smaller_than_others_of_their_row_are_found_by_few_differences() -> None:
    n, calls, random = 2000, [0], np.random.default_rng(2)
    small = sp.random_array((n, n), density=2 / n, random_state=random)
    matrix = sp.csr_array(random_entries(n) + small.power(8) * 1e-6)  # down to 1e-9 of a row
    matrix.data = np.where(np.abs(matrix.data) < 1e-6, 0, matrix.data)
    matrix.eliminate_zeros()

    def f(y: Any, a: Any) -> Any:
        calls[0] += 1
        return matrix @ y + 0.1 * y**2 - a

    pattern = rootdiff.detect_sparsity(f, np.ones(n), 1.0)
    lost = sp.csr_array(matrix != 0).astype(int) - pattern.matrix(np.ones(len(pattern.indices))).astype(int)
    assert np.sum(lost.data > 0) == 0
    assert np.sum(lost.data < 0) <= 8
    assert calls[0] < 2000
    assert rootdiff.root(f, np.ones(n), 1.0, jac_sparsity=pattern).converged


@pytest.mark.parametrize("derivatives", ["finite-difference", "complex-step"])
def test_a_gradient_in_a_large_parameter_costs_few_calls(derivatives: Any) -> None:
    calls, n = [0], 3000

    def f(y: Any, a: Any, b: Any) -> Any:
        calls[0] += 1
        return (2 + a[0] + b**2) * y - a[1] * rolled(y, 1) - b * rolled(b, 2)

    b = 1 + np.linspace(0, 1, n) ** 2
    sol = rootdiff.root(f, np.ones(n), A, b, jac_sparsity=sp.eye_array(n) + shifted(n, 1), derivatives=derivatives)
    calls[0], w = 0, np.cos(np.arange(n))
    _, found = sol.vjp(w)
    assert calls[0] < 300
    matrix = sp.diags_array(2 + A[0] + b**2) - A[1] * shifted(n, 1)
    of_b = sp.diags_array(2 * b * sol.y - np.roll(b, 2)) - sp.diags_array(b) @ shifted(n, 2)
    wanted = -of_b.T @ spsolve(sp.csc_array(matrix.T), w)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8)


def test_a_large_sparse_root_at_the_rounding_of_its_residual_is_one_and_its_error_is_told() -> None:
    n, options = 3000, {"jac_sparsity": ("banded", (1, 1)), "solver": "newton"}

    def chain(y: Any, offset: Any) -> Any:
        held = (np.concat([[0], y, [0]]) + offset) - offset
        return 2 * held[1:-1] - held[:-2] - held[2:] + (y**3 - 1) / n**2

    sol = rootdiff.root(chain, np.zeros(n), 1e3, **options)
    assert sol.status == Status.AT_PRECISION
    exact = rootdiff.root(chain, np.zeros(n), 0.0, **options)
    assert exact.status == Status.CONVERGED
    assert np.all(np.abs(sol.y - exact.y) <= sol.error)
    assert np.max(sol.error) < 1e-6  # 1e3 eps, times the condition of 2e6, times what noise may hide


#: The libraries that are extras, and the modules that they are.
LIBRARIES = {"rslab": "rslab", "pardiso": "pypardiso", "pyamg": "pyamg"}


@pytest.mark.parametrize("package", PACKAGES, indirect=True)
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_factors_for_steps_and_derivative(library: str, package: Harness, monkeypatch: Any) -> None:
    pytest.importorskip(LIBRARIES[library])
    made, calls = _host_factors.ways, []
    monkeypatch.setattr(_host_factors, "ways", lambda *given: calls.append(given[0]) or made(*given))
    _host_factors._MEMORY._kept.clear()
    solver = rootdiff.Newton(linear=rootdiff.SparseLU(library=library))
    found = package.vjp(ring, np.ones(N), A, w=np.ones(N), jac_sparsity=shape_of_ring(), solver=solver)
    np.testing.assert_allclose(found.derivative[0], exact(found.y, A).sum(axis=0), rtol=1e-7)
    assert set(calls) == {library}


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_solves_with_the_transpose_and_any_pivots(library: str) -> None:
    pytest.importorskip(LIBRARIES[library])
    random, n = np.random.default_rng(0), 60
    rows, columns = np.concatenate([np.arange(n), random.integers(0, n, 120)]), np.arange(n)
    matrix = sp.csr_array(
        (random.standard_normal(180), (rows, np.concatenate([columns[::-1], random.integers(0, n, 120)])))
    )
    matrix.sort_indices()
    pattern, rhs = Pattern.of(matrix, n), random.standard_normal((2, n))
    plain = matrix.toarray()
    for scales in (np.ones(n), 10.0 ** random.uniform(-6, 6, n)):
        values = scales[pattern.rows] * matrix.data
        x, transposed = (host_solve(pattern, library, transpose, values, rhs) for transpose in (False, True))
        np.testing.assert_allclose(x, np.linalg.solve(plain, (rhs / scales).T).T, rtol=1e-6)
        np.testing.assert_allclose(transposed, np.linalg.solve(plain.T, rhs.T).T / scales, rtol=1e-6)
    empty = np.where(pattern.rows == 3, 0, matrix.data)  # a row of zeros
    assert np.all(np.isnan(host_solve(pattern, library, False, empty, rhs)))


def test_a_library_that_is_none_is_named() -> None:
    with pytest.raises(
        ArgumentError, match=r"SparseLU: library is 'umfpack', .* must be 'superlu' or 'rslab' or 'pard"
    ):
        rootdiff.SparseLU(library="umfpack")
