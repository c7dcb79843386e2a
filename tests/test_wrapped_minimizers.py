"""Minimisers of other libraries by name: they end at the minimum, whose derivative is that of any other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from array_api_compat import array_namespace

import rootdiff
from rootdiff import ArgumentError, ArgumentTypeError, Status, UnknownNameError
from rootdiff._registry import MINIMIZERS
from rootdiff.solvers._scipy_minimizer import _UNBOUNDED
from tests.harness import Harness

T = np.linspace(0, 4, 12)
DATA = 2 * np.exp(-1.3 * T) + 0.5 + 0.1 * np.sin(5 * T)
START, W = np.array([1.0, 1.0, 0.0]), np.array([0.7, -1.3, 0.4])
FLOOR = ((-np.inf, -np.inf, 0.55), None)
SQUARES = [name for name in MINIMIZERS.names() if name.startswith("scipy:least_squares:")]
OBJECTIVES = [name for name in MINIMIZERS.names() if name.startswith("scipy:minimize:")]


def fit(y: Any, data: Any) -> Any:
    xp = array_namespace(y)
    return y[0] * xp.exp(-y[1] * xp.asarray(T)) + y[2] - data


def half_squares(y: Any, data: Any) -> Any:
    return (fit(y, data) ** 2).sum() / 2


def _function(name: str) -> tuple[str, Any]:
    return ("least_squares", fit) if name in SQUARES else ("minimize", half_squares)


@pytest.mark.parametrize("backend", ["torch"], indirect=True)
@pytest.mark.parametrize("name", [*SQUARES, *OBJECTIVES])
def test_each_method_of_scipy(backend: Harness, name: str) -> None:
    entry, f = _function(name)
    for bounds in (None, FLOOR):
        if bounds is not None and name.rpartition(":")[2] in _UNBOUNDED:
            with pytest.raises(ArgumentError, match="takes no bounds"):
                backend.solve(f, START, DATA, entry=entry, solver=name, bounds=bounds)
            continue
        found = backend.vjp(f, START, DATA, w=W, entry=entry, solver=name, bounds=bounds)
        ours = backend.vjp(f, START, DATA, w=W, entry=entry, bounds=bounds)
        np.testing.assert_allclose(found.y, ours.y, rtol=1e-9)
        np.testing.assert_allclose(found.derivative[0], ours.derivative[0], rtol=1e-7, atol=1e-9)
        assert found.steps > 0


@pytest.mark.parametrize("backend", ["numpy", "jax-jit"], indirect=True)
@pytest.mark.parametrize("name", ["scipy:least_squares:trf", "scipy:minimize:SLSQP"])
def test_through_differences_and_a_callback(backend: Harness, name: str) -> None:
    entry, f = _function(name)
    found = backend.solve(f, START, DATA, entry=entry, solver=name, bounds=FLOOR)
    import torch

    import rootdiff_torch

    ours = getattr(rootdiff_torch, entry)(f, torch.tensor(START), torch.tensor(DATA), bounds=FLOOR).y
    np.testing.assert_allclose(found.y, ours, rtol=1e-7)


def test_a_batch_and_fixed_unknowns() -> None:
    import torch

    import rootdiff_torch

    a = torch.tensor([[1.0, 2.0], [3.0, -4.0]]).double().requires_grad_()
    lo = torch.tensor([[0.5, -9.0], [-9.0, -9.0]]).double()
    hi = torch.tensor([[0.5, 9.0], [9.0, -5.0]]).double()
    found = rootdiff_torch.minimize(
        lambda y, a: ((y - a) ** 2).sum(-1), 0 * a, a, bounds=(lo, hi), batch_ndim=1, solver="scipy:minimize:L-BFGS-B"
    )
    np.testing.assert_allclose(found.y.detach(), [[0.5, 2], [3, -5]], rtol=1e-12)
    found.y.sum().backward()
    np.testing.assert_allclose(a.grad, [[0, 1], [1, 0]], atol=1e-12)


@pytest.mark.parametrize("method", ["LevenbergMarquardt", "BFGS"])
def test_optimistix_takes_what_is_minimised(method: str) -> None:
    pytest.importorskip("optimistix")
    import jax

    import rootdiff_jax

    jax.config.update("jax_enable_x64", True)
    entry = rootdiff_jax.minimize if method == "BFGS" else rootdiff_jax.least_squares
    f: Any = half_squares if method == "BFGS" else fit
    found = entry(f, jax.numpy.asarray(START), jax.numpy.asarray(DATA), solver=f"optimistix:{method}")
    ours = rootdiff.least_squares(fit, START, DATA, derivatives="complex-step")
    np.testing.assert_allclose(found.y, ours.y, rtol=1e-9)
    assert found.steps > 5


@pytest.mark.parametrize("name", ["torch:LBFGS", "optax:lbfgs", "optax:adam", "a transformation"])
def test_minimisers_of_the_frameworks(name: str) -> None:
    """The minimum, its derivative and its verdict are those of any other; a batch too."""
    import jax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    jax.config.update("jax_enable_x64", True)
    ours = rootdiff_torch.minimize(half_squares, torch.tensor(START), torch.tensor(DATA)).y
    if name == "torch:LBFGS":
        data = torch.tensor(DATA, requires_grad=True)
        found = rootdiff_torch.minimize(half_squares, torch.tensor(START), data, solver=name)
        found.y.sum().backward()
        y, derivative = found.y.detach(), data.grad
    else:
        solver: Any = name
        if name == "a transformation":
            solver = rootdiff_jax.Optax(transformation=pytest.importorskip("optax").adabelief(0.1))

        def total(data: Any) -> Any:
            found = rootdiff_jax.minimize(half_squares, jax.numpy.asarray(START), data, solver=solver)
            return found.y.sum(), found

        (_, found), derivative = jax.value_and_grad(total, has_aux=True)(jax.numpy.asarray(DATA))
        y = found.y
    np.testing.assert_allclose(y, ours, rtol=1e-9)
    slopes = torch.autograd.functional.jacobian(
        lambda data: rootdiff_torch.minimize(half_squares, torch.tensor(START), data).y, torch.tensor(DATA)
    )
    np.testing.assert_allclose(derivative, slopes.sum(0), rtol=1e-7, atol=1e-9)
    assert found.steps > 5


def test_a_batch_and_a_saddle_by_lbfgs_of_torch() -> None:
    import torch

    import rootdiff_torch

    a = torch.tensor([[1.0, 2.0], [3.0, -4.0]]).double().requires_grad_()
    found = rootdiff_torch.minimize(
        lambda y, a: (torch.cosh(y - a) + y**2).sum(-1), 0 * a.detach(), a, batch_ndim=1, solver="torch:LBFGS"
    )
    found.y.sum().backward()
    bend = torch.cosh(found.y.detach() - a.detach())
    np.testing.assert_allclose(a.grad, bend / (bend + 2), rtol=1e-9)
    flat = rootdiff_torch.minimize(
        lambda y: y[0] ** 2 - y[1] ** 2, torch.tensor([1.0, 0.0]), solver="torch:LBFGS", on_failure="ignore"
    )
    assert flat.status == rootdiff.Status.SADDLE


def test_what_wrapped_minimisers_cannot_do_is_said_in_the_same_words() -> None:
    import jax.numpy as jnp
    import torch

    import rootdiff_jax
    import rootdiff_torch

    bounded = r"takes no bounds\. Take 'scipy:minimize:L-BFGS-B', or 'auto'"
    for module, y0, names in (
        (rootdiff, np.ones(3), ("scipy:minimize:BFGS", "scipy:hybr")),
        (rootdiff_torch, torch.ones(3), ("torch:LBFGS",)),
        (rootdiff_jax, jnp.ones(3), ("optimistix:BFGS", "optimistix:Newton", "optax:lbfgs", "optax:adam")),
    ):
        for name in names:
            with pytest.raises(ArgumentError, match=bounded):
                module.minimize(lambda y: (y**2).sum(), y0, solver=name, bounds=(0, 1))  # type: ignore[attr-defined]
            with pytest.raises(UnknownNameError, match=f"Did you mean '{name}'"):
                module.minimize(lambda y: (y**2).sum(), y0, solver=name + "x")  # type: ignore[attr-defined]
            with pytest.raises(ArgumentError, match=r"takes its own steps, which callback.*Take 'auto'"):
                module.minimize(lambda y: (y**2).sum(), y0, solver=name, verbose=True)  # type: ignore[attr-defined]
    with pytest.raises(ArgumentError, match=r"takes no bounds\. Take 'scipy:least_squares:trf'"):
        rootdiff_jax.least_squares(lambda y: y, jnp.ones(3), solver="optimistix:BFGS", bounds=(0, 1))
    with pytest.raises(ArgumentError, match="LBFGS of PyTorch is one for minimize"):
        rootdiff_torch.root(lambda y: y, torch.ones(3), solver=rootdiff_torch.TorchLBFGS())


def test_a_start_where_the_objective_is_not_finite_and_a_transformation_that_is_none() -> None:
    import optax
    import torch

    import rootdiff_jax
    import rootdiff_torch

    def objective(y: Any) -> Any:
        return y[0] ** 2 + torch.log(y[0])

    for solver in ("torch:LBFGS", "scipy:minimize:BFGS"):
        sol = rootdiff_torch.minimize(objective, torch.tensor([-1.0]), solver=solver, on_failure="ignore")
        assert int(sol.status) == Status.NONFINITE_START, solver
    for wrong in (3, optax.adam):
        with pytest.raises(ArgumentTypeError, match=r"^transformation: got .*made by a call: optax.adam\(1e-3\)"):
            rootdiff_jax.Optax(transformation=wrong)


def test_wrong_names_and_entries_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"lm of SciPy is one for least_squares\. Call that"):
        rootdiff.minimize(half_squares, START, DATA, solver="scipy:least_squares:lm")
    with pytest.raises(ArgumentError, match="BFGS of SciPy is one for minimize"):
        rootdiff.root(lambda y: y, START, solver=rootdiff.SciPyMinimizer())
    with pytest.raises(ArgumentError, match="which callback, progress, verbose and history do not"):
        rootdiff.minimize(half_squares, START, DATA, solver="scipy:minimize:BFGS", verbose=True)
    with pytest.raises(UnknownNameError, match="Did you mean 'scipy:minimize:BFGS'"):
        rootdiff.minimize(half_squares, START, DATA, solver="scipy:minimize:bfgs")
