"""Random systems of every kind: no success is claimed that 60 digits do not confirm."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from rootdiff import Status
from tests.harness import HARNESSES, THOROUGH, Outcome
from tests.solvers.families import FAMILIES, Judge, System, draw, residual

_RESIDUALS = {family: residual(family) for family in FAMILIES}  # one each, so that JAX compiles each once
_SEEDS = st.integers(0, 2**32 - 1)
#: A solve of a system without a root takes a second, and there are thirteen families.
_FEW = settings(max_examples=50 if THOROUGH else 2)
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


def _compiled(system: System) -> Outcome:
    """Return what the one program of JAX finds."""
    arrays = (system.start, system.parameters, np.int32(list(_RESIDUALS).index(system.family)))
    return HARNESSES["jax-jit"]().solve(_any_of, *arrays, solver="auto", on_failure="ignore")


def _check(backend: Any, family: str, seed: int, spread: float, dtype: Any) -> None:
    system = draw(family, seed, spread, dtype)
    _judge(system, backend.solve(_RESIDUALS[family], system.start, system.parameters, on_failure="ignore"))


def _judge(system: System, out: Outcome) -> None:
    if not Status(int(out.status)).success:
        return
    y, judge = np.asarray(out.y), Judge(system)
    apart = judge.distance(y)
    assert apart is not None, "success is claimed, but there is no root near"
    numpy_f = lambda y: _RESIDUALS[system.family](y, system.parameters)
    with np.errstate(all="ignore"):
        explained = judge.rounding(numpy_f, y)
    known = _MARGIN * (_allowed(system.start, y) + explained + np.asarray(out.solution.error))
    assert np.all(apart <= known), (apart, known, y)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["numpy", "torch"])
@_FEW
@given(seed=_SEEDS, spread=st.sampled_from([0.0, 3.0, 15.0]))
def test_no_success_is_claimed_that_is_none(name: str, family: str, seed: int, spread: float) -> None:
    _check(HARNESSES[name](), family, seed, spread, np.float64)


@pytest.mark.parametrize("family", FAMILIES)
@_FEW
@given(seed=_SEEDS, spread=st.sampled_from([0.0, 3.0]))
def test_nor_in_float32(family: str, seed: int, spread: float) -> None:
    _check(HARNESSES["torch"](), family, seed, spread, np.float32)


def test_nor_in_a_compiled_program_and_the_packages_agree_on_what_has_succeeded_and_how() -> None:
    pytest.importorskip("jax")
    apart = {}
    for (family, f), seed in product(_RESIDUALS.items(), range(40 if THOROUGH else 2)):
        system = draw(family, seed, (0.0, 3.0, 15.0)[seed % 3])
        compiled = _compiled(system)
        _judge(system, compiled)
        if seed % 3 < 2 and seed < (6 if THOROUGH else 2) and family not in _BY_ROUNDING:
            with np.errstate(all="ignore"):
                outs = [
                    HARNESSES[name]().solve(f, system.start, system.parameters, on_failure="ignore")
                    for name in ("numpy", "torch")
                ]
            found = [Status(int(out.status)) for out in (*outs, compiled)]
            # how a solve without a root ends, hangs on rounding too, and so does on which side of the tolerance an
            # error is that is nearly as large
            errors = [np.max(np.asarray(out.solution.error) / _allowed(system.start, out.y)) for out in outs]
            nearly = all(status.success for status in found) and all(1 / 3 <= error <= 3 for error in errors)
            if len({status if status.success else None for status in found}) > 1 and not nearly:
                apart[family, seed] = [status.name for status in found]
    assert apart == {}
