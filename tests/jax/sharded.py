"""Run by test_sharding in a process of its own, with so many CPU devices: prints one line per case that holds.

``python -m tests.jax.sharded DEVICES CASE ...``
"""

from __future__ import annotations

import os
import re
import sys
import warnings

# devices of a busy machine that wait for each other would end the process after 40 seconds
os.environ["XLA_FLAGS"] = (
    f"--xla_force_host_platform_device_count={sys.argv[1]} --xla_cpu_collective_call_terminate_timeout_seconds=600 "
    f"{os.environ.get('XLA_FLAGS', '')}"
)

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import rootdiff_jax as rd
from rootdiff._residual import Residual
from rootdiff.linear._cg import is_symmetric, probes
from rootdiff_jax._backend import JaxBackend
from tests.jax.closed_form import EXACT, SOLVER, START, THETA, c, f, loss

jax.config.update("jax_enable_x64", True)
THETAS = np.stack([THETA + 0.1 * k for k in range(4)])
STARTS = np.stack([START] * 4)


def objective(thetas: Any, y0: Any, **options: Any) -> Any:
    sol = rd.root(f, y0, thetas, batch_ndim=1, **options)
    return loss(sol.y), sol.y


def check(y: Any, gradient: Any) -> None:
    np.testing.assert_allclose(y, c(THETAS), **EXACT)
    np.testing.assert_allclose(gradient, jax.grad(lambda t: loss(c(t)))(THETAS), **EXACT)


def by_jit(kind: AxisType, adjoint: str) -> None:
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        inputs = jax.device_put(jnp.asarray(THETAS), rows), jax.device_put(jnp.asarray(STARTS), rows)
        function = jax.jit(jax.grad(partial(objective, solver="newton", adjoint=adjoint), has_aux=True))
        compiled = function.lower(*inputs).compile()
        gradient, y = compiled(*inputs)
    assert "all-gather" not in compiled.as_text()
    assert gradient.sharding.is_equivalent_to(rows, 2)
    check(y, gradient)


def by_jit_from_one_start() -> None:
    """A start that is the same on both devices, args that are spread; `batched_args` leave the batch where it is."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Explicit,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        thetas = jax.device_put(jnp.asarray(THETAS), rows)
        options = {"solver": "newton", "adjoint": "lu", "batched_args": (0,)}
        function = jax.jit(jax.grad(lambda t: objective(t, jnp.asarray(STARTS), **options), has_aux=True))
        gradient, y = function(thetas)
        assert y.sharding.is_equivalent_to(rows, 2)
    check(y, gradient)


def with_batched_args(kind: AxisType) -> None:
    """Systems that take longer go on in a smaller batch, each on its device, wherever they are."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    scale = np.linspace(1.0, 4.0, 64)
    scale[[3, 5, 40]] = 1e6, 1e9, 1e12

    def total(scale: Any, weight: Any, y0: Any) -> Any:
        options: Any = {"solver": "newton", "batch_ndim": 1, "batched_args": (0, None)}
        sol = rd.root(lambda y, a, w: y**3 + y - a[:, None] * w, y0, scale, weight, **options)
        return jnp.sum(sol.y), sol.y

    given = scale[:, None] * (weight := np.array([1.0, 2.0]))
    y = 2 / 3**0.5 * np.sinh(np.arcsinh(1.5 * 3**0.5 * given) / 3)
    slope = 1 / (3 * y**2 + 1)
    derivative = jax.grad(total, argnums=(0, 1), has_aux=True)
    with jax.set_mesh(mesh):
        spread = NamedSharding(mesh, PartitionSpec("batch"))
        inputs = jax.device_put(scale, spread), jnp.asarray(weight), jax.device_put(jnp.full((64, 2), 1.5), spread)
        compiled = jax.jit(derivative).lower(*inputs).compile()
        assert "all-gather" not in compiled.as_text()
        for function in (compiled, derivative)[: 1 + (kind is AxisType.Explicit)]:
            (of_scale, of_weight), found = function(*inputs)
            np.testing.assert_allclose(found, y, **EXACT)
            np.testing.assert_allclose(of_scale, slope @ weight, **EXACT)
            np.testing.assert_allclose(of_weight, scale @ slope, **EXACT)


