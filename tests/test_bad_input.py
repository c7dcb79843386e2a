"""Bad input is an error that names the argument, before the first iteration wherever that can be known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import rootdiff
import rootdiff_jax
import rootdiff_torch
from rootdiff import ArgumentError, ArgumentTypeError, ConvergenceError, RootdiffError, UnknownNameError
from tests.harness import Harness

Y0, A = np.array([1.0, 2.0]), np.array([3.0])


def fine(y: Any, a: Any) -> Any:
    return y - a


@pytest.mark.each_in_jax
@pytest.mark.parametrize(
    ("residual", "error", "words"),
    [
        (lambda y, a: y[..., :1] - a, ArgumentError, ["residual", "(1,)", "(2,)"]),
        (lambda y, a: (y, y), ArgumentError, ["residual", "structure", "y0 is one array"]),
        (lambda y, a: [y[..., 0], y - a], ArgumentError, ["residual", "stack"]),
        (lambda y, a: y[..., None] - a, ArgumentError, ["residual", "(2, 1)", "arrange them as y0 is"]),
        (lambda y, a: y[..., :1] - a, ArgumentError, ["fewer equations than unknowns"]),
        (lambda y, a: y * a[..., None, None], ArgumentError, ["arrange them as y0 is"]),
        (lambda y, a: None, ArgumentError, ["residual", "it returned None", "`return`"]),
        (lambda y, a: y > a, (ArgumentError, ArgumentTypeError), ["residual", "bool"]),
        (lambda y, a: 0.0, (ArgumentError, ArgumentTypeError), ["residual", "float"]),
    ],
    ids=["shape", "structure", "ragged", "column", "fewer", "matrix", "none", "dtype", "python-float"],
)
def test_residual_of_another_form(backend: Harness, residual: Callable[..., Any], error: Any, words: list[str]) -> None:
    with pytest.raises(error) as caught:
        backend.solve(residual, Y0, A)
    for word in words:
        assert word in str(caught.value)


def test_integer_y0(backend: Harness) -> None:
    with pytest.raises(ArgumentTypeError, match=r"y0.*int"):
        backend.solve(fine, np.array([1, 2]), A)


def test_empty_y0(backend: Harness) -> None:
    with pytest.raises(ArgumentError, match=r"y0.*empty"):
        backend.solve(fine, np.zeros((0,)), A)


@pytest.mark.parametrize("y0", [None, {}, "one", [True], ["1"], [], [[1.0], [1.0, 2.0]]])
def test_y0_that_is_no_array(y0: Any) -> None:
    with pytest.raises(RootdiffError, match="y0"):
        rootdiff.root(fine, y0, A)


def test_nan_in_y0_is_named(backend: Harness) -> None:
    if backend.name == "jax-jit":
        return  # nothing can raise in a compiled program: there the root is NaN, see test_termination
    with pytest.raises(ConvergenceError, match=r"NONFINITE_START.*y0 holds NaN"):
        backend.solve(fine, np.array([1.0, np.nan]), A)


def test_nan_in_args_is_named(backend: Harness) -> None:
    if backend.name == "jax-jit":
        return
    with pytest.raises(ConvergenceError, match=r"NONFINITE_START.*args\[0\] holds NaN"):
        backend.solve(fine, Y0, np.array([np.nan]))


def test_unknown_solver_lists_what_exists(backend: Harness) -> None:
    with pytest.raises(UnknownNameError, match=r"'neton'.*Did you mean 'newton'.*anderson, auto, .*broyden"):
        backend.solve(fine, Y0, A, solver="neton")


def test_unknown_adjoint_lists_what_exists(backend: Harness) -> None:
    with pytest.raises(UnknownNameError, match=r"'lux'.*Did you mean 'lu'.*auto.*gmres.*lu"):
        backend.solve(fine, Y0, A, adjoint="lux")


def test_solver_class_instead_of_value(backend: Harness) -> None:
    with pytest.raises(ArgumentTypeError, match=r"write Newton\(\)"):
        backend.solve(fine, Y0, A, solver=rootdiff.Newton)


def test_misspelt_option_of_root(backend: Harness) -> None:
    with pytest.raises(TypeError, match="slover"):
        backend.solve(fine, Y0, A, slover="newton")


def test_misspelt_option_of_solver() -> None:
    with pytest.raises(TypeError, match="rtoll"):
        rootdiff.Newton(rtoll=1e-3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (lambda: rootdiff.Newton(rtol=-1.0), "rtol"),
        (lambda: rootdiff.Newton(atol=float("nan")), "atol"),
        (lambda: rootdiff.Newton(max_steps=-1), "max_steps"),
        (lambda: rootdiff.Anderson(depth=0), "depth"),
        (lambda: rootdiff.Anderson(damping=0.0), "damping"),
        (lambda: rootdiff.FixedPoint(damping=2.5), "damping"),
        (lambda: rootdiff.Anderson(regularisation=-1.0), "regularisation"),
        (lambda: rootdiff.Broyden(memory=0), "memory"),
        (lambda: rootdiff.Broyden(initial="zero"), "initial"),  # type: ignore[arg-type]
        (lambda: rootdiff.SciPy(method="newton"), "method"),  # type: ignore[arg-type]
        (lambda: rootdiff.GMRES(restart=0), "restart"),
    ],
)
def test_option_out_of_range(make: Callable[[], Any], option: str) -> None:
    with pytest.raises(ArgumentError, match=option):
        make()


def test_unknown_policy(backend: Harness) -> None:
    with pytest.raises(ArgumentError, match=r"on_failure.*'explode'.*'raise', 'warn', 'keep', 'nan', 'ignore'"):
        backend.solve(fine, Y0, A, on_failure="explode")


@pytest.mark.each_in_jax
@pytest.mark.parametrize("name", ["verbose", "history", "check"])
@pytest.mark.parametrize("value", ["a", 1, None])
def test_a_switch_that_is_neither_on_nor_off(backend: Harness, name: str, value: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=rf"{name}: got {value!r}; it must be True or False"):
        backend.solve(fine, Y0, A, **{name: value})


@pytest.mark.each_in_jax
@pytest.mark.parametrize("batch_ndim", [-1, 1.0, True, 2, "1"])
def test_wrong_batch_ndim(backend: Harness, batch_ndim: Any) -> None:
    with pytest.raises(ArgumentError, match="batch_ndim"):
        backend.solve(fine, Y0, A, batch_ndim=batch_ndim)


def test_leaves_of_different_batches() -> None:
    y0 = {"u": np.zeros((3, 2)), "v": np.zeros((4, 1))}
    with pytest.raises(ArgumentError, match=r"batch_ndim.*\(3,\).*\(4,\)"):
        rootdiff.root(lambda y: y, y0, batch_ndim=1)


def test_leaves_of_different_precision() -> None:
    y0 = {"u": np.zeros(2), "v": np.zeros(1, dtype=np.float32)}
    with pytest.raises(ArgumentTypeError, match=r"y0.*float32.*float64"):
        rootdiff.root(lambda y: y, y0)


def test_residual_that_mutates_its_input() -> None:
    def mutating(y: np.ndarray, a: np.ndarray) -> np.ndarray:
        y -= a
        return y

    with pytest.raises(ArgumentError, match=r"residual.*in place"):
        rootdiff.root(mutating, Y0, A)


def test_residual_that_mutates_args() -> None:
    def mutating(y: np.ndarray, a: np.ndarray) -> np.ndarray:
        a += 1
        return y - a

    with pytest.raises(ArgumentError, match=r"residual.*in place"):
        rootdiff.root(mutating, Y0, A)


def test_error_of_the_user_passes_through(backend: Harness) -> None:
    def broken(y: Any, a: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        backend.solve(broken, Y0, A, solver="newton")


class Labelled:
    """What pandas' Series, xarray's DataArray and their like have in common: numbers with labels."""

    dtype = np.dtype(float)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([8.0])


class Table(Labelled):
    """What a DataFrame is: each of its columns has a dtype, it has none."""

    dtype = property()


class WithUnits(np.ndarray):
    """What np.matrix and astropy's quantities are: an array that is more."""


