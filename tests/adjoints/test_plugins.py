"""Linear solvers of others: nothing that they return is believed, and what they raise is a status."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import rootdiff
from rootdiff import LU, LinearInfo, LinearSolver, Status, _implicit
from tests.harness import HARNESSES


class Liar(LinearSolver):
    """Claims to have solved, to have been judged, and to have no residual."""

    judged = True

    def solve(self, operator: Any, rhs: Any) -> Any:
        zeros = 0 * rhs[..., 0]
        return 7 * rhs, LinearInfo(operator.backend.xp.astype(zeros, operator.backend.xp.int32), zeros)


def test_what_a_solver_claims_is_checked(arrays: Any) -> None:
    _, info = _implicit.solve(arrays.operator(np.eye(3)), Liar(), arrays.array(np.ones(3)), "ignore")
    assert int(info.status) == Status.STALLED
    assert float(info.relative_residual) == pytest.approx(6.0)


def test_a_lie_reaches_no_gradient() -> None:
    sol = rootdiff.root(lambda y, a: y - a, np.zeros(2), np.ones(2), adjoint=Liar())
    with pytest.raises(rootdiff.AdjointError, match="STALLED"):
        sol.vjp(np.ones(2))


@pytest.mark.each_in_jax
@pytest.mark.parametrize("wrong", [lambda _, b: b[..., :1], lambda _, b: b[..., None], lambda _, b: None])
def test_a_wrong_shape_is_named(arrays: Any, wrong: Any) -> None:
    adjoint = rootdiff.LinearFunction(wrong)
    with pytest.raises(rootdiff.ArgumentError, match=r"LinearFunction.*\(3,\).*It must return an array"):
        _implicit.solve(arrays.operator(np.eye(3)), adjoint, arrays.array(np.ones(3)), "nan")


def test_no_tuple_is_named(arrays: Any) -> None:
    class Forgetful(LinearSolver):
        def solve(self, operator: Any, rhs: Any) -> Any:
            return None

    with pytest.raises(rootdiff.ArgumentError, match=r"Forgetful.*returned NoneType.*a tuple"):
        _implicit.solve(arrays.operator(np.eye(3)), Forgetful(), arrays.array(np.ones(3)), "nan")


def test_an_info_that_is_none_is_named(arrays: Any) -> None:
    class Careless(LinearSolver):
        def solve(self, operator: Any, rhs: Any) -> Any:
            return rhs, 0

    with pytest.raises(rootdiff.ArgumentError, match=r"Careless.*returned 0.*LinearInfo"):
        _implicit.solve(arrays.operator(np.eye(3)), Careless(), arrays.array(np.ones(3)), "nan")


@dataclass(frozen=True)
class Refining(LinearSolver):
    """Applies the inverse that the forward solver ended with, twice."""

    def solve(self, operator: Any, rhs: Any) -> Any:
        assert self.known is not None
        inverse = operator.inverted_by(self.known)
        x = inverse(rhs)
        x = x + inverse(rhs - operator.matvec(x))
        return x, LinearInfo(operator.backend.xp.zeros_like(x[..., 0], dtype=operator.backend.xp.int32))


@pytest.mark.parametrize("name", HARNESSES)
def test_the_inverse_of_the_solver_is_handed_over(name: str) -> None:
    def residual(y: Any, a: Any) -> Any:
        return y**2 + 0.5 * y[:1] - a

    w, exact = np.array([1.0, 2.0]), np.linalg.inv([[2.5, 0.0], [0.5, 2.0]])
    options = {"solver": "newton", "adjoint": Refining()}
    outcome = HARNESSES[name]().vjp(residual, np.array([1.2, 0.9]), np.array([1.5, 1.5]), w=w, **options)
    np.testing.assert_allclose(outcome.derivative[0], w @ exact, rtol=1e-9)  # differences: eps^(2/3)


def test_a_setting_of_a_taken_name_is_refused() -> None:
    @dataclass(frozen=True)
    class Mine(LinearSolver):
        known: int = 3  # type: ignore[assignment]

        def solve(self, operator: Any, rhs: Any) -> Any:
            return LU().solve(operator, rhs)

    sol = rootdiff.root(_double, np.ones(1), np.array([4.0]), solver="newton", adjoint=Mine())
    with pytest.raises(rootdiff.ArgumentError, match=r"Mine: it has a setting 'known'.*Rename it"):
        sol.vjp(np.ones(1))


def _double(y: Any, a: Any) -> Any:
    return y**2 - a


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_what_an_adjoint_raises_is_a_status(name: str) -> None:
    def solve(operator: Any, rhs: Any) -> Any:
        matrix = operator.dense()
        if name == "numpy":
            return np.linalg.solve(matrix, rhs)
        import torch

        return torch.linalg.solve(matrix, rhs)

    adjoint = rootdiff.LinearFunction(solve)
    harness, start, ones = HARNESSES[name](), np.zeros(1), np.ones(1)
    jac = {"jac": lambda y, a: np.diag(2 * y)} if name == "numpy" else {}
    options = {"adjoint": adjoint, **jac}
    with pytest.raises(rootdiff.AdjointError, match="SINGULAR"):
        harness.vjp(_double, start, start, w=ones, **options)
    (gradient,) = harness.vjp(_double, start, start, w=ones, on_failure="nan", **options).derivative
    assert np.isnan(gradient).all()
    with pytest.warns(rootdiff.ConvergenceWarning, match="SINGULAR"):
        harness.vjp(_double, start, start, w=ones, on_failure="warn", **options)


class _Answering(LinearSolver):
    """Returns what it is made to, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def solve(self, operator: Any, rhs: Any) -> Any:
        answer = self.answer(operator, rhs)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.each_in_jax
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _, b: b, r"returned \w+\..* a tuple"),
        (lambda _, b: None, r"returned NoneType\. .* a tuple"),
        (lambda _, b: (b[..., :1], None), r"returned shape \(1,\).*It must return an array"),
        (lambda _, b: (b, None), r"returned None\. .* LinearInfo"),
    ],
)
@pytest.mark.parametrize("name", HARNESSES)
def test_a_wrong_answer_within_newton_is_named(name: str, answer: Any, message: str) -> None:
    solver = rootdiff.Newton(linear=_Answering(answer))
    with pytest.raises(rootdiff.ArgumentError, match=rf"^linear: .*_Answering.*{message}"):
        HARNESSES[name]().solve(_double, np.ones(2), np.full(2, 4.0), solver=solver)