def by_jit_of_one_system() -> None:
    """One system whose unknowns are spread, coupled to their neighbours, from a start that is on both devices."""
    mesh = jax.make_mesh((2,), ("n",), axis_types=(AxisType.Explicit,))
    spec, n = PartitionSpec("n"), 2048
    before, after = (jax.sharding.auto_axes(partial(jnp.roll, shift=k), out_sharding=spec) for k in (1, -1))

    def residual(y: Any, a: Any) -> Any:
        return 3 * y + 0.1 * y**3 - before(y) - 0.5 * after(y) - 0.1 * jnp.mean(y) - a

    def total(a: Any) -> Any:
        y = rd.root(residual, jnp.zeros(n), a, solver="df_sane", adjoint="lsmr").y
        return jnp.sum(jnp.sin(y)), y

    root = jnp.linspace(-1.0, 2.0, n)
    with jax.set_mesh(mesh):
        y = jax.device_put(root, spec)
        a = residual(y, jnp.zeros(()))
        compiled = jax.jit(jax.grad(total, has_aux=True)).lower(a).compile()
        gradient, found = compiled(a)
        product = (3 + 0.3 * y**2) * gradient - after(gradient) - 0.5 * before(gradient) - 0.1 * jnp.mean(gradient)
        for array in (found, gradient):
            assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 1)
        square = jax.device_put(jnp.zeros((4, 4)), PartitionSpec(None, "n"))
        for y0 in (square, {"a": jnp.zeros(4), "b": jax.device_put(jnp.zeros(4), spec)}):
            with pytest.raises(rd.ArgumentError, match=r"y0: it is or holds .* spread over an explicit axis of a mesh"):
                rd.root(lambda y: y, y0)
    with pytest.raises(rd.ArgumentError, match=r"y0: the unknowns of one system, .* that is not set"):
        rd.root(lambda y: 2 * y, found)
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(found, root, **EXACT)
    np.testing.assert_allclose(product, jnp.cos(root), **EXACT)


def watched_one_system() -> None:
    """A solve of such a system by steps, whose arrays have the types of the user's."""
    mesh = jax.make_mesh((2,), ("n",))
    with jax.set_mesh(mesh):
        start, seen = jax.device_put(jnp.full(64, 0.5), PartitionSpec("n")), list[Any]()
        sol = rd.root(lambda y: y + y**3 - 2, start, solver="df_sane", history=True, callback=seen.append)
        assert sol.history.residual_norm.shape == (len(seen),)
        for array in (seen[-1].y, sol.y):
            assert array.sharding.is_equivalent_to(start.sharding, 1)
        np.testing.assert_allclose(seen[-1].y * sol.y, np.ones(64), **EXACT)


def told_of_matrices() -> None:
    """What is said where the Jacobian of such a system is to be formed; "auto" forms none."""

    def total(a: Any, **options: Any) -> Any:
        return jnp.sum(rd.root(lambda y, a: y + y**3 - a, start, a, **options).y)

    with jax.set_mesh(jax.make_mesh((2,), ("n",))), warnings.catch_warnings():
        start = jax.device_put(jnp.ones(2048), PartitionSpec("n"))
        warnings.simplefilter("error")
        jax.eval_shape(jax.grad(total), 2.0)
        with pytest.warns(UserWarning, match="the 2048 unknowns of a system are spread over devices, and its Jacobian"):
            jax.eval_shape(partial(total, solver="newton"), 2.0)


def by_jit_without_gathers(solver: Any, adjoint: str) -> None:
    """One system spread over all devices that couples neighbours: these exchange their ends, no more."""
    mesh = jax.make_mesh((jax.device_count(),), ("n",), axis_types=(AxisType.Auto,))
    n, spread = 2048, NamedSharding(mesh, PartitionSpec("n"))
    below, above = (0.75, 0.75) if adjoint == "cg" else (0.5, 1.0)

    def residual(y: Any, a: Any) -> Any:  # scaled so that the plain iteration contracts
        return 0.15 * (a + below * jnp.roll(y, 1) + above * jnp.roll(y, -1) - 4 * y - y**3)

    def total(a: Any, y0: Any) -> Any:
        y = rd.root(residual, y0, a, solver=solver, adjoint=adjoint).y
        return jnp.sum(jnp.sin(y)), y

    root = np.linspace(-1.0, 1.0, n)
    a = 4 * root + root**3 - below * np.roll(root, 1) - above * np.roll(root, -1)
    given = jax.device_put(a, spread), jax.device_put(np.zeros(n), spread)
    compiled = jax.jit(jax.grad(total, has_aux=True)).lower(*given).compile()
    gradient, y = compiled(*given)
    text = compiled.as_text()
    assert "collective-permute" in text
    assert not {"all-gather", "all-to-all"} & set(re.findall(r"all-gather|all-to-all", text))
    for array in (gradient, y):
        assert array.sharding.is_equivalent_to(spread, 1)
    np.testing.assert_allclose(y, root, rtol=0, atol=1e-11)
    product = (4 + 3 * root**2) * gradient - above * np.roll(gradient, 1) - below * np.roll(gradient, -1)
    np.testing.assert_allclose(product, np.cos(root), rtol=0, atol=1e-10)


