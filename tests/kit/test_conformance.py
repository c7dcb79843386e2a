"""Every registered solver and adjoint passes the conformance suite; what one cannot do stands in a strict list."""

from __future__ import annotations

from typing import Any

import pytest

import rootdiff
from rootdiff.testing import check_adjoint, check_solver
from rootdiff.testing._check_residual import system_solvers
from rootdiff.testing.problems import get_problem
from tests.harness import THOROUGH

PROBLEMS = [get_problem(name) for name in ("rosenbrock-2", "powell-badly-scaled-2", "chebyquad-8", "helical-valley-3")]

#: Where y + f(y) is no contraction, a plain iteration diverges.
_NOT_CONTRACTIVE = {"solves linear", "solves quadratic", "solves stiff", "solves sparse"}
SOLVER_XFAIL: dict[str, set[str]] = {
    "df_sane": {"solves linear"},
    "fixed_point": _NOT_CONTRACTIVE,
    "pseudo_transient": {"solves linear", "solves quadratic"},  # their flow spirals outwards
    "scipy:df-sane": {"solves linear"},
}
#: The families are of the kind cell(z) - z, whose flow towards the root is dy/dt = f.
SETTINGS: dict[str, Any] = {"pseudo_transient": rootdiff.PseudoTransient(mass=-1.0)}
#: CG is for symmetric definite matrices; all these are not symmetric, and it has to say that it has not solved them.
ADJOINT_XFAIL: dict[str, set[str]] = {
    "cg": {
        "nonsymmetric",
        "triangular",
        "right-hand side 1e-12",
        "rows scaled to 1e8",
        "condition 1e8",
        "sixty unknowns",
        "batch",
        "stale factors",
        "batch with failures",
        "float32",
    },
}


#: Slow, since each of their steps is small or each evaluation is one system.
_SLOW = ("scipy:krylov", "scipy:anderson", "scipy:broyden1")


def _names(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.exhaustive] if name in _SLOW else []) for name in names]


@pytest.mark.parametrize("name", _names(system_solvers("numpy")))
def test_solver(name: str) -> None:
    # one with a root, or one without, by turns: the traps have both
    turn = 2 * (system_solvers("numpy").index(name) % 2)
    problems = PROBLEMS if THOROUGH or name == "newton" else PROBLEMS[turn : turn + 1]
    check_solver(SETTINGS.get(name, name), problems, xfail=SOLVER_XFAIL.get(name, set()))


@pytest.mark.parametrize("name", ["newton", pytest.param("broyden", marks=pytest.mark.exhaustive), "scipy:hybr"])
def test_solver_on_torch(name: str) -> None:
    check_solver(name, PROBLEMS[:1], backends=["torch"], xfail=SOLVER_XFAIL.get(name, set()))


@pytest.mark.exhaustive
def test_solver_on_jax() -> None:
    check_solver("newton", PROBLEMS[:1], backends=["jax"])


@pytest.mark.parametrize("name", _names(rootdiff.available_adjoints("numpy")))
def test_adjoint(name: str) -> None:
    check_adjoint(name, xfail=ADJOINT_XFAIL.get(name, set()))


@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.exhaustive)])
def test_adjoint_elsewhere(backend: str) -> None:
    # with seed 0 PyTorch's LU of "rows scaled to 1e8" ends a few roundings above what the contract accepts
    check_adjoint("lu", backends=[backend])


def test_a_mended_failure_must_leave_the_list() -> None:
    with pytest.raises(rootdiff.testing.CheckFailed, match="take it off the list"):
        check_adjoint("lu", xfail={"nonsymmetric"})
    with pytest.raises(rootdiff.UnknownNameError, match=r"xfail: \['no such'\]"):
        check_adjoint("lu", xfail={"no such"})


def test_a_solver_in_a_bracket_is_refused() -> None:
    with pytest.raises(rootdiff.ArgumentError, match="'bisection' needs a bracket"):
        check_solver("bisection")


def test_a_value_is_checked_like_a_name() -> None:
    solver: Any = rootdiff.Newton(rtol=1e-6)
    assert check_solver(solver, PROBLEMS[:1]).passed
