"""Every native solver from all 80 starts: what it does not solve stands in a strict list, and it is always honest."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import numpy as np
import pytest
import torch

import rootdiff_jax
import rootdiff_torch
from rootdiff.testing import Attempt, measure
from rootdiff.testing._check_residual import system_solvers
from rootdiff.testing.problems import LIBRARY, MINPACK
from tests.expected_failures import natives, stored, unsolved
from tests.harness import THOROUGH

jax.config.update("jax_enable_x64", True)
PROBLEMS = (*MINPACK, *LIBRARY)
#: Those that run from 1, 10 and 100 times the standard start; the others take every fourth problem from the standard
#: one, in turns, but for test-all.
ALL_STARTS = ("auto", "anderson", "fixed_point")


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def assert_honest(attempts: Iterable[Attempt]) -> None:
    wrong = [
        (attempt.problem, attempt.start, attempt.status, attempt.residual_norm)
        for attempt in attempts
        # where the squares of f underflow, around a root of high order, f and its derivative do not tell where that is
        if attempt.false_success or (attempt.missed and attempt.residual_norm > np.finfo(float).tiny ** 0.5)
    ]
    assert wrong == []


def assert_listed(solver: str, attempts: Iterable[Attempt]) -> None:
    attempts = list(attempts)
    tried = {f"{attempt.problem} {10**attempt.start}x" for attempt in attempts}
    failed, table = unsolved(attempts), stored()[solver]
    assert failed - set(table["edge"]) == tried & set(table["always"])


@pytest.mark.parametrize("solver", natives())
def test_failures_are_those_of_the_list(solver):
    if THOROUGH or solver in ALL_STARTS:
        attempts = measure(solver)
        assert len(attempts) == 80
    else:
        attempts = measure(solver, PROBLEMS[natives().index(solver) % 4 :: 4], tries=1)
        assert len(attempts) in (11, 12)
    assert_honest(attempts)
    assert_listed(solver, attempts)


def test_the_list_is_of_the_solvers_and_problems_that_there_are():
    table = stored()
    assert sorted(table) == sorted(natives())
    starts = {f"{p.name} {10**power}x" for p in PROBLEMS for power in range(p.tries)}
    for entry in table.values():
        assert set(entry["always"]) | set(entry["edge"]) <= starts
        assert not set(entry["always"]) & set(entry["edge"])
    assert table["auto"] == {"always": ["chebyquad-8 1x"], "edge": []}  # which has no root


def test_auto_on_torch():
    attempts = measure("auto", tries=None if THOROUGH else 1, root=rootdiff_torch.root, asarray=torch.asarray)
    assert_honest(attempts)
    assert_listed("auto", attempts)


@pytest.mark.exhaustive
@pytest.mark.parametrize("problem", [pytest.param(p, id=f"{p.name}-{k}") for k, p in enumerate(PROBLEMS)])
def test_auto_on_jax(problem):
    jax.clear_caches()  # a program holds memory maps, of which a process may have 65530
    attempts = measure("auto", [problem], root=rootdiff_jax.root, asarray=jax.numpy.asarray)
    assert_honest(attempts)
    assert all(attempt.solved for attempt in attempts) == problem.has_root


@pytest.mark.exhaustive
@pytest.mark.parametrize("solver", [name for name in system_solvers("numpy") if ":" in name])
def test_peers_are_reported_honestly(solver):
    assert_honest(measure(solver))
