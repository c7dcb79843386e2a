"""The kit can fail: each wrong residual, solver and adjoint is caught, with its cause where one is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rootdiff.testing import CheckFailed, _traps, check_adjoint, check_residual, check_solver
from rootdiff.testing.problems import get_problem
from tests.kit import mutants

Y0 = np.array([1.0, 1.2, 0.8])
THETA = np.array([0.5, -0.3])
FAST: Any = {"solvers": ["newton"], "adjoints": ["lu"]}


def good(y: Any, theta: Any) -> Any:
    """Three unknowns, two parameters, a nonsymmetric Jacobian; the root is near 0.9."""
    first = y[0] ** 3 + 0.5 * y[1] - 1.2 - theta[0]
    second = y[1] + 0.2 * y[0] * y[2] - 1.1 + theta[1] ** 2
    third = 2 * y[2] - 0.3 * y[1] ** 2 + y[0] * theta[0] - 1.7
    stack = torch.stack if isinstance(y, torch.Tensor) else np.stack
    return stack([first, second, third])


def batched(y: Any, theta: Any) -> Any:
    """Four systems of two unknowns; each depends on itself only."""
    return y**3 + 0.5 * y[:, ::-1] - theta[:2] - 1.5


BATCH = np.array([[1.0, 1.1], [0.9, 1.3], [1.2, 0.7], [0.8, 1.0]])


def caught(check: Callable[[], Any], words: str, prop: str = "") -> CheckFailed:
    """Return the failure, which must name the cause and the property."""
    with pytest.raises(CheckFailed) as info:
        check()
    message = str(info.value)
    assert words in message, message
    assert prop in {failure.name for failure in info.value.report.failures} or not prop, message
    assert "To reproduce: check_" in message
    return info.value


def test_the_originals_pass() -> None:
    check_residual(good, Y0, THETA, **FAST)
    check_residual(batched, BATCH, THETA, batch_ndim=1, **FAST)
    check_residual(good, torch.tensor(Y0), torch.tensor(THETA), **FAST)
    check_solver("newton", problems=[get_problem("rosenbrock-2")])
    check_adjoint("lu")


# -- adjoints, seen through a residual --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (mutants.minus_dropped, "minus sign"),
        (mutants.inverse_dropped, "inverse of df/dy is missing"),
        (mutants.transposed, "transposed"),
        (mutants.diagonal_only, "only the diagonal"),
        (mutants.stale_factors, "stale"),
        (mutants.float32_inside, "float32"),
        (mutants.loose, "no common mistake explains it"),
    ],
)
def test_wrong_adjoint_in_a_residual(mistake: Any, words: str, mode: str) -> None:
    solver = rough_newton() if mistake is mutants.stale_factors else "newton"
    options: Any = {"solvers": [solver], "adjoints": [mutants.Wrong(mistake)], "derivatives": "complex-step"}
    # what the adjoint says of itself is not believed: the row is that of a gradient which is refused, with its cause
    caught(lambda: check_residual(good, Y0, THETA, modes=[mode], **options), words, "gradient")


@pytest.mark.parametrize("mode", ["vjp", "jvp"])
def test_batch_averaged_in_a_residual(mode: str) -> None:
    options: Any = {"solvers": ["newton"], "adjoints": [mutants.Wrong(mutants.batch_averaged)], "batch_ndim": 1}
    caught(
        lambda: check_residual(batched, BATCH, THETA, modes=[mode], **options),
        "divided by the number of systems of the batch, 4",
        "gradient",
    )


def rough_newton() -> Any:
    """Return a Newton method whose last factors are those of the start."""

    def keep_the_first(raw: Any, residual: Any, y0: Any) -> Any:
        return raw._replace(factors=residual.backend.lu_factor(residual.jacobian(y0)))

    return mutants.WrongNewton(mistake=keep_the_first)


def test_inexact_adjoint_at_high_condition() -> None:
    """Off by the condition number: the tolerance of the adjoint solver is to blame."""
    hilly = np.array([[1.0, 0.999], [1.001, 1.0001]])

    def f(y: Any, theta: Any) -> Any:
        return hilly @ y - theta

    caught(
        lambda: check_residual(
            f, np.ones(2), np.ones(2), solvers=["newton"], adjoints=[mutants.Wrong(mutants.float32_inside)],
            derivatives="complex-step",
        ),
        "condition number",
    )  # fmt: skip


def test_leaf_blocks_only() -> None:
    def f(y: Any, theta: Any) -> Any:
        out = good(np.concatenate([y["a"], y["b"]]), theta)
        return {"a": out[:2], "b": out[2:]}

    caught(
        lambda: check_residual(
            f, {"a": Y0[:2], "b": Y0[2:]}, THETA, solvers=["newton"],
            adjoints=[mutants.Wrong(mutants.leaf_blocks_only)], derivatives="complex-step",
        ),
        "diagonal blocks",
    )  # fmt: skip


# -- adjoints, on their own --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (mutants.minus_dropped, "minus sign"),
        (mutants.inverse_dropped, "x equals the right-hand side"),
        (mutants.transposed, "transposed"),
        (mutants.diagonal_only, "only the diagonal"),
        (mutants.stale_factors, "stale factors"),
        (mutants.float32_inside, "float32"),
        (mutants.loose, "tolerance"),
        (mutants.batch_averaged, "the batch is averaged"),
        (mutants.batch_spoilt, "the systems of a batch must not touch"),
        (mutants.another_each_time, "another solution the second time"),
        (mutants.halved, "x is 0.5 times the solution"),
        (mutants.wrong_sign_in_one_unknown, "wrong sign in some unknowns"),
        (mutants.systems_permuted, "the solution of another one of the batch"),
        (mutants.first_matrix_for_all, "the matrix of the first system serves for all"),
        (mutants.lower_triangle_only, "only the lower triangle"),
        (mutants.krylov_cut_short, "the tolerance is not kept"),
        (mutants.small_directions_cut_off, "the tolerance is not kept"),
        (mutants.normal_equations, "condition 1e8"),
        (mutants.rhs_changed_in_place, "x itself is right"),
    ],
)
def test_wrong_adjoint(mistake: Any, words: str) -> None:
    caught(lambda: check_adjoint(mutants.Wrong(mistake, lies=mistake is not mutants.batch_spoilt)), words)


# -- residuals ---------------------------------------------------------------------------------------------------------


def test_random_residual() -> None:
    rng = np.random.default_rng(0)
    caught(
        lambda: check_residual(lambda y, a: good(y, a) + 1e-9 * rng.standard_normal(3), Y0, THETA, **FAST),
        "random, or keeps state",
        "same input, same output",
    )


def test_residual_with_state() -> None:
    calls: list[int] = []

    def f(y: Any, theta: Any) -> Any:
        calls.append(1)
        return good(y, theta) + 1e-6 * len(calls)

    caught(lambda: check_residual(f, Y0, THETA, **FAST), "random, or keeps state")


def test_y_changed_in_place() -> None:
    def f(y: Any, theta: Any) -> Any:
        out = good(y, theta)
        y *= 0.5
        return out

    caught(lambda: check_residual(f, Y0, THETA, **FAST), "changes y in place", "inputs not changed")


def test_args_changed_in_place() -> None:
    def f(y: Any, theta: Any) -> Any:
        theta += 1e-3
        return good(y, theta)

    caught(lambda: check_residual(f, Y0, THETA, **FAST), "changes args in place", "inputs not changed")


def test_batch_coupled_by_a_mean() -> None:
    caught(
        lambda: check_residual(lambda y, a: batched(y, a) + 1e-3 * y.mean(axis=0), BATCH, THETA, batch_ndim=1, **FAST),
        "couples systems of the batch",
        "systems of the batch independent",
    )


def test_batch_scaled_by_its_length() -> None:
    caught(
        lambda: check_residual(lambda y, a: batched(y, a / y.shape[0]), BATCH, THETA, batch_ndim=1, **FAST),
        "size or order of the batch",
        "a system alone is the same",
    )


SLOPE = np.array([[3.0, 1.0], [-0.5, 2.0]])


@pytest.mark.parametrize(
    ("jac", "cause"),
    [
        (lambda y, a: np.diag(np.diag(SLOPE) + 3 * y**2), "jac is the diagonal of the Jacobian"),
        (lambda y, a: 2 * (SLOPE + np.diag(3 * y**2)), "jac is 2 times the Jacobian"),
        (lambda y, a: SLOPE + np.diag([3 * y[0] ** 2, 0]), "differs in row 1, column 1"),
    ],
)
def test_a_wrong_jac_is_described(jac: Any, cause: str) -> None:
    f = lambda y, a: SLOPE @ y + y**3 - a
    caught(lambda: check_residual(f, np.array([1.0, 0.7]), THETA, jac=jac, **FAST), cause, "given jac")


def test_a_redundant_equation_is_named() -> None:
    f = lambda y, a: np.stack([y[0] + y[1] - a[0], 2 * y[0] + 2 * y[1] - 3 * a[1]])
    caught(lambda: check_residual(f, np.array([1.0, 0.7]), THETA, **FAST), "a redundant equation", "a root is found")


def test_order_of_the_batch_matters() -> None:
    caught(
        lambda: check_residual(
            lambda y, a: batched(y, a) + 0.1 * np.arange(4.0)[:, None] * y[:, :1], BATCH, THETA, batch_ndim=1, **FAST
        ),
        "size or order of the batch",
        "permuted batch, permuted residual",
    )


def test_captured_constants_of_each_system_are_no_mistake() -> None:
    constants, factors = np.arange(8.0).reshape(4, 2), {"scale": np.array([1.0, 2.0, 3.0, 4.0])}

    def f(y: Any, a: Any) -> Any:
        return y**3 + (1 + a[0] ** 2) * y * factors["scale"][:, None] - constants - 1

    report = check_residual(f, np.ones((4, 2)), THETA, batch_ndim=1, modes=["vjp"], **FAST)
    assert report.passed


def test_captured_instead_of_passed() -> None:
    theta = THETA

    def f(y: Any, unused: Any) -> Any:
        return good(y, theta)

    caught(lambda: check_residual(f, Y0, theta, **FAST), "captured array that is not in args: 'theta'")


def test_captured_beside_what_is_passed() -> None:
    theta = THETA

    def f(y: Any, given: Any) -> Any:
        return good(y, np.stack([given[0], theta[1]]))

    caught(lambda: check_residual(f, Y0, theta, **FAST), "captured array that is not in args")


def test_detached_parameter() -> None:
    def f(y: Any, theta: Any) -> Any:
        return good(y, torch.stack([theta[0], theta[1]]).detach())

    caught(lambda: check_residual(f, torch.tensor(Y0), torch.tensor(THETA), **FAST), "no derivative reaches args[0]")


def test_one_of_two_args_detached() -> None:
    def f(y: Any, a: Any, b: Any) -> Any:
        return good(y, torch.stack([a[0], b[0].detach()]))

    arrays = [torch.tensor(Y0), torch.tensor(THETA[:1]), torch.tensor(THETA[1:])]
    caught(lambda: check_residual(f, *arrays, modes=["vjp"], **FAST), "no derivative reaches args[1]")


def test_custom_derivative_with_a_factor() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, w: Any) -> Any:
            return 2 * ctx.saved_tensors[0] ** 2 * w  # should be 3

    def f(y: Any, a: Any) -> Any:
        return y - Cube.apply(a)

    caught(
        lambda: check_residual(f, torch.ones(2).double(), torch.tensor([0.7, 1.1]).double(), modes=["vjp"], **FAST),
        "0.6667 times the expected one",
    )


def test_float32_inside_float64() -> None:
    caught(
        lambda: check_residual(
            lambda y, a: good(y.astype(np.float32), a.astype(np.float32)).astype(np.float64), Y0, THETA, **FAST
        ),
        "float32 inside float64",
        "precision of the dtype",
    )


def test_dtype_lost() -> None:
    caught(lambda: check_residual(lambda y, a: good(y, a).astype(np.float32), Y0, THETA, **FAST), "dtype float32")


def test_nan_swallowed_by_the_residual() -> None:
    caught(
        lambda: check_residual(lambda y, a: np.nan_to_num(np.log(y) - a), np.ones(1), np.ones(1), **FAST),
        "swallows NaN",
    )


def test_conjugate_forgotten() -> None:
    """z^2 = a + 1j: the pullback of a holomorphic function multiplies with the conjugate of its derivative."""

    def f(z: Any, a: Any) -> Any:
        return z**2 * (1 + 0.3j) - a * (0.5 - 1j)

    def vjp(primals: Any, w: Any) -> Any:
        z, _ = primals
        return 2 * z * (1 + 0.3j) * w, np.real(np.conj(-(0.5 - 1j)) * w)

    def right(primals: Any, w: Any) -> Any:
        z, _ = primals
        return np.conj(2 * z * (1 + 0.3j)) * w, np.real(np.conj(-(0.5 - 1j)) * w)

    z0, a = np.array([1.0 - 0.5j]), np.array([1.3])
    check_residual(f, z0, a, modes=["vjp"], solvers=["newton"], adjoints=["gmres"], vjp=right)
    caught(
        lambda: check_residual(f, z0, a, modes=["vjp"], solvers=["auto"], adjoints=["gmres"], vjp=vjp),
        "complex conjugate is forgotten",
        "gradient (vjp)",
    )
    # a solver that the wrong rule keeps from a root
    caught(
        lambda: check_residual(f, z0, a, modes=["vjp"], solvers=["newton"], adjoints=["gmres"], vjp=vjp),
        "vjp: it is not the derivative of the residual with respect to y",
        "a root is found",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda m: -m, "minus the Jacobian"), (lambda m: m.T, "transpose"), (lambda m: m + 0.1, "not the")],
)
def test_wrong_jac(change: Any, words: str) -> None:
    def jac(y: Any, theta: Any) -> Any:
        matrix = [
            [3 * y[0] ** 2, 0.5, 0.0],
            [0.2 * y[2], 1.0, 0.2 * y[0]],
            [theta[0], -0.6 * y[1], 2.0],
        ]
        return change(np.array(matrix))

    caught(lambda: check_residual(good, Y0, THETA, jac=jac, **FAST), words, "given jac")


def test_vjp_that_forgets_an_arg() -> None:
    def vjp(primals: Any, w: Any) -> Any:
        y, _, _ = primals
        return 3 * y**2 * w, -w, None  # b is forgotten

    caught(
        lambda: check_residual(
            lambda y, a, b: y**3 - a - b**2,
            np.ones(2),
            np.full(2, 0.5),
            np.full(2, 1.5),
            vjp=vjp,
            modes=["vjp"],
            **FAST,
        ),
        "no derivative reaches args[1]",
    )


def test_double_root() -> None:
    caught(
        lambda: check_residual(lambda y, a: (y - a) ** 2, np.array([2.0]), np.ones(1), solvers=["newton"]),
        "Jacobian is singular at the root",
        "the root is regular",
    )


def test_kink_at_the_root() -> None:
    caught(
        lambda: check_residual(
            lambda y, a: y - a + 0.5 * np.abs(y - 1), np.array([2.0]), np.ones(1), solvers=["newton"]
        ),
        "kink at the root",
        "the root is regular",
    )


def test_no_root() -> None:
    caught(lambda: check_residual(lambda y, a: y**2 + a, np.ones(1), np.ones(1), **FAST), "no solver found a root")


# -- entry points ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mistake", "words", "prop"),
    [
        ("y0 added", "gradient flows to y0", "no gradient to y0"),
        ("one step", "inverse of df/dy is missing", "gradient (vjp)"),
        ("counted twice", "counted twice", "gradient (vjp)"),
        ("early", "earlier iterate", "gradient (vjp)"),
        ("stale", "stale", "gradient (vjp)"),
        ("constant Jacobian", "held constant", "second derivative"),
    ],
)
def test_wrong_rule(mistake: str, words: str, prop: str) -> None:
    entry = mutants.torch_root(mistake)
    modes = ["vjp", "hessian"] if mistake == "constant Jacobian" else ["vjp"]
    caught(lambda: check_residual(good, torch.tensor(Y0), torch.tensor(THETA), entry=entry, modes=modes), words, prop)


def test_rule_that_forgets_an_arg() -> None:
    def f(y: Any, a: Any, b: Any) -> Any:
        return good(y, torch.cat([a, b]))

    arrays = [torch.tensor(Y0), torch.tensor(THETA[:1]), torch.tensor(THETA[1:])]
    entry = mutants.torch_root("forgotten arg")
    with pytest.raises(AssertionError):
        check_residual(f, *arrays, entry=entry, modes=["vjp"])


# -- solvers -----------------------------------------------------------------------------------------------------------

#: What only the traps show: problems without a root, and NaN.
SEEN_IN_TRAPS = (mutants.nan_as_success, mutants.residual_minimised, mutants.small_residual_is_a_root)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (mutants.one_step_early, "a step too early"),
        (mutants.tolerance_ignored, "the tolerance is ignored"),
        (mutants.max_steps_ignored, "two steps were allowed"),
        (mutants.one_status_for_all, "a status strays under the mask"),
        (mutants.best_status_for_all, "a status strays under the mask"),
        (mutants.nan_as_success, "NaN is swallowed"),
        (mutants.float32_solve, "float32"),
        (mutants.float64_result, "float32 went in, float64 came out"),
        (mutants.start_returned, "success is claimed"),
        (mutants.norm_of_the_start, "residual_norm says"),
        (mutants.steps_not_counted, "0 steps are counted"),
        (mutants.systems_mixed, "systems of the batch touch"),
        (mutants.another_root_each_time, "another root the second time"),
        (mutants.residual_minimised, "which is no root"),
        (mutants.small_residual_is_a_root, "which is no root"),
        (mutants.with_start_changed, "changes y0 in place"),
        (mutants.first_root_for_all, "systems of the batch touch"),
        (mutants.one_status, "it must be one per system"),
        (mutants.norm_zero, "residual_norm says 0"),
        (mutants.never_a_success, "the root is found but reported as MAX_STEPS"),
        (mutants.jacobian_of_the_start, "success is claimed with a relative error"),
    ],
)
def test_wrong_solver(mistake: Any, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mistake not in SEEN_IN_TRAPS:  # which take most of the time
        monkeypatch.setattr(_traps, "trap_checks", lambda *_: iter(()))
    solver = mutants.WrongNewton(mistake=mistake)
    caught(lambda: check_solver(solver, problems=[get_problem("rosenbrock-2")]), words)