def by_shifts_of_fixed_vectors() -> None:
    """Products of a Jacobian that couples neighbours with vectors that depend on no data, as GMRES makes them."""
    mesh = jax.make_mesh((2,), ("n",), axis_types=(AxisType.Auto,))
    y, backend = jnp.ones(2048), JaxBackend()

    def symmetric(y: Any) -> Any:
        operator = Residual(lambda y: 3 * y**2 - jnp.roll(y, 1) - jnp.roll(y, -1), (), backend).operator(y)
        u, v = probes(backend.xp, y)
        return backend.when(jnp.all(y > 0), lambda: is_symmetric(operator, u, v), (), jnp.asarray(False))

    compiled = jax.jit(symmetric).lower(jax.device_put(y, NamedSharding(mesh, PartitionSpec("n")))).compile()
    assert "collective-permute" in compiled.as_text()
    assert "all-gather" not in compiled.as_text()


def by_vmap(kind: AxisType, compiled: bool) -> None:
    """Value and gradient of mapped solves, from a start of each and from one for all; and the tangent of these."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
    rows = NamedSharding(mesh, PartitionSpec("batch"))
    slopes = jax.vmap(jax.jacobian(c))(THETAS)

    def found(theta: Any, y0: Any) -> Any:
        return rd.root(f, y0, theta, solver="newton", adjoint="lu").y

    of_each, of_one = (jax.vmap(found, in_axes=(0, axis)) for axis in (0, None))

    def value_and_grad(mapped: Any, thetas: Any, y0: Any) -> Any:
        gradient, y = jax.grad(lambda t: (loss(y := mapped(t, y0)), y), has_aux=True)(thetas)
        return y, gradient

    def all_at_once(thetas: Any, starts: Any) -> Any:
        return value_and_grad(of_one, thetas, START), jax.jvp(lambda t: of_each(t, starts), (thetas,), (thetas,))

    with jax.set_mesh(mesh):
        inputs = jax.device_put(jnp.asarray(THETAS), rows), jax.device_put(jnp.asarray(STARTS), rows)
        if compiled:
            found, (y, tangent) = jax.jit(all_at_once)(*inputs)
            assert y.sharding.is_equivalent_to(rows, 2)
            np.testing.assert_allclose(y, c(THETAS), **EXACT)
            np.testing.assert_allclose(tangent, np.einsum("kij,kj->ki", slopes, THETAS), **EXACT)
        else:
            found = value_and_grad(of_each, *inputs)
        assert found[0].sharding.is_equivalent_to(rows, 2)
        check(*found)


def by_shard_map() -> None:
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("batch")

    def local(thetas: Any, y0: Any) -> Any:
        return jax.grad(partial(objective, solver="newton", adjoint="gmres"), has_aux=True)(thetas, y0)

    function = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=(rows, rows), out_specs=(rows, rows)))
    compiled = function.lower(jnp.asarray(THETAS), jnp.asarray(STARTS)).compile()
    gradient, y = compiled(jnp.asarray(THETAS), jnp.asarray(STARTS))
    assert "all-gather" not in compiled.as_text()
    check(y, gradient)


def by_shard_map_with_shared_parameter() -> None:
    """A replicated parameter: its gradient is the sum over the devices."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows = PartitionSpec("batch")

    def total(theta: Any, starts: Any) -> Any:
        def local(theta: Any, y0: Any) -> Any:
            return rd.root(f, y0, theta, batch_ndim=1, solver=SOLVER).y

        return loss(jax.shard_map(local, mesh=mesh, in_specs=(PartitionSpec(), rows), out_specs=rows)(theta, starts))

    gradient = jax.jit(jax.grad(total))(jnp.asarray(THETA), jnp.asarray(STARTS))
    np.testing.assert_allclose(gradient, 4 * jax.grad(lambda t: loss(c(t)))(THETA), **EXACT)


def by_eager_shard_map() -> None:
    """Derivatives of such a map that is not compiled as a whole, over explicit axes."""
    mesh = jax.make_mesh((2,), ("batch",))
    rows, everywhere = PartitionSpec("batch"), PartitionSpec()

    def local(w: Any, x: Any) -> Any:
        options: Any = {"batch_ndim": 1, "solver": "newton", "adjoint": "lu"}
        return rd.root(lambda y, w, x: y**3 + w * y - x, x, w, x, **options).y

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(everywhere, rows), out_specs=rows)

    def product(function: Any, w: Any, x: Any) -> Any:
        gradient = jax.grad(lambda w, x: jnp.sum(function(w, x) ** 2), argnums=(0, 1))
        return jax.jvp(gradient, (w, x), (w, x))

    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.linspace(1.0, 2.0, 4)[:, None], rows)
        w = jax.device_put(jnp.array([0.5]), everywhere)
        pairs = zip(jax.tree.leaves(product(mapped, w, x)), jax.tree.leaves(product(local, w, x)), strict=True)
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected, **EXACT)


