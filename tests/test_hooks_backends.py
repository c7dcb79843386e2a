"""Corrections, bounds, observers and the method of a chain, the same on every backend."""

from __future__ import annotations

import numpy as np
import pytest

import rootdiff
from rootdiff import ArgumentError

#: Solvers stop at an error of eps^(3/4) = 2e-12; NumPy's derivatives are differences, good to eps^(2/3) = 4e-11.
TOL = 1e-9

A = [2.0, 8.0, 4.5]
ROOT = np.array([4.0, 3.0])
#: For the root r: dr_k/da_0 = r_k / (2 a_0), dr_k/da_(k+1) = r_k / (2 a_(k+1)); with the weights 1 and 2.
GRADIENT = np.array([2.5, 0.25, 2 / 3])
CHAIN = rootdiff.Chain([rootdiff.Chord(max_steps=1), rootdiff.Newton()])


def squares(y, a):
    return y**2 - a[:1] * a[1:]


def limited(trial, y):
    return y + (trial - y).clip(-0.25, 0.25)


@pytest.mark.parametrize("solver", ["newton", "auto"])
def test_bounds_choose_the_root(backend, solver):
    out = backend.vjp(squares, [-0.1, -0.1], A, w=[1.0, 2.0], solver=solver, bounds=(-10.0, -1.0))
    np.testing.assert_allclose(out.y, -ROOT, rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], -GRADIENT, rtol=TOL)


def test_correct_limits_the_steps_and_not_the_derivative(backend):
    out = backend.vjp(squares, [1.0, 1.0], A, w=[1.0, 2.0], solver="newton", correct=limited)
    np.testing.assert_allclose(out.y, ROOT, rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], GRADIENT, rtol=TOL)
    assert out.steps >= 12  # from 1 to 4 in steps of at most 1/4; without the limit it takes 6


def test_a_wrong_correction_is_named(backend):
    with pytest.raises(ArgumentError, match="correct"):
        backend.solve(squares, [1.0, 1.0], A, correct=_first)


def _first(trial, y):
    return trial[:1]


@pytest.mark.parametrize("package", ["numpy", "torch"])
def test_a_callback_that_writes_into_what_it_gets_changes_nothing(package):
    if package == "torch":
        xp, rd = pytest.importorskip("torch"), pytest.importorskip("rootdiff_torch")
    else:
        xp, rd = np, rootdiff

    def spoil(info):
        for array in (info.y, info.residual_norm, info.step_norm, info.status):
            array[...] = 1

    start = xp.asarray([[1.0], [2.0]], dtype=xp.float64)
    sol = rd.root(lambda y: y**2 - 16, start, batch_ndim=1, callback=spoil)
    np.testing.assert_allclose(sol.y, [[4.0], [4.0]])


@pytest.mark.parametrize("options", [{"bounds": (0.0, None)}, {"verbose": True}])
def test_solvers_with_steps_of_their_own_refuse_hooks(options):
    jnp = pytest.importorskip("jax.numpy")
    import rootdiff_jax as rd

    for solver in ("scipy:hybr", "optimistix:Newton"):
        with pytest.raises(ArgumentError, match="takes its own steps"):
            rd.root(lambda y: y**2 - 4, jnp.ones(2), solver=solver, **options)


def test_bounds_the_wrong_way_round_are_named(backend):
    if backend.name == "jax-jit":  # inside a trace values are not known: no point satisfies both, and none is returned
        assert np.isnan(backend.solve(squares, [1.0, 1.0], A, bounds=(1.0, 0.0)).y).all()
        return
    with pytest.raises(ArgumentError, match="lo is above hi"):
        backend.solve(squares, [1.0, 1.0], A, bounds=(1.0, 0.0))


@pytest.mark.parametrize("name", ["callback", "verbose", "history"])
def test_the_steps_are_seen(backend, name, capsys):
    infos = []
    options = {"callback": {"callback": infos.append}, "verbose": {"verbose": True}, "history": {"history": True}}[name]
    starts = [[1.0, 1.0], [30.0, 1.0]]
    if backend.name == "jax-jit":
        with pytest.raises(ArgumentError, match=f"{name}: .*traced"):
            backend.solve(squares, starts, A, batch_ndim=1, solver="newton", **options)
        return
    sol = backend.solve(squares, starts, A, batch_ndim=1, solver="newton", **options).solution
    plain = backend.solve(squares, starts, A, batch_ndim=1, solver="newton").solution
    np.testing.assert_allclose(sol.y, plain.y, rtol=1e-12)
    steps = int(sol.steps.max())
    assert steps == int(plain.steps.max()) > 3
    if name == "callback":
        assert [int(info.steps.max()) for info in infos] == list(range(1, steps + 1))
        np.testing.assert_array_equal(infos[-1].y, sol.y)
    elif name == "verbose":
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == steps
        assert all("Newton" in line and "of 2 running" in line for line in lines)
    else:
        assert sol.history.method == ("Newton",) * steps
        assert tuple(sol.history.step_norm.shape) == (steps, 2)
        np.testing.assert_array_equal(sol.history.residual_norm[-1], sol.residual_norm)


