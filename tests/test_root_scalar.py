"""Bracketed roots: elementwise, per-element status, derivatives, and brackets that are transformed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from scipy.special import lambertw
from torch import func

import rootdiff
import rootdiff_jax
import rootdiff_torch
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, Status
from tests.solvers.cases import on_backends

METHODS = ("chandrupatla", "itp", "bisection", "bracketed_newton")
A = np.array([0.5, 2.0, 30.0])
#: y exp(y) = a: W(a), with W' = W / (a (1 + W)).
W = lambertw(A).real
SLOPE = W / (A * (1 + W))
CURVATURE = -(SLOPE**2) * (2 + W) / (1 + W)
#: Solvers stop at an error of eps^(3/4) = 2e-12.
TOL = 1e-10


def lambert(y, a):
    return y * array_namespace(y).exp(y) - a


def solve(a, lo=0.0, hi=10.0, **options):
    """Return a solution of PyTorch or of JAX, as `a` is."""
    package = rootdiff_torch if isinstance(a, torch.Tensor) else rootdiff_jax
    return package.root_scalar(lambert, (lo, hi), a, **options)


@pytest.fixture(params=["torch", "jax"])
def transforms(request):
    """Return the array maker, vmap, grad and jvp of a framework; JAX compiles what it maps."""
    if request.param == "torch":
        yield lambda value: torch.tensor(value, dtype=torch.float64), func.vmap, func.grad, func.jvp
        return
    with jax.enable_x64(True):
        yield jnp.asarray, lambda f, in_dims=0: jax.jit(jax.vmap(f, in_dims)), jax.grad, jax.jvp


@pytest.mark.parametrize(("backend", "method"), on_backends(METHODS, METHODS))
def test_roots_and_gradients_on_each_backend(backend, method):
    out = backend.vjp(lambert, (0.0, 10.0), A, w=np.ones(3), entry="root_scalar", solver=method)
    np.testing.assert_allclose(out.y, W, rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], SLOPE, rtol=1e-8 if backend.name == "numpy" else TOL)
    assert out.status.shape == (3,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS)
def test_each_element_has_its_root_and_derivative(method, dtype):
    a = np.array([[8.0, 27.0, 1e-9], [1.0, -2.0, 0.3]], dtype)
    sol = rootdiff.root_scalar(lambda y, a: y**3 - a, (-10.0, 10.0), a, solver=method)
    assert sol.y.shape == sol.status.shape == (2, 3)
    assert sol.y.dtype == dtype
    rtol = 4 * np.finfo(dtype).eps ** 0.75  # atol counts as well as rtol
    np.testing.assert_allclose(sol.y, np.cbrt(a), rtol=rtol, atol=rtol)
    w = np.arange(1.0, 7.0, dtype=dtype).reshape(2, 3)
    if dtype == np.float64:  # dy/da = 1 / (3 y^2)
        np.testing.assert_allclose(sol.vjp(w)[0], w / (3 * np.cbrt(a) ** 2), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_status_is_per_element(method):
    def f(y):
        return np.stack([1 / (y[0] - 1), np.where(y[1] > 0.3, 1.0, -1.0), y[2] ** 2 + 1, (y[3] - 1) ** 7, y[4] - 2])

    bracket = (np.zeros(5), np.array([3.0, 30.0, 30.0, 30.0, 30.0]))
    sol = rootdiff.root_scalar(f, bracket, solver=method, on_failure="ignore")
    failed = (Status.STALLED, Status.NONFINITE)
    assert sol.status[0] in failed  # a pole
    assert sol.status[1] == Status.STALLED  # a jump
    assert sol.status[2] == Status.INVALID_BRACKET
    np.testing.assert_array_equal(sol.converged, [False, False, False, True, True])
    np.testing.assert_allclose(sol.y[3:], [1.0, 2.0], rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("power", [1 / 3, 1 / 9, 5.0])
def test_roots_of_any_order(method, power):
    sol = rootdiff.root_scalar(lambda y: np.sign(y - 0.7) * np.abs(y - 0.7) ** power, (-3.0, 11.0), solver=method)
    np.testing.assert_allclose(sol.y, 0.7, rtol=1e-11)


def test_steps_never_exceed_bisection_by_more_than_the_slack_of_itp():
    f = lambda y: np.exp(y) - 1e-3
    itp = rootdiff.root_scalar(f, (-50.0, 60.0), solver="itp")
    bisection = rootdiff.root_scalar(f, (-50.0, 60.0), solver="bisection")
    chandrupatla = rootdiff.root_scalar(f, (-50.0, 60.0), solver="chandrupatla")
    assert itp.steps <= bisection.steps + 3  # n_0 = 1, and the end of either bracket
    assert chandrupatla.steps < bisection.steps / 2


def test_one_point_is_enough_to_search_from():
    a = np.array([2.0, 1e5, 1e-8])
    sol = rootdiff.root_scalar(lambda y, a: np.exp(y) - a, 0.0, a)
    np.testing.assert_allclose(sol.y, np.log(a), rtol=1e-11)
    start = np.array([0.1, 3.0])  # the search stops at the edge of the domain, log(0)
    np.testing.assert_allclose(rootdiff.root_scalar(lambda y: np.log(y) + 3, start).y, np.exp(-3.0), rtol=1e-11)


def test_an_invalid_bracket_fails_by_policy_in_its_element(backend):
    a, options = [2.0, -3.0], {"entry": "root_scalar"}  # y exp(y) = -3 has no root
    if backend.name != "jax-jit":
        with pytest.raises(ConvergenceError, match=r"(?s)INVALID_BRACKET.*opposite signs"):
            backend.solve(lambert, (0.0, 10.0), a, **options)
    out = backend.vjp(lambert, (0.0, 10.0), a, w=np.ones(2), on_failure="nan", **options)
    assert out.status.tolist() == [Status.CONVERGED, Status.INVALID_BRACKET]
    np.testing.assert_allclose(out.y, [W[1], np.nan], rtol=TOL)
    np.testing.assert_allclose(out.derivative[0], [SLOPE[1], np.nan], rtol=1e-8)


def test_an_end_that_is_a_root_is_returned():
    sol = rootdiff.root_scalar(lambda y: y - 2, (2.0, 5.0))
    assert sol.y == 2.0
    assert sol.steps == 0


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentTypeError, match="newton"):
        rootdiff.root_scalar(lambda y: y, (0.0, 1.0), solver="newton")
    with pytest.raises(ArgumentError, match="bracket"):
        rootdiff.root_scalar(lambda y: y, (0.0, 1.0, 2.0))
    with pytest.raises(ArgumentTypeError, match="bracket"):
        rootdiff.root_scalar(lambda y: y, ("0", 1.0))


@pytest.mark.parametrize("batched", ["args", "bracket", "both"])
def test_vmap_over_args_and_bracket(transforms, batched):
    array, vmap, grad, _ = transforms
    axes = {"args": (0, None), "bracket": (None, 0), "both": (0, 0)}[batched]
    a, hi = array(A if axes[0] == 0 else A[1]), array([5.0, 10.0, 20.0] if axes[1] == 0 else 5.0)
    of_a, of_hi = vmap(grad(lambda a, hi: solve(a, hi, 0.0).y, (0, 1)), axes)(a, hi)
    np.testing.assert_allclose(of_a, SLOPE if axes[0] == 0 else [SLOPE[1]] * 3, rtol=TOL)
    np.testing.assert_array_equal(of_hi, np.zeros(3))


def test_a_mapped_element_without_a_root_is_nan(transforms):
    array, vmap, grad, _ = transforms
    slopes = vmap(grad(lambda a: solve(a, on_failure="nan").y))(array([2.0, -3.0]))
    np.testing.assert_allclose(slopes, [SLOPE[1], np.nan], rtol=TOL)


def test_one_point_forward_mode_and_closures(transforms):
    array, _, _, jvp = transforms
    package = rootdiff_torch if isinstance(array(A), torch.Tensor) else rootdiff_jax
    y, tangent = jvp(lambda a: package.root_scalar(lambda y: lambert(y, a), 1.0).y, (array(A),), (array(A * 0 + 1),))
    np.testing.assert_allclose([y, tangent], [W, SLOPE], rtol=TOL)


def test_second_derivative_and_nested_vmap_in_torch():
    a, his = torch.tensor(A), torch.tensor([5.0, 20.0], dtype=torch.float64)
    curvature = func.vmap(func.grad(func.grad(lambda a: solve(a).y)))(a)
    np.testing.assert_allclose(curvature, CURVATURE, rtol=TOL)
    inner = func.vmap(lambda a, hi: solve(a, hi=hi).y, in_dims=(0, None))  # a bracket that the outer one alone maps
    np.testing.assert_allclose(func.vmap(inner, in_dims=(None, 0))(a, his), [W, W], rtol=TOL)


def test_one_program_for_all_brackets_in_jax():
    from rootdiff_jax._rule import solve as program

    with jax.enable_x64(True):
        a = jnp.asarray(A)
        solve(a, hi=10.0)
        before = program._cache_size()
        solve(a, hi=11.0)
        solve(a, hi=np.asarray(12.0))
        assert program._cache_size() == before


def test_a_bracket_of_another_framework_is_named():
    with pytest.raises(ArgumentTypeError, match="bracket: it holds a Tensor"):
        solve(jnp.asarray(A), torch.tensor(0.0), torch.tensor(1.0))