def with_many_numbers(manual: bool) -> None:
    """So many that the value and the slope of one unknown per system are kept apart from what is made of them."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto if manual else AxisType.Explicit,))
    rows, a = PartitionSpec("batch"), jnp.linspace(1.0, 3.0, 5000)[:, None]

    def local(a: Any) -> Any:
        return jax.grad(
            lambda a: jnp.sum(rd.root(lambda y, a: jnp.exp(y) - a, a, a, batch_ndim=1, solver="newton").y ** 2)
        )(a)

    with jax.set_mesh(mesh):
        spread = jax.device_put(a, NamedSharding(mesh, rows))
        function = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows) if manual else local
        np.testing.assert_allclose(jax.jit(function)(spread), 2 * np.log(a) / a, **EXACT)


def by_shard_map_from_one_start() -> None:
    """A start that is the same on both devices, of solves that are not: by their args, closures or `axis_index`."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows, start, newton = PartitionSpec("batch"), jnp.asarray(START), {"solver": "newton", "adjoint": "lu"}

    def spread(function: Any) -> Any:
        return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows)

    def by_args(theta: Any) -> Any:
        return rd.root(f, start, theta, **newton).y

    def all_at_once(thetas: Any) -> Any:
        def gradient(theta: Any) -> Any:
            slope, y = jax.grad(lambda theta: (loss(y := by_args(theta)), y), has_aux=True)(theta)
            return slope, (slope, y)

        hessians, (slopes, y) = jax.vmap(jax.jacfwd(gradient, has_aux=True))(thetas)
        batch = rd.root(f, jnp.stack([start] * len(thetas)), thetas, batch_ndim=1, **newton).y
        closing = jax.vmap(lambda theta: rd.root(lambda y: f(y, theta), start, **newton).y)(thetas)
        index = jnp.full(len(thetas), rd.fixed_point(lambda z: 0.5 * z + lax.axis_index("batch"), 1.0, **newton).y)
        squares, weight = thetas**2, jnp.asarray(THETA) ** 2  # args alone, and what is the same on both devices
        parts = rd.root(
            lambda y, a: weight * y - a**2, squares, squares, batch_ndim=1, batched_args=(0,), solver="newton"
        )
        return y, slopes, hessians, batch, closing, index, parts.y

    y, slopes, hessians, batch, closing, index, parts = jax.jit(spread(all_at_once))(jnp.asarray(THETAS))
    check(y, slopes)
    for other in (batch, closing):
        np.testing.assert_allclose(other, c(THETAS), **EXACT)
    np.testing.assert_allclose(hessians, jax.vmap(jax.hessian(lambda t: loss(c(t))))(THETAS), **EXACT)
    np.testing.assert_allclose(index, [0.0, 0.0, 2.0, 2.0], **EXACT)
    np.testing.assert_allclose(parts, THETAS**4 / THETA**2, **EXACT)