#: A module for each package, and what makes an array of numbers there.
PACKAGES = {
    "rootdiff": r"np\.asarray",
    "rootdiff_torch": r"torch\.as_tensor\(np\.asarray",
    "rootdiff_jax": r"np\.asarray",
}
MEANINGFUL = {
    "masked": np.ma.masked_array([8.0], [True]),
    "units": np.array([8.0]).view(WithUnits),
    "labels": Labelled(),
    "table": Table(),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", MEANINGFUL)
def test_numbers_with_a_meaning_that_would_be_lost(package: str, kind: str) -> None:
    rd, value = pytest.importorskip(package), MEANINGFUL[kind]
    for args in ((1.0, [value]), (1.0, {"a": value})):
        with pytest.raises(ArgumentTypeError, match=rf"args\[1\].*{type(value).__name__}.*{PACKAGES[package]}"):
            rd.root(lambda y, a, b: y - a, 0.0, *args)
    with pytest.raises(ArgumentTypeError, match=rf"y0.*{type(value).__name__}"):
        rd.root(lambda y: y - 1.0, value)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("module", "kind"), [("pandas", "Series"), ("pandas", "DataFrame"), ("xarray", "DataArray")])
def test_labelled_arrays_are_refused_by_name(package: str, module: str, kind: str) -> None:
    rd, value = pytest.importorskip(package), getattr(pytest.importorskip(module), kind)([8.0])
    with pytest.raises(ArgumentTypeError, match=rf"args\[0\].*{kind}.*np\.asarray"):
        rd.root(lambda y, a: y - a, 0.0, value)


