"""Corrections of trial points, bounds, callbacks, printed lines and the history, the same on every backend."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from array_api_compat import array_namespace as xp

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError
from tests.harness import HARNESSES
from tests.solvers.cases import on_backends, rosenbrock

#: Solvers stop at an error of eps^(3/4) = 2e-12; NumPy's derivatives are differences, good to eps^(2/3) = 4e-11.
TOL = 1e-9

A = [2.0, 8.0, 4.5]
ROOT = np.array([4.0, 3.0])
#: For the root r: dr_k/da_0 = r_k / (2 a_0), dr_k/da_(k+1) = r_k / (2 a_(k+1)); with the weights 1 and 2.
GRADIENT = np.array([2.5, 0.25, 2 / 3])
CHAIN = rootdiff.Chain([rootdiff.Chord(max_steps=1), rootdiff.Newton()])
SOLVERS = ("newton", "trust_region", "levenberg_marquardt", "auto")


def squares(y, a):
    return y**2 - a[:1] * a[1:]


def limited(trial, y):
    return y + (trial - y).clip(-0.25, 0.25)


@pytest.mark.parametrize(("backend", "solver"), on_backends(SOLVERS, ["newton"]))
def test_bounds_choose_the_root(backend, solver):
    options = {"solver": solver, "bounds": (-10.0, -1.0)}
    out = backend.vjp(squares, [-0.1, -0.1], A, w=[1.0, 2.0], **options)
    np.testing.assert_allclose(out.y, -ROOT, rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], -GRADIENT, rtol=TOL)
    if backend.backend != "jax":  # where a callback is another program
        seen = []
        backend.solve(squares, [-0.1, -0.1], A, callback=lambda info: seen.append(info.y), **options)
        assert all(((y >= -10) & (y <= -1)).all() for y in seen)


@pytest.mark.parametrize(("backend", "solver"), on_backends(SOLVERS))
def test_a_root_on_the_border_is_found(backend, solver):
    # sqrt has no value below zero; the roots are (0, 3) on the border and none inside
    def f(y, a, b):
        return xp(y).stack([y[0] * (y[0] + 1) - b, xp(y).sqrt(y[0] + 1) * y[1] - a])

    options = {"solver": solver, "bounds": (backend.array([0.0, -9.0]), None)}
    out = backend.jvp(f, [5.0, 1.0], 3.0, 0.0, v=[1.0, 2.0], **options)
    np.testing.assert_allclose(out.y, [0.0, 3.0], atol=1e-10)
    np.testing.assert_allclose(out.derivative, [2.0, -2.0], atol=1e-8)  # dy/da = (0, 1) and dy/db = (1, -3/2)
    out = backend.vjp(f, [5.0, 1.0], 3.0, 0.0, w=[1.0, 2.0], **options)
    np.testing.assert_allclose(out.derivative, [2.0, -2.0], atol=1e-8)
    if backend.backend == "numpy":
        np.testing.assert_allclose(
            backend.solve(f, [5.0, 1.0], 3.0, 0.0, **options).solution.jacobian(), [[0, 1], [1, -1.5]], atol=1e-8
        )


def test_correct_limits_the_steps_and_not_the_derivative(backend):
    infos = []
    options = {} if backend.backend == "jax" else {"callback": infos.append}  # which is refused inside a program
    out = backend.solve(squares, [1.0, 1.0], A, solver="newton", correct=limited, **options)
    assert out.steps >= 12  # from 1 to 4 in steps of at most 1/4; without the limit it takes 6
    assert all(info.step_norm <= 0.25 + 1e-12 for info in infos)
    out = backend.vjp(squares, [1.0, 1.0], A, w=[1.0, 2.0], solver="newton", correct=limited)
    np.testing.assert_allclose(out.y, ROOT, rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], GRADIENT, rtol=TOL)


def _first(trial, y):
    return trial[:1]


BAD = [
    ({"correct": _first}, ArgumentError, "correct"),
    ({"bounds": 3.0}, ArgumentTypeError, "tuple"),
    ({"bounds": (np.zeros(3), None)}, ArgumentError, "broadcast"),
    ({"bounds": (0.0, None), "solver": "scipy:hybr"}, ArgumentError, "takes its own steps.*native"),
    ({"verbose": True, "solver": "scipy:hybr"}, ArgumentError, "takes its own steps"),
]
BAD_IN_JAX = [
    ({"bounds": (0.0, None), "solver": "optimistix:Newton"}, ArgumentError, "takes its own steps"),
    ({"verbose": True, "solver": "optimistix:Newton"}, ArgumentError, "takes its own steps"),
]


@pytest.mark.each_in_jax
@pytest.mark.parametrize(
    ("name", "options", "error", "word"),
    [(name, *case) for name in ("numpy", "torch", "jax") for case in BAD] + [("jax", *case) for case in BAD_IN_JAX],
)
def test_bad_hooks_are_named(name, options, error, word):
    with pytest.raises(error, match=word):
        HARNESSES[name]().solve(squares, [1.0, 1.0], A, **options)


def test_bounds_the_wrong_way_round_are_named(backend):
    options = {"bounds": (1.0, 0.0), "solver": "newton"}
    if backend.name == "jax-jit":  # inside a trace values are not known: no point satisfies both, and none is returned
        assert np.isnan(backend.solve(squares, [1.0, 1.0], A, **options).y).all()
        return
    with pytest.raises(ArgumentError, match="lo is above hi"):
        backend.solve(squares, [1.0, 1.0], A, **options)


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


@pytest.mark.parametrize("solver", ["newton", "auto"])
def test_a_callback_that_returns_true_stops_the_solve(backend, solver):
    if backend.name == "jax-jit" or (backend.name == "jax" and solver != "newton"):
        return
    infos = []

    def callback(info):
        infos.append(info)
        return info.residual_norm[0] < 1e4  # True of the framework's own kind

    starts, options = [[100.0], [2.0]], {"solver": solver, "batch_ndim": 1, "callback": callback}
    sol = backend.solve(lambda y: y**3 - 8, starts, on_failure="ignore", **options).solution
    assert sol.status[0] == rootdiff.Status.STOPPED
    assert sol.status[1] == rootdiff.Status.CONVERGED  # at its root already
    assert len(infos) == sol.steps[0] > 1
    assert [bool(info.residual_norm[0] < 1e4) for info in infos] == [False] * (len(infos) - 1) + [True]
    with pytest.raises(rootdiff.ConvergenceError, match="STOPPED: the callback returned True"):
        backend.solve(lambda y: y**3 - 8, starts, **options)


@pytest.mark.filterwarnings("ignore::rootdiff.ConvergenceWarning")
def test_no_other_solver_goes_on_after_a_stop():
    methods = []

    def callback(info):
        methods.append(info.method)
        return len(methods) == 4

    # without a root: Newton's method ends, the second solver is stopped, and the best iterate may be of the first
    chain = rootdiff.Chain([rootdiff.Newton(max_steps=3), rootdiff.TrustRegion(), rootdiff.LevenbergMarquardt()])
    sol = rootdiff.root(
        lambda y: y**2 + np.array([1.0, 2.0]), np.array([3.0, 2.0]), solver=chain, callback=callback, on_failure="keep"
    )
    assert methods == ["Newton"] * 3 + ["TrustRegion"]
    assert sol.status == rootdiff.Status.STOPPED
    assert not np.any(np.isnan(sol.y))


def test_a_callback_stops_brackets_and_least_squares():
    bracket = rootdiff.root(
        lambda y: y - 2, np.array([0.5]), solver="bisection", callback=lambda info: True, on_failure="ignore"
    )
    fit = rootdiff.least_squares(
        lambda y: np.stack([y[0] ** 2 - 2, y[0] - 9, y[0] * y[1] - 5]),
        np.array([10.0, 1.0]),
        callback=lambda info: True,
        on_failure="ignore",
    )
    assert bracket.status == fit.status == rootdiff.Status.STOPPED
    assert bracket.steps == fit.steps == 1


def test_callback_history_and_lines_tell_the_same(backend, capsys):
    infos, options = [], {"batch_ndim": 1, "solver": "newton"}
    starts = [[1.0, 1.0], [30.0, 1.0]]
    hooks = {"callback": infos.append, "verbose": True, "history": True}
    if backend.name == "jax-jit":
        for name, value in hooks.items():
            with pytest.raises(ArgumentError, match=f"{name}: .*traced"):
                backend.solve(squares, starts, A, **options, **{name: value})
        return
    sol = backend.solve(squares, starts, A, **options, **hooks).solution
    plain = backend.solve(squares, starts, A, **options).solution
    np.testing.assert_allclose(sol.y, plain.y, rtol=1e-12)
    steps = int(sol.steps.max())
    assert steps == int(plain.steps.max()) > 3
    assert [int(info.steps.max()) for info in infos] == list(range(1, steps + 1))
    np.testing.assert_array_equal(infos[-1].y, sol.y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == steps
    assert all("Newton" in line and "of 2 running" in line for line in lines)
    assert sol.history.method == ("Newton",) * steps
    assert tuple(sol.history.residual_norm.shape) == tuple(sol.history.step_norm.shape) == (steps, 2)
    np.testing.assert_array_equal(sol.history.residual_norm[-1], sol.residual_norm)


def test_history_and_lines_of_a_chain_name_the_methods(capsys):
    chain = rootdiff.Chain([rootdiff.Newton(max_steps=2), rootdiff.TrustRegion()])
    case = rosenbrock, np.array([-1.2, 1.0]), np.array(1.0)
    names = rootdiff.root(*case, solver=chain, history=True).history.method
    assert names[:3] == ("Newton", "Newton", "TrustRegion")
    rootdiff.root(*case, solver=chain, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names)
    assert all(name in line for name, line in zip(names, lines, strict=True))


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
                squares,
                y0,
                a,
                solver="newton",
                bounds=(lo, None),
                correct=lambda trial, y: y + jnp.clip(trial - y, -size, size),
            )
            return sol.y, sol.steps, sol.method

        y, steps, method = solve(starts, jnp.asarray([0.25, 8.0]), jnp.asarray([0.0, -8.0])[:, None] + jnp.zeros(2))
        np.testing.assert_allclose(y, [ROOT, -ROOT], rtol=TOL)
        assert steps[0] >= 12 > steps[1]
        assert method.tolist() == [rootdiff.Method.NEWTON] * 2
        with pytest.raises(ArgumentError, match="history"):
            jax.grad(lambda a: rd.root(squares, starts[0], a, history=True).y.sum())(a)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_progress_is_one_line_that_moves(name, capsys):
    sol = HARNESSES[name]().solve(squares, [30.0, 1.0], A, solver="newton", progress=True).solution
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"{int(sol.steps)}step" in shown.err
    assert "|f|" in shown.err
    HARNESSES[name]().solve(squares, [30.0, 1.0], A, solver="newton")
    assert capsys.readouterr() == ("", "")


def test_progress_of_a_path_is_a_part_of_the_way(capsys):
    rootdiff.continuation(lambda y, a: y**3 + y - a, np.zeros(1), 0.0, 10.0, progress=True)
    assert "100/100" in capsys.readouterr().err


def test_progress_says_that_tqdm_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ArgumentError, match=r"^progress: .*pip install tqdm"):
        rootdiff.root(lambda y: y - 1, 0.0, progress=True)