def by_shard_map_with_sums_over_devices() -> None:
    """A layer whose parameters and state are on both devices, its data spread: z = 0.5 z + w mean(x)."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    x, w = jnp.linspace(-1.0, 2.0, 8).reshape(4, 2), jnp.array([0.5, -2.0])

    def spread(function: Any, *specs: Any) -> Any:
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs[0])

    def layer(w: Any, x: Any) -> Any:
        def cell(z: Any, w: Any, x: Any) -> Any:
            return 0.25 * z + lax.pmean(jnp.mean(0.25 * z + w * x, axis=0), "batch")

        return rd.fixed_point(cell, jnp.zeros(2), w, x, solver="newton", adjoint="lu").y

    @jax.jit
    def found(w: Any, x: Any) -> Any:
        whole = spread(layer, PartitionSpec(), PartitionSpec("batch"))
        return whole(w, x), jax.grad(lambda w, x: jnp.sum(whole(w, x) ** 2), argnums=(0, 1))(w, x)

    y, (of_w, of_x) = found(w, x)
    mean = np.mean(x, axis=0)
    np.testing.assert_allclose(y, 2 * w * mean, **EXACT)
    np.testing.assert_allclose(of_w, 8 * w * mean**2, **EXACT)
    np.testing.assert_allclose(of_x, np.broadcast_to(8 * w**2 * mean / 4, (4, 2)), **EXACT)

    def solution(x: Any, scale: Any) -> Any:  # a number to start from is the same on both devices, unlike the args
        return rd.root(
            lambda y, x, w: 3 * y - lax.pmean(jnp.mean(y + w * x), "batch"), 1.0, x, scale, solver="newton"
        ).y

    specs = {"in_specs": (PartitionSpec("batch"), PartitionSpec()), "out_specs": PartitionSpec()}
    slope = jax.jit(jax.grad(jax.shard_map(solution, mesh=mesh, **specs)))(x, jnp.asarray(3.0))
    np.testing.assert_allclose(slope, np.full((4, 2), 3 / 16), **EXACT)

    def coupled(y0: Any) -> Any:
        return rd.root(lambda y: y - 0.3 * jnp.cos(lax.pmean(y, "batch")), y0).y

    for check_vma in (True, False):  # devices would leave the loop at different steps
        rows = PartitionSpec("batch")
        function = jax.shard_map(coupled, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=check_vma)
        with pytest.raises(rd.ArgumentError, match=r"residual: it communicates .* along the axis batch"):
            function(x)


def by_shard_map_with_sums_twice() -> None:
    """Second derivatives of such a layer, which is not linear: 0.75 z = 0.25 z^2 + w mean(x)."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    x, w = jnp.linspace(-1.0, 2.0, 8).reshape(4, 2), jnp.array([0.5, -2.0])
    data, everywhere = PartitionSpec("batch"), PartitionSpec()

    @partial(jax.shard_map, mesh=mesh, in_specs=(everywhere, data), out_specs=everywhere)
    def layer(w: Any, x: Any) -> Any:
        def cell(z: Any, w: Any, x: Any) -> Any:
            return 0.25 * z + lax.pmean(jnp.mean(0.25 * z**2 + w * x, axis=0), "batch")

        return rd.fixed_point(cell, jnp.zeros(2), w, x, solver="newton", adjoint="lu").y

    def closed(w: Any, x: Any) -> Any:
        return (0.75 - jnp.sqrt(0.75**2 - w * jnp.mean(x, axis=0))) / 0.5

    for outer in (jax.jacfwd, jax.jacrev):

        def second(function: Any, outer: Any = outer) -> Any:
            gradient = jax.grad(lambda w, x: jnp.sum(function(w, x) ** 2), argnums=(0, 1))
            return jax.jit(outer(gradient, argnums=(0, 1)))(w, x)

        jax.tree.map(partial(np.testing.assert_allclose, **EXACT), second(layer), second(closed))


CASES = {
    "jit-explicit-many": partial(with_many_numbers, False),
    "shard_map-many": partial(with_many_numbers, True),
    "jit-auto-gmres": partial(by_jit, AxisType.Auto, "gmres"),
    "jit-explicit-lu": partial(by_jit, AxisType.Explicit, "lu"),
    "jit-explicit-vmap": partial(by_vmap, AxisType.Explicit, True),
    "eager-explicit-vmap": partial(by_vmap, AxisType.Explicit, False),
    "jit-explicit-one-start": by_jit_from_one_start,
    "jit-auto-batched-args": partial(with_batched_args, AxisType.Auto),
    "jit-explicit-batched-args": partial(with_batched_args, AxisType.Explicit),
    "jit-explicit-one-system": by_jit_of_one_system,
    "eager-explicit-watched": watched_one_system,
    "jit-explicit-told": told_of_matrices,
    "jit-auto-newton_krylov-gmres": partial(by_jit_without_gathers, "newton_krylov", "gmres"),
    "jit-auto-anderson-cg": partial(by_jit_without_gathers, "anderson", "cg"),
    "jit-auto-df_sane-lsmr": partial(by_jit_without_gathers, "df_sane", "lsmr"),
    "jit-auto-broyden-bicgstab": partial(by_jit_without_gathers, rd.Broyden(initial="identity"), "bicgstab"),
    "jit-auto-shifts": by_shifts_of_fixed_vectors,
    "shard_map-gmres": by_shard_map,
    "shard_map-one-start": by_shard_map_from_one_start,
    "shard_map-sums": by_shard_map_with_sums_over_devices,
    "shard_map-sums-twice": by_shard_map_with_sums_twice,
    "eager-explicit-shard_map": by_eager_shard_map,
    "shard_map-shared": by_shard_map_with_shared_parameter,
}

if __name__ == "__main__":
    for name in sys.argv[2:]:
        CASES[name]()
        print(name)