@dataclass
class Constants:
    """What is no container to any framework, and so a constant."""

    a: Any


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dataclass_is_a_constant_and_what_it_holds_is_closed_over(package: str) -> None:
    rd, f = pytest.importorskip(package), lambda y, c: y**3 - c.a
    if package == "rootdiff":
        sol = rd.root(f, 1.0, Constants(8.0))
        assert sol.y == pytest.approx(2.0)
        assert sol.vjp(1.0) == sol.jacobian() == (None,)
        with pytest.raises(ArgumentError, match=r"tangent 0.*Constants.*in a tuple or dict"):
            sol.jvp(1.0)
    elif package == "rootdiff_torch":
        torch = pytest.importorskip("torch")
        a, y0 = torch.tensor(8.0, requires_grad=True), torch.ones(())
        assert torch.autograd.grad(rd.root(f, y0, Constants(a)).y, a)[0].item() == pytest.approx(1 / 12, rel=1e-5)
    else:
        jax = pytest.importorskip("jax")
        gradient = jax.grad(lambda a: rd.root(f, 1.0, Constants(a), solver="newton").y)
        assert float(gradient(8.0)) == pytest.approx(1 / 12, rel=1e-5)


def test_arrays_of_another_framework() -> None:
    torch = pytest.importorskip("torch")
    import jax.numpy as jnp

    import rootdiff_jax
    import rootdiff_torch

    with pytest.raises(ArgumentTypeError, match=r"y0.*Tensor.*rootdiff_torch"):
        rootdiff.root(fine, torch.ones(2), A)
    with pytest.raises(ArgumentTypeError, match=r"args\[0\].*torch.*rootdiff_torch"):
        rootdiff.root(fine, Y0, torch.ones(1))
    with pytest.raises(ArgumentTypeError, match=r"args\[0\].*numpy array"):
        rootdiff_torch.root(fine, torch.ones(2), A)
    with pytest.raises(ArgumentTypeError, match=r"y0.*jax"):
        rootdiff_torch.root(fine, jnp.ones(2), torch.ones(1))
    with pytest.raises(ArgumentTypeError, match=r"args\[0\].*torch.*rootdiff_torch"):
        rootdiff_jax.root(fine, jnp.ones(2), torch.ones(1))


@pytest.mark.parametrize("solver", ["chandrupatla", "bisection"])
def test_bracket_solver_for_a_system(backend: Harness, solver: str) -> None:
    with pytest.raises(ArgumentError, match=r"solver: .*one unknown.* has 2.*root_scalar"):
        backend.solve(fine, Y0, A, solver=solver)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_numpy_refuses_half_precision_by_name(name: str) -> None:
    half = np.dtype(name) if name == "float16" else np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    with pytest.raises(ArgumentTypeError, match=rf"y0: it has dtype {name}"):
        rootdiff.root(lambda y: y**2 - 2, np.ones(2, half))
    with pytest.raises(ArgumentTypeError, match=rf"args\[0\]: it has dtype {name}"):
        rootdiff.root(lambda y, a: y**2 - a, np.ones(2), np.ones(2, half))
    with pytest.raises(ArgumentTypeError, match=rf"bracket: it has dtype {name}"):
        rootdiff.root_scalar(lambda y: y**2 - 2, (np.array(0, half), np.array(2, half)))


def test_numpy_solves_in_extended_precision() -> None:
    a = np.array([2.0, 3.0], np.longdouble)
    sol = rootdiff.root(lambda y, a: y**3 - a, np.ones(2, np.longdouble), a)
    assert sol.y.dtype == np.longdouble
    assert np.max(np.abs(sol.y**3 - a)) <= 20 * np.finfo(np.longdouble).eps
    np.testing.assert_allclose(sol.vjp(np.ones(2, np.longdouble))[0], 1 / (3 * np.cbrt(a) ** 2), rtol=1e-12)


@pytest.mark.parametrize("name", ["numpy", "torch", "jax"])
def test_a_structure_is_shown_as_it_was_written(name):
    zeros = {"numpy": np.zeros, "torch": torch.zeros, "jax": jnp.zeros}[name]
    solve = {"numpy": rootdiff, "torch": rootdiff_torch, "jax": rootdiff_jax}[name].root
    shown = r"it returned \[\S*float(64|32)\[2\]\], but y0 is \{'a': \S*\[2\], 'b': \(\S*\[3\],\)\}\. It must"
    with pytest.raises(ArgumentError, match=shown):
        solve(lambda y: [y["a"]], {"a": zeros(2), "b": (zeros(3),)})
