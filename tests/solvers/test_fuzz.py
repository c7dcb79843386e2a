"""Random systems of every kind: no success is claimed that 60 digits do not confirm."""

from __future__ import annotations

from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rootdiff import Status
from tests.harness import HARNESSES
from tests.solvers.families import FAMILIES, Judge, draw, residual

_RESIDUALS = {family: residual(family) for family in FAMILIES}  # one each, so that JAX compiles each once
_SEEDS = st.integers(0, 2**32 - 1)
#: At a multiple root the correction that estimates the error is a fraction of it; and its noise is a sample.
_MARGIN = 20.0


def _allowed(start: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the default tolerance, as `IterativeSolver` states it."""
    tolerance = float(np.finfo(y.dtype).eps) ** 0.75
    size = np.where(start == 0, max(float(np.max(np.abs(start))), 1e-300), np.abs(start))
    return tolerance * (np.abs(y) + np.minimum(size, 1.0))


#: Of these the verdict hangs on the rounding of the packages: matrices of a condition up to 1e14, and singular ones.
_BY_ROUNDING = ("linear", "duplicated")


def _any_of(y: Any, p: Any, which: Any) -> Any:
    """Return the residual of one family of all, for JAX: so that one program does for them."""
    import jax

    return jax.lax.switch(which, [partial(f, y, p) for f in _RESIDUALS.values()])


def _check(backend: Any, family: str, seed: int, spread: float, dtype: Any) -> None:
    system = draw(family, seed, spread, dtype)
    f = _RESIDUALS[family]
    out = backend.solve(f, system.start, system.parameters, on_failure="ignore")
    if not Status(int(out.status)).success:
        return
    y, judge = np.asarray(out.y), Judge(system)
    apart = judge.distance(y)
    assert apart is not None, "success is claimed, but there is no root near"
    numpy_f = lambda y: f(y, system.parameters)
    with np.errstate(all="ignore"):
        explained = judge.rounding(numpy_f, y)
    known = _MARGIN * (_allowed(system.start, y) + explained + np.asarray(out.solution.error))
    assert np.all(apart <= known), (apart, known, y)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["numpy", "torch"])
@given(seed=_SEEDS, spread=st.sampled_from([0.0, 3.0, 15.0]))
def test_no_success_is_claimed_that_is_none(name: str, family: str, seed: int, spread: float) -> None:
    _check(HARNESSES[name](), family, seed, spread, np.float64)


@pytest.mark.parametrize("family", FAMILIES)
@given(seed=_SEEDS, spread=st.sampled_from([0.0, 3.0]))
def test_nor_in_float32(family: str, seed: int, spread: float) -> None:
    _check(HARNESSES["torch"](), family, seed, spread, np.float32)


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in ("double", "exponential") else [pytest.mark.exhaustive]) for f in FAMILIES],
)
@settings(max_examples=40)
@given(seed=_SEEDS, spread=st.sampled_from([0.0, 3.0, 15.0]))
def test_nor_in_a_compiled_program(family: str, seed: int, spread: float) -> None:
    _check(HARNESSES["jax-jit"](), family, seed, spread, np.float64)


def test_the_packages_agree_on_what_has_succeeded_and_how() -> None:
    pytest.importorskip("jax")
    apart = {}
    for which, (family, f) in enumerate(_RESIDUALS.items()):
        for seed in range(0 if family in _BY_ROUNDING else 4):
            system = draw(family, seed, 3.0 * (seed % 2))
            with np.errstate(all="ignore"):
                outs = [
                    HARNESSES[name]().solve(f, system.start, system.parameters, on_failure="ignore")
                    for name in ("numpy", "torch")
                ]
            arrays = (system.start, system.parameters, np.int32(which))
            outs.append(HARNESSES["jax-jit"]().solve(_any_of, *arrays, on_failure="ignore"))
            found = [Status(int(out.status)) for out in outs]
            # how a solve without a root ends, hangs on rounding too
            if len({status if status.success else None for status in found}) > 1:
                apart[family, seed] = [status.name for status in found]
    assert apart == {}
