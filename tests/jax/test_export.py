"""Solves in programs that are exported."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import rootdiff_jax as rd
from tests.jax.closed_form import EXACT


def solve(a: Any, **options: Any) -> Any:
    return rd.root(lambda y, a: y**3 + y - a, jnp.zeros_like(a), a, solver="newton", **options)


@pytest.mark.transform("export with a symbolic batch size: vmap; batch_ndim is refused by name")
def test_symbolic_batch_size() -> None:
    (size,) = export.symbolic_shape("size")
    kind = jax.ShapeDtypeStruct((size, 2), jnp.float64)
    exported = export.export(jax.jit(jax.vmap(lambda a: solve(a).y)))(kind)
    np.testing.assert_allclose(exported.call(jnp.array([[2.0, 10.0]] * 3)), [[1.0, 2.0]] * 3, **EXACT)
    with pytest.raises(rd.ArgumentError, match=r"y0: its shape has the symbolic dimension size.*jax\.vmap"):
        export.export(jax.jit(lambda a: solve(a, batch_ndim=1).y))(kind)


def test_a_solution_can_be_serialised() -> None:
    with pytest.raises(ValueError, match=r"[Dd]uplicate"):  # it is registered
        export.register_namedtuple_serialization(rd.Solution, serialized_name="another")
    pytest.importorskip("flatbuffers")
    exported = export.export(jax.jit(solve))(jnp.ones(2))
    sol = export.deserialize(exported.serialize()).call(jnp.array([2.0, 10.0]))
    assert isinstance(sol, rd.Solution)
    np.testing.assert_allclose(sol.y, [1.0, 2.0], **EXACT)