def test_method_tells_which_solver_of_a_chain_found_the_root(backend):
    starts = [(-ROOT).tolist(), [-1.0, -1.0]]  # the first is a root, the second is too far for one step
    sol = backend.solve(squares, starts, A, batch_ndim=1, solver=CHAIN).solution
    assert np.asarray(sol.method).tolist() == [rootdiff.Method.CHORD, rootdiff.Method.NEWTON]
    sol = backend.solve(squares, [1.0, 1.0], A, solver="trust_region").solution
    assert int(sol.method) == rootdiff.Method.TRUST_REGION


def test_torch_vmap_maps_corrections_and_methods():
    torch = pytest.importorskip("torch")
    import rootdiff_torch as rd

    a = torch.tensor(A, dtype=torch.float64)
    starts = torch.tensor([[1.0, 1.0], [-1.0, -9.0]], dtype=torch.float64)

    def solve(y0, **options):
        sol = rd.root(squares, y0, a, solver=CHAIN, **options)
        return sol.y, sol.steps, sol.method

    def limited_vector(trial, y):
        assert trial.shape == (2,)  # of one system, as without vmap
        return limited(trial, y)

    y, steps, method = torch.func.vmap(lambda y0: solve(y0, correct=limited_vector, bounds=(None, 3.5 * a[0])))(starts)
    np.testing.assert_allclose(y, [ROOT, -ROOT], rtol=TOL)
    assert (steps >= 12).all()
    assert method.tolist() == [1, 1]
    with pytest.raises(ArgumentError, match="history"):
        torch.func.vmap(lambda y0: solve(y0, history=True))(starts)


def test_torch_maps_what_corrections_and_bounds_close_over():
    torch = pytest.importorskip("torch")
    import rootdiff_torch as rd

    a = torch.tensor(A, dtype=torch.float64)
    starts = torch.tensor([[1.0, 1.0], [-1.0, -9.0]], dtype=torch.float64)
    sizes = torch.tensor([0.25, 0.5], dtype=torch.float64)

    def solve(y0, size):
        sol = rd.root(
            squares,
            y0,
            a,
            solver="newton",
            bounds=(5 * y0.clamp(max=0) - 1, None),
            correct=lambda trial, y: y + torch.clamp(trial - y, -size, size),
        )
        return sol.y, sol.steps

    inner = torch.func.vmap(solve, in_dims=(0, None))
    y, steps = torch.func.vmap(inner, in_dims=(None, 0))(starts, sizes)
    np.testing.assert_allclose(y, [[ROOT, -ROOT]] * 2, rtol=TOL)
    alone = [[int(solve(start, size)[1]) for start in starts] for size in sizes]
    assert steps.tolist() == alone
    # limits of the steps that are differentiated, inside and outside of a map
    gradient = torch.func.grad(lambda a: inner(starts, a[0] / 4)[0].sum())(a)
    np.testing.assert_allclose(gradient, 0 * gradient, atol=TOL)


def test_jax_traces_bounds_and_what_a_correction_closes_over():
    jax = pytest.importorskip("jax")
    import jax.numpy as jnp

    import rootdiff_jax as rd

    with jax.enable_x64(True):
        a, starts = jnp.asarray(A), jnp.asarray([[1.0, 1.0], [-1.0, -9.0]])

        @jax.jit
        @jax.vmap
        def solve(y0, size, lo):
            sol = rd.root(
                squares, y0, a, bounds=(lo, None), correct=lambda trial, y: y + jnp.clip(trial - y, -size, size)
            )
            return sol.y, sol.steps, sol.method

        y, steps, method = solve(starts, jnp.asarray([0.25, 8.0]), jnp.asarray([0.0, -8.0])[:, None] + jnp.zeros(2))
        np.testing.assert_allclose(y, [ROOT, -ROOT], rtol=TOL)
        assert steps[0] >= 12 > steps[1]
        assert method.tolist() == [rootdiff.Method.NEWTON] * 2
        with pytest.raises(ArgumentError, match="history"):
            jax.grad(lambda a: rd.root(squares, starts[0], a, history=True).y.sum())(a)