@pytest.mark.parametrize("error", [np.linalg.LinAlgError("singular"), ZeroDivisionError(), FloatingPointError()])
@pytest.mark.parametrize("as_function", [True, False])
@pytest.mark.parametrize("name", HARNESSES)
def test_what_a_solver_within_newton_raises_is_a_status(name: str, as_function: bool, error: Exception) -> None:
    linear: Any = _Answering(lambda operator, rhs: error)
    if as_function:
        linear = rootdiff.LinearFunction(linear.solve)
    solver = rootdiff.Newton(linear=linear)
    outcome = HARNESSES[name]().solve(_double, np.ones(2), np.full(2, 4.0), solver=solver, on_failure="ignore")
    assert int(outcome.status) == Status.SINGULAR
    np.testing.assert_array_equal(outcome.y, np.ones(2))


def test_what_the_residual_raises_within_newton_is_not_hidden() -> None:
    errors = [ZeroDivisionError("mistake")]  # raised once: the Jacobian that the verdict takes may raise too

    def residual(y: Any) -> Any:
        if y[0] != 1 and errors:
            raise errors.pop()
        return y**2 - 4

    with pytest.raises(ZeroDivisionError, match="mistake"):
        rootdiff.root(residual, np.ones(2), solver="newton", on_failure="ignore")


def test_a_mistake_in_an_adjoint_is_not_hidden() -> None:
    def mistaken(operator: Any, rhs: Any) -> Any:
        raise KeyError("mistake")

    sol = rootdiff.root(lambda y, a: y - a, np.zeros(1), np.ones(1), adjoint=rootdiff.LinearFunction(mistaken))
    with pytest.raises(KeyError, match="mistake"):
        sol.vjp(np.ones(1))
